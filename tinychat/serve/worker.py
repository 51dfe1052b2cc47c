"""The one thread that computes: requests wait in a bounded queue, their replies join the running batch of their model
as places get free, and leave it when they end, when their time is over, or when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinychat.serve.metrics import Metrics
from tinychat.serve.replies import Piece, Reply
from tinychat.serve.requests import ApiError
from tinychat.serve.served import Language

log = logging.getLogger("tinychat")
# Between two pieces of a stream. Sending one costs Python's one interpreter lock as long as many tokens take a small
# model, and nobody reads faster.
PIECE_SECONDS = 0.04
PROMPT_TOKENS = 2048  # computed at a time, padding included, while the running replies wait; one prompt at least


@dataclass(eq=False)
class Job:
    """Replies to one request, or functions to be called, one between two steps. What comes of it is put into `pieces`:
    a Piece, the list of the functions' results, or the ApiError that ends it."""

    deadline: float  # of time.monotonic
    loop: asyncio.AbstractEventLoop
    waiting: deque[Reply] = field(default_factory=deque)
    calls: deque[Callable[[], Any]] = field(default_factory=deque)
    results: list[Any] = field(default_factory=list)  # of the calls up to now
    pieces: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    begun: float = field(default_factory=time.monotonic)
    answered: bool = False  # its first token is there
    told_at: float = 0.0  # when it was last told something
    cancelled: bool = False  # nobody waits for it


