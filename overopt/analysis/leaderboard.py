"""Mitigations against a baseline: metrics of curves, paired effects, a leaderboard, equivalence.

Pure functions of `overopt.records.Curve`, downstream of `overopt.comparison`, which decides what is
run. Every metric is first a table of values by seed and prompt, (S, P), for the baseline and for the
mitigation alike; an effect is the mean of the difference of the two tables. Seeds and prompts are
crossed and both are samples, so its interval is the t interval of `overopt.fits.paired_difference`,
which holds its level with five seeds; a bootstrap of the same table, which does not, stands beside
it.

What it does differently from tables of final scores: curves are compared at equal √KL as well as at
their ends, a peak is never read off the prompts that chose it, and reference points come from tuning
runs, so that no test result decides where test results are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from overopt.base.errors import DataError
from overopt.fits.peaks import NO_INTERVAL, Interval
from overopt.fits.replicates import PairedDifference, holm, paired_difference
from overopt.records.curves import Curve

Array = NDArray[np.float64]

METRICS: dict[str, str] = {
    "area": "gold gain, mean over the baseline's √KL range",
    "gold_1x": "gold gain at the √KL at which the baseline peaks",
    "gold_2x": "gold gain at twice that √KL",
    "gold_peak": "gold gain at the run's own peak, cross-fitted",
    "gold_end": "gold gain at the end",
    "gap_end": "proxy gain minus gold gain at the end (lower is better)",
    "rubric_peak": "rubric gain where gold peaks, cross-fitted",
    "rubric_end": "rubric gain at the end",
    "win_rate": "gold win rate over the initial policy at the end",
}
"""Metrics of a curve; all are higher-is-better but ``gap_end``."""

PRIMARY = "area"
"""What tuning maximises and what the leaderboard is sorted by."""

COSTS = ("gold_labels", "rm_calls", "cpu_s")
LOWER_IS_BETTER = ("gap_end",)
HALF_SPLITS = 16
"""Splits of the prompts into halves behind a cross-fitted peak; each half also in the other role."""
SLOPE_POINTS = 9
"""Points of the grid on which a curve's slope is taken: finer would differentiate the noise."""
CI_LEVEL = 0.95
FEW_SEEDS = 5
"""Below this many seeds p-values that Holm's correction has to read far in the tail are too small."""
FEW_MITIGATIONS, SEEDS_FOR_MORE = 5, 8
"""Correcting for more mitigations reads further in the tail, for which it takes so many seeds."""


# --- curves at a given √KL ------------------------------------------------------------------------


class Reach(NamedTuple):
    """Interpolation weights at G values of √KL, and where the run never got that far."""

    weights: Array
    """(G, K); rows sum to 1."""
    is_carried: NDArray[np.bool_]
    """(G,); True where the value is that of the last point, carried forward."""


def first_reach(sqrt_kl: ArrayLike, at: ArrayLike) -> Reach:
    """Weights (G, K) that give a curve's value where √KL first reaches each of G values.

    Parameters
    ----------
    sqrt_kl : (K,) √KL of the points in the order of the run, √nats; need not be monotone.
    at : (G,) values of √KL, √nats.

    Notes
    -----
    The rule is that of somebody with a budget of KL: optimise until √KL first reaches the budget
    (linear between the points at which √KL was larger than ever before); if it never does, keep
    what the run ended with.
    """
    d, grid = np.asarray(sqrt_kl, dtype=float), np.asarray(at, dtype=float)
    before = np.concatenate([[-np.inf], np.maximum.accumulate(d)[:-1]])
    records = np.flatnonzero(d > before)
    position = np.searchsorted(d[records], grid)
    is_carried = position == len(records)
    upper = records[np.minimum(position, len(records) - 1)]
    lower = records[np.maximum(np.minimum(position, len(records) - 1) - 1, 0)]
    step = np.where(upper == lower, 1.0, d[upper] - d[lower])
    share = np.where(upper == lower, 1.0, (grid - d[lower]) / step)
    weights = np.zeros((len(grid), len(d)))
    rows = np.arange(len(grid))
    weights[rows, lower] += np.where(is_carried, 0.0, 1.0 - share)
    weights[rows, upper] += np.where(is_carried, 0.0, share)
    weights[is_carried, -1] = 1.0
    return Reach(weights, is_carried)


