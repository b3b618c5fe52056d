"""Reading records back: rows, curves with their per-prompt arrays, costs. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from overopt.base import files
from overopt.base.errors import DataError
from overopt.base.shown import Shown, from_json, shown_of
from overopt.records.schema import FIELDS, NEEDED_ARRAYS, OLDER_NAMES, validate_records

if TYPE_CHECKING:
    import pandas as pd

BON = "bon"
"""What records call best-of-n: the one method that moves no policy."""
SHOWN_FILE = "shown.json"


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a ``records.jsonl`` (or of the one in a directory), validated.

    Every row has every column: one that was not written reads as null, and one that was written
    under its older name (``rubric_score``) reads under both.
    """
    file = Path(path)
    file = file / "records.jsonl" if file.is_dir() else file
    # A row from before a column existed, or of a method without it, has null there.
    rows = [dict.fromkeys(FIELDS) | row for row in files.load_records(file)]
    for row in rows:
        for name, older in OLDER_NAMES.items():
            row[name] = row[older] if row[name] is None else row[name]
    validate_records(rows)
    return rows


def load_records(path: str | Path) -> "pd.DataFrame":
    """Records as a DataFrame, a row per measured point; see docs/metrics.md for the columns."""
    import pandas as pd

    return pd.DataFrame(read_records(path), columns=list(FIELDS))


def cost_rows(directory: str | Path) -> list[dict[str, Any]]:
    """Rows of costs.jsonl, one for each run and stage; empty without the file."""
    file = Path(directory) / "costs.jsonl"
    columns = {"run_id": str, "stage": str, "cpu_s": float}
    return files.load_records(file, columns) if file.is_file() else []


def read_costs(directory: str | Path, *, without: str | None = None) -> dict[str, float]:
    """CPU seconds by ``run_id``, summed over the stages of a run; empty without costs.jsonl.

    ``without``: how the names of stages end that do not count.
    """
    totals: dict[str, float] = {}
    for row in cost_rows(directory):
        if without is None or not row["stage"].endswith(without):
            totals[row["run_id"]] = totals.get(row["run_id"], 0.0) + row["cpu_s"]
    return totals


def read_shown(directory: str | Path) -> dict[str, Shown]:
    """How the methods of a results directory show themselves; empty in older ones.

    Raises
    ------
    DataError
        A ``shown.json`` that does not hold descriptions of methods.
    """
    file = Path(directory) / SHOWN_FILE
    if not file.is_file():
        return {}
    try:
        return {method: from_json(data) for method, data in files.load_json(file).items()}
    except (TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: not the descriptions of methods that `overopt run` writes ({error})"
        ) from error


@dataclass(frozen=True)
class Curve:
    """All points of one run in order, with per-prompt values.

    rows: K records; arrays: name -> (K, P) per-prompt means of gold, proxy, kl, length, and of
    intent where the world has one; descriptions: method -> how it shows itself.
    """

    rows: tuple[dict[str, Any], ...]
    arrays: dict[str, np.ndarray]
    descriptions: Mapping[str, Shown] = field(default_factory=dict)

    def __getitem__(self, column: str) -> np.ndarray:
        """Column ``column`` over the K points."""
        return np.array([row[column] for row in self.rows])

    @property
    def meta(self) -> dict[str, Any]:
        """The first record: method, proxy and seeds are the same in all."""
        return self.rows[0]

    @property
    def shown(self) -> Shown:
        """How the curve's method shows itself."""
        return shown_of(self.meta["method"], self.descriptions)

    @property
    def is_bon(self) -> bool:
        """Whether this is best-of-n: an estimate from a pool, with a known KL and no steps."""
        return self.meta["method"] == BON

    @property
    def seeds(self) -> dict[str, int | None]:
        """The replicate of each random part: every column whose name ends in ``_seed``."""
        return {name: seed for name, seed in self.meta.items() if name.endswith("_seed")}

    def gain(self, name: str) -> np.ndarray:
        """Array ``name`` minus its first point, prompt by prompt, (K, P)."""
        return self.arrays[name] - self.arrays[name][:1]


def load_curves(directory: str | Path) -> list[Curve]:
    """Curves of a results directory (records.jsonl and curves.npz), in the order of the records.

    Raises
    ------
    DataError
        A file is missing or damaged, or they do not belong together; the message names it.
    """
    folder = Path(directory)
    by_run: dict[str, list[dict[str, Any]]] = {}
    for row in read_records(folder):
        by_run.setdefault(row["run_id"], []).append(row)
    if not by_run:
        raise DataError(f"{folder}: records.jsonl has no rows; run `overopt run` first")
    shown, table = read_shown(folder), files.load_arrays(folder / "curves.npz")
    curves = []
    for run_id, rows in by_run.items():
        rows.sort(key=lambda r: r["value"])
        found = {name: table.get(f"{run_id}.{name}") for name in (*NEEDED_ARRAYS, "intent")}
        if found["intent"] is None:  # in older files it is called by its first world's: rubric
            found["intent"] = table.get(f"{run_id}.rubric")
        arrays = {}
        for name, array in found.items():
            if array is None and name == "intent":
                continue  # its world has none
            shape = len(rows), rows[0]["n_prompts"]
            if array is None or array.shape != shape or array.dtype.kind not in "fiu":
                raise DataError(
                    f"{folder / 'curves.npz'}: {run_id}.{name} does not fit its records: numbers of"
                    f" shape {shape} are needed{files.RESTORE}"
                )
            arrays[name] = array.astype(float)
        curves.append(Curve(tuple(rows), arrays, shown))
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
