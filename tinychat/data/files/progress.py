"""How far tokenizing has come: a bar where standard error is a terminal, otherwise a log line now and
then."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any

LINE_EVERY = 10.0  # seconds
log = logging.getLogger(__name__)


class TokenizingProgress:
    """A context manager; `update` takes totals so far. `total` counts documents (or what `unit` says) or, with
    `in_bytes`, bytes of the files; None where it is unknown. Silent with `enabled=False`."""

    def __init__(self, title: str, total: int | None, in_bytes: bool, enabled: bool, unit: str = "documents") -> None:
        self.title, self.total, self.in_bytes, self.enabled, self.unit = title, total, in_bytes, enabled, unit
        self._bar: Any = None
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> TokenizingProgress:
        if self.enabled and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(self.title, total=self.total, rate="")
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, docs: int, tokens: int, bytes_read: int) -> None:
        now = time.monotonic()
        rate = f"{tokens / 1e6:.2f} M tokens, {_rate(tokens, now - self._start)}"
        done = bytes_read if self.in_bytes else docs
        if self._bar:
            self._bar.update(self._task, completed=done, rate=rate)
        elif self.enabled and now - self._last_line >= LINE_EVERY:
            self._last_line = now
            share = f"{min(1.0, done / self.total):4.0%}, " if self.total else ""
            log.info("tokenizing %s: %s%s %s, %s", self.title, share, f"{docs:,}", self.unit, rate)


def _rate(tokens: int, seconds: float) -> str:
    per_second = tokens / max(seconds, 1e-9)
    return f"{per_second / 1e6:.2f} M/s" if per_second >= 1e5 else f"{per_second:,.0f}/s"


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
