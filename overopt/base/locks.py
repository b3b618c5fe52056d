"""Locks between processes: files that the kernel keeps locked until their holder ends, however.

Safety rests on ``flock``. Where a file system takes the call and excludes nobody (some network
mounts and layered file systems), that is found out by trying, and said.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from overopt.base.errors import StoreError

RETRY_S = 0.05
PATIENCE_S = 300.0
"""How long `waiting` waits: longer than anything that is done under such a lock takes."""


@contextlib.contextmanager
def trying(path: Path) -> Iterator[bool]:
    """Try to hold the lock ``path``; yields whether this process does.

    The file is removed on release, while still locked, which is why a lock that was taken is only
    good if its file is still the one on disk.
    """
    fd = _take(path)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(fd)


@contextlib.contextmanager
def waiting(path: Path, what: str, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold the lock ``path``, waiting for whoever has it; ``what``: what it guards, for messages.

    Raises
    ------
    StoreError
        It was not free within ``patience_s`` seconds, or the file system has no working locks.
    """
    end = time.monotonic() + patience_s
    while True:
        with trying(path) as mine:
            if mine:
                if not excludes(path.parent):
                    raise StoreError(
                        f"{path.parent}: its file system has no working locks (flock excludes"
                        f" nobody), so {what} cannot be shared; use another directory"
                    )
                yield
                return
        if time.monotonic() >= end:
            raise StoreError(
                f"{path}: {what} is being written by another process for {patience_s:.0f} s; wait"
                " for it, or end it, then run again"
            )
        time.sleep(RETRY_S)


def is_taken(path: Path) -> bool:
    """Whether some process holds the lock at this moment."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:  # another user's, kept from us: as long as it is there, it counts
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def excludes(folder: Path) -> bool:
    """Whether a lock in ``folder`` keeps a second holder out: two open files try it."""
    path = folder / f".trial-{os.getpid()}-{secrets.token_hex(4)}"
    first = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        second = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
        finally:
            os.close(second)
    finally:
        os.close(first)
        with contextlib.suppress(OSError):
            path.unlink()


def _take(path: Path) -> int | None:
    """An open file that holds the lock, or None where another process has it."""
    fd = _open(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _open(path: Path) -> int:
    """The lock file, made if absent; another user's, which may not be written, is read."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except PermissionError:
        try:
            return os.open(path, os.O_RDONLY | flags)
        except FileNotFoundError:  # the directory is what may not be written
            pass
        raise
