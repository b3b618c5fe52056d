"""What tuning runs decide: which trial is chosen, and where test curves are compared.

So no test result decides where test results are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from overopt.analysis.reach import gold_at
from overopt.records.curves import Curve


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where test curves are compared; fixed by the baseline's tuning runs alone.

    Attributes
    ----------
    max_sqrt_kl : float
        End of the range of ``area``: median √KL that the baseline's tuning runs reach.
    peak_sqrt_kl : float
        Where the chosen baseline's gold, averaged over tuning seeds and prompts, is largest.
    is_turning : bool
        Whether that maximum lies inside the range; if not, gold rises or falls all the way, and
        ``peak_sqrt_kl`` is the end of the range.
    """

    max_sqrt_kl: float
    peak_sqrt_kl: float
    is_turning: bool


def tuning_score(curves: Sequence[Curve]) -> float:
    """Mean gold gain at the end, over seeds and prompts: what the choice among trials maximises."""
    return float(np.mean([curve.gain("gold")[-1] for curve in curves]))


Criterion = Callable[[Sequence[Curve]], float]


def common_range(curves: Sequence[Curve]) -> float:
    """Median of the largest √KL of each curve, √nats."""
    return float(np.median([curve["sqrt_kl"].max() for curve in curves]))


def find_reference(curves: Sequence[Curve], max_sqrt_kl: float, n_points: int = 200) -> Reference:
    """Range, and peak of the mean gold of ``curves`` on a grid of ``n_points`` over it."""
    grid = np.linspace(0.0, max_sqrt_kl, n_points + 1)
    mean = np.mean([gold_at(curve, grid).mean(axis=1) for curve in curves], axis=0)
    k = int(mean.argmax())
    peak = float(grid[k]) if k > 0 else max_sqrt_kl
    return Reference(max_sqrt_kl=max_sqrt_kl, peak_sqrt_kl=peak, is_turning=bool(0 < k < n_points))


class Choice(NamedTuple):
    """The chosen trial, and the score of each."""

    trial: int
    scores: tuple[float, ...]


def choose(trials: Sequence[Sequence[Curve]], criterion: Criterion = tuning_score) -> Choice:
    """The trial with the largest ``criterion`` of its tuning curves; the first among equals."""
    scores = tuple(criterion(curves) for curves in trials)
    return Choice(int(np.argmax(scores)), scores)
