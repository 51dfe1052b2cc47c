"""What a stage sees of a tracker; the tracker that keeps everything in the run folder; and metrics.jsonl, one line per
logged step, which is the truth: MLflow and the report are made from it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from tinychat.runtime.run_files import if_readable, read_bytes, said_of, tell_once, write_text_atomic
from tinychat.tracking.vocabulary import check_names

Status = Literal["FINISHED", "FAILED", "KILLED"]
# How a run ended, as result.json has it -> as MLflow says it.
STATUS_OF: dict[str, Status] = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "pruned": "KILLED"}
METRICS_FILE = "metrics.jsonl"
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
        self.metrics_log = MetricsLog(run.run_dir / METRICS_FILE)
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


LONGEST_LINE = 1 << 16  # bytes
MOST_BYTES = 1 << 32  # of a file: a kilobyte for each of four million steps


@dataclass(frozen=True)
class Row:
    """What was measured at one optimizer step. `time` is seconds since the epoch."""

    step: int
    time: float
    metrics: dict[str, float]

    def to_line(self) -> bytes:
        """One line of strict JSON: NaN and the infinities become strings that float() reads back."""
        values = {name: value if math.isfinite(value) else _name(value) for name, value in self.metrics.items()}
        return json.dumps({"step": self.step, "time": round(self.time, 3), **values}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Row:
        """Raises ValueError for a line that is no row."""
        values = json.loads(line)
        if not isinstance(values, dict) or not {"step", "time"} <= values.keys():
            raise ValueError("not a row of metrics.jsonl")
        step, seconds = values.pop("step"), values.pop("time")
        return cls(int(step), float(seconds), {name: float(value) for name, value in values.items()})


def _name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def parse_rows(data: bytes) -> Iterator[Row]:
    """The rows among the lines of `data`; a line cut short by a kill or a full disk is passed over."""
    for line in data.splitlines():
        try:
            yield Row.from_line(line)
        except (ValueError, TypeError, OverflowError, RecursionError):
            continue


class MetricsLog:
    """Appends rows to one file and reads them back. One writer; any number of readers."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._checked = False  # whether the last line is known to be whole

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line and hand it to the operating system, so that kill -9 cannot lose it.

        Raises ValueError for a name outside the vocabulary, OSError when the disk is full (no torn line stays).
        """
        check_names(metrics)
        line = Row(int(step), time.time(), {name: float(value) for name, value in metrics.items()}).to_line()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if not self._checked and os.fstat(descriptor).st_size:
                self._drop_torn_line(descriptor)
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, line) != len(line):
                os.ftruncate(descriptor, size)
                raise OSError(28, "No space left on device", str(self.path))
        finally:
            os.close(descriptor)

    def _drop_torn_line(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        tail_start = max(size - LONGEST_LINE, 0)
        tail = os.pread(descriptor, size - tail_start, tail_start)
        if not tail.endswith(b"\n"):
            os.ftruncate(descriptor, tail_start + tail.rfind(b"\n") + 1)
        self._checked = True

    def read(self) -> list[Row]:
        """All rows, oldest first; [] when there is no file. Lines that are no rows, but for a last one cut short, and a
        file that cannot be read are told once: there the curves have a gap."""
        data = if_readable(lambda: read_bytes(self.path, MOST_BYTES)) or b""
        rows = list(parse_rows(data))
        damaged = len(data.splitlines()) - len(rows) - (not data.endswith(b"\n") and data != b"")
        if damaged > 0:
            tell_once(f"{self.path}: {damaged} damaged lines are left out, so there is a gap in its curves")
        return rows

    def truncate_after(self, step: int) -> None:
        """Keep the rows with row.step <= step, in one atomic replacement of the file."""
        rows = self.read()
        write_text_atomic(self.path, b"".join(row.to_line() for row in rows if row.step <= step).decode())
        self._checked = True

    def set_aside(self) -> None:
        """Rename a file left by an earlier run to a free name, so that a new run starts empty."""
        if not self.path.exists():
            return
        number = 1
        while (target := self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}")).exists():
            number += 1
        os.replace(self.path, target)
