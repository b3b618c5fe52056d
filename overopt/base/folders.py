"""Folders that are written by several processes or users: locks, left-overs, permissions, trials."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from overopt.base import locks
from overopt.base.errors import StoreError
from overopt.base.files import TEMPORARY, atomic_write, given, os_errors


def drop_temporary(folder: Path) -> None:
    """Remove temporary files that a dead process of this machine left in ``folder``."""
    here = f".{socket.gethostname()[:32]}."
    for left in folder.iterdir():
        name = TEMPORARY.fullmatch(left.name)
        if name is None or here not in left.name or _is_alive(int(name["pid"])):
            continue
        with contextlib.suppress(OSError):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextlib.contextmanager
def group_umask(folder: Path) -> Iterator[None]:
    """Let the group write what is made inside the block, if it may write ``folder``.

    A folder that a group shares (``chmod g+ws``) stays one, whatever the umask of its users.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    before = os.umask(0o077)
    is_shared = bool(folder.stat().st_mode & stat.S_IWGRP)
    os.umask(before & ~0o070 if is_shared else before)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def locked(folder: Path, what: str = "") -> Iterator[Path]:
    """Be the only process that writes into ``folder``, made if absent; waits for another one.

    Temporary files that a killed writer left there are removed.

    Raises
    ------
    StoreError
        It cannot be made or written, or another process keeps it for minutes.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        with os_errors(folder):
            stack.enter_context(group_umask(folder))
            for attempt in range(100):
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(locks.waiting(folder / ".lock", what or str(folder)))
                    break
                except FileNotFoundError:  # someone who only tried it took the folder away again
                    if attempt == 99:
                        raise
            drop_temporary(folder)
        yield folder


def check_folder(folder: Path, option: str, *names: str) -> None:
    """Raise unless files (named ``names``, if it is known) can be written into ``folder``.

    Tried for real; what had to be made for it is taken away again. For output that is written after
    hours of work: ``option`` is where another folder is given, in later errors too.

    Raises
    ------
    StoreError
        No permission, read-only, a file, device or pipe in the way, a circle of links, a name too
        long.
    """
    folder = Path(folder)
    given(folder, option)
    made: list[Path] = []
    try:
        missing = folder
        while not os.path.lexists(missing) and missing != missing.parent:
            made.append(missing)
            missing = missing.parent
        for attempt in range(100):
            try:
                _try_writing(folder, names or ("x",))
                break
            except FileNotFoundError:  # another that only tried it took the folder away again
                if attempt == 99:
                    raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"{error.filename or folder}: {reason}: nothing could be written into {folder}; give"
            f" another place with {option}"
        ) from error
    finally:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()


def _try_writing(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".trial-") as trial:
        for name in names:
            Path(trial, name).touch(exist_ok=False)
            target = folder / name
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
            if target.exists() and not target.is_file():  # a device would be replaced
                raise FileExistsError(errno.EEXIST, "is not a regular file", target)


def made_for(file: Path) -> Path:
    """``file``, after the directory around it was made, which `check_folder` found to be possible.

    Raises
    ------
    StoreError
        It is no longer possible.
    """
    with os_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    return file


def write_once(path: Path, data: bytes) -> None:
    """Write a file that may not exist yet, whole or not at all.

    Raises
    ------
    FileExistsError
        It exists.
    """
    with locked(path.parent):
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        atomic_write(path, data)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
