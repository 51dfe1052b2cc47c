"""A line in the log now and then from work that says nothing until it is done."""

from __future__ import annotations

import logging
import time

LINE_EVERY = 20.0  # seconds
log = logging.getLogger("tinychat")


class Heartbeat:
    """Begins when it is made."""

    def __init__(self, what: str, total: int, unit: str):
        """`what` is done to `total` of `unit`: "frozen backbone", 800, "replies"."""
        self._what, self._total, self._unit = what, total, unit
        self._begin = self._said = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begin

    def at(self, done: int) -> None:
        """So many are done: a line where the last one, or the beginning, is LINE_EVERY seconds ago, unless it is all of
        them."""
        if time.monotonic() - self._said < LINE_EVERY or done >= self._total:
            return
        self._said = time.monotonic()
        log.info("%s: %s of %s %s, %.0f s", self._what, f"{done:,}", f"{self._total:,}", self._unit, self.seconds)
