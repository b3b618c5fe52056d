"""Intervals of shares, and of what is computed from several independent ones.

A benchmark's score is a mean of means over subsets, or a function of two. Its parts are shares of few
rows, often all or none of them right, where a bootstrap would give an interval of no width. So each
part has Wilson's interval, and they are put together by square-and-add (Newcombe 1998; Zou and Donner
2008, as MOVER): the distances to the parts' limits, each taken through the function, add in squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from scipy.stats import norm

LEVEL = 0.95


class Estimate(NamedTuple):
    """A value, the limits of its interval of `LEVEL`, and the rows behind it."""

    value: float
    low: float
    high: float
    n: int


NOTHING = Estimate(math.nan, math.nan, math.nan, 0)
"""Of no rows."""


def wilson(share: float, n: int) -> Estimate:
    """A share of ``n`` rows with its score interval (Wilson 1927).

    For credits between 0 and 1, such as half a point for a tie, it is wider than it need be.
    """
    if n == 0:
        return NOTHING
    z = float(norm.ppf(0.5 + LEVEL / 2))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    spread = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and at 1 the limit is the value itself; only rounding would move it.
    return Estimate(
        share, min(share, max(0.0, middle - spread)), max(share, min(1.0, middle + spread)), n
    )


def square_and_add(
    function: Callable[[Mapping[str, float]], float], parts: Mapping[str, Estimate]
) -> Estimate:
    """``function`` of independent parts, with an interval made of theirs.

    ``function`` grows with each part, as means and F1 do. A part without rows, which is not a number,
    goes into it as such, and does not add to the interval.
    """
    values = {name: part.value for name, part in parts.items()}
    middle = function(values)
    below = above = 0.0
    for name, part in parts.items():
        if math.isnan(part.value):
            continue
        below += (middle - function(values | {name: part.low})) ** 2
        above += (function(values | {name: part.high}) - middle) ** 2
    n = sum(part.n for part in parts.values())
    return Estimate(middle, middle - math.sqrt(below), middle + math.sqrt(above), n)
