"""Fingerprint-addressed artefacts on disk: whole or absent, checked on opening, never overwritten.

An artefact is a directory
``root/<stage>/<fingerprint>/`` with a ``manifest.json`` that says how it came about and holds a
checksum of every file::

    root/store.json                      format of the store, and how its locks work
    root/<stage>/<fingerprint>/          finished artefacts
    root/.scratch/                       files of attempts at work; renamed when they are done
    root/.inflight/                      their checkpoints, which survive the process
    root/.locks/<stage>-<fingerprint>    held by the process that computes it
    root/.failed/                        failures of stages (`overopt.engine.failures`)
    root/experiments/<name>.json         fingerprints that an experiment was last finished with

Safety rests on ``rename`` of a directory, which happens or does not. Locks (`overopt.base.locks`) keep
two processes from computing the same; where one is lost all the same, the later attempt fences the
earlier one (`overopt.engine.attempts`).

What it does differently from a cache: nothing here is ever deleted or recomputed behind the user's
back. A damaged artefact is an error that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from stat import S_ISREG
from typing import Any

from overopt.base import files, folders, locks
from overopt.base.config import RuntimeConfig
from overopt.base.errors import DataError, StoreError
from overopt.base.files import atomic_write, fsync, os_errors, save_json
from overopt.base.locks import Hold
from overopt.engine import attempts
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

MARKER, FAILED = "store.json", ".failed"
STALE_S = (0.2, 1.0, 3.0)
"""Pauses between looks at an artefact that a file system may show us as it was a moment ago."""


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
        files.given(self.root, "--store")
        with os_errors(self.root):
            exists, is_dir = os.path.lexists(self.root), self.root.is_dir()
        if exists and not is_dir:
            what = "a symbolic link to nothing" if self.root.is_symlink() else "a file"
            raise StoreError(f"{self.root}: is {what}; give a directory with --store")
        marker = self.root / MARKER
        if os.path.lexists(marker):
            _read_marker(marker)

    def create(self) -> Store:
        """Make the store's directories, prove that they can be written, drop dead scratch files."""
        with os_errors(self.root), folders.group_umask(self.root):
            for name in (".scratch", ".inflight", ".locks", "experiments"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            self._mark()
            probe = self.root / ".scratch" / files.temporary_name("probe")
            atomic_write(probe, b"writable")
            probe.unlink()
            self.sweep()
        return self

    def _mark(self) -> None:
        """Write the marker of a new store, which says how its locks work; all must agree on that."""
        marker = self.root / MARKER
        self.__dict__.pop("lease_s", None)  # another process may have made it since we looked
        if marker.exists() and (self.lease_s or locks.excludes(self.root / ".locks")):
            return
        lease_s = locks.lease_for(self.root / ".locks")
        save_json(marker, {"format": FORMAT_VERSION, **({"lease_s": lease_s} if lease_s else {})})
        self.__dict__.pop("lease_s", None)

    def path(self, stage: str, fp: str) -> Path:
        """Where the artefact is, or would be."""
        return self.root / stage / fp

    def has(self, stage: str, fp: str) -> bool:
        """Whether something is there under that identity (``open`` says whether it is sound)."""
        return self.path(stage, fp).exists()

    def has_checkpoint(self, stage: str, fp: str) -> bool:
        """Whether an unfinished attempt left checkpoints to resume from."""
        return bool(attempts.checkpoints(self.root, stage, fp))

    def is_running(self, stage: str, fp: str) -> bool:
        """Whether some process is computing the artefact at this moment."""
        return locks.is_taken(self._lock_path(stage, fp), self.lease_s)

    @cached_property
    def lease_s(self) -> float | None:
        """Seconds of a lease, or None where locks are the kernel's; decided when a store is made."""
        marker = self.root / MARKER
        return _read_marker(marker).get("lease_s") if os.path.lexists(marker) else None

    def open(self, stage: str, fp: str) -> Artefact:
        """The artefact, after comparing every file with its checksum.

        On a shared file system a look may be older than the artefact: what is not sound is looked at
        again for a few seconds.

        A file is hashed once per process, and again if its size, inode or time changed.

        Raises
        ------
        StoreError
            It is absent, damaged, incomplete, or holds files that are not its own; the message
            names the file.
        """
        for pause_s in STALE_S if self.lease_s is not None else ():
            try:
                return self._open(stage, fp)
            except StoreError:
                time.sleep(pause_s)
        return self._open(stage, fp)

    def _open(self, stage: str, fp: str) -> Artefact:
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
    def lock(self, stage: str, fp: str) -> Iterator[Hold | None]:
        """Try to become the only process that computes the artefact; yields None if it did not.

        The lock of a process that dies is free at once; where it is a lease, when that is over.
        """
        with contextlib.ExitStack() as stack:
            path = self._lock_path(stage, fp)
            with os_errors(path):
                mine = stack.enter_context(locks.trying(path, self.lease_s))
            yield mine

    @contextlib.contextmanager
    def workspace(self, identity: Identity, hold: Hold | None = None) -> Iterator[Workspace]:
        """Directories for a stage to write into; call while holding its lock.

        See `overopt.engine.attempts.workspace`.
        """
        with attempts.workspace(self.root, identity, hold) as work:
            yield work

    def commit(
        self,
        work: Workspace,
        runtime: RuntimeConfig,
        *,
        together: int = 1,
        measured: Mapping[str, float | None] | None = None,
    ) -> Artefact:
        """Turn ``work.out`` into the artefact by one rename; returns what is now in the store.

        If another process got there first, its artefact is checked and used, and this one dropped.
        ``together``: artefacts that were computed at once; each is charged its share of the seconds.
        ``measured``: what the computation took beside seconds, for the manifest.

        Raises
        ------
        StoreError
            The file system refused, or the artefact found in the way is damaged or another's.
        Fenced
            Another attempt took the place of this one, and is not finished.
        """
        identity = work.identity
        target = self.path(identity.stage, identity.fingerprint)
        try:
            with os_errors(target):
                sums = {name: describe_file(work.out / name) for name in files_in(work.out)}
            manifest = make_manifest(work, runtime, sums, together, measured or {})
            self._rename(work, target, manifest)
        except FileNotFoundError:
            # Fenced, unless it is there: then somebody finished it, or a network file system did
            # the rename, lost its own answer, and found nothing to rename when it asked again.
            if work.out.is_dir():
                raise
            if not target.is_dir():
                raise attempts.Fenced(f"{target}: another attempt took over") from None
        artefact = self.open(identity.stage, identity.fingerprint)
        attempts.remove(work.checkpoint)
        return artefact

    def _rename(self, work: Workspace, target: Path, manifest: Mapping[str, Any]) -> None:
        """Complete ``work`` with its manifest and make it the artefact, unless one is there."""
        with os_errors(target):
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

    def _drop_free_locks(self) -> None:
        """Remove the files of locks whose holder was killed before it had made a folder.

        Taking a lock and giving it back removes its file. A lease is left to expire.
        """
        if self.lease_s is not None:
            return
        for path in (self.root / ".locks").glob("[!.]*-*"):
            stage, _, fp = path.name.rpartition("-")
            with contextlib.suppress(StoreError), self.lock(stage, fp):
                pass

    def sweep(self) -> None:
        """Remove what dead processes left: scratch, free locks, checkpoints of finished artefacts.

        What belongs to another user and may not be removed is passed by, with a warning.
        """
        for kind in (attempts.SCRATCH, attempts.INFLIGHT):
            for left in attempts.folders(self.root, kind):
                if kind == attempts.INFLIGHT and not self.has(left.stage, left.fingerprint):
                    continue
                with self.lock(left.stage, left.fingerprint) as mine:
                    if mine:
                        attempts.retire(left.path)
            folders.drop_temporary(self.root / kind)
        self._drop_free_locks()
        attempts.drop_progress(self.root)
        for noted in (self.root / FAILED).glob("*-*.json"):
            stage, _, fp = noted.stem.rpartition("-")
            if self.has(stage, fp):
                noted.unlink(missing_ok=True)
        folders.drop_temporary(self.root / "experiments")


@contextlib.contextmanager
def _as_store_errors(remedy: str) -> Iterator[None]:
    """A damaged file of the store as StoreError, with what to do about it."""
    try:
        yield
    except DataError as error:
        raise StoreError(f"{str(error).removesuffix(files.RESTORE)}{remedy}") from error


def _read_marker(path: Path) -> dict[str, Any]:
    """What a store says of itself, checked."""
    remedy = "; restore it, or give another directory with --store"
    with _as_store_errors(remedy):
        content = files.load_object(path, ("format",))
    if content["format"] != FORMAT_VERSION:
        raise StoreError(
            f"{path}: format = {content['format']!r}, this overopt reads format {FORMAT_VERSION};"
            " give a new directory with --store, or use the overopt that made it"
        )
    lease_s = content.get("lease_s")
    if lease_s is not None and not (isinstance(lease_s, int | float) and lease_s > 0):
        raise StoreError(f"{path}: lease_s = {lease_s!r}: is no number of seconds{remedy}")
    return content
