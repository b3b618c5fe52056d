"""The tables of a results directory, and what may be joined to them."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from overopt.base import files
from overopt.base.errors import StoreError
from overopt.base.shown import Shown, from_json

SHOWN = "shown.json"


class Results(NamedTuple):
    """Tables of a results directory, rows in the order of the runs.

    arrays: ``RUN_ID.NAME`` -> per-prompt values; shown: how methods show themselves, by method; the
    other three by the file they are in.
    """

    records: list[dict[str, Any]]
    tilt: list[dict[str, Any]]
    costs: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]
    shown: dict[str, Shown] = {}

    @property
    def run_ids(self) -> set[str]:
        """Identities of the curves held."""
        return {row["run_id"] for row in self.records}

    def of(self, run_id: str) -> "Results":
        """The part that belongs to one curve."""
        records, tilt, costs = (
            [row for row in table if row["run_id"] == run_id] for table in self[:3]
        )
        mine = {k: v for k, v in self.arrays.items() if k.startswith(f"{run_id}.")}
        methods = {row["method"] for row in records}
        shown = {k: v for k, v in self.shown.items() if k in methods}
        return Results(records, tilt, costs, mine, shown)

    def add(self, other: "Results") -> None:
        """Append the tables of ``other``."""
        for mine, theirs in zip(self[:3], other[:3], strict=True):
            mine.extend(theirs)
        self.arrays.update(other.arrays)
        self.shown.update(other.shown)


def held_results(folder: Path) -> Results:
    """What a results directory holds; nothing if it has no complete set of files."""
    names = [folder / f"{name}.jsonl" for name in Results._fields[:3]]
    if not all(file.is_file() for file in (*names, folder / "curves.npz")):
        return Results([], [], [], {}, {})
    records, tilt, costs = map(files.load_records, names)
    described = folder / SHOWN
    shown = files.load_json(described) if described.is_file() else {}
    arrays = files.load_arrays(folder / "curves.npz")
    return Results(records, tilt, costs, arrays, {k: from_json(v) for k, v in shown.items()})


def check_joins(folder: Path, held: Results, run_ids: set[str]) -> None:
    """Raise StoreError where ``held``, the results in ``folder``, has curves not in ``run_ids``.

    Records of a part of those would replace them.
    """
    lost = held.run_ids - run_ids
    if lost:
        raise StoreError(
            f"{folder}: no records were written: it holds {len(lost)} other curves; give another"
            " directory with --results"
        )
