"""No process of a job outlives the one that started it: an orphan would go on writing to the run folder."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def end_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when its parent is gone. Does nothing where there is no Linux."""
    if platform.system() == "Linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


def end_group(leader: int, signal_number: int) -> None:
    """Send a signal to what is left of a process group, whose leader may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal_number)
