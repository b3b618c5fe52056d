"""Reading records back: rows, curves with their per-prompt arrays, costs. Needs no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from overopt.base.errors import DataError
from overopt.records.schema import CURVE_ARRAYS, FIELDS, validate_records

if TYPE_CHECKING:
    import pandas as pd


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a ``records.jsonl`` (or of the one in a directory), validated.

    Every row has every column: one that was not written reads as null.
    """
    file = Path(path)
    file = file / "records.jsonl" if file.is_dir() else file
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise DataError(f"records {str(file)!r} cannot be read: {e.strerror}") from e
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            # A row from before a column existed, or of a method without it, has null there.
            rows.append(dict.fromkeys(FIELDS) | json.loads(line))
        except ValueError as e:
            raise DataError(f"records {str(file)!r}, line {number}: not valid JSON: {e}") from e
    validate_records(rows)
    return rows


def load_records(path: str | Path) -> "pd.DataFrame":
    """Records as a DataFrame, a row per measured point; see docs/metrics.md for the columns."""
    import pandas as pd

    return pd.DataFrame(read_records(path), columns=list(FIELDS))


def read_costs(directory: str | Path) -> dict[str, float]:
    """CPU seconds by ``run_id``, summed over the stages of a run; empty without costs.jsonl."""
    file = Path(directory) / "costs.jsonl"
    totals: dict[str, float] = {}
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            totals[row["run_id"]] = totals.get(row["run_id"], 0.0) + row["cpu_s"]
    return totals


@dataclass(frozen=True)
class Curve:
    """All points of one run in order, with per-prompt values.

    rows: K records; arrays: name -> (K, P) per-prompt means of gold, proxy, rubric, kl, length.
    """

    rows: tuple[dict[str, Any], ...]
    arrays: dict[str, np.ndarray]

    def __getitem__(self, column: str) -> np.ndarray:
        """Column ``column`` over the K points."""
        return np.array([row[column] for row in self.rows])

    @property
    def meta(self) -> dict[str, Any]:
        """The first record: method, proxy and seeds are the same in all."""
        return self.rows[0]


def load_curves(directory: str | Path) -> list[Curve]:
    """Curves of a results directory (records.jsonl and curves.npz), in the order of the records."""
    folder = Path(directory)
    by_run: dict[str, list[dict[str, Any]]] = {}
    for row in read_records(folder):
        by_run.setdefault(row["run_id"], []).append(row)
    with np.load(folder / "curves.npz", allow_pickle=False) as table:
        curves = []
        for run_id, rows in by_run.items():
            rows.sort(key=lambda r: r["value"])
            arrays = {name: table[f"{run_id}.{name}"].astype(float) for name in CURVE_ARRAYS}
            if any(a.shape != (len(rows), rows[0]["n_prompts"]) for a in arrays.values()):
                raise DataError(f"curves.npz of {folder}: run {run_id} does not fit its records")
            curves.append(Curve(tuple(rows), arrays))
    return curves


RESULTS = Path("experiments") / "results"


def results_dir(name_or_path: str | Path) -> Path:
    """A directory with records: given as a path, or a preset's name under the results folders."""
    for folder in (Path(name_or_path), RESULTS / name_or_path, Path("results") / name_or_path):
        if (folder / "records.jsonl").is_file():
            return folder
    raise DataError(
        f"no records.jsonl in {str(name_or_path)!r}: run `overopt run` first, or give the directory"
    )
