"""How a process treats memory that it has freed."""

import contextlib
import ctypes
import functools

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_REUSED, _MOST_KEPT = 1 << 25, 1 << 29  # bytes; no version of glibc refuses the first


@functools.cache
def keep_freed_memory() -> None:
    """Let this process use again what it frees, up to half a gigabyte of it (glibc only).

    By default glibc takes large tensors from the system one by one and gives them back at once, and
    the system fills the pages of each anew: up to a tenth of a PPO step on a CPU. No number depends
    on it. Where the C library is another one, nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_REUSED)
        mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)