def gain(curve: Curve, name: str) -> Array:
    """Gain of ``gold``, ``proxy`` or ``rubric`` over the start, by point and prompt, (K, P).

    Where retraining replaced the proxy on the way, ``proxy`` has the mean of the records: each
    round's own proxy gave the start another score.
    """
    over_first = curve.arrays[name] - curve.arrays[name][:1]
    if name == "proxy" and len({row.get("round") for row in curve.rows}) > 1:
        return over_first + (curve["proxy_gain"] - over_first.mean(axis=1))[:, None]
    return over_first


def _carrying_kl_error(curve: Curve) -> Array:
    """Gold gain (K, P) whose scatter over prompts includes that of a measured KL.

    A prompt with more KL than the mean moves a point to the right, along the curve: to first order
    its gold at a given √KL is less by slope · (KL_p − mean KL)/(2√KL). The mean is unchanged.
    """
    gold_KP = gain(curve, "gold")
    kl_KP = curve.arrays["kl"]
    d = curve["sqrt_kl"]
    error = kl_KP - kl_KP.mean(axis=1, keepdims=True)
    if d.max() == 0 or not error.any():
        return gold_KP
    grid = np.linspace(0.0, d.max(), SLOPE_POINTS)
    slope = np.gradient(first_reach(d, grid).weights @ gold_KP.mean(axis=1), grid)
    factor = np.divide(np.interp(d, grid, slope), 2.0 * d, out=np.zeros_like(d), where=d > 0)
    return gold_KP - factor[:, None] * error


def gold_at(curve: Curve, at: ArrayLike) -> Array:
    """Gold gain where √KL first reaches each of G values, by prompt, (G, P); see `first_reach`."""
    reach = first_reach(curve["sqrt_kl"], at)
    values = reach.weights @ _carrying_kl_error(curve)
    values[reach.is_carried] = gain(curve, "gold")[-1]
    return values


def area(curve: Curve, max_sqrt_kl: float) -> Array:
    """Mean over √KL in [0, ``max_sqrt_kl``] of gold gain, by prompt, (P,).

    The integral of `gold_at` divided by the range, exact for the piecewise linear curve. A run that
    ends earlier keeps its last value for the rest of the range: one may stop there.

    Raises
    ------
    DataError
        ``max_sqrt_kl`` is not positive.
    """
    if not max_sqrt_kl > 0:
        raise DataError(
            f"max_sqrt_kl = {max_sqrt_kl}: a range of √KL must be positive; did the baseline move?"
        )
    d = curve["sqrt_kl"]
    reached = min(float(d.max()), max_sqrt_kl)
    nodes = np.unique(np.concatenate([[0.0, reached], d[d < reached]]))
    width = np.diff(nodes)
    trapezoid = np.concatenate([[0.0], width]) / 2 + np.concatenate([width, [0.0]]) / 2
    inside = trapezoid @ first_reach(d, nodes).weights @ _carrying_kl_error(curve)
    return (inside + (max_sqrt_kl - reached) * gain(curve, "gold")[-1]) / max_sqrt_kl


def truncate(curve: Curve, last: int) -> Curve:
    """The curve up to and including point number ``last``: a run that was stopped there."""
    stop = last + 1
    return Curve(curve.rows[:stop], {name: a[:stop] for name, a in curve.arrays.items()})


# --- tuning ---------------------------------------------------------------------------------------


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


def tuning_score(curves: Sequence[Curve], max_sqrt_kl: float) -> float:
    """Mean ``area`` over seeds and prompts: what the choice among trials maximises."""
    return float(np.mean([area(curve, max_sqrt_kl) for curve in curves]))


Criterion = Callable[[Sequence[Curve], float], float]


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


def choose(
    trials: Sequence[Sequence[Curve]],
    max_sqrt_kl: float,
    criterion: Criterion = tuning_score,
) -> Choice:
    """The trial with the largest ``criterion`` of its tuning curves; the first among equals."""
    scores = tuple(criterion(curves, max_sqrt_kl) for curves in trials)
    return Choice(int(np.argmax(scores)), scores)


# --- metrics --------------------------------------------------------------------------------------


