"""Attempts at a stage: each has folders of its own, and a later one puts an earlier one out.

Two processes may be at work on one stage without knowing of each other: one was stopped, or cut off from
the file system, for longer than its lease lasts, and another one took its place. Fencing keeps the
first from doing harm when it goes on::

    root/.scratch/<stage>-<fingerprint>.<attempt>   what the attempt writes; renamed when it is done
    root/.inflight/<stage>-<fingerprint>.<attempt>  its checkpoints, which survive the process

``<attempt>`` is host, process, time of the start and a random word, so that the names of the folders
say who does what; ``root/.scratch/.<folder>.progress`` says how far it got.

An attempt begins by renaming whatever earlier attempts left: scratch to a name that nobody knows, then
away; checkpoints to its own name. From then on the earlier attempt finds none of its folders: it can
neither commit, which is a rename of its scratch folder, nor write a checkpoint. Both are single
operations of the file system, so there is no moment in which both attempts are the valid one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from overopt.base import escape, files
from overopt.base.errors import OveroptError
from overopt.base.files import os_errors
from overopt.base.locks import Hold
from overopt.engine.manifest import Identity, Workspace

SCRATCH, INFLIGHT = ".scratch", ".inflight"
_NAME = re.compile(r"(?P<stage>[^.].*?)-(?P<fp>[0-9a-f]{16})(\.(?P<attempt>.+))?")

log = logging.getLogger(__name__)


class Fenced(OveroptError, RuntimeError):
    """Another attempt at the stage has taken the place of this one."""


class Working(NamedTuple):
    """An attempt as the names of its folders tell of it: who, since when, how far.

    started: seconds since 1970. done, total: of the steps, 0 of 0 where nothing is known.
    """

    stage: str
    fingerprint: str
    host: str
    pid: int
    started: int
    done: int
    total: int


class Folder(NamedTuple):
    """A folder that an attempt at a stage left, or has."""

    stage: str
    fingerprint: str
    path: Path


def folders(root: Path, kind: str) -> Iterator[Folder]:
    """All folders of attempts of a kind (SCRATCH or INFLIGHT), in the order of their names."""
    place = root / kind
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        if found := _NAME.fullmatch(path.name):
            yield Folder(found["stage"], found["fp"], path)


def checkpoints(root: Path, stage: str, fp: str) -> list[Path]:
    """Checkpoint folders of a stage that are not empty, the latest last."""
    found = []
    for path in _of(root / INFLIGHT, stage, fp):
        with contextlib.suppress(OSError):  # taken over a moment ago, or not ours to read
            if any(path.iterdir()):
                found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def working(root: Path) -> list[Working]:
    """All attempts that have scratch folders, living or not."""
    found = []
    for left in folders(root, SCRATCH):
        name = _NAME.fullmatch(left.path.name)
        parts = ((name and name["attempt"]) or "").rsplit(".", 3)
        if len(parts) == 4 and parts[1].isdecimal() and parts[2].isdecimal():
            done, total = _progress(left.path)
            who = (parts[0], int(parts[1]), int(parts[2]))
            found.append(Working(left.stage, left.fingerprint, *who, done, total))
    return found


def say_progress(out: Path, done: int, total: int) -> None:
    """Write down how far the attempt with the scratch folder ``out`` got, for others to see."""
    with contextlib.suppress(OSError):  # nice to have
        _progress_file(out).write_text(f"{done} {total}")


def _progress(out: Path) -> tuple[int, int]:
    try:
        done, total = (int(number) for number in _progress_file(out).read_text().split())
        return (done, total) if max(abs(done), abs(total)) < 1 << 60 else (0, 0)
    except (OSError, ValueError):
        return 0, 0


def _progress_file(out: Path) -> Path:
    return out.with_name(f".{out.name}.progress")


def drop_progress(root: Path) -> None:
    """Remove what attempts that are gone said of their progress."""
    for file in (root / SCRATCH).glob(".*.progress"):
        if not file.with_name(file.name[1:].removesuffix(".progress")).exists():
            file.unlink(missing_ok=True)


def _of(place: Path, stage: str, fp: str) -> list[Path]:
    """Folders of attempts at one stage; in stores of before attempts had names, a plain one."""
    name = f"{stage}-{fp}"
    names = os.listdir(place) if place.is_dir() else []
    return [place / each for each in names if each == name or each.startswith(f"{name}.")]


@contextlib.contextmanager
def workspace(root: Path, identity: Identity, hold: Hold | None) -> Iterator[Workspace]:
    """Folders for an attempt at a stage; call while holding its lock, ``hold``.

    Left-over scratch files of earlier attempts are removed, their checkpoints are taken over. Whatever
    is still in scratch at the end, because nothing was committed, is removed too.

    Raises
    ------
    Fenced
        The lock was lost before the folders were made.
    """
    stage, fp = identity.stage, identity.fingerprint
    name = f"{stage}-{fp}.{_attempt()}"
    out, checkpoint = root / SCRATCH / name, root / INFLIGHT / name
    with os_errors(out):
        out.mkdir(parents=True)
    try:
        with os_errors(out):
            # Looked at behind the making: who takes the lock from now on sees the folder, and fences.
            if hold is not None and not hold.is_kept():
                raise Fenced(f"{stage}-{fp}: another process took over before the stage began")
            for left in _of(out.parent, stage, fp):
                if left != out:
                    retire(left)
            resumed = _take_over(root, stage, fp, checkpoint)
        yield Workspace(identity=identity, out=out, checkpoint=checkpoint, resumed=resumed)
    finally:
        remove(out)
        _progress_file(out).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            checkpoint.rmdir()  # succeeds only where there is nothing to resume from


def _take_over(root: Path, stage: str, fp: str, checkpoint: Path) -> bool:
    """Make the latest checkpoint of earlier attempts this one's; returns whether there was one."""
    for left in _of(checkpoint.parent, stage, fp):
        if not os.access(left, os.R_OK | os.W_OK | os.X_OK):
            _set_aside(left)
    usable = checkpoints(root, stage, fp)
    if usable:
        try:
            os.rename(usable[-1], checkpoint)
        except FileNotFoundError:
            raise Fenced(f"{stage}-{fp}: another process took the checkpoint over") from None
    else:
        checkpoint.mkdir(parents=True)
    for left in _of(checkpoint.parent, stage, fp):
        if left != checkpoint:
            retire(left)
    return bool(usable)


def retire(left: Path) -> None:
    """Remove what an attempt left, at one blow for whoever still works in it.

    What another user left, and may not be removed, gets another name, with a warning.
    """
    aside = left.with_name(files.temporary_name(left.name))
    try:
        os.rename(left, aside)
    except FileNotFoundError:
        return
    except PermissionError:
        _warn(left, left)
        return
    try:
        remove(aside)
    except PermissionError:
        _warn(left, aside)
    except OSError:  # something still writes there; the next sweep tries again
        pass


def _set_aside(left: Path) -> None:
    aside = left.with_name(files.temporary_name(left.name))
    os.rename(left, aside)
    _warn(left, aside)


def remove(path: Path) -> None:
    """Remove a folder, if it is there."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        # rmtree names what it stumbled over by its last part only.
        raise type(error)(error.errno, error.strerror, str(path)) from error


def _warn(left: Path, now: Path) -> None:
    log.warning(
        "%s: was left by user %d and may not be removed; skipped",
        escape.line(str(left)),
        os.lstat(now).st_uid,
    )


def _attempt() -> str:
    """A name for an attempt that no other has: host (or node of SLURM), process, time, random."""
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return f"{host[:32]}.{os.getpid()}.{time.time():.0f}.{secrets.token_hex(4)}"
