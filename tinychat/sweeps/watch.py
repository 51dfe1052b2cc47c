"""Looks after a running trial from the sweep's process: a sign of life in the study, what it measured so far, and an
end for a trial that is not worth its time. The trial itself may run anywhere that writes to its run folder."""

from __future__ import annotations

import logging
import math
import threading
import time
from pathlib import Path
from types import TracebackType

from optuna.trial import Trial

from tinychat.runs import folders, trial
from tinychat.sweeps.study import HEARTBEAT_SECONDS, SharedStudy
from tinychat.tracking import MetricsLog

LOOK_SECONDS = 0.5
logger = logging.getLogger(__name__)


class Watch:
    """A context manager around a trial's run. `begin` is told the run folder once there is one."""

    def __init__(self, study: SharedStudy, asked: Trial, metric: str | None):
        """metric: the objective that is compared with other trials' during training; None: nothing is."""
        self._study, self._trial, self._metric = study, asked, metric
        self._folder: Path | None = None
        self._steps = 1
        self._told: set[int] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trial-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def begin(self, run_dir: Path, max_steps: int) -> None:
        self._steps, self._folder = max_steps, run_dir

    def _run(self) -> None:
        beat = time.monotonic()
        while not self._done.wait(LOOK_SECONDS):
            try:
                if time.monotonic() - beat > HEARTBEAT_SECONDS:
                    self._study.storage.record_heartbeat(self._trial._trial_id)
                    beat = time.monotonic()
                self._look()
            except Exception as error:  # a database that is busy: the trial goes on, the next look tries again
                logger.debug("trial %d: %s", self._trial.number, error)

    def _look(self) -> None:
        """Report what is new, and ask the trial to stop where the pruner says so."""
        if self._folder is None or self._metric is None:
            return
        for row in MetricsLog(self._folder / "metrics.jsonl").read():
            value, percent = row.metrics.get(self._metric), progress(row.step, self._steps)
            if value is None or not math.isfinite(value) or not 0 < percent < 100 or percent in self._told:
                continue
            self._trial.report(value, percent)
            self._told.add(percent)
            if self._trial.should_prune() and not (self._folder / folders.RESULT).exists():
                why = f"{self._metric} {value:.4g} at {percent} % is no match for the other trials at that point"
                trial.ask_to_stop(self._folder, why)


def progress(step: int, steps: int) -> int:
    """How much of a trial is done, in per cent: what trials of different lengths are compared by."""
    return round(100 * step / max(steps, 1))