def half_splits(n_prompts: int, *, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Random halves of the prompts, (2·`HALF_SPLITS`, P); each is followed by its complement."""
    halves = []
    for _ in range(HALF_SPLITS):
        half = np.zeros(n_prompts, dtype=bool)
        half[rng.permutation(n_prompts)[: n_prompts // 2]] = True
        halves += [half, ~half]
    return np.array(halves)


def at_peak(gold_KP: Array, values: Sequence[Array], splits: NDArray[np.bool_]) -> list[Array]:
    """Each of ``values`` (K, P) where gold peaks, by prompt, (P,), without the bias of choosing.

    The point is chosen by mean gold over one half of the prompts and read on the other half; a
    prompt's value is its mean over the splits in which it is read. It estimates what stopping at a
    peak found on P/2 prompts is worth, which is at most the true peak.
    """
    chosen = (splits @ gold_KP.T).argmax(axis=1)
    is_read = ~splits
    weight = is_read / is_read.sum(axis=0)
    return [(weight * table[chosen]).sum(axis=0) for table in values]


def metric_tables(
    curves: Sequence[Curve], reference: Reference, splits: NDArray[np.bool_]
) -> dict[str, Array]:
    """Every metric of `METRICS` by seed and prompt, (S, P); ``win_rate`` by seed only, (S, 1).

    Parameters
    ----------
    curves : one curve a seed, on common prompts.
    reference : where curves are compared.
    splits : of `half_splits`.
    """
    tables: dict[str, list[Array]] = {name: [] for name in METRICS}
    for curve in curves:
        gold, proxy, rubric = (gain(curve, name) for name in ("gold", "proxy", "rubric"))
        budgets = np.array([1.0, 2.0]) * reference.peak_sqrt_kl
        once, twice = gold_at(curve, budgets)
        gold_peak, rubric_peak = at_peak(gold, [gold, rubric], splits)
        values = {
            "area": area(curve, reference.max_sqrt_kl),
            "gold_1x": once,
            "gold_2x": twice,
            "gold_peak": gold_peak,
            "gold_end": gold[-1],
            "gap_end": proxy[-1] - gold[-1],
            "rubric_peak": rubric_peak,
            "rubric_end": rubric[-1],
            "win_rate": np.array([_number(curve.rows[-1].get("win_rate"))]),
        }
        for name, value in values.items():
            tables[name].append(value)
    return {name: np.stack(values) for name, values in tables.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


# --- effects --------------------------------------------------------------------------------------


def paired_effect(
    values: ArrayLike, baseline: ArrayLike, *, ci_level: float = CI_LEVEL
) -> PairedDifference:
    """Mean of values − baseline, both (S, P) by seed and prompt, with t interval and p-value.

    With several seeds the interval speaks of new seeds and new prompts. A table with one column, a
    metric known by seed only, is paired over seeds and speaks of these prompts. Values that are
    missing (nan) give nan and ``has_uncertainty=False``.
    """
    a, b = np.asarray(values, dtype=float), np.asarray(baseline, dtype=float)
    if a.shape == b.shape and not np.isfinite(a - b).all():
        nan = math.nan
        return PairedDifference(
            estimate=nan,
            stderr=nan,
            ci=NO_INTERVAL,
            ci_level=ci_level,
            dof=nan,
            p_value=nan,
            n_prompts=a.shape[1],
            n_replicates=len(a),
            has_uncertainty=False,
        )
    if a.ndim == 2 and a.shape[1] == 1:
        a, b = a.T, b.T
    return paired_difference(a, b, ci_level=ci_level)


def bootstrap_interval(
    difference: ArrayLike,
    *,
    rng: np.random.Generator,
    n_draws: int = 2000,
    ci_level: float = CI_LEVEL,
) -> Interval:
    """Percentile interval of the mean of a table (S, P), seeds and prompts drawn with replacement.

    Both levels are drawn independently, since prompts are common to all seeds. With five seeds a
    nominal 95 % covers 93 to 94 % where prompts matter as much as seeds, and 85 to 86 % where seeds
    dominate (docs/compare.md): a check beside `paired_effect`, not a replacement.
    """
    table = np.asarray(difference, dtype=float)
    if not np.isfinite(table).all():
        return NO_INTERVAL
    seeds, prompts = (rng.multinomial(n, np.full(n, 1 / n), size=n_draws) / n for n in table.shape)
    draws = np.einsum("bs,sp,bp->b", seeds, table, prompts, optimize=True)
    tail = (1 - ci_level) / 2
    return Interval(*map(float, np.quantile(draws, [tail, 1 - tail])))


# --- leaderboard ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One metric of one mitigation, and its difference from the baseline with 95 % interval.

    ``p_holm`` is corrected over the mitigations of one method and metric. The baseline's own
    effects are nan.
    """

    value: float
    difference: float
    stderr: float
    ci_low: float
    ci_high: float
    dof: float
    p_value: float
    p_holm: float
    bootstrap_low: float
    bootstrap_high: float


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One mitigation on the leaderboard of one method.

    Attributes
    ----------
    effects : dict
        An `Effect` for each of `METRICS`.
    reach_sqrt_kl : float
        Largest √KL of a run, mean over seeds: beyond it, values are carried forward.
    costs : dict
        `COSTS` at the end of a run, mean over seeds; nan where not recorded.
    """

    mitigation: str
    family: str
    method: str
    n_seeds: int
    n_prompts: int
    reach_sqrt_kl: float
    costs: dict[str, float]
    effects: dict[str, Effect]


def leaderboard(
    curves: Mapping[str, Sequence[Curve]],
    *,
    baseline: str,
    reference: Reference,
    families: Mapping[str, str],
    rng: np.random.Generator,
    cpu_s: Mapping[str, float] | None = None,
) -> list[Standing]:
    """Standings of all mitigations under one method, largest `PRIMARY` metric first.

    Parameters
    ----------
    curves : mitigation -> test curves, one a seed, the same seeds in the same order for all.
    baseline : the mitigation that the others are compared with.
    reference : of `find_reference`.
    families : mitigation -> family.
    rng : splits of prompts and bootstrap draws.
    cpu_s : mitigation -> mean CPU seconds of a run; absent: nan.

    Raises
    ------
    DataError
        Seeds or prompts that differ between mitigations.
    """
    check_paired(curves)
    n_prompts = curves[baseline][0].arrays["gold"].shape[1]
    splits = half_splits(n_prompts, rng=rng)
    tables = {name: metric_tables(same, reference, splits) for name, same in curves.items()}
    others = [name for name in curves if name != baseline]
    effects: dict[str, dict[str, Effect]] = {name: {} for name in curves}
    for metric in METRICS:
        base = tables[baseline][metric]
        paired = {name: paired_effect(tables[name][metric], base) for name in others}
        adjusted = dict(zip(others, holm([paired[n].p_value for n in others]), strict=True))
        for name in curves:
            value = float(tables[name][metric].mean())
            effects[name][metric] = (
                _no_effect(value)
                if name == baseline
                else _effect(value, paired[name], adjusted[name], tables[name][metric] - base, rng)
            )
    standings = [
        Standing(
            mitigation=name,
            family=families[name],
            method=same[0].meta["method"],
            n_seeds=len(same),
            n_prompts=n_prompts,
            reach_sqrt_kl=float(np.mean([curve["sqrt_kl"].max() for curve in same])),
            costs={
                "gold_labels": _mean_cost(same, "gold_labels"),
                "rm_calls": _mean_cost(same, "rm_calls"),
                "cpu_s": math.nan if cpu_s is None else cpu_s.get(name, math.nan),
            },
            effects=effects[name],
        )
        for name, same in curves.items()
    ]
    return sorted(standings, key=lambda s: -s.effects[PRIMARY].value)


def _effect(
    value: float,
    paired: PairedDifference,
    p_holm: float,
    difference: Array,
    rng: np.random.Generator,
) -> Effect:
    bootstrap = bootstrap_interval(difference, rng=rng)
    return Effect(
        value=value,
        difference=paired.estimate,
        stderr=paired.stderr,
        ci_low=paired.ci.low,
        ci_high=paired.ci.high,
        dof=paired.dof,
        p_value=paired.p_value,
        p_holm=float(p_holm),
        bootstrap_low=bootstrap.low,
        bootstrap_high=bootstrap.high,
    )


def _no_effect(value: float) -> Effect:
    nan = math.nan
    return Effect(
        value=value,
        difference=nan,
        stderr=nan,
        ci_low=nan,
        ci_high=nan,
        dof=nan,
        p_value=nan,
        p_holm=nan,
        bootstrap_low=nan,
        bootstrap_high=nan,
    )


def _mean_cost(curves: Sequence[Curve], column: str) -> float:
    return float(np.mean([_number(curve.rows[-1].get(column)) for curve in curves]))


def check_paired(curves: Mapping[str, Sequence[Curve]]) -> None:
    """Raise DataError unless all mitigations have the same seeds, in order, and prompts."""
    first = next(iter(curves))
    wanted = [_seeds(curve) for curve in curves[first]]
    prompts = {c.arrays["gold"].shape[1] for same in curves.values() for c in same}
    if len(prompts) > 1:
        raise DataError(f"curves have {sorted(prompts)} prompts; score the same prompts with all")
    for name, same in curves.items():
        if [_seeds(curve) for curve in same] != wanted:
            raise DataError(
                f"{name!r} has (data_seed, rm_seed, ppo_seed) {[_seeds(c) for c in same]},"
                f" {first!r} has {wanted}: pair the same seeds in the same order"
            )


def _seeds(curve: Curve) -> tuple[int | None, ...]:
    return tuple(curve.meta[name] for name in ("data_seed", "rm_seed", "ppo_seed"))
