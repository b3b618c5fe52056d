"""Memory of this process: what it keeps, how much it took at most, how much it may take."""

import contextlib
import ctypes
import functools
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

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


def restart_peak() -> None:
    """Begin to measure `peak_mb` anew (Linux; elsewhere it goes on from the start of the process)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Most memory that was resident at one time since `restart_peak`, in megabytes."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@contextlib.contextmanager
def limited(megabytes: int | None) -> Iterator[None]:
    """Let what runs inside the block allocate no more than that in all; None sets no limit.

    What asks for more gets MemoryError (or torch's RuntimeError) instead of having the system kill
    some process. Counts private memory, resident or not (Linux 4.7 or later).
    """
    if megabytes is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(megabytes * 1e6)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
