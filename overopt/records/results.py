"""The tables of a results directory: read, joined and written as one transaction.

Two runs that write into one directory take turns (`transaction`). What is written becomes visible
at once: all files are first laid beside the old ones, in a folder whose rename is the decision, and
then moved; a writer that is killed in between leaves that folder, and the next one finishes the
moving (`recover`). ``checksums.json`` holds the SHA-256 of every file, so that damage is found.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from overopt.base import files, folders, locks
from overopt.base.errors import DataError, StoreError
from overopt.base.shown import Shown, from_json

CHECKSUMS, SHOWN = "checksums.json", "shown.json"
CHECKSUMS_FORMAT = 1
ROW_TABLES = ("records", "tilt", "costs", "samples", "runs")
"""Tables made of rows, each in a file ``NAME.jsonl``."""
RESULT_FILES = (*(f"{name}.jsonl" for name in ROW_TABLES), "curves.npz", SHOWN, CHECKSUMS)
MOVING_S = 2.0
"""Patience with a writer that moves its files, which takes milliseconds."""
_DECIDED = ".decided"
"""Folder of files that are to replace those of the directory; complete, or absent."""


@dataclass
class Tables:
    """Tables of a results directory, rows in the order of the runs.

    arrays: ``RUN_ID.NAME`` -> per-prompt values; shown: how methods show themselves; the others by
    the file they are in. Rows of samples are responses, those of runs settings and provenance.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    tilt: list[dict[str, Any]] = field(default_factory=list)
    costs: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    shown: dict[str, Shown] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """The tables that are made of rows, by name."""
        return {name: getattr(self, name) for name in ROW_TABLES}

    @property
    def run_ids(self) -> set[str]:
        """Identities of the curves held."""
        return {row["run_id"] for row in self.records}

    def of(self, run_id: str) -> Tables:
        """The part that belongs to one curve."""
        rows = {
            name: [row for row in table if row["run_id"] == run_id]
            for name, table in self.rows.items()
        }
        mine = {k: v for k, v in self.arrays.items() if k.startswith(f"{run_id}.")}
        methods = {row["method"] for row in rows["records"]}
        shown = {k: v for k, v in self.shown.items() if k in methods}
        return Tables(**rows, arrays=mine, shown=shown)

    def add(self, other: Tables) -> None:
        """Append the tables of ``other``."""
        for name, table in self.rows.items():
            table.extend(other.rows[name])
        self.arrays.update(other.arrays)
        self.shown.update(other.shown)


@contextlib.contextmanager
def transaction(folder: Path) -> Iterator[None]:
    """Be the only process that writes the results in ``folder``, from reading to writing.

    Raises
    ------
    StoreError
        The folder cannot be made or written, or another process keeps it for minutes.
    """
    existed = folder.exists()
    try:
        with folders.locked(folder, "the results directory"):
            recover(folder)
            yield
    finally:
        if not existed:  # succeeds only where nothing was worth writing
            with contextlib.suppress(OSError):
                folder.rmdir()


def held_results(folder: Path) -> Tables:
    """What a results directory holds; nothing if it has no records.

    Needs no lock: where files do not fit while another process moves new ones in, it waits.

    Raises
    ------
    DataError
        A file is missing or damaged.
    """
    for _ in range(int(MOVING_S / locks.RETRY_S)):
        try:
            return _held(folder)
        except DataError:
            if not (locks.is_taken(folder / ".lock") or (folder / _DECIDED).exists()):
                break
        time.sleep(locks.RETRY_S)
    return _held(folder)


def _held(folder: Path) -> Tables:
    if not (folder / "records.jsonl").exists() or _is_foreign(folder):
        return Tables()
    check_sums(folder)
    # Results of before a table existed have none.
    rows = {name: read_rows(folder, name) for name in ROW_TABLES}
    arrays = files.load_arrays(folder / "curves.npz")
    held = Tables(**rows, arrays=arrays, shown=_described(folder / SHOWN))
    lacking = held.run_ids - {name.partition(".")[0] for name in held.arrays}
    if lacking:
        raise DataError(
            f"{folder / 'curves.npz'}: has no arrays of run {min(lacking)}, which records.jsonl"
            f" has{files.RESTORE}"
        )
    return held


def read_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """Rows of one table, each of which names its run; empty without the file.

    Raises
    ------
    DataError
        The file is damaged, or a row names no run.
    """
    file = folder / f"{name}.jsonl"
    rows = files.load_records(file) if file.exists() else []
    for i, row in enumerate(rows, start=1):
        if not isinstance(row.get("run_id"), str):
            raise DataError(f"{file}: line {i} has no run_id{files.RESTORE}")
    return rows


