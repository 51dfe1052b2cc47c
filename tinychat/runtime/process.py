"""The process itself: memory that it keeps, what ends it with its parent, and signals that ask it to save and stop."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Numbers of malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGE = 32 << 20  # bytes, the most that glibc takes for a threshold


def keep_freed_memory() -> bool:
    """Let glibc serve tensors below LARGE from its heap and keep that, so that their pages are faulted in once and not
    in every step. Larger ones are given back each time: glibc before 2.38 does not use a freed aligned block again for
    one of its own size, and with logits of ever other sizes the heap would grow without end.

    Call it before the first large tensor exists. It changes no result. Returns False, and does nothing, without glibc
    (macOS, Windows, musl).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_THRESHOLD: LARGE, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20}
    taken = [mallopt(key, value) == 1 for key, value in settings.items()]
    return all(taken)


def give_back_freed_memory() -> None:
    """Give the system what keep_freed_memory has kept: what one part of a job has freed, the next, which needs other
    sizes, would only lie beside. Its pages are faulted in anew, so not in every step. Does nothing without glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def end_without_a_last_look() -> None:
    """Have Python end this process without its last search for garbage. After torch and transformers were imported it
    goes through a million objects, which takes a second and frees what the system frees anyhow."""
    atexit.register(gc.freeze)


def discard_output() -> None:
    """Standard output goes nowhere from now on: its reader has gone, as `| head` does when it has read enough."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def end_where_nobody_reads() -> None:
    """Have Python end this process with the status it has, where the reader has gone before what is still buffered was
    written: Python itself would complain and end with status 120."""
    atexit.register(_write_the_rest)


def _write_the_rest() -> None:
    if sys.stdout is not None and not sys.stdout.closed:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            discard_output()


PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def end_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when its parent is gone. Does nothing where there is no Linux."""
    if platform.system() == "Linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


def end_group(leader: int, signal_number: int) -> None:
    """Send a signal to what is left of a process group, whose leader may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal_number)


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STATUSES = tuple(128 + number for number in STOPPING)  # exit status of what was told to stop, and has
Handler = Callable[[int, Any], None]

_listening: list[dict[int, Any]] = []  # of each `handling` that is entered: signal -> the handler before it
_masks = threading.local()  # of a thread that forks: the signals it had blocked before


class Interrupted(KeyboardInterrupt):
    """Raised by a signal where there is nothing to save."""


@contextlib.contextmanager
def handling(handler: Handler, numbers: Sequence[int] = STOPPING) -> Iterator[None]:
    """Within, signals go to `handler(number, frame)`. SIGHUP stays ignored where it is (nohup)."""

    def heard(number: int, frame: Any) -> None:
        leave_lost_terminal()
        handler(number, frame)

    previous: dict[int, Any] = {}
    for number in numbers:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, heard)
    _listening.append(previous)
    try:
        yield
    finally:
        if previous in _listening:  # not in a fork
            _listening.remove(previous)
        for number, before in previous.items():
            signal.signal(number, before)


@contextlib.contextmanager
def ignored_by_children() -> Iterator[None]:
    """What is started within ignores what a terminal sends, Ctrl-C and SIGHUP: the disposition is inherited."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def leave_lost_terminal() -> None:
    """What is written to a terminal that has closed goes nowhere from now on; it would break a save."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)


def _before_fork() -> None:
    # A signal that comes between the fork and the new dispositions waits for those.
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING) if _listening else None


def _after_fork() -> None:
    before, _masks.before = getattr(_masks, "before", None), None
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_fork_in_child() -> None:
    for number in {number for previous in _listening for number in previous}:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    _listening.clear()
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
