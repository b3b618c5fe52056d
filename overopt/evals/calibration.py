"""How far differences of scores can be read as log-odds: loss and reliability of pairs.

A pair (first, second) with margin m = score of the better minus score of the other is given to the
model as a question with two sides: it holds the side that it scores higher for the better one, with
confidence σ(|m|). Confidence is compared with the share of pairs in which it is right.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from overopt.evals.intervals import LEVEL, NOTHING, Estimate, wilson


class Calibration(NamedTuple):
    """Expected calibration error, and the reliability diagram as columns of equal length."""

    error: Estimate
    table: dict[str, list[Any]]


def log_loss(margin: NDArray[np.float64]) -> Estimate:
    """Mean −log σ(m) in nats of margins (C,), with the normal interval of a mean."""
    loss = np.logaddexp(0, -margin[np.isfinite(margin)])
    if len(loss) < 2:
        return NOTHING
    half = float(norm.ppf(0.5 + LEVEL / 2)) * float(loss.std(ddof=1)) / math.sqrt(len(loss))
    return Estimate(
        float(loss.mean()), float(loss.mean()) - half, float(loss.mean()) + half, len(loss)
    )


def calibration(margin: NDArray[np.float64], *, n_bins: int = 10) -> Calibration:
    """Reliability of margins (C,): better minus other; a tie is right half of the time.

    The error is Σ n_b / C · |accuracy_b − confidence_b| over bins of equal width between 0.5 and 1
    (Guo et al. 2017, ECE). It has no interval: with few pairs a bin it is too large by chance, and no
    resampling mends that.
    """
    m = margin[np.isfinite(margin)]
    if len(m) == 0:
        return Calibration(NOTHING, {})
    confidence = 1 / (1 + np.exp(-np.abs(m)))
    is_right = (m > 0) + 0.5 * (m == 0)
    # The right end belongs to a bin, so that 1 has one.
    which = np.minimum(((confidence - 0.5) * 2 * n_bins).astype(int), n_bins - 1)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("low", "high", "n", "confidence", "accuracy", "ci_low", "ci_high")
    }
    error = 0.0
    for b in np.unique(which).tolist():
        mine = which == b
        share = wilson(float(is_right[mine].mean()), int(mine.sum()))
        mean = float(confidence[mine].mean())
        error += share.n / len(m) * abs(share.value - mean)
        values = (0.5 + b / (2 * n_bins), 0.5 + (b + 1) / (2 * n_bins), share.n, mean, *share[:3])
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    return Calibration(Estimate(error, math.nan, math.nan, len(m)), columns)
