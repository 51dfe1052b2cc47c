"""What a stage sees of a tracker, and the tracker that keeps everything in the run folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from tinychat.runtime.run_files import said_of
from tinychat.tracking.metrics_log import MetricsLog

Status = Literal["FINISHED", "FAILED", "KILLED"]
# How a run ended, as result.json has it -> as MLflow says it.
STATUS_OF: dict[str, Status] = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "pruned": "KILLED"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInfo:
    """Where a run lives and what it is called."""

    run_dir: Path
    outputs: Path  # holds the default MLflow store
    experiment_name: str
    run_name: str
    resume_step: int | None = None  # step of the checkpoint continued from (0: none was saved yet); None: a new run


class Tracker(Protocol):
    """Rank 0 alone has one. Nothing here stops or waits for anything but `finish`, which waits a bounded time.

    Per step the order is: log_metrics, then save the checkpoint. A resume from step S keeps the rows up to S, so a
    row written after its checkpoint could be lost with a kill in between.
    """

    def start(self, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin, or continue after RunInfo.resume_step: rows after it are dropped, as they come again."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one row of metrics.jsonl. Raises ValueError for a name outside vocabulary.METRICS, nothing else."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Keep a table (sample continuations) with the run as NAME.json; a table of the same name is replaced."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file to the run, as it is when it is sent."""

    def describe(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run, over those it has: its headline and description at its end."""

    def finish(self, status: Status) -> None:
        """Send what is left and close the run."""

    @property
    def run_id(self) -> str | None:
        """The store's name of the run, once it is known."""

    def wait_run_id(self, timeout: float) -> str | None:
        """`run_id`, waiting for it at most `timeout` seconds; None as soon as the store turns out unreachable."""


class NoTracker:
    """tracker=none: metrics.jsonl in the run folder, and nothing else."""

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.metrics_log = MetricsLog(run.run_dir / "metrics.jsonl")
        self._disk_warned = False

    def start(self, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        try:
            self.run.run_dir.mkdir(parents=True, exist_ok=True)
            if self.run.resume_step is None:
                self.metrics_log.set_aside()
            else:  # without a checkpoint everything comes again, the measurement before the first step too
                self.metrics_log.truncate_after(self.run.resume_step or -1)
        except OSError as error:
            self._warn_disk(error)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        try:
            self.metrics_log.append(step, metrics)
        except OSError as error:
            self._warn_disk(error)

    def _warn_disk(self, error: OSError) -> None:
        if not self._disk_warned:
            logger.warning("%s; its points are lost, training goes on", said_of(error, self.metrics_log.path))
        self._disk_warned = True

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        pass

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        pass

    def describe(self, tags: Mapping[str, Any]) -> None:
        pass

    def finish(self, status: Status) -> None:
        pass

    @property
    def run_id(self) -> str | None:
        return None

    def wait_run_id(self, timeout: float) -> str | None:
        return self.run_id
