"""Proxies as evaluators: how well each ranks policies, those that were optimised against it and others.

The policies are those that methods were evaluated at along the way. Each proxy of a series (replicates
that differ in seeds alone) scores the responses of all of them, and the ranking by its mean scores is
compared with gold's by Kendall's τ. A proxy's own policies have been moved to where it errs, so τ on
them is lower than on policies that were optimised against another seed. Everything is read from the
artefacts of finished runs; only what no run has scored is scored anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from overopt.base import files
from overopt.base.config import require
from overopt.base.errors import ConfigError
from overopt.base.seeding import numpy_rng
from overopt.fits.bootstrap import FEW_SEEDS, draw_weights
from overopt.fits.replicates import ReplicateCurve
from overopt.stages.common import load_responses
from overopt.stages.optimise import method_role
from overopt.study.finished import Finished
from overopt.worlds.load import load_world

CI_LEVEL = 0.95
DECIMALS = 6
"""Of mean scores in sd, below which differences are rounding."""
FEWEST_DRAWS = 100
"""With which there is an interval."""
Array = NDArray[np.float64]


class Policies(NamedTuple):
    """K policies that were optimised against one proxy, evaluated on P prompts.

    points : of each its ``run_id``, ``method``, ``value`` and ``sqrt_kl``; gold_KP : gold's mean scores;
    scores_SKP : those of each of the S proxies of the series.
    """

    points: list[dict[str, Any]]
    gold_KP: Array
    scores_SKP: Array


class Tau(NamedTuple):
    """Kendall's τ with gold's ranking, or a difference of two; None where it is not known."""

    value: float | None
    ci_low: float | None
    ci_high: float | None


class Ranking(NamedTuple):
    """How well the proxies of one series rank policies.

    own, others, difference : τ on policies optimised against the proxy that ranks, against the others
    of the series, and the first minus the second, means over proxies; taus : (S, S), of the proxy of
    the row on policies against the proxy of the column; policies : by proxy.
    """

    series: str
    own: Tau
    others: Tau
    difference: Tau
    taus: Array
    policies: list[Policies]

    def to_json(self) -> dict[str, Any]:
        """All of it, of JSON types; means over prompts in place of values by prompt."""
        return {
            "series": self.series,
            "n_prompts": self.policies[0].gold_KP.shape[1],
            **{name: getattr(self, name)._asdict() for name in ("own", "others", "difference")},
            "taus": [[None if math.isnan(x) else float(x) for x in row] for row in self.taus],
            "policies": [
                [
                    point | {"gold": float(gold), "proxies": [float(x) for x in proxies]}
                    for point, gold, proxies in zip(
                        p.points, p.gold_KP.mean(1), p.scores_SKP.mean(2).T, strict=True
                    )
                ]
                for p in self.policies
            ],
        }


def rank(curves: Sequence[Finished], *, n_draws: int = 1000) -> list[Ranking]:
    """How well proxies rank policies, for each series of at least two proxies with policies.

    Parameters
    ----------
    curves
        What `overopt.study.finished.finished_curves` found; best-of-n has no policies.
    n_draws
        Draws of the bootstrap over prompts, and proxies within data seeds.

    Raises
    ------
    ConfigError
        ``n_draws`` is too small, or no series has two proxies with policies on the same prompts.
    """
    require(
        n_draws >= FEWEST_DRAWS,
        "--draws",
        n_draws,
        f"must be at least {FEWEST_DRAWS} for an interval",
    )
    series: dict[tuple[str, int, int], dict[str, list[Finished]]] = {}
    for curve in curves:
        method = curve.run.method
        if curve.is_bon or method is None:
            continue
        key = (curve.series, method.eval_prompts, method.eval_offset)
        series.setdefault(key, {}).setdefault(curve.proxy.fingerprint, []).append(curve)
    compared = [list(of.values()) for of in series.values() if len(of) > 1]
    if not compared:
        raise ConfigError(
            "experiment: no two proxies that differ in seeds alone were optimised against by a method:"
            " give one with several labels.data_seed or proxy.rm_seed, and method.kind set"
        )
    return [_of_series(of, n_draws) for of in compared]


def _of_series(proxies: list[list[Finished]], n_draws: int) -> Ranking:
    """The ranking of one series; ``proxies``: of each its curves."""
    policies = [_policies(j, proxies) for j in range(len(proxies))]
    replicates = [
        ReplicateCurve(
            gold_KP=p.gold_KP,
            sqrt_kl=np.zeros(len(p.gold_KP)),
            rm_seed=of[0].proxy.fingerprint,
            data_seed=of[0].run.labels.data_seed,
        )
        for p, of in zip(policies, proxies, strict=True)
    ]
    weights = draw_weights(replicates, rng=numpy_rng(0, "rank"), n_draws=n_draws)
    n_prompts = policies[0].gold_KP.shape[1]
    taus = tau_matrix(policies, np.full(n_prompts, 1 / n_prompts))
    draws = [
        contrast(tau_matrix(policies, by_prompt), by_proxy)
        for by_prompt, by_proxy in zip(weights.prompts_BP, weights.replicates_BS, strict=True)
    ]
    groups = {r.data_seed for r in replicates}
    shares = [sum(o.data_seed == r.data_seed for o in replicates) for r in replicates]
    found = contrast(taus, np.array([1 / (len(groups) * n) for n in shares]))
    parts = [_tau(value, column) for value, column in zip(found, np.array(draws).T, strict=True)]
    return Ranking(proxies[0][0].title, parts[0], parts[1], parts[2], taus, policies)


def _tau(value: float, draws: Array) -> Tau:
    """With the percentile interval of the draws in which there is a τ."""
    known = draws[np.isfinite(draws)]
    if math.isnan(value) or len(known) < FEWEST_DRAWS:
        return Tau(None if math.isnan(value) else value, None, None)
    low, high = np.quantile(known, [0.5 - CI_LEVEL / 2, 0.5 + CI_LEVEL / 2])
    return Tau(value, float(low), float(high))


def tau(one_K: Array, other_K: Array) -> float:
    """Kendall's τ-b of two scores of K policies (Kendall 1945); nan where one of them is constant.

    Σ sign(xᵢ − xⱼ) sign(yᵢ − yⱼ) over the root of the numbers of pairs that are no ties in x and in y.
    It is that of ``scipy.stats.kendalltau``, without the p-value, which takes most of the time there
    and fails for K = 2.
    """
    one, other = (np.sign(x[:, None] - x[None, :]) for x in (one_K, other_K))
    untied = float(np.count_nonzero(one)) * float(np.count_nonzero(other))
    return float((one * other).sum()) / math.sqrt(untied) if untied > 0 else math.nan


def tau_matrix(policies: Sequence[Policies], weights_P: Array) -> Array:
    """τ (S, S) of the ranking by each proxy (row) with gold's, on policies against each (column).

    weights_P : of each prompt in all means; they sum to 1. Means that agree to `DECIMALS` are ties.
    """

    def mean(values: Array) -> Array:
        return np.round(values @ weights_P, DECIMALS)

    golds = [mean(p.gold_KP) for p in policies]
    return np.array(
        [
            [tau(mean(p.scores_SKP[i]), gold) for p, gold in zip(policies, golds, strict=True)]
            for i in range(len(policies))
        ]
    )


def contrast(taus: Array, weights_S: Array) -> tuple[float, float, float]:
    """Weighted means of τ on own policies and on those of others, and their difference.

    weights_S : of each proxy. A pair of proxies weighs the product of theirs. What is no number is left
    out; nan where nothing is left, such as others where one proxy alone has weight.
    """
    pairs = np.outer(weights_S, weights_S)
    own = _mean(np.diag(taus), weights_S)
    others = _mean(taus, np.where(np.eye(len(taus), dtype=bool), 0.0, pairs))
    return own, others, own - others


def _mean(values: Array, weights: Array) -> float:
    used = np.where(np.isfinite(values), weights, 0.0)
    total = float(used.sum())
    return float((used * np.nan_to_num(values)).sum()) / total if total > 0 else math.nan


def _policies(j: int, proxies: Sequence[Sequence[Finished]]) -> Policies:
    """The policies against proxy ``j``, scored by all; the initial policy counts once."""
    first = proxies[j][0]
    world = load_world(first.run.world)
    scorers = [of[0].scorer(of[0].proxy, world) for of in proxies]
    points: list[dict[str, Any]] = []
    gold, scores = [], []
    for curve in proxies[j]:
        role = method_role(curve.curve.upstream)
        folder = curve.context().inputs[role].path
        known = {row["value"]: k for k, row in enumerate(curve.rows)}
        by_prompt = files.load_arrays(curve.folder / "curve.npz")["gold"].astype(np.float64)
        for file in sorted(folder.glob("eval-*.npz")):
            step = int(file.stem.removeprefix("eval-"))
            if step == 0 and any(point["value"] == 0 for point in points):
                continue
            responses, table = load_responses(file), files.load_arrays(file)
            n_prompts = len(table["prompt_ids"])
            of_proxies = [
                table["proxy"] if i == j else scorer.score(responses).numpy()
                for i, scorer in enumerate(scorers)
            ]
            means = [x.astype(np.float64).reshape(n_prompts, -1).mean(1) for x in of_proxies]
            row = curve.rows[known[step]]
            points.append(
                {"run_id": curve.curve.fingerprint, "method": curve.method}
                | {"value": step, "sqrt_kl": row["sqrt_kl"]}
            )
            gold.append(by_prompt[known[step]])
            scores.append(means)
    return Policies(points, np.stack(gold), np.array(scores).swapaxes(0, 1))


def text_of(found: Sequence[Ranking]) -> str:
    """A table a series: τ on own policies, on others', and their difference."""
    lines: list[str] = []
    for one in found:
        n = len(one.policies)
        many = ", ".join(str(len(p.points)) for p in one.policies)
        lines += [
            f"{one.series}: {n} proxies, {many} policies, {one.policies[0].gold_KP.shape[1]} prompts",
            f"  {'Kendall τ with the ranking by gold':42} {'τ':>7}  interval of 95 %",
            _line("policies optimised against the same proxy", one.own),
            _line("policies optimised against the others", one.others),
            _line("the first minus the second", one.difference),
            "",
        ]
        if n < FEW_SEEDS:
            lines.insert(-1, f"  with {n} proxies the intervals are shorter than they ought to be")
    return "\n".join(lines).rstrip()


def _line(name: str, one: Tau) -> str:
    if one.value is None:
        return f"  {name:42} {'none':>7}"
    interval = "" if one.ci_low is None else f"[{one.ci_low:+.3f}, {one.ci_high:+.3f}]"
    return f"  {name:42} {one.value:+7.3f}  {interval}"