def read_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Settings that differ from the defaults, and provenance, by run_id; empty in older results.

    Raises
    ------
    DataError
        The file is damaged; the message names the line.
    """
    runs = {}
    for line, row in enumerate(read_rows(folder, "runs"), start=1):
        where = f"{folder / 'runs.jsonl'}: line {line}"
        files.need(row, where, ("settings", "versions"))
        for key in ("settings", "versions"):
            files.need(row[key], f"{where}: {key}")
        runs[row["run_id"]] = row
    return runs


def _described(file: Path) -> dict[str, Shown]:
    """How methods show themselves; nothing where results are of before they said so."""
    if not file.exists():
        return {}
    try:
        return {method: from_json(how) for method, how in files.load_object(file).items()}
    except TypeError as error:
        raise DataError(f"{file}: does not describe methods ({error}){files.RESTORE}") from error


def _is_foreign(folder: Path) -> bool:
    """Whether a lone records.jsonl holds nothing of a results directory, and so nothing to lose."""
    if any((folder / name).exists() for name in RESULT_FILES[1:]):
        return False
    try:
        return not files.load_records(folder / "records.jsonl")
    except DataError:
        return True


def save_results(folder: Path, results: Tables) -> None:
    """Replace the tables in ``folder`` by ``results``, all at once; call inside `transaction`."""
    with files.os_errors(folder):
        new = folder / files.temporary_name("results")
        new.mkdir()
        try:
            files.save_arrays(new / "curves.npz", results.arrays)
            for name, rows in results.rows.items():
                files.save_records(new / f"{name}.jsonl", rows)
            shown = {method: how._asdict() for method, how in results.shown.items()}
            files.save_json(new / SHOWN, shown)
            sums = {file.name: describe(file) for file in sorted(new.iterdir())}
            files.save_json(new / CHECKSUMS, {"format": CHECKSUMS_FORMAT, "files": sums})
            os.rename(new, folder / _DECIDED)
            files.fsync(folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        recover(folder)


def recover(folder: Path) -> None:
    """Finish the moving of files that a killed writer had decided on; call under the lock."""
    decided = folder / _DECIDED
    if not decided.is_dir():
        return
    with files.os_errors(folder):
        for name in RESULT_FILES:
            with contextlib.suppress(FileNotFoundError):  # moved already
                os.replace(decided / name, folder / name)
        files.fsync(folder)
        shutil.rmtree(decided)


def check_sums(folder: Path) -> list[str]:
    """Compare the files in ``folder`` with their checksums; returns the names of those compared.

    None, where results are of before there were checksums.

    Raises
    ------
    DataError
        One is missing or damaged; the message names it.
    """
    sums = folder / CHECKSUMS
    if not sums.exists():
        return []
    content = files.load_object(sums, ("format", "files"))
    if content["format"] != CHECKSUMS_FORMAT:
        raise DataError(
            f"{sums}: format = {content['format']!r}, this overopt reads {CHECKSUMS_FORMAT}: use"
            " the version that wrote it"
        )
    expected = files.need(content["files"], f"{sums}: files")
    for name, entry in expected.items():
        if name not in RESULT_FILES:
            raise DataError(f"{sums}: {name!r} is no file of a results directory{files.RESTORE}")
        if describe(folder / name) != entry:
            raise DataError(
                f"{folder / name}: is damaged or was changed (its SHA-256 is not that of"
                f" {CHECKSUMS}){files.RESTORE}; if you changed it, delete {CHECKSUMS}"
            )
    return list(expected)


def describe(file: Path) -> dict[str, Any]:
    """SHA-256 and size of a file."""
    data = files.read_bytes(file)
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def check_part(folder: Path, run_ids: set[str]) -> None:
    """`check_joins` by the rows alone, before anything else is looked at: other curves come first."""
    if (folder / "records.jsonl").exists() and not _is_foreign(folder):
        rows = files.load_records(folder / "records.jsonl")
        known = [row for row in rows if isinstance(row.get("run_id"), str)]
        check_joins(folder, Tables(records=known), run_ids)


def check_joins(folder: Path, held: Tables, run_ids: set[str]) -> None:
    """Raise StoreError where ``held``, the results in ``folder``, has curves not in ``run_ids``.

    Records of a part of those would replace them.
    """
    lost = held.run_ids - run_ids
    if lost:
        raise StoreError(
            f"{folder}: no records were written: it holds {len(lost)} other curves; give another"
            " directory with --results"
        )
