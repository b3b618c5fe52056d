"""Fingerprint-addressed artefacts on disk: whole or absent, checked on opening, never overwritten.

An artefact is a directory
``root/<stage>/<fingerprint>/`` with a ``manifest.json`` that says how it came about and holds a
checksum of every file::

    root/store.json                      format version of the store
    root/<stage>/<fingerprint>/          finished artefacts
    root/.scratch/<stage>-<fingerprint>  files of a stage that is running; renamed when it is done
    root/.inflight/<stage>-<fingerprint> its checkpoints, which survive the process
    root/.locks/<stage>-<fingerprint>    held by the process that computes it
    root/experiments/<name>.json         fingerprints that an experiment was last finished with

Safety rests on two operations of the file system: ``rename`` of a directory, which happens or does
not, and ``flock``, which the kernel releases when its holder dies in whatever way. Scratch files
belong to whoever holds the lock of their artefact, so left-overs of a killed process are
recognised without guessing from process numbers or clocks.

What it does differently from a cache: nothing here is ever deleted or recomputed behind the user's
back. A damaged artefact is an error that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISREG
from typing import Any

from overopt.base import files, folders, locks
from overopt.base.config import RuntimeConfig
from overopt.base.errors import DataError, StoreError
from overopt.base.files import atomic_write, fsync, os_errors, save_json
from overopt.engine.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Artefact,
    Asked,
    Identity,
    Workspace,
    checksum,
    describe_file,
    files_in,
    make_manifest,
    read_manifest,
    read_recorded,
    sha256,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """Artefacts under ``root``.

    Making the object checks the format of an existing store and writes nothing; ``create`` makes
    the directory.

    Raises
    ------
    StoreError
        ``root`` is not a directory, or holds a store of another format version.
    """

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        with os_errors(self.root):
            exists, is_dir = os.path.lexists(self.root), self.root.is_dir()
        if exists and not is_dir:
            what = "a symbolic link to nothing" if self.root.is_symlink() else "a file"
            raise StoreError(f"{self.root}: is {what}; give a directory with --store")
        marker = self.root / "store.json"
        if os.path.lexists(marker):
            with _as_store_errors("; restore it, or give another directory with --store"):
                version = files.load_object(marker, ("format",))["format"]
            if version != FORMAT_VERSION:
                raise StoreError(
                    f"{marker}: format = {version!r}, this overopt reads format {FORMAT_VERSION};"
                    " give a new directory with --store, or use the overopt that made it"
                )

    def create(self) -> Store:
        """Make the store's directories, prove that they can be written, drop dead scratch files."""
        with os_errors(self.root), folders.group_umask(self.root):
            for name in (".scratch", ".inflight", ".locks", "experiments"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            if not (self.root / "store.json").exists():
                save_json(self.root / "store.json", {"format": FORMAT_VERSION})
            probe = self.root / ".scratch" / files.temporary_name("probe")
            atomic_write(probe, b"writable")
            probe.unlink()
            self.sweep()
        return self

    def path(self, stage: str, fp: str) -> Path:
        """Where the artefact is, or would be."""
        return self.root / stage / fp

    def has(self, stage: str, fp: str) -> bool:
        """Whether something is there under that identity (``open`` says whether it is sound)."""
        return self.path(stage, fp).exists()

    def has_checkpoint(self, stage: str, fp: str) -> bool:
        """Whether an unfinished attempt left checkpoints to resume from."""
        directory = self.root / ".inflight" / f"{stage}-{fp}"
        return directory.is_dir() and any(directory.iterdir())

    def is_running(self, stage: str, fp: str) -> bool:
        """Whether some process is computing the artefact at this moment."""
        return locks.is_taken(self._lock_path(stage, fp))

    def open(self, stage: str, fp: str) -> Artefact:
        """The artefact, after comparing every file with its checksum.

        A file is hashed once per process, and again if its size, inode or time changed.

        Raises
        ------
        StoreError
            It is absent, damaged, incomplete, or holds files that are not its own; the message
            names the file.
        """
        directory = self.path(stage, fp)
        if not directory.exists():
            raise StoreError(f"{directory}: no such artefact; compute it with `overopt run`")
        remedy = f"; delete the directory {directory} to have it computed again"
        manifest_path = directory / MANIFEST
        with _as_store_errors(remedy):
            manifest = read_manifest(manifest_path)
        if (manifest["stage"], manifest["fingerprint"]) != (stage, fp):
            raise StoreError(
                f"{manifest_path}: belongs to {manifest['stage']}/{manifest['fingerprint']}{remedy}"
            )
        if manifest["status"] != "complete":
            raise StoreError(f"{manifest_path}: status = {manifest['status']!r}{remedy}")
        present = set(files_in(directory)) - {MANIFEST}
        for name in sorted(present - set(manifest["files"])):
            raise StoreError(f"{directory / name}: does not belong to the artefact{remedy}")
        for name, expected in manifest["files"].items():
            if name not in present:
                raise StoreError(f"{directory / name}: is missing{remedy}")
            stat = os.lstat(directory / name)
            if not S_ISREG(stat.st_mode):
                raise StoreError(f"{directory / name}: is not a regular file{remedy}")
            if stat.st_size != expected["size"]:
                raise StoreError(
                    f"{directory / name}: is damaged ({stat.st_size} bytes, manifest says"
                    f" {expected['size']}){remedy}"
                )
            digest = sha256(str(directory / name), stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if digest != expected["sha256"]:
                raise StoreError(
                    f"{directory / name}: is damaged (SHA-256 {digest[:12]}…, manifest says"
                    f" {expected['sha256'][:12]}…){remedy}"
                )
        return Artefact(path=directory, manifest=manifest)

    def fetch(self, asked: Asked) -> Artefact:
        """`open`, of an input: with what was asked for."""
        return replace(self.open(asked.stage, asked.fingerprint), asked=asked)

    @contextlib.contextmanager
    def lock(self, stage: str, fp: str) -> Iterator[bool]:
        """Try to become the only process that computes the artefact; yields whether it did.

        The kernel releases the lock of a process that dies.
        """
        with contextlib.ExitStack() as stack:
            path = self._lock_path(stage, fp)
            with os_errors(path):
                mine = stack.enter_context(locks.trying(path))
            yield mine

    @contextlib.contextmanager
    def workspace(self, identity: Identity) -> Iterator[Workspace]:
        """Directories for a stage to write into; call while holding its lock.

        Left-over scratch files of a dead attempt are removed, its checkpoints are kept. Whatever
        is still in scratch at the end, because nothing was committed, is removed too.
        """
        name = f"{identity.stage}-{identity.fingerprint}"
        out, checkpoint = self.root / ".scratch" / name, self.root / ".inflight" / name
        with os_errors(out):
            try:
                _remove(out)
            except PermissionError:
                self._set_aside(out)
            if checkpoint.exists() and not os.access(checkpoint, os.R_OK | os.W_OK | os.X_OK):
                self._set_aside(checkpoint)
            out.mkdir(parents=True)
            checkpoint.mkdir(parents=True, exist_ok=True)
        resumed = any(checkpoint.iterdir())
        try:
            yield Workspace(identity=identity, out=out, checkpoint=checkpoint, resumed=resumed)
        finally:
            _remove(out)
            with contextlib.suppress(OSError):
                checkpoint.rmdir()  # succeeds only where there is nothing to resume from

    def _set_aside(self, left: Path) -> None:
        """Give what another user left, and we may not remove, another name."""
        _warn(left)
        os.rename(left, left.with_name(files.temporary_name(left.name)))

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Where locks exclude nobody, be the only run in the store: a marker file says which.

        Raises
        ------
        StoreError
            Locks do not work, and another run is, or was when it died, at work.
        """
        if locks.excludes(self.root / ".locks"):
            yield
            return
        marker = self.root / "in-use"
        try:
            fd = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            user = files.read_bytes(marker)[:200].decode(errors="replace")
            raise StoreError(
                f"{self.root}: its file system has no working locks (flock excludes nobody), so it"
                f" takes one run at a time, and {user} is at work there; if that has ended, delete"
                f" {marker}; for runs side by side use another file system"
            ) from None
        with open(fd, "w") as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
        try:
            yield
        finally:
            marker.unlink()

    def commit(self, work: Workspace, runtime: RuntimeConfig, *, together: int = 1) -> Artefact:
        """Turn ``work.out`` into the artefact by one rename; returns what is now in the store.

        If another process got there first, its artefact is checked and used, and this one dropped.
        ``together``: artefacts that were computed at once; each is charged its share of the seconds.

        Raises
        ------
        StoreError
            The file system refused, or the artefact found in the way is damaged or another's.
        """
        identity = work.identity
        target = self.path(identity.stage, identity.fingerprint)
        with os_errors(target):
            sums = {name: describe_file(work.out / name) for name in files_in(work.out)}
            manifest = make_manifest(work, runtime, sums, together)
            save_json(work.out / MANIFEST, {**manifest, "checksum": checksum(manifest)})
            for directory in (work.out, *(p for p in work.out.rglob("*") if p.is_dir())):
                fsync(directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(work.out, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            fsync(target.parent)
        artefact = self.open(identity.stage, identity.fingerprint)
        _remove(work.checkpoint)
        return artefact

    def recorded(self, experiment: str) -> dict[str, Any] | None:
        """What ``record`` last wrote for the experiment, or None.

        Raises
        ------
        StoreError
            It is damaged.
        """
        path = self._experiment_path(experiment)
        if not os.path.lexists(path):
            return None
        with _as_store_errors(": delete it, and what the experiment stood for is forgotten"):
            return read_recorded(path)

    def record(self, experiment: str, fingerprints: Mapping[str, Mapping[str, str]]) -> None:
        """Note ``{label: {"stage": ..., "fingerprint": ...}}`` as the experiment's final state.

        Nothing is written where that is noted already, so a finished store may be read-only.
        """
        path = self._experiment_path(experiment)
        new = {"experiment": experiment, "stages": dict(fingerprints)}
        if self.recorded(experiment) == new:
            return
        with os_errors(path), folders.group_umask(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_json(path, new)

    def free_bytes(self) -> int:
        """Free bytes on the file system of the store."""
        return shutil.disk_usage(self.root).free

    def _lock_path(self, stage: str, fp: str) -> Path:
        return self.root / ".locks" / f"{stage}-{fp}"

    def _experiment_path(self, experiment: str) -> Path:
        # Names may hold any character (overrides are part of them), so the file name is hashed.
        plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in experiment)[:60]
        if plain != experiment:
            plain += "-" + hashlib.sha256(experiment.encode()).hexdigest()[:8]
        return self.root / "experiments" / f"{plain}.json"

    def sweep(self) -> None:
        """Remove what dead processes left: scratch files, and checkpoints of finished artefacts.

        What belongs to another user and may not be removed is passed by, with a warning.
        """
        for kind in (".scratch", ".inflight"):
            for left in (self.root / kind).iterdir():
                stage, dash, fp = left.name.rpartition("-")
                if not dash or left.name.startswith("."):
                    continue
                if kind == ".inflight" and not self.has(stage, fp):
                    continue
                try:
                    with self.lock(stage, fp) as mine:
                        if mine:
                            _remove(left)
                except PermissionError:
                    _warn(left)
        folders.drop_temporary(self.root / "experiments")


@contextlib.contextmanager
def _as_store_errors(remedy: str) -> Iterator[None]:
    """A damaged file of the store as StoreError, with what to do about it."""
    try:
        yield
    except DataError as error:
        raise StoreError(f"{str(error).removesuffix(files.RESTORE)}{remedy}") from error


def _remove(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        # rmtree names what it stumbled over by its last part only.
        raise type(error)(error.errno, error.strerror, str(directory)) from error


def _warn(left: Path) -> None:
    log.warning(
        "%s: was left by user %d and may not be removed; skipped", left, os.lstat(left).st_uid
    )
