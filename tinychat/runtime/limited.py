"""Work in a process of its own, with a bound on time and memory: chat templates of strangers, verifiers of the user's.

A line of JSON with jobs goes in, a line for each comes out. The kernel ends the process after so many seconds of
processor time for one job, its parent where one sleeps; more memory than the bound, beyond what it began with, is
refused. Run as a program it calls functions of the user's by their addresses.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

from tinychat.runtime import process, user_code

BYTES_PER_CHARACTER = 64  # more for each one of a request
WALL_TIMES = 4  # seconds by the clock for each of processor time
LOADING = 120.0  # seconds of processor time for loading code of the user's


class Died(NamedTuple):
    """Why a job has no answer: its process ended."""

    too_slow: bool
    how: str


class LimitedProcess:
    """The process at the other end of two pipes: one for each program, and for each process that asks."""

    _now: ClassVar[dict[str, LimitedProcess]] = {}
    _lock = threading.Lock()

    def __init__(self, program: str, shows: bool) -> None:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._owner, self._late = os.getpid(), False
        self.loaded: set[str] = set()  # addresses of code that it has
        self._process = subprocess.Popen(
            [sys.executable, "-m", program],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if shows else subprocess.DEVNULL,
        )

    @classmethod
    def of(cls, program: str, shows: bool = False) -> LimitedProcess:
        """The one that runs the program, a module that ends with serve(); a new one where it has ended, or belongs to
        the process this was forked from. shows: what it prints is seen."""
        now = cls._now.get(program)
        if now is None or now._owner != os.getpid() or now._process.poll() is not None:
            cls._now[program] = now = cls(program, shows)
            atexit.register(now.end)
        return now

    def ask(self, common: Any, jobs: Sequence[Any], seconds: float, memory: float) -> list[Any]:
        """What the program answers to each job, up to the first that it lets nothing follow; Died for the last where
        the process ended. seconds: of processor time, for one job. memory: bytes beyond what it began with."""
        request = json.dumps([common, list(jobs), seconds, memory], default=str).encode() + b"\n"
        with self._lock:
            try:
                watch = threading.Timer(seconds * WALL_TIMES * len(jobs), self._give_up)
                watch.start()
                try:
                    return list(self._answers(request, len(jobs)))
                finally:
                    watch.cancel()
            except BaseException:  # such as Ctrl-C: what it still has to say is nobody's answer any more
                self.end()
                raise

    def _answers(self, request: bytes, count: int) -> Iterator[Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(request)
            self._process.stdin.flush()
        for _ in range(count):
            line = self._process.stdout.readline()
            if not line.endswith(b"\n"):
                yield self._died()
                return
            answer, goes_on = json.loads(line)
            yield answer
            if not goes_on:
                return

    def _give_up(self) -> None:
        self._late = True
        self._process.kill()

    def _died(self) -> Died:
        status = self._process.wait()
        if self._late or status == -signal.SIGPROF:
            return Died(True, "")
        return Died(False, signal.Signals(-status).name if status < 0 else f"status {status}")

    def end(self) -> None:
        if self._owner == os.getpid() and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


Answer = Callable[[Any, Any], tuple[Any, bool]]  # (common, job) -> the answer, and whether another job may follow


def serve(answer: Answer) -> None:
    """What the program does until nobody asks any more. The pipes are its alone: what jobs print goes to stderr."""
    process.end_with_parent(signal.SIGKILL)
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent's to act on, which may want an answer yet
        signal.signal(stop, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with open(os.dup(0), "rb") as requests, open(os.dup(1), "wb") as answers:
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        with contextlib.suppress(BrokenPipeError):
            _serve(answer, requests, answers)


def _serve(answer: Answer, requests: IO[bytes], answers: IO[bytes]) -> None:
    begins_with = _memory()
    for request in requests:
        common, jobs, seconds, memory = json.loads(request)
        if math.isfinite(memory):
            _bound_memory(int(begins_with + memory + BYTES_PER_CHARACTER * len(request)))
        for job in jobs:
            signal.setitimer(signal.ITIMER_PROF, seconds)  # nobody handles SIGPROF: the kernel ends the process
            found, goes_on = answer(common, job)
            signal.setitimer(signal.ITIMER_PROF, 0)
            answers.write(json.dumps([found, goes_on]).encode() + b"\n")
            if not goes_on:
                break
        answers.flush()
        if not math.isfinite(memory):
            begins_with = _memory()


def _memory() -> int:
    """Bytes of this process's address space; 0 where there is no Linux to say so."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 0


def _bound_memory(most: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if sys.platform == "linux":  # others do not keep to it
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


class OutOfBounds(Exception):
    """A call of the user's code took more time or memory than it may."""


def call(address: str, arguments: Sequence[Any], seconds: float, memory: float) -> Any:
    """What the user's function at an address gives for the arguments, all of JSON; of another value its repr, as a
    list of one text. Raises UserCodeError for what it raises, OutOfBounds."""
    helper = LimitedProcess.of(__name__, shows=True)
    common = [address, os.getcwd()]
    if address not in helper.loaded:
        (found,) = helper.ask(common, [None], LOADING, math.inf)
        _told(found, LOADING, memory)
        helper.loaded.add(address)
    (found,) = helper.ask(common, [arguments], seconds, memory)
    return _told(found, seconds, memory)


def _told(found: Any, seconds: float, memory: float) -> Any:
    if isinstance(found, Died) and found.too_slow:
        raise OutOfBounds(f"took more than {seconds:g} s")
    if isinstance(found, Died) or found.get("memory"):
        ended = f" ({found.how})" if isinstance(found, Died) else ""
        raise OutOfBounds(f"took more than {memory / 1e6:g} MB, or ended its process{ended}")
    if "why" in found:
        raise user_code.UserCodeError(found["why"])
    return found["value"]


def _call(common: Any, arguments: Any) -> tuple[Any, bool]:
    address, folder = common
    os.chdir(folder)
    try:
        function = user_code.named(address)
        if arguments is None:
            return {"value": None}, True
        with user_code.running():
            value = function(*arguments)
            if isinstance(value, (str, bytes)) or value is None:
                value = [repr(value)[:80]]
            elif not isinstance(value, (bool, int, float)):
                value = float(value) if hasattr(value, "__float__") else [repr(value)[:80]]
            return {"value": value}, True
    except user_code.UserCodeError as error:
        if isinstance(error.__cause__, MemoryError):
            return {"memory": True}, True
        return {"why": str(error)}, True


if __name__ == "__main__":
    serve(_call)
