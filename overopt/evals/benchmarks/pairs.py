"""Any file of pairs: accuracy, loss, and calibration of the differences.

The columns are prompt, chosen, rejected, and perhaps subset and id: the layout of most preference
data. Equal scores count half, as in `overopt.rewards.training.calibration`; RewardBench lets them lose.
A difference of two scores is read as the log-odds that the first is better (Bradley and Terry 1952).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from overopt.base.config import check_types, require
from overopt.evals import rows as files
from overopt.evals.benchmark import (
    BenchmarkSettings,
    Report,
    by_subset,
    not_finite,
    pair_credit,
    position,
    tied_share,
)
from overopt.evals.benchmarks.rewardbench import checked_pairs, questions
from overopt.evals.calibration import calibration, log_loss
from overopt.evals.question import Outcome
from overopt.evals.rows import Column, Row, read_rows

__all__ = ["Settings", "questions", "read", "report"]


@dataclass(frozen=True, kw_only=True)
class Settings(BenchmarkSettings):
    """Of pairs.

    Attributes
    ----------
    tie : "half" or "lose"
        What equal scores are worth.
    bins : int
        Bins of equal width of the reliability diagram, from 0.5 to 1.
    scale : float
        Factor on differences of scores before they are read as log-odds, such as β of DPO.
    """

    tie: Literal["half", "lose"] = "half"
    bins: int = 10
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.bins >= 1, "benchmark.bins", self.bins, "must be at least 1")
        require(self.scale > 0, "benchmark.scale", self.scale, "must be positive")


COLUMNS = (
    Column("prompt", files.dialogue),
    Column("chosen", files.filled),
    Column("rejected", files.filled),
    Column("subset", files.filled, needed=False, empty="all"),
    Column("id", files.identifier, needed=False),
)


def read(settings: Settings, sources: Sequence[str]) -> list[Row]:
    """The rows of files with prompt, chosen and rejected; DataError as in `read_rows`."""
    return [row for source in sources for row in checked_pairs(read_rows(source, COLUMNS))]


def report(settings: Settings, rows: Sequence[Row], outcome: Outcome) -> Report:
    """Accuracy by subset and of all rows; where the model gives scores, how calibrated they are."""
    tie = 0.5 if settings.tie == "half" else 0.0
    credit = [pair_credit(outcome, i, tie=tie) for i in range(len(rows))]
    subset = [row["subset"] for row in rows]
    overall = {"Accuracy": by_subset(["all"] * len(rows), credit)["all"]}
    tables = {}
    if outcome.scores is not None and not outcome.is_judge:
        margin = settings.scale * np.array([s[0] - s[1] for s in outcome.scores])
        measured = calibration(margin, n_bins=settings.bins)
        overall |= {"Loss, nats": log_loss(margin), "Calibration error": measured.error}
        tables["reliability"] = measured.table
    return Report(
        headline="Accuracy",
        groups={
            "Overall": overall,
            "Subsets": by_subset(subset, credit),
            "Position": position(outcome),
        },
        rows=[
            {"id": row["id"] or f"{row.file}:{row.number}", "subset": row["subset"], "credit": c}
            for row, c in zip(rows, credit, strict=True)
        ],
        notes=["a tie is " + ("half a win" if settings.tie == "half" else "a loss")],
        tied=tied_share(outcome.scores),
        not_finite=not_finite(outcome),
        tables=tables,
    )
