"""The MLflow run above those of a sweep's trials, and the winner's place in the model registry.

Every worker of a sweep, and every later start, opens the same run. Nothing here raises: what MLflow does not take is
one warning, and stays in the sweep's folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from tinychat.runtime.terminal import masked
from tinychat.tracking.base import Row, RunInfo, Status
from tinychat.tracking.mlflow_run import MlflowRun, fit_tags, flatten, read_identity
from tinychat.tracking.mlflow_tracker import reason
from tinychat.tracking.store import IDENTITY

ALIAS = "winner"  # of the registry's version that is the sweep's best now
logger = logging.getLogger(__name__)


class SweepRun:
    """One parent run, found again by its folder. After a failure only `close` tries again."""

    def __init__(self, folder: Path, outputs: Path, experiment: str, name: str, uri: str):
        # A step to resume from, so that a run of this folder is looked for before one is made.
        self._store = MlflowRun(RunInfo(folder, outputs, experiment, name, resume_step=0), uri, False)
        self._folder, self._uri, self._outputs = folder, uri, outputs
        self._described: tuple[dict[str, str], dict[str, str]] = ({}, {})
        self._away = False

    @property
    def run_id(self) -> str | None:
        return self._store.run_id

    def open(self, params: Mapping[str, Any], tags: Mapping[str, Any]) -> str | None:
        """Make the run or find it; its id, None where MLflow does not answer."""
        self._described = flatten(params), fit_tags({**tags, "tinychat.kind": "sweep"})
        self._try(self._open)
        return self.run_id

    def _open(self) -> None:
        with FileLock(self._folder / ".mlflow.lock"):
            self._store.open(*self._described)

    def point(self, number: int, metrics: Mapping[str, float]) -> None:
        """What was known after the trial `number`."""
        if not self._away:
            self._try(lambda: self._store.send_rows([Row(number, time.time(), dict(metrics))], lambda: None))

    def close(
        self, status: Status | None, tags: Mapping[str, Any], files: Sequence[Path], table: Mapping[str, Any]
    ) -> None:
        """Send tags, files and the table {"columns", "data"} of trials; status None: others are still at work."""

        def send() -> None:
            if not self._store.is_open:
                self._open()
            self._store.send_tags(fit_tags(tags))
            for path in files:
                self._store.send_file(path, None)
            self._store.send_table("trials", list(table["columns"]), [list(row) for row in table["data"]])
            if status is not None:
                self._store.close(status, time.time())

        self._try(send)

    def register(self, name: str, run_dir: Path, checkpoint: Path, tags: Mapping[str, Any]) -> str | None:
        """Put the checkpoint of a trial into its own run and the model registry; the version, None where that failed.

        A trial that is registered already is not registered again.
        """
        found: list[str] = []

        def send() -> None:
            identity = read_identity(run_dir, self._outputs)
            if identity is None:
                raise FileNotFoundError(f"{run_dir / IDENTITY} says not which run it is")
            run_id = identity["run_id"]
            found.append(self._store.register(name, run_id, checkpoint, fit_tags(tags), ALIAS))

        self._try(send)
        return found[0] if found else None

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
            self._away = False
        except Exception as error:  # whatever MLflow raises, the sweep goes on
            if not self._away:
                logger.warning(
                    "MLflow at %s: %s; the sweep goes on, its results are in %s",
                    masked(self._uri),
                    reason(error),
                    self._folder,
                )
            self._away = True
