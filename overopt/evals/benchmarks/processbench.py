"""ProcessBench (Zheng et al. 2024, arXiv 2412.06559): the first wrong step of a solution.

A model names the first step that it holds for wrong, or -1. In each split, a is the share of the
solutions with an error whose step is named, b the share of those without for which it says so; the
score is F1 = 2ab/(a + b), and the mean of the splits' (QwenLM/ProcessBench, commit e802463,
code/run_eval.py). There F1 of two zeros is not a number; here it is 0. A split is the part of the id
before its number: gsm8k, math, olympiadbench, omnimath.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from overopt.base.config import check_types
from overopt.evals import rows as files
from overopt.evals.benchmark import BenchmarkSettings, Report
from overopt.evals.intervals import NOTHING, Estimate, square_and_add, wilson
from overopt.evals.question import Outcome, Question
from overopt.evals.rows import Column, Misfit, Row, read_rows

SPLITS = ("gsm8k", "math", "olympiadbench", "omnimath")


@dataclass(frozen=True, kw_only=True)
class Settings(BenchmarkSettings):
    r"""Of ProcessBench.

    Attributes
    ----------
    joint : str
        What stands between the steps of a solution, for models that read it as one text; ``\n`` is a
        line break.
    """

    joint: str = "\\n\\n"

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def asks_for_steps(self) -> bool:
        """Where a solution goes wrong."""
        return True


def _label(cell: object) -> int:
    found = files.whole(cell)
    if found < -1:
        raise Misfit("the number of a step from 0, or -1 for no error")
    return found


COLUMNS = (
    Column("id", files.identifier),
    Column("problem", files.dialogue),
    Column("steps", files.texts),
    Column("label", _label),
    Column("final_answer_correct", files.truth, needed=False),
    Column("generator", files.text, needed=False),
)


def read(settings: Settings, sources: Sequence[str]) -> list[Row]:
    """The rows of files in the published layout.

    Raises
    ------
    DataError
        As `read_rows`; or a label is past the last step.
    """
    rows = [row for source in sources for row in read_rows(source, COLUMNS)]
    for row in rows:
        if row["label"] >= len(row["steps"]):
            remedy = f"is past the last of {len(row['steps'])} steps, which are numbered from 0"
            raise row.error("label", row["label"], remedy)
    return rows


def split_of(row: Row) -> str:
    """What stands before the number of a row's id."""
    name, dash, number = row["id"].rpartition("-")
    return name if dash and number.isdecimal() else "all"


def questions(settings: Settings, rows: Sequence[Row]) -> list[Question]:
    """Where each solution goes wrong."""
    joint = settings.joint.replace("\\n", "\n")
    return [
        Question(row["problem"], (joint.join(row["steps"]),), (row["steps"],), joint)
        for row in rows
    ]


def report(settings: Settings, rows: Sequence[Row], outcome: Outcome) -> Report:
    """F1 of each split with its two shares, and the mean."""
    assert outcome.first_errors is not None
    is_right = [
        float(found == row["label"]) for found, row in zip(outcome.first_errors, rows, strict=True)
    ]
    splits = list(dict.fromkeys(map(split_of, rows)))
    parts: dict[str, dict[str, Estimate]] = {}
    for split in splits:
        mine = [i for i, row in enumerate(rows) if split_of(row) == split]
        parts[split] = {
            name: _share([is_right[i] for i in mine if (rows[i]["label"] == -1) == is_sound])
            for name, is_sound in (("error", False), ("correct", True))
        }
    f1 = {split: square_and_add(harmonic, parts[split]) for split in splits}
    known = {split: part for split, part in f1.items() if not math.isnan(part.value)}
    overall = square_and_add(lambda v: sum(v.values()) / len(v), known) if known else NOTHING
    notes = ["F1 of two zeros is 0"]
    missing = [split for split in SPLITS if split not in known]
    notes += [f"mean of {len(known)} splits; no F1 of {', '.join(missing)}"] if missing else []
    unsaid = sum(found == -2 for found in outcome.first_errors)
    notes += [f"{unsaid} solutions without a verdict, which count as wrong"] if unsaid else []
    shares = {f"{split} {name}": p for split in splits for name, p in parts[split].items()}
    return Report(
        headline="Score",
        groups={"Overall": {"Score": overall}, "F1": f1, "Accuracy": shares},
        rows=[
            {"id": row["id"], "subset": split_of(row), "credit": right, "prediction": found}
            for row, right, found in zip(rows, is_right, outcome.first_errors, strict=True)
        ],
        notes=notes,
    )


def _share(values: Sequence[float]) -> Estimate:
    return wilson(sum(values) / len(values), len(values)) if values else NOTHING


def harmonic(values: Mapping[str, float]) -> float:
    """2ab/(a + b) of two values, 0 where both are; nan where one is not a number."""
    a, b = values.values()
    return 0.0 if a + b == 0 else 2 * a * b / (a + b)
