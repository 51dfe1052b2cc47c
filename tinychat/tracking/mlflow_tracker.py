"""MLflow as a mirror of the run folder. Training never waits for it: a thread follows metrics.jsonl and sends it on."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinychat.tracking.base import NoTracker, RunInfo, Status
from tinychat.tracking.mlflow_mirror import Artifact, Item, Mirror, Table, Tags
from tinychat.tracking.params import fit_tags

STALL_SECONDS = 20.0  # finish() gives up when MLflow took nothing for this long
LIMIT_SECONDS = 120.0  # and after this in any case
PARENT_TAG = "mlflow.parentRunId"  # what MLflow's interface folds runs by
QUEUE_ITEMS = 256  # tables and artifacts waiting; metrics wait in the file
logger = logging.getLogger(__name__)


class MlflowTracker(NoTracker):
    """Writes metrics.jsonl; a background thread keeps the MLflow run the same."""

    def __init__(self, run: RunInfo, uri: str, system_metrics: bool, parent: str | None = None) -> None:
        super().__init__(run)
        self._items: queue.Queue[Item] = queue.Queue(maxsize=QUEUE_ITEMS)
        self._mirror = Mirror(run, uri, system_metrics, self.metrics_log.path, self._items)
        self._parent = {PARENT_TAG: parent} if parent else {}
        self._full_warned = False
        self._finished = False

    def start(self, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        super().start(params, tags)
        self._mirror.describe(params, {**tags, **self._parent})
        self._mirror.start()

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._put(Table(name, list(columns), [list(row) for row in rows]))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._put(Artifact(Path(path), folder))

    def describe(self, tags: Mapping[str, Any]) -> None:
        self._put(Tags(fit_tags(tags)))

    def _put(self, item: Item) -> None:
        try:
            self._items.put_nowait(item)
        except queue.Full:
            if not self._full_warned:
                logger.warning("MLflow is too slow: %s and what follows stay in the run folder only", item.label)
            self._full_warned = True

    def finish(self, status: Status) -> None:
        """Send what is left and set the run's status; returns within STALL_SECONDS of the last progress."""
        if self._finished or not self._mirror.is_alive():
            return
        self._finished = True
        self._mirror.stop(status)
        began = time.monotonic()
        while not self._mirror.done.wait(0.05):
            now = time.monotonic()
            if now - max(began, self._mirror.beat) > STALL_SECONDS or now - began > LIMIT_SECONDS:
                self._mirror.abandon(f"no answer for {now - max(began, self._mirror.beat):.0f} s")
                return

    @property
    def run_id(self) -> str | None:
        return self._mirror.run_id

    def wait_run_id(self, timeout: float) -> str | None:
        self._mirror.answered.wait(timeout)
        return self.run_id
