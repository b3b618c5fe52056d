"""Several responses to each prompt with gold scores: best-of-n, and accuracy of the best of four.

The columns are prompt, responses, gold (one number for each response), and perhaps subset and id.
Best-of-n is the unbiased estimator over all subsets of n of a prompt's responses
(`overopt.best_of_n`). Where gold is 0 or 1, the rank of right among wrong responses (area under the ROC
curve) is given within prompts and over all of them: the two differ where a model tells easy prompts
from hard ones and not right from wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from overopt.base.config import check_types, require
from overopt.base.seeding import numpy_rng
from overopt.evals import rows as files
from overopt.evals.benchmark import BenchmarkSettings, Report, not_finite, tied_share
from overopt.evals.intervals import LEVEL, NOTHING, Estimate
from overopt.evals.question import Outcome, Question
from overopt.evals.rows import Column, Row, read_rows
from overopt.pools.best_of_n import best_of_n


@dataclass(frozen=True, kw_only=True)
class Settings(BenchmarkSettings):
    """Of candidates.

    Attributes
    ----------
    ns : tuple of int
        Points of the curve of best-of-n; those above the smallest number of responses are left out.
        Empty: powers of 2.
    best_of : int
        How many responses the accuracy of the best is taken among.
    """

    ns: tuple[int, ...] = ()
    best_of: int = 4

    def __post_init__(self) -> None:
        check_types(self)
        require(all(n >= 1 for n in self.ns), "benchmark.ns", self.ns, "must be 1 or more")
        require(self.best_of >= 2, "benchmark.best_of", self.best_of, "must be at least 2")

    @property
    def needs_scores(self) -> bool:
        """For the order of all responses."""
        return True


COLUMNS = (
    Column("prompt", files.dialogue),
    Column("responses", files.texts),
    Column("gold", files.numbers),
    Column("subset", files.filled, needed=False, empty="all"),
    Column("id", files.identifier, needed=False),
)


def read(settings: Settings, sources: Sequence[str]) -> list[Row]:
    """The rows of files; DataError as `read_rows`, or gold has not a number for each response."""
    rows = [row for source in sources for row in read_rows(source, COLUMNS)]
    for row in rows:
        if len(row["gold"]) != len(row["responses"]):
            remedy = f"must have {len(row['responses'])} numbers, one for each response"
            raise row.error("gold", row["gold"], remedy)
    return rows


def questions(settings: Settings, rows: Sequence[Row]) -> list[Question]:
    """How good each response is."""
    return [Question(row["prompt"], row["responses"]) for row in rows]


def report(settings: Settings, rows: Sequence[Row], outcome: Outcome) -> Report:
    """Accuracy of the best of four, the curve of best-of-n, and ranks of right among wrong."""
    assert outcome.scores is not None
    scores = outcome.scores
    gold = [np.array(row["gold"]) for row in rows]
    groups: dict[str, dict[str, Estimate]] = {"Overall": {}}
    name = f"Best of {settings.best_of} has the best gold"
    each = [best_has_best(s, g, settings.best_of) for s, g in zip(scores, gold, strict=True)]
    groups["Overall"][name] = mean_of(each)
    if all(np.isin(g, (0, 1)).all() for g in gold):
        groups["Overall"]["Right above wrong, within prompts"] = mean_of(
            [auc(s, g) for s, g in zip(scores, gold, strict=True)]
        )
        groups["Overall"]["Right above wrong, all prompts"] = pooled_auc(scores, gold)
    notes, tables = [], {}
    n_common = min(map(len, gold))
    if all(np.isfinite(s).all() for s in scores) and len(rows) > 1 and n_common > 1:
        curve = best_of_curve(scores, gold, n_common, settings.ns)
        tables["best_of_n"] = curve
        groups["Gold of the best of n"] = {
            f"n = {n}": Estimate(mean, mean - _Z * err, mean + _Z * err, len(rows))
            for n, mean, err in zip(curve["n"], curve["gold"], curve["stderr"], strict=True)
        }
        if any(len(g) != n_common for g in gold):
            notes.append(f"best-of-n is over the first {n_common} responses of each prompt")
    return Report(
        headline=name,
        groups=groups,
        rows=[
            {
                "id": row["id"] or f"{row.file}:{row.number}",
                "subset": row["subset"],
                "credit": None if math.isnan(c) else c,
            }
            for row, c in zip(rows, each, strict=True)
        ],
        notes=notes,
        tied=tied_share(scores),
        not_finite=not_finite(outcome),
        tables=tables,
    )


_Z = float(norm.ppf(0.5 + LEVEL / 2))
_DRAWS = 1000


def mean_of(values: Sequence[float]) -> Estimate:
    """Mean over prompts with its normal interval; prompts without a value are passed by."""
    x = np.array([v for v in values if not math.isnan(v)])
    if len(x) < 2:
        return NOTHING
    half = _Z * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Estimate(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))


def best_has_best(scores: NDArray[np.float64], gold: NDArray[np.float64], k: int) -> float:
    """Chance that the highest score among the first ``k`` responses has the highest gold of them.

    Equal scores are drawn from evenly. nan where gold is the same for all, or there are fewer than k.
    """
    s, g = scores[:k], gold[:k]
    if len(s) < k or g.min() == g.max() or not np.isfinite(s).all():
        return math.nan
    return float(np.mean(g[s == s.max()] == g.max()))


def auc(scores: NDArray[np.float64], gold: NDArray[np.float64]) -> float:
    """Share of pairs of a right and a wrong response in which the right one scores more; ties half.

    nan where there are no such pairs.
    """
    is_right = gold == 1
    n, m = int(is_right.sum()), int((~is_right).sum())
    if n == 0 or m == 0 or not np.isfinite(scores).all():
        return math.nan
    rank = rankdata(scores)
    return float((rank[is_right].sum() - n * (n + 1) / 2) / (n * m))


def pooled_auc(
    scores: Sequence[NDArray[np.float64]], gold: Sequence[NDArray[np.float64]]
) -> Estimate:
    """`auc` over the responses to all prompts, with the percentile interval of draws of prompts."""
    value = auc(np.concatenate(scores), np.concatenate(gold))
    picks = numpy_rng(0, "auc").integers(len(gold), size=(_DRAWS, len(gold)))
    draws = [
        auc(np.concatenate([scores[i] for i in p]), np.concatenate([gold[i] for i in p]))
        for p in picks
    ]
    n = sum(map(len, gold))
    if math.isnan(value) or np.isnan(draws).all():
        return Estimate(value, math.nan, math.nan, n)
    low, high = np.nanquantile(draws, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Estimate(value, float(low), float(high), n)


def best_of_curve(
    scores: Sequence[NDArray[np.float64]],
    gold: Sequence[NDArray[np.float64]],
    n_common: int,
    ns: Sequence[int],
) -> dict[str, list[Any]]:
    """Mean gold of the best of n by score, and its standard error over prompts."""
    points = [n for n in ns if n <= n_common]
    points = points or [2**k for k in range(int(math.log2(n_common)) + 1)]
    proxy, values = (np.array([x[:n_common] for x in table]) for table in (scores, gold))
    found = best_of_n(proxy, values, points)
    return {
        "n": points,
        "gold": [float(x) for x in found.mean],
        "stderr": [float(x) for x in found.stderr],
    }
