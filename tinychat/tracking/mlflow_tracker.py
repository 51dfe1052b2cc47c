"""MLflow's side of run folders beyond one run: those whose processes were killed, and the run above a sweep's trials.

Runs whose processes were killed get their last points and a state from the next command of the experiment. A run that
has ended says so in its tracking.json ("closed"); one whose folder no process holds any more and that does not say so
was cut off: perhaps after its last step, with its result written and its last points in metrics.jsonl alone.

Above the runs of a sweep's trials there is one that every worker of the sweep, and every later start, opens. Nothing
here raises: what MLflow does not take is one warning, and stays in the folder.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from tinychat.config.schema import TrackerKind
from tinychat.report.headline import tags_of
from tinychat.runs import folders, trial
from tinychat.runtime.run_files import if_readable
from tinychat.runtime.terminal import masked
from tinychat.tracking.base import STATUS_OF, MetricsLog, Row, RunInfo, Status
from tinychat.tracking.mirror import reason
from tinychat.tracking.mlflow_run import MlflowRun, fit_tags, flatten, read_identity, run_tags
from tinychat.tracking.store import IDENTITY, resolve_uri

logger = logging.getLogger(__name__)
SWEEPS = "sweeps"  # OUTPUTS/sweeps/STUDY holds the run above a sweep's trials
AT_ONCE = 100  # cut-off runs that one command sees to


def cut_off(outputs: Path, experiment: str) -> Iterator[Path]:
    """The folders (of runs, pipelines and sweeps) of an experiment whose MLflow run was not closed by its process.

    Cheap where there are none: it reads a small file of each folder.
    """
    here = [*(outputs / experiment).glob(f"*/*/{IDENTITY}"), *(outputs / SWEEPS).glob(f"*/{IDENTITY}")]
    for path in here:
        found = read_identity(path.parent, outputs)
        if found is None or found.get("closed") or found.get("experiment") != experiment:
            continue
        if not folders.is_live(path.parent) and not folders.is_worked_on(path.parent):
            yield path.parent


def unsent(outputs: Path, experiment: str, uri: str) -> Iterator[Path]:
    """The folders of runs that have ended and of which this store was to have a run, but has none: killed before MLflow
    was there, or at the end of a time in which the store did not answer."""
    for path in (outputs / experiment).glob(f"*/*/{folders.RESULT}"):
        folder = path.parent
        if not (folder / folders.CONFIG).is_file():  # of a program, a step of a pipeline, which sends nothing
            continue
        if (folder / IDENTITY).exists() or folders.is_live(folder):
            continue
        tracker = (if_readable(functools.partial(folders.read_config, folder)) or {}).get("tracker")
        if not isinstance(tracker, dict) or tracker.get("kind") != TrackerKind.mlflow.value:
            continue
        if masked(resolve_uri(tracker.get("uri"), outputs)) == masked(uri) and folders.read_result(folder):
            yield folder


def _send(folder: Path, outputs: Path, experiment: str, uri: str) -> None:
    """A run that the store lacks, from its folder. Raises what MLflow raises."""
    config, result = folders.read_config(folder), folders.read_result(folder) or {}
    stage, model, data = (str((config.get(group) or {}).get("name")) for group in ("stage", "model", "data"))
    rows = MetricsLog(folder / "metrics.jsonl").read()
    name = trial.title(folder, f"{config.get('run_name') or folder.parent.name} {folder.name}")  # as rank 0 calls it
    run = MlflowRun(RunInfo(folder, outputs, experiment, name, resume_step=0), uri, system_metrics=False)
    run.open(flatten(config), fit_tags({**run_tags(stage, model, data), **trial.tags(folder), **_told(folder)}))
    run.send_rows(rows, lambda: None)
    run.send_inputs(data, (config.get("data") or {}).get("path"))
    for file in ("report.md", "report.html", "curves.png", folders.RESULT, folders.LINEAGE, "log.txt"):
        if (folder / file).is_file():
            run.send_file(folder / file, None)
    run.close(STATUS_OF.get(result.get("status") or "", "KILLED"), rows[-1].time if rows else time.time())


def _told(folder: Path) -> dict[str, str]:
    """A run's headline and description; of what is above runs (a sweep, a pipeline) none."""
    return tags_of(folder) if (folder / folders.CONFIG).is_file() else {}


def close_cut_off(outputs: Path, experiment: str, uri: str) -> list[Path]:
    """Send what the store lacks of those runs and set their state: that of their result, KILLED without one (a resume
    opens such a run again). Returns their folders. Nothing is raised: what a store does not take is tried again by the
    next command."""
    done = []
    for folder in list(cut_off(outputs, experiment))[:AT_ONCE]:
        log = MetricsLog(folder / "metrics.jsonl")
        try:
            status = STATUS_OF.get((folders.read_result(folder) or {}).get("status") or "", "KILLED")
            rows = log.read()
            ended = rows[-1].time if rows else time.time()
            # The run was there before: a step to resume from has it looked for, not made.
            info = RunInfo(folder, outputs, experiment, folder.parent.name, resume_step=0)
            if MlflowRun(info, uri, system_metrics=False).settle(status, rows, ended, _told(folder)):
                done.append(folder)
        except Exception as error:  # whatever MLflow raises
            logger.info("the MLflow run of %s, whose process was killed, stays as it is: %s", folder, error)
    for folder in itertools.islice(unsent(outputs, experiment, uri), AT_ONCE):
        try:
            _send(folder, outputs, experiment, uri)
            done.append(folder)
        except Exception as error:  # the same
            logger.info("MLflow did not take the run of %s: %s", folder, error)
    if done:
        names = ", ".join("/".join(folder.parts[-2:]) for folder in done[:3])
        more = f" and {len(done) - 3} more" if len(done) > 3 else ""
        logger.info("MLflow: gave runs whose processes were killed their last points and state: %s%s", names, more)
    return done


ALIAS = "winner"  # of the registry's version that is the sweep's best now


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
