"""Run folders mirrored by trackers. Training never waits for one: a thread for each follows metrics.jsonl, sends it on,
and keeps trying while its store is away. Nothing here raises: what a store does not take is one warning, and stays in
the folder."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tinychat.tracking.base import NoTracker, Row, RunInfo, Status, parse_rows

FLUSH_SECONDS = 1.0  # between two looks at the file
RETRY_SECONDS = (2.0, 60.0)  # first and longest pause after a failure; it doubles
ITEM_TRIES = 3
CHUNK_BYTES = 1 << 20
logger = logging.getLogger(__name__)


class Store(Protocol):
    """One run where a tracker keeps it. Used by one thread; may raise anything."""

    kind: str  # MLflow, TensorBoard, wandb
    place: str  # for messages: "MLflow at http://..."
    local: bool  # files of this machine: it cannot be away, though its library may be slow to start
    run_id: str | None  # the store's name of the run, once it is known
    is_open: bool

    def open(self, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Make the run, or find the one that this folder had. May be called again after a failure: it goes on where it
        stopped, and never makes a second run."""

    def send_rows(self, rows: Sequence[Row], sent: Callable[[], None]) -> None:
        """Send the points that the store does not have; `sent` is called after each part."""

    def send_inputs(self, data: str, path: str | None) -> bool:
        """The data sets of lineage.json; False before the stage has written it."""

    def send_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None: ...

    def send_file(self, path: Path, folder: str | None) -> None: ...

    def send_tags(self, tags: dict[str, Any]) -> None: ...

    def close(self, status: Status, ended: float) -> None:
        """`ended` is in seconds since the epoch."""


@dataclass(frozen=True)
class Table:
    name: str
    columns: list[str]
    rows: list[list[Any]]

    @property
    def label(self) -> str:
        return f"{self.name}.json"

    def send(self, run: Store) -> None:
        run.send_table(self.name, self.columns, self.rows)


@dataclass(frozen=True)
class Artifact:
    path: Path
    folder: str | None

    @property
    def label(self) -> str:
        return self.path.name

    def send(self, run: Store) -> None:
        run.send_file(self.path, self.folder)


@dataclass(frozen=True)
class Tags:
    values: dict[str, Any]

    @property
    def label(self) -> str:
        return "the description"

    def send(self, run: Store) -> None:
        run.send_tags(self.values)


Item = Table | Artifact | Tags


