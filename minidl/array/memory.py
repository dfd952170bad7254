"""Memory that is freed stays with the process, for the next step to use again."""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3), from glibc's malloc.h


@cache
def keep_freed() -> bool:
    """Ask glibc's malloc to keep arrays that are freed; False for another C library.

    It would give large ones back to the kernel, and every step would pay page faults
    for the same memory again. 32 MiB is the most that may be kept an array; what is
    free at the end of the heap is given back from 1 GiB on.
    """
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is None:
        return False
    kept = mallopt(_MMAP_THRESHOLD, 32 << 20)
    return bool(kept and mallopt(_TRIM_THRESHOLD, 1 << 30))


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)  # kept: one that is dropped is left to the collector
