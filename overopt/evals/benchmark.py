"""What a benchmark is: rows of a file, what they ask of a model, and how the answers are scored.

A benchmark is one file in ``benchmarks/`` (or a user's own) that defines

    Settings                                   in what published codes differ; `BenchmarkSettings`
    read(settings, sources) -> list[Row]       the rows of its files, checked
    questions(settings, rows) -> [Question]    what a model is asked
    report(settings, rows, outcome) -> Report  its scores, from what the model made of the questions

Nothing here computes with a network, so this file does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from overopt.base.kinds import Kind
from overopt.evals.intervals import Estimate, wilson
from overopt.evals.question import Outcome


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """What the settings of every benchmark answer."""

    @property
    def asks_for_steps(self) -> bool:
        """Whether a model must say where a response goes wrong, instead of how good it is."""
        return False

    @property
    def needs_scores(self) -> bool:
        """Whether a judge that only picks a response is of no use here."""
        return False


AnyBenchmark = Annotated[
    BenchmarkSettings,
    Kind("overopt.evals.benchmarks", "pairs", needs=("read", "questions", "report")),
]
"""A setting that holds the settings of one benchmark."""


@dataclass(frozen=True)
class Report:
    """The scores of one model on one benchmark.

    Attributes
    ----------
    headline : str
        Which of the scores stands for the whole.
    groups : dict
        Heading -> name -> `Estimate`.
    rows : list of dict
        Of each row: ``id``, ``subset``, ``credit`` (None where the score is not one of single rows).
    notes : list of str
        How was scored where published codes differ, and what is missing.
    tied : float
        Share of questions whose best score is not unique, nan for judges.
    not_finite : int
        Scores that are not numbers.
    tables : dict
        Further tables by name: columns of equal length.
    """

    headline: str
    groups: dict[str, dict[str, Estimate]]
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    tied: float = math.nan
    not_finite: int = 0
    tables: dict[str, dict[str, list[Any]]] = field(default_factory=dict)

    @property
    def score(self) -> Estimate:
        """The score that stands for the whole."""
        return next(g[self.headline] for g in self.groups.values() if self.headline in g)


def by_subset(names: Sequence[str], credits: Sequence[float]) -> dict[str, Estimate]:
    """Mean credit of each subset, in the order in which they first appear."""
    found: dict[str, list[float]] = {}
    for name, credit in zip(names, credits, strict=True):
        found.setdefault(name, []).append(credit)
    return {name: wilson(sum(values) / len(values), len(values)) for name, values in found.items()}


def weighted_mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Σ weight · value / Σ weight over the values that are numbers; nan where there is none."""
    present = [name for name in values if not math.isnan(values[name])]
    total = sum(weights[name] for name in present)
    if total == 0:
        return math.nan
    return sum(values[name] * weights[name] for name in present) / total


def tied_share(scores: Iterable[NDArray[np.float64]] | None) -> float:
    """Share of questions whose largest score several responses have."""
    if scores is None:
        return math.nan
    return float(np.mean([np.sum(s == np.max(s)) > 1 for s in scores]))


def position(outcome: Outcome) -> dict[str, Estimate]:
    """How often a judge picks the response that it sees first, of its picks; nothing of other models.

    Where each response stands is drawn, so a judge that does not mind has 1 over the number of
    responses.
    """
    places = [place for place in outcome.places or () if place >= 0]
    if not places:
        return {}
    return {"The first is picked": wilson(places.count(0) / len(places), len(places))}


def not_finite(outcome: Outcome) -> int:
    """How many scores are not numbers or infinite."""
    return sum(int((~np.isfinite(s)).sum()) for s in outcome.scores or ())


def pair_credit(outcome: Outcome, i: int, *, tie: float) -> float:
    """Credit of question i with two responses, the first of them the better one.

    A score that is not a number loses. A judge that gives no verdict, or equal ratings, or no rating
    to one of the two, has half a point (reward-bench, ``run_generative.py``).
    """
    if outcome.choices is not None:
        return {0: 1.0, 1: 0.0}.get(outcome.choices[i], 0.5)
    assert outcome.scores is not None
    better, worse = outcome.scores[i][:2]
    if outcome.is_judge and (better == worse or -1 in (better, worse)):
        return 0.5
    if better > worse:
        return 1.0
    return tie if better == worse else 0.0
