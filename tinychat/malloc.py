"""Keep the memory of large CPU tensors in the process."""

from __future__ import annotations

import ctypes
import platform

# Numbers of malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let glibc serve large tensors from its heap, so that their pages are faulted in once and not in every step.

    Call it before the first large tensor exists. It changes no result; the process keeps its peak memory until it ends.
    Returns False, and does nothing, without glibc (macOS, Windows, musl).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20}
    taken = [mallopt(key, value) == 1 for key, value in settings.items()]
    return all(taken)