class Mirror(threading.Thread):
    """Follows the file `metrics` by its byte offset. Nothing escapes run(): trouble becomes one warning line."""

    def __init__(self, store: Store, metrics: Path, first: Callable[[], None] | None = None) -> None:
        """first: to be called once, when the run is open and its rows are sent."""
        super().__init__(name=f"{store.kind}-mirror", daemon=True)
        self.store = store
        self.answered = threading.Event()  # the first attempt to open the run succeeded or failed
        self.done = threading.Event()  # nothing more will be sent
        self.beat = time.monotonic()  # of the last thing that the store took
        self.run_id: str | None = None
        self._first = first
        self._metrics, self._offset = metrics, 0
        self._items: queue.Queue[Item] = queue.Queue(maxsize=QUEUE_ITEMS)
        self._full_warned = False
        self._tries = 0
        self._item: Item | None = None  # taken from the queue and not yet sent
        self._stopping = threading.Event()
        self._status: Status = "FINISHED"
        self._ended = 0.0
        self._failures = 0
        self._warned = False
        self._inputs_sent = False
        self._params: Mapping[str, Any] = {}
        self._tags: Mapping[str, Any] = {}

    def describe(self, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """What the run was made with; before start()."""
        self._params, self._tags = params, tags

    def put(self, item: Item) -> None:
        """To be sent when its turn comes."""
        try:
            self._items.put_nowait(item)
        except queue.Full:
            if not self._full_warned:
                kind = self.store.kind
                logger.warning("%s is too slow: %s and what follows stay in the run folder only", kind, item.label)
            self._full_warned = True

    def stop(self, status: Status) -> None:
        self._status, self._ended = status, time.time()
        self._stopping.set()

    def run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.is_set()  # read first: all that was logged before stop() goes out in this round
            try:
                self._round(stopping)
                self._went_well()
                pause = FLUSH_SECONDS
            except Exception as error:  # whatever a store raises, training goes on
                pause = min(RETRY_SECONDS[0] * 2**self._failures, RETRY_SECONDS[1])
                self._went_wrong(error)
            if not stopping:
                self._stopping.wait(pause)
        self.done.set()

    def _round(self, stopping: bool) -> None:
        if not self.store.is_open:
            self.store.open(self._params, self._tags)
            self.run_id, self.beat = self.store.run_id, time.monotonic()
            self.answered.set()
        self._send_rows()
        if self._first is not None:
            first, self._first = self._first, None
            first()
            self._took_something()
        if not self._inputs_sent:
            data = self._params.get("data") or {}
            self._inputs_sent = self.store.send_inputs(str(self._tags.get("data", "")), data.get("path"))
        self._send_items(stopping)
        if stopping:
            self.store.close(self._status, self._ended)

    def _send_rows(self) -> None:
        """Send the whole lines after the offset. A repeat after a failure is harmless: equal points are stored once."""
        while data := self._read_chunk():
            self.store.send_rows(list(parse_rows(data)), self._took_something)
            self._offset += len(data)

    def _read_chunk(self) -> bytes:
        if not self._metrics.exists():
            return b""
        with open(self._metrics, "rb") as file:
            file.seek(self._offset)
            data = file.read(CHUNK_BYTES)
        return data[: data.rfind(b"\n") + 1]

    def _send_items(self, last: bool) -> None:
        while True:
            if self._item is None:
                try:
                    self._item, self._tries = self._items.get_nowait(), 0
                except queue.Empty:
                    return
            try:
                self._tries += 1
                self._item.send(self.store)
            except Exception as error:
                if not last and self._tries < ITEM_TRIES:
                    raise
                logger.warning("%s did not take %s (%s)", self.store.kind, self._item.label, reason(error))
            self._item = None
            self._took_something()

    def _took_something(self) -> None:
        self.beat = time.monotonic()

    def _went_well(self) -> None:
        if self._failures and self._warned and not self._stopping.is_set():
            logger.info("%s answers again; the metrics kept meanwhile were sent", self.store.place)
        self._failures, self._warned = 0, False

    def _went_wrong(self, error: Exception) -> None:
        self._failures += 1
        self.abandon(reason(error))
        self.answered.set()

    def abandon(self, why: str) -> None:
        """One line for one outage."""
        if not self._warned:
            place, kept = self.store.place, self._metrics
            logger.warning("%s: %s; training goes on, metrics are kept in %s", place, why, kept)
        self._warned = True


def reason(error: BaseException) -> str:
    """The first cause of `error` in one short line: MLflow wraps a refused connection in four layers of text."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


STALL_SECONDS = 20.0  # finish() gives up when a store took nothing for this long
LIMIT_SECONDS = 120.0  # and after this in any case
QUEUE_ITEMS = 256  # tables and artifacts waiting; metrics wait in the file


class MirroredTracker(NoTracker):
    """Writes metrics.jsonl; background threads keep the runs of the stores the same."""

    def __init__(self, run: RunInfo, mirrors: Sequence[Mirror]) -> None:
        """mirrors: one at least; the first one's run is `run_id`."""
        super().__init__(run)
        self._mirrors = list(mirrors)
        self._finished = False

    def start(self, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        super().start(params, tags)
        for mirror in self._mirrors:
            mirror.describe(params, tags)
            mirror.start()

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._put(Table(name, list(columns), [list(row) for row in rows]))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._put(Artifact(Path(path), folder))

    def describe(self, tags: Mapping[str, Any]) -> None:
        self._put(Tags(dict(tags)))

    def _put(self, item: Item) -> None:
        for mirror in self._mirrors:
            mirror.put(item)

    def finish(self, status: Status) -> None:
        """Send what is left and set the runs' status; returns within STALL_SECONDS of the last progress, of a store on
        this machine, which may only be slow, within LIMIT_SECONDS."""
        alive = [mirror for mirror in self._mirrors if mirror.is_alive()]
        if self._finished or not alive:
            return
        self._finished = True
        for mirror in alive:
            mirror.stop(status)
        began = time.monotonic()
        for mirror in alive:
            while not mirror.done.wait(0.05):
                now = time.monotonic()
                stall = LIMIT_SECONDS if mirror.store.local else STALL_SECONDS
                if now - max(began, mirror.beat) > stall or now - began > LIMIT_SECONDS:
                    mirror.abandon(f"no answer for {now - max(began, mirror.beat):.0f} s")
                    break

    @property
    def run_id(self) -> str | None:
        return self._mirrors[0].run_id

    def wait_run_id(self, timeout: float) -> str | None:
        self._mirrors[0].answered.wait(timeout)
        return self.run_id
