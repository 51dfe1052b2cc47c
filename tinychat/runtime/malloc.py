"""Keep the memory of CPU tensors in the process."""

from __future__ import annotations

import ctypes
import platform

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
