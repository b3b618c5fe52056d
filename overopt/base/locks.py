"""Locks between processes: kernel locks (`flock`) where they can be trusted, leases elsewhere.

The kernel keeps a file locked until its holder ends, however. Some file systems take the call and
exclude nobody, which is found out by trying; on network file systems it may exclude only within one
machine, or be lost without word. There a lock is a lease: a file that its holder touches again and
again, and that another process takes over when it was not touched for as long as the lease lasts. A
holder that was stopped may wake up behind that: a lease alone protects nothing, and what is done under
one must be fenced (`overopt.engine.attempts`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from overopt.base.errors import StoreError

if TYPE_CHECKING:
    from filelock import SoftFileLease

RETRY_S = 0.05
PATIENCE_S = 300.0
"""How long `waiting` waits: longer than anything that is done under such a lock takes."""
LEASE_S = 60.0
"""How long a lease lasts that its holder does not renew; it tries three times as often."""

_NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "gluster", "orangefs", "pvfs",
            "afs", "9p", "virtiofs", "panfs", "wekafs", "fuse")  # fmt: skip
"""What the types of file systems begin with that other machines may write to."""

_contenders: dict[tuple[str, int], SoftFileLease] = {}
"""Leases that a thread of this process watches: one expires when it was seen unchanged for so long."""


@dataclass(frozen=True)
class Hold:
    """A lock that this process has taken.

    Attributes
    ----------
    is_kept : callable
        Whether it still has it, by a look at the disk.
    is_lost : callable
        Whether it is known to have lost it, without a look at the disk; False says nothing.
    """

    is_kept: Callable[[], bool]
    is_lost: Callable[[], bool] = lambda: False


def lease_for(folder: Path) -> float | None:
    """Seconds of a lease for locks in ``folder``; None where kernel locks can be trusted."""
    return None if excludes(folder) and not _is_shared(folder) else LEASE_S


@contextlib.contextmanager
def trying(path: Path, lease_s: float | None = None) -> Iterator[Hold | None]:
    """Try to hold the lock ``path``; yields None where another process does.

    ``lease_s``: make it a lease of so many seconds. All who contend for it must say the same.

    The file is removed on release, while still locked, which is why a lock that was taken is only
    good if its file is still the one on disk.
    """
    if lease_s is not None:
        with _leasing(path, lease_s) as hold:
            yield hold
        return
    fd = _take(path)
    try:
        yield None if fd is None else Hold(lambda: _is_same(fd, path))
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
        It was not free within ``patience_s`` seconds.
    """
    end, lease_s = time.monotonic() + patience_s, lease_for(path.parent)
    while True:
        with trying(path, lease_s) as mine:
            if mine:
                yield
                return
        if time.monotonic() >= end:
            raise StoreError(
                f"{path}: {what} is being written by another process for {patience_s:.0f} s; wait"
                " for it, or end it, then run again"
            )
        time.sleep(RETRY_S)


def is_taken(path: Path, lease_s: float | None = None) -> bool:
    """Whether some process holds the lock at this moment, as far as one look can say."""
    if lease_s is not None:
        age = _age_s(path)
        return age is not None and age < lease_s
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
    """Whether a kernel lock in ``folder`` keeps a second holder out: two open files try it."""
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
        except OSError:  # ENOSYS, ENOLCK: there are none
            return False
        finally:
            os.close(second)
    finally:
        os.close(first)
        with contextlib.suppress(OSError):
            path.unlink()


def _is_shared(folder: Path) -> bool:
    """Whether ``folder`` lies on a file system that other machines may write to (Linux)."""
    try:
        lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return False
    place, best, kind = os.path.realpath(folder), -1, ""
    for line in lines:
        fields = line.split()
        mount = fields[1].replace("\\040", " ")
        inside = place == mount or place.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= best:
            best, kind = len(mount), fields[2]
    return kind.startswith(_NETWORK)


@contextlib.contextmanager
def _leasing(path: Path, lease_s: float) -> Iterator[Hold | None]:
    """`trying`, with a lease."""
    from filelock import SoftFileLease, Timeout

    key = (str(path), threading.get_ident())
    lease = _contenders.get(key)
    if lease is None or lease.lease_duration != lease_s:
        lease = SoftFileLease(path, lease_duration=lease_s, thread_local=False, mode=0o666)
        _contenders[key] = lease
    try:
        lease.acquire(blocking=False)
    except Timeout:
        yield None
        return
    del _contenders[key]  # what is acquired is watched no more
    token = lease.token or ""
    try:
        yield Hold(lambda: token in _text(path), lambda: lease.compromise is not None)
    finally:
        lease.release()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _age_s(path: Path) -> float | None:
    """Seconds since ``path`` was touched by the clock of its file system; None if it is absent."""
    probe = path.with_name(f".now-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        touched = path.stat().st_mtime
    except OSError:
        return None
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:  # a store that may only be read
        now = time.time()
    return now - touched


def _is_same(fd: int, path: Path) -> bool:
    """Whether ``path`` still is the open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _take(path: Path) -> int | None:
    """An open file that holds the lock, or None where another process has it."""
    fd = _open(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_same(fd, path):
            return fd
    except BlockingIOError:
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
