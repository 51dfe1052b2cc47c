"""Work in a process of its own that starts at once: a fork of this one, which has imported what the work needs.

Every stage begins with the state that a fresh process has (random numbers, signals, loggers, threads) and gives all of
its memory back, but torch, transformers and MLflow are imported once for the whole pipeline. This process starts no
thread and computes nothing, or a fork would not be safe.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from types import FrameType

from tinychat.errors import UserError
from tinychat.launch.job import Stopped
from tinychat.runtime import process
from tinychat.runtime.process import end_group, end_with_parent


def preload(modules: Iterable[str], mlflow: bool) -> None:
    """Import what the steps will; some seconds, once."""
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg", "jinja2", "tinychat.launch.worker"):
        importlib.import_module(name)
    for module in modules:
        with contextlib.suppress(ImportError):  # the step itself says what is missing
            importlib.import_module(module)
    if mlflow:
        from tinychat.tracking.store import load_mlflow

        load_mlflow()
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")  # of a local database; a second of imports
    gc.freeze()  # a collection in a child would copy the pages of everything imported


def run_forked(work: Callable[[], None], name: str) -> None:
    """Run `work` in a child to its end; Ctrl-C, SIGTERM and SIGHUP go to it alone, so that it saves before it stops.

    Raises UserError, with `name`, when it fails; Stopped when it ended by a signal, or when one came meanwhile.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    forward = _Forward()
    with process.handling(forward):
        child = os.fork()
        if child == 0:
            os.close(reader)
            _be_the_child(work, writer)
        os.close(writer)
        forward.to(child)
        with os.fdopen(reader, "rb") as pipe:
            message = pipe.read().decode(errors="replace")
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        end_group(child, signal.SIGTERM)  # processes that the work has started and left
    if status < 0:
        killed = signal.Signals(-status).name
        more = ", which the system sends when memory runs out" if killed == "SIGKILL" else ""
        raise UserError(f"{name} was killed by {killed}{more}; the same command goes on from its last checkpoint")
    if status in process.STATUSES:
        raise Stopped(status)
    if status:
        raise UserError(f"{name}: {message}" if message else f"{name} ended with exit status {status}")
    if forward.received:
        raise Stopped(128 + forward.received[0])


class _Forward:
    """Passes signals on to a child, also those that came before there was one."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._child = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)
        if self._child:
            self._send(number)

    def to(self, child: int) -> None:
        self._child = child
        for number in self.received[:1]:
            self._send(number)

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, number)


def _be_the_child(work: Callable[[], None], writer: int) -> None:
    """Never returns. What the user can mend goes through the pipe, other errors with their traceback to stderr."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the others have their defaults in a fork
    status, message = 0, ""
    try:
        os.setpgid(0, 0)  # a terminal's Ctrl-C would reach it twice: directly, and passed on
        end_with_parent(signal.SIGTERM)
        work()
    except SystemExit as stop:  # as tinychat.train ends: a status, or the line it would print
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        message = str(stop.code).removeprefix("error: ") if isinstance(stop.code, str) else ""
    except UserError as error:
        status, message = 1, str(error)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException as error:
        traceback.print_exc()
        status, message = 1, f"{type(error).__name__}, an error of the program; its traceback is above"
    with contextlib.suppress(OSError):
        os.write(writer, message.encode()[:60000])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # at once, as tinychat.launch.worker does
