"""House-keeping in a store: what is there, what is needed, taking away, putting in."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from overopt.base import files, locks
from overopt.base.errors import StoreError
from overopt.engine import attempts
from overopt.engine.manifest import MANIFEST, files_in, read_manifest
from overopt.engine.store import Store

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


class Entry(NamedTuple):
    """An artefact, or the checkpoints of one that is not finished (``is_partial``).

    age_s: since its last change.
    """

    stage: str
    fingerprint: str
    path: Path
    size: int
    age_s: float
    is_partial: bool

    @property
    def key(self) -> tuple[str, str]:
        """Stage and fingerprint."""
        return (self.stage, self.fingerprint)


def entries(store: Store) -> list[Entry]:
    """Everything that stages left in a store."""
    found = []
    for stage in sorted(p for p in store.root.iterdir() if p.is_dir() and p.name[0] != "."):
        if stage.name == "experiments":
            continue
        for path in sorted(stage.iterdir()):
            if _FINGERPRINT.fullmatch(path.name):
                found.append(_entry(stage.name, path.name, path, is_partial=False))
    for left in attempts.folders(store.root, attempts.INFLIGHT):
        found.append(_entry(*left, is_partial=True))
    return found


def _entry(stage: str, fp: str, path: Path, *, is_partial: bool) -> Entry:
    parts = [path, *path.rglob("*")] if path.is_dir() else [path]
    stats = [os.lstat(part) for part in parts]
    age = time.time() - max(s.st_mtime for s in stats)
    return Entry(stage, fp, path, sum(s.st_size for s in stats), age, is_partial)


def with_inputs(store: Store, keys: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """``keys`` and everything that they were made from, as far as it is in the store."""
    stage_of = {entry.fingerprint: entry.stage for entry in entries(store)}
    found: set[tuple[str, str]] = set()
    todo = list(keys)
    while todo:
        key = todo.pop()
        if key in found:
            continue
        found.add(key)
        if store.has(*key):
            upstream = read_manifest(store.path(*key) / MANIFEST)["upstream"].values()
            todo += [(stage_of[fp], fp) for fp in upstream if fp in stage_of]
    return found


def check_idle(store: Store) -> None:
    """Raise StoreError while a run works in the store: it may need what nothing else does."""
    folder = store.root / ".locks"
    found = [p for p in folder.iterdir() if p.name[0] != "."] if folder.is_dir() else []
    taken = [p.name for p in found if locks.is_taken(p, store.lease_s)]
    if taken:
        raise StoreError(
            f"{store.root}: a run is computing {taken[0]} there; delete when it has ended"
        )


def remove(store: Store, entry: Entry) -> None:
    """Take an artefact or checkpoints away: at once, and if this is killed, at the next run."""
    with store.lock(*entry.key) as mine, files.os_errors(entry.path):
        if not mine:
            raise StoreError(f"{entry.path}: a run is computing it; delete when it has ended")
        if not entry.is_partial:
            aside = store.root / attempts.SCRATCH / files.temporary_name(entry.fingerprint)
            os.rename(entry.path, aside)
            shutil.rmtree(aside)
        else:
            shutil.rmtree(entry.path)


def put(store: Store, stage: str, fp: str, fill: Callable[[Path], None]) -> bool:
    """Add a finished artefact that ``fill(folder)`` writes; whether it was not there already.

    Raises
    ------
    StoreError
        What was written, or what is there, is not that artefact, sound and whole.
    """
    with store.lock(stage, fp) as mine, files.os_errors(store.path(stage, fp)):
        if store.has(stage, fp):
            store.open(stage, fp)
            return False
        if not mine:
            raise StoreError(f"{store.path(stage, fp)}: a run is computing it; import it later")
        out = store.root / attempts.SCRATCH / files.temporary_name(f"{stage}-{fp}")
        out.mkdir(parents=True)
        try:
            fill(out)
            manifest = read_manifest(out / MANIFEST)
            if (manifest["stage"], manifest["fingerprint"]) != (stage, fp):
                raise StoreError(f"{out / MANIFEST}: is not of {stage}/{fp}")
            for name in files_in(out):
                files.fsync(out / name)
            store.path(stage, fp).parent.mkdir(exist_ok=True)
            os.rename(out, store.path(stage, fp))
        finally:
            shutil.rmtree(out, ignore_errors=True)
        try:
            store.open(stage, fp)
        except StoreError:
            shutil.rmtree(store.path(stage, fp), ignore_errors=True)
            raise
    return True