class Worker:
    """Models and the thread that steps them in turn."""

    def __init__(self, models: Sequence[Language], rows: int, queue: int, seconds: float, metrics: Metrics):
        """rows: replies of a model side by side; queue: requests that may wait; seconds: a request may take."""
        self.models, self._rows, self._queue, self._seconds = models, rows, queue, seconds
        self.metrics = metrics
        self._queues: dict[Language | None, deque[Job]] = {model: deque() for model in (*models, None)}
        self._running: dict[Language, dict[int, tuple[Job, Reply]]] = {
            model: {} for model in models
        }  # by id of the row
        self._told: list[tuple[Job, Any]] = []
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread after its current step. What is on its way is told so."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, model: Language, replies: Sequence[Reply]) -> Job:
        """In the loop that the pieces are read in. Raises ApiError where too many wait."""
        return self._enter(model, Job(self._deadline(), asyncio.get_running_loop(), deque(replies)))

    def call(self, functions: Sequence[Callable[[], Any]]) -> Job:
        """The list of their results, or the ApiError that one raises, is its one piece. Each is a part of the work
        that the replies on their way can wait for."""
        return self._enter(None, Job(self._deadline(), asyncio.get_running_loop(), calls=deque(functions)))

    def cancel(self, job: Job) -> None:
        with self._wake:
            job.cancelled = True
            self._wake.notify()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def sizes(self) -> dict[str, int]:
        """Of the metrics: what runs and what waits now."""
        with self._wake:
            waiting = sum(map(len, self._queues.values()))
        return {"running": sum(map(len, self._running.values())), "waiting": waiting}

    def _deadline(self) -> float:
        return time.monotonic() + self._seconds

    def _enter(self, model: Language | None, job: Job) -> Job:
        with self._wake:
            if self._closing:
                raise ApiError("the server is ending", status=503, kind="server_error")
            waiting = sum(map(len, self._queues.values()))
            if waiting >= self._queue:
                raise ApiError(
                    f"{waiting} requests are waiting already; try again in a moment",
                    status=429,
                    kind="requests",
                    code="rate_limit_exceeded",
                )
            self._queues[model].append(job)
            self._wake.notify()
        return job

    # ------------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            self._work()
        except Exception:
            log.exception("the thread that computes has ended")
        with self._wake:
            self._closing = True
        ending = ApiError("the server is ending", status=503, kind="server_error")
        for model in self.models:
            self._give_up(model, ending, waiting_too=True)
        self._deliver()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._closing and not any(self._queues.values()) and not any(self._running.values()):
                    self._wake.wait()
                if self._closing:
                    return
            self._calls()
            for model in self.models:
                try:
                    self._turn(model)
                except Exception as error:  # a request must not end the others'
                    log.exception("model %s", model.name)
                    self._give_up(
                        model, ApiError(f"{type(error).__name__} in the server", status=500, kind="server_error")
                    )
            self._deliver()

    def _calls(self) -> None:
        """One function, if one waits: those of several requests in turn."""
        with self._wake:
            job = self._queues[None].popleft() if self._queues[None] else None
        if job is None or job.cancelled:
            return
        try:
            result: Any = self._late(job)
            if result is None:
                job.results.append(job.calls.popleft()())
                if job.calls:
                    with self._wake:
                        self._queues[None].append(job)
                    return
                result = job.results
        except ApiError as error:
            result = error
        except Exception as error:
            log.exception("a request")
            result = ApiError(f"{type(error).__name__} in the server", status=500, kind="server_error")
        self._told.append((job, result))

    def _turn(self, model: Language) -> None:
        """One token for each running reply of a model, and the first one for those that join."""
        running = self._running[model]
        for job in {id(job): job for job, _ in running.values()}.values():
            if job.cancelled or (late := self._late(job)):
                self._drop(model, job)
                if not job.cancelled:
                    self._told.append((job, late))
                    job.cancelled = True
        self._take_in(model, model.step())
        if joining := self._joining(model):
            for job, reply in joining:
                running[id(reply.row)] = job, reply
            self._take_in(model, model.batch.join([reply.row for _, reply in joining]))

    def _late(self, job: Job) -> ApiError | None:
        if time.monotonic() < job.deadline:
            return None
        return ApiError(
            f"the request took longer than {self._seconds:g} seconds", status=504, kind="timeout", code="timeout"
        )

    def _joining(self, model: Language) -> list[tuple[Job, Reply]]:
        """Replies for the free places, those of several requests in turn, as long as their prompts are not too much
        at once."""
        found: list[tuple[Job, Reply]] = []
        longest = 0
        prompts: set[int] = set()  # computed once, though several replies have it
        with self._wake:
            queue = self._queues[model]
            for job in [job for job in queue if job.cancelled or time.monotonic() >= job.deadline]:
                queue.remove(job)
                if not job.cancelled:
                    self._told.append((job, self._late(job)))
                    job.cancelled = True
            while queue and len(self._running[model]) + len(found) < self._rows:
                job = queue[0]
                prompt = job.waiting[0].row.prompt
                longest = max(longest, len(prompt))
                prompts.add(id(prompt))
                if found and longest * len(prompts) > PROMPT_TOKENS:
                    break
                queue.popleft()
                found.append((job, job.waiting.popleft()))
                if job.waiting:
                    queue.append(job)
        return found

    def _take_in(self, model: Language, drawn: Sequence[Any]) -> None:
        running = self._running[model]
        gone = []
        for one in drawn:
            job, reply = running[id(one.row)]
            piece = reply.add(one)
            if not job.answered:
                job.answered = True
                self.metrics.first_token.add(time.monotonic() - job.begun)
            if piece is not None:
                self._told.append((job, piece))
            if reply.finished:
                gone.append(one.row)
                del running[id(one.row)]
        self.metrics.tokens += len(drawn)
        model.batch.leave(gone)

    def _drop(self, model: Language, job: Job) -> None:
        """A job's replies, running and waiting."""
        running = self._running[model]
        rows = [reply.row for own, reply in running.values() if own is job]
        for row in rows:
            del running[id(row)]
        model.batch.leave(rows)
        with self._wake:
            if job in self._queues[model]:
                self._queues[model].remove(job)

    def _give_up(self, model: Language, why: ApiError, waiting_too: bool = False) -> None:
        jobs = {id(job): job for job, _ in self._running[model].values()}
        if waiting_too:
            with self._wake:
                jobs |= {id(job): job for queue in self._queues.values() for job in queue}
        for job in jobs.values():
            self._drop(model, job)
            self._told.append((job, why))
        model.batch.leave(list(model.batch.rows))

    def _deliver(self) -> None:
        """What has come, to each loop at once: the first of a request and its ends soon, what lies between when it is
        time."""
        now = time.monotonic()
        due = {
            id(job)
            for job, piece in self._told
            if now - job.told_at >= PIECE_SECONDS or not isinstance(piece, Piece) or piece.finish
        }
        told = [(job, piece) for job, piece in self._told if id(job) in due]
        self._told = [(job, piece) for job, piece in self._told if id(job) not in due]
        for job, _ in told:
            job.told_at = now
        for loop in {id(job.loop): job.loop for job, _ in told}.values():
            own = [(job, piece) for job, piece in told if job.loop is loop]
            try:
                loop.call_soon_threadsafe(_put, own)
            except RuntimeError:  # the server has ended
                pass


def _put(told: list[tuple[Job, Any]]) -> None:
    for job, piece in told:
        job.pieces.put_nowait(piece)


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces of one reply as one."""
    last = pieces[-1]
    return Piece(
        last.index,
        "".join(piece.text for piece in pieces),
        tuple(told for piece in pieces for told in piece.told),
        last.tokens,
        last.finish,
    )
