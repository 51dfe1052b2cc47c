"""MLflow as a mirror of run folders. Training never waits for it: a thread follows metrics.jsonl, sends it on,
and keeps trying while MLflow is away.

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
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from tinychat.config.schema import TrackerKind
from tinychat.report.headline import tags_of
from tinychat.runs import folders, trial
from tinychat.runtime.run_files import if_readable
from tinychat.runtime.terminal import masked
from tinychat.tracking.base import STATUS_OF, MetricsLog, NoTracker, Row, RunInfo, Status, parse_rows
from tinychat.tracking.mlflow_run import MlflowRun, fit_tags, flatten, read_identity, run_tags
from tinychat.tracking.store import IDENTITY, resolve_uri

FLUSH_SECONDS = 1.0  # between two looks at the file
RETRY_SECONDS = (2.0, 60.0)  # first and longest pause after a failure; it doubles
ITEM_TRIES = 3
CHUNK_BYTES = 1 << 20
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    name: str
    columns: list[str]
    rows: list[list[Any]]

    @property
    def label(self) -> str:
        return f"{self.name}.json"

    def send(self, run: MlflowRun) -> None:
        run.send_table(self.name, self.columns, self.rows)


@dataclass(frozen=True)
class Artifact:
    path: Path
    folder: str | None

    @property
    def label(self) -> str:
        return self.path.name

    def send(self, run: MlflowRun) -> None:
        run.send_file(self.path, self.folder)


@dataclass(frozen=True)
class Tags:
    values: dict[str, str]

    @property
    def label(self) -> str:
        return "the description"

    def send(self, run: MlflowRun) -> None:
        run.send_tags(self.values)


Item = Table | Artifact | Tags


class Mirror(threading.Thread):
    """Follows the file `metrics` by its byte offset. Nothing escapes run(): trouble becomes one warning line."""

    def __init__(self, run: RunInfo, uri: str, system_metrics: bool, metrics: Path, items: queue.Queue[Item]) -> None:
        super().__init__(name="mlflow-mirror", daemon=True)
        self.answered = threading.Event()  # the first attempt to open the run succeeded or failed
        self.done = threading.Event()  # nothing more will be sent
        self.beat = time.monotonic()  # of the last thing MLflow took
        self.run_id: str | None = None
        self._store = MlflowRun(run, uri, system_metrics)
        self._run, self._address = run, uri
        self._looked = False  # for runs of killed processes
        self._run_dir, self._uri = run.run_dir, masked(uri)
        self._metrics, self._offset = metrics, 0
        self._items, self._tries = items, 0
        self._item: Item | None = None  # taken from the queue and not yet sent
        self._stopping = threading.Event()
        self._status: Status = "FINISHED"
        self._ended = 0.0
        self._failures = 0
        self._warned = False
        self._inputs_sent = False
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}

    def describe(self, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """What the run was made with; before start()."""
        self._params, self._tags = flatten(params), fit_tags(tags)

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
            except Exception as error:  # whatever MLflow raises, training goes on
                pause = min(RETRY_SECONDS[0] * 2**self._failures, RETRY_SECONDS[1])
                self._went_wrong(error)
            if not stopping:
                self._stopping.wait(pause)
        self.done.set()

    def _round(self, stopping: bool) -> None:
        if self.run_id is None or not self._store.is_open:
            self._store.open(self._params, self._tags)
            self.run_id, self.beat = self._store.run_id, time.monotonic()
            self.answered.set()
        self._send_rows()
        if not self._looked:
            self._looked = True
            close_cut_off(self._run.outputs, self._run.experiment_name, self._address)
            self._took_something()
        if not self._inputs_sent:
            path = self._params.get("data.path", "null")
            self._inputs_sent = self._store.send_inputs(self._tags.get("data", ""), None if path == "null" else path)
        self._send_items(stopping)
        if stopping:
            self._store.close(self._status, self._ended)

    def _send_rows(self) -> None:
        """Send the whole lines after the offset. A repeat after a failure is harmless: equal points are stored once."""
        while data := self._read_chunk():
            self._store.send_rows(list(parse_rows(data)), self._took_something)
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
                self._item.send(self._store)
            except Exception as error:
                if not last and self._tries < ITEM_TRIES:
                    raise
                logger.warning("MLflow did not take %s (%s)", self._item.label, reason(error))
            self._item = None
            self._took_something()

    def _took_something(self) -> None:
        self.beat = time.monotonic()

    def _went_well(self) -> None:
        if self._failures and self._warned and not self._stopping.is_set():
            logger.info("MLflow at %s answers again; the metrics kept meanwhile were sent", self._uri)
        self._failures, self._warned = 0, False

    def _went_wrong(self, error: Exception) -> None:
        self._failures += 1
        self.abandon(reason(error))
        self.answered.set()

    def abandon(self, why: str) -> None:
        """One line for one outage."""
        if not self._warned:
            kept = self._run_dir / self._metrics.name
            logger.warning("MLflow at %s: %s; training goes on, metrics are kept in %s", self._uri, why, kept)
        self._warned = True


def reason(error: BaseException) -> str:
    """The first cause of `error` in one short line: MLflow wraps a refused connection in four layers of text."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


STALL_SECONDS = 20.0  # finish() gives up when MLflow took nothing for this long
LIMIT_SECONDS = 120.0  # and after this in any case
PARENT_TAG = "mlflow.parentRunId"  # what MLflow's interface folds runs by
QUEUE_ITEMS = 256  # tables and artifacts waiting; metrics wait in the file


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
