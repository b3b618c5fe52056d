"""When to stop optimising without looking at gold, and what each rule of thumb costs.

Gold falls while the proxy still rises, so a user who only has the proxy needs another sign that it
is time to stop. A `Rule` watches such a sign along a PPO curve; `tune` sets its threshold on curves
of other proxies; `compare_rules` says how much gold it loses against the oracle that sees gold. For
best-of-n, where stopping means choosing n, `hedge_n` chooses it on tuning prompts and `score_hedge`
scores it on the others.

Two things hold by construction rather than by care. A rule is handed the columns it names, which
cannot be gold's, and at each point only the past: its stop cannot depend on what comes later. And
the oracle that scores it is chosen on one half of the prompts and valued on the other, because the
largest of several noisy means overstates what stopping there is worth.

Analysis of records and pools: numpy and scipy only.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from overopt.base.errors import ConfigError, DataError
from overopt.fits.replicates import crossed_mean
from overopt.records.curves import Curve
from overopt.records.schema import FIELDS

Array = NDArray[np.float64]
Past = Mapping[str, Array]

GOLD_COLUMNS = frozenset(
    name for name in FIELDS if name.startswith(("gold_", "rubric_", "win_rate")) or name == "gap"
)
"""Columns that need gold or rubric scores of the responses: no rule may read them."""

PLATEAU_WINDOW = 4
"""Points over which `proxy_plateau` takes a slope."""


# ------------------------------------------------------------------------------------------- rules


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A sign to watch, and the side of a threshold on which it says stop."""

    name: str
    """Also the name in tables."""
    columns: tuple[str, ...]
    """Columns of the records that it reads."""
    signal: Callable[[Past], float]
    """The sign now, from the columns up to now (the last entry); nan says nothing yet."""
    side: Literal["above", "below"]
    """Whether the alarm is a signal above the threshold or below it."""
    unit: str
    """Unit of signal and threshold."""
    meaning: str
    """What the signal is, in a few words."""

    def __post_init__(self) -> None:
        for name in self.columns:
            if name not in FIELDS:
                raise ConfigError(f"rule {self.name!r}: column {name!r} is not in the records")
            if name in GOLD_COLUMNS:
                raise ConfigError(
                    f"rule {self.name!r}: column {name!r} needs gold; a stopping rule must do"
                    " without it"
                )


def _now(name: str) -> Callable[[Past], float]:
    """The column's latest value."""
    return lambda past: float(past[name][-1])


def _ratio(name: str) -> Callable[[Past], float]:
    """The column's latest value over its first."""

    def signal(past: Past) -> float:
        start = past[name][0]
        return float(past[name][-1] / start) if start > 0 else math.nan

    return signal


def _plateau(past: Past) -> float:
    """Slope of proxy gain on √KL over the latest window, as a share of that over the first."""
    d, gain, w = past["sqrt_kl"], past["proxy_gain"], PLATEAU_WINDOW
    if len(d) < w:
        return math.nan
    first, latest = _slope(d[:w], gain[:w]), _slope(d[-w:], gain[-w:])
    return latest / first if first > 0 else math.nan


def _slope(x: Array, y: Array) -> float:
    """Least-squares slope; nan where x does not move."""
    dx = x - x.mean()
    spread = float(dx @ dx)
    return float(dx @ y) / spread if spread > 0 else math.nan


RULES: tuple[Rule, ...] = (
    Rule(
        name="step_budget",
        columns=("value",),
        signal=_now("value"),
        side="above",
        unit="steps",
        meaning="optimisation steps: the rule that watches nothing",
    ),
    Rule(
        name="kl_budget",
        columns=("kl_seq_nats",),
        signal=_now("kl_seq_nats"),
        side="above",
        unit="nats",
        meaning="KL from the initial policy",
    ),
    Rule(
        name="member_disagreement",
        columns=("member_disagreement",),
        signal=_ratio("member_disagreement"),
        side="above",
        unit="x start",
        meaning="spread of the ensemble's members, as a multiple of its start",
    ),
    Rule(
        name="proxy_std",
        columns=("proxy_std",),
        signal=_ratio("proxy_std"),
        side="below",
        unit="x start",
        meaning="spread of proxy scores within prompts, as a share of its start",
    ),
    Rule(
        name="entropy_floor",
        columns=("entropy_token_nats",),
        signal=_now("entropy_token_nats"),
        side="below",
        unit="nats/token",
        meaning="entropy of the policy per token",
    ),
    Rule(
        name="proxy_plateau",
        columns=("sqrt_kl", "proxy_gain"),
        signal=_plateau,
        side="below",
        unit="x first",
        meaning="proxy gain per sqrt(KL), as a share of the first slope",
    ),
    Rule(
        name="response_length",
        columns=("response_tokens",),
        signal=_ratio("response_tokens"),
        side="above",
        unit="x start",
        meaning="response length, as a multiple of its start",
    ),
)


def column(curve: Curve, name: str) -> Array:
    """Column (K,) as floats, nan where it is null."""
    values = [row.get(name) for row in curve.rows]
    return np.array([math.nan if v is None else v for v in values], dtype=float)


def signals(rule: Rule, curve: Curve) -> Array:
    """The rule's signal (K,) along a curve, each entry from the points up to it."""
    columns = {name: column(curve, name) for name in rule.columns}
    n_points = len(curve.rows)
    return np.array(
        [rule.signal({n: x[: k + 1] for n, x in columns.items()}) for k in range(n_points)]
    )


def stop(rule: Rule, curve: Curve, threshold: float) -> int:
    """Index of the point at which the rule stops: the last before its first alarm.

    Without an alarm it is the last point; with one at the first point, the first. A point added at
    the end never changes a stop that an alarm has made.
    """
    return int(_stops_of(signals(rule, curve), rule.side, np.array([threshold]))[0])


def _stops_of(signal: Array, side: str, thresholds: Array) -> NDArray[np.int64]:
    """Index of the stop (T,) at each of ``thresholds`` (T,), for one signal (K,)."""
    sign = 1.0 if side == "above" else -1.0
    # The first alarm is where the highest signal so far passes the threshold.
    highest = np.maximum.accumulate(np.where(np.isnan(signal), -np.inf, sign * signal))
    alarm = np.searchsorted(highest, sign * thresholds, side="right")
    return np.where(alarm < len(signal), np.maximum(alarm - 1, 0), len(signal) - 1)


def can_watch(rule: Rule, curve: Curve) -> bool:
    """Whether the curve has what the rule watches, at two points or more."""
    return int(np.isfinite(signals(rule, curve)).sum()) >= 2


# ------------------------------------------------------------------------------- oracle and regret


def gold_gain(curve: Curve) -> Array:
    """Gold gain (K, P) over the first point, prompt by prompt."""
    return curve.arrays["gold"] - curve.arrays["gold"][:1]


def halves(n_prompts: int) -> tuple[Array, Array]:
    """Two halves of the prompts, as masks (P,): even and odd columns."""
    even = np.arange(n_prompts) % 2 == 0
    return even, ~even


def oracle(gain_KP: ArrayLike) -> int:
    """Index of the point of highest mean gold: the stop of someone who sees gold.

    Its mean on the same prompts is biased upwards, by the largest of K noises.
    """
    return int(np.asarray(gain_KP).mean(1).argmax())


@dataclass(frozen=True, kw_only=True)
class Regret:
    """Gold lost by stopping where a rule stops, in sd of gold.

    The two estimates bracket the truth on average: an oracle that errs is worth too little, one
    that is valued on its own luck too much.
    """

    estimate: float
    """Mean over curves and prompts, against the oracle chosen on the other half of the prompts; may
    be negative."""
    stderr: float
    """Its standard error over prompts and curves; nan with too few of either."""
    dof: float
    """Degrees of freedom of ``stderr``."""
    in_sample: float
    """The same against the oracle chosen on the prompts it is valued on: never negative for one
    stop a curve."""


def regret(
    curves: Sequence[Curve],
    stops: Sequence[int | tuple[int, int]],
) -> Regret:
    """Mean regret of given stops against the oracle, with its standard error.

    Parameters
    ----------
    curves : S curves with the same P prompts, in the same order.
    stops : index of the point for each curve; or a pair of them, used on the even and on the odd
        prompts, where the stop came from a threshold tuned on the other half.

    Raises
    ------
    DataError
        Curves with different numbers of prompts, or fewer than four.

    Notes
    -----
    Prompt p of curve s contributes g_s[o, p] − g_s[k, p], k the stop and o the oracle of the half
    of the prompts without p. The mean and its standard error are those of a two-way layout,
    `overopt.fits.replicates.crossed_mean`: prompts are common to all curves, curves of one data seed
    are nested in it, PPO seeds of one proxy are averaged first. That is what a paired bootstrap over
    prompts and seeds estimates, without its own noise and without its shortfall at few seeds. Stops
    and oracle are held fixed.
    """
    sizes = {gold_gain(c).shape[1] for c in curves}
    if len(sizes) != 1 or min(sizes) < 4:
        raise DataError(
            f"curves have {sorted(sizes)} prompts: regret needs the same prompts in all, at least 4"
        )
    parts = halves(sizes.pop())
    lost, optimistic = [], []
    for curve, at in zip(curves, stops, strict=True):
        gain = gold_gain(curve)
        both = at if isinstance(at, tuple) else (at, at)
        row = np.empty(gain.shape[1])
        best = 0.0
        for mine, other, k in zip(parts, parts[::-1], both, strict=True):
            row[mine] = gain[oracle(gain[:, other])][mine] - gain[k][mine]
            best += gain[oracle(gain)][mine].sum() - gain[k][mine].sum()
        lost.append(row)
        optimistic.append(best / gain.shape[1])
    by_proxy: dict[Hashable, list[Array]] = {}
    for curve, row in zip(curves, lost, strict=True):
        by_proxy.setdefault(proxy_of(curve), []).append(row)
    values = np.stack([np.mean(rows, axis=0) for rows in by_proxy.values()])
    data_seeds = list({proxy_of(c): c.meta["data_seed"] for c in curves}.values())
    mean = crossed_mean(values[:, :, None], data_seeds)
    return Regret(
        estimate=float(mean.estimate[0]),
        stderr=float(np.sqrt(mean.covar[0, 0])),
        dof=mean.dof(np.ones(1)),
        in_sample=float(np.mean(optimistic)),
    )


_PROXY = ("backbone", "n_pairs", "label_rule", "label_flip_rate", "data_seed", "rm_seed", "rounds",
          "proxy_lr")  # fmt: skip
_REWARD = ("length_control", "reward_members", "members_by", "reward_combine", "reward_strength")
_PRICE = ("length_penalty", "length_coef", "length_budget")


def proxy_of(curve: Curve) -> Hashable:
    """What tells one reward that was optimised from another: its proxies and what is made of them.

    A column that older records lack reads as None.
    """
    return tuple(curve.meta.get(name) for name in (*_PROXY, *_REWARD, *_PRICE))


# ---------------------------------------------------------------------------------------- tuning


def tune(rule: Rule, curves: Sequence[Curve], *, prompts: ArrayLike | None = None) -> float:
    """Threshold of lowest mean regret on ``curves``, over the ``prompts`` (mask, default all).

    Parameters
    ----------
    curves : tuning curves; a rule is scored on others.
    prompts : (P,) bool, whose gold may be used.

    Returns
    -------
    float
        Halfway between two signals that occurred, or infinite: never stop, or at once. Of several
        best in a row it is the middle one, furthest from both ways of being wrong.

    Raises
    ------
    DataError
        No curve has what the rule watches.

    Notes
    -----
    The oracle does not depend on the threshold: lowest regret is highest gold at the stop. Stops
    change only where the threshold passes a signal, so every possible set of stops is tried.
    """
    series = [signals(rule, c) for c in curves if can_watch(rule, c)]
    if not series:
        raise DataError(
            f"rule {rule.name!r}: no curve has {', '.join(rule.columns)}; leave the rule out"
        )
    every = np.arange(gold_gain(curves[0]).shape[1]) if prompts is None else np.asarray(prompts)
    gold = [gold_gain(c)[:, every].mean(1) for c in curves if can_watch(rule, c)]
    seen = np.unique(np.concatenate([s[np.isfinite(s)] for s in series]))
    candidates = np.concatenate([[-np.inf], (seen[1:] + seen[:-1]) / 2, [np.inf]])
    achieved = np.sum(
        [g[_stops_of(s, rule.side, candidates)] for g, s in zip(gold, series, strict=True)], axis=0
    )
    best = np.flatnonzero(achieved >= achieved.max() - 1e-12 * (1 + abs(achieved.max())))
    run = best[: int(np.argmax(np.append(np.diff(best) > 1, True))) + 1]
    return float(candidates[run[len(run) // 2]])


class RuleScore(NamedTuple):
    """How a rule did on curves it was not tuned on."""

    rule: str
    n_curves: int
    regret: Regret
    lead: float
    """Mean over curves and halves of (gold's peak − stop), in units of the coordinate; positive is
    early."""
    threshold: float
    """Median over tuning sets, the upper of two; nan for never stopping."""


def compare_rules(curves: Sequence[Curve], rules: Sequence[Rule] = RULES) -> list[RuleScore]:
    """Score of every rule that can be watched on all ``curves``, and of never stopping.

    Thresholds are tuned on the curves of all other proxies, with the gold of one half of the
    prompts; regret is taken on the other half, against the oracle of the first. Lowest regret first.

    Raises
    ------
    DataError
        Fewer than two proxies: there is nothing to tune on.
    """
    if len({proxy_of(c) for c in curves}) < 2:
        raise DataError(
            "curves of one proxy only: thresholds are tuned on the curves of other proxies; run a"
            " second size or seed"
        )
    parts = halves(gold_gain(curves[0]).shape[1])
    never = [len(c.rows) - 1 for c in curves]
    scores = [
        RuleScore("never_stop", len(curves), regret(curves, never), _lead(curves, never), math.nan)
    ]
    for rule in rules:
        if not all(can_watch(rule, c) for c in curves):
            continue
        stops: list[int | tuple[int, int]] = []
        thresholds = []
        for curve in curves:
            others = [c for c in curves if proxy_of(c) != proxy_of(curve)]
            pair = [tune(rule, others, prompts=other) for other in reversed(parts)]
            stops.append((stop(rule, curve, pair[0]), stop(rule, curve, pair[1])))
            thresholds += pair
        scores.append(
            RuleScore(
                rule.name,
                len(curves),
                regret(curves, stops),
                _lead(curves, stops),
                sorted(thresholds)[len(thresholds) // 2],
            )
        )
    return sorted(scores, key=lambda s: s.regret.estimate)


def _lead(curves: Sequence[Curve], stops: Sequence[int | tuple[int, int]]) -> float:
    leads = [
        column(c, "value")[oracle(gold_gain(c))] - column(c, "value")[np.asarray(at)].mean()
        for c, at in zip(curves, stops, strict=True)
    ]
    return float(np.mean(leads))


class DetectorScore(NamedTuple):
    """How well a signal tells points past the peak of gold from points up to it."""

    rule: str
    auc: float
    """Area under the ROC curve; 0.5 is chance, nan without points of both kinds."""
    auc_stderr: float
    """Jackknife over proxies; nan where leaving one out leaves points of one kind only."""


def rank_detectors(curves: Sequence[Curve], rules: Sequence[Rule] = RULES) -> list[DetectorScore]:
    """Area under the ROC curve of each signal as a detector of overoptimization, best first.

    All points of all curves enter one ranking, because one threshold must serve all: within one
    curve every steady drift separates early from late. `step_budget` gives what the mere passing of
    time achieves. The peak is the point of highest mean gold, as measured.
    """
    proxies = list(dict.fromkeys(map(proxy_of, curves)))
    scores = []
    for rule in rules:
        if not all(can_watch(rule, c) for c in curves):
            continue
        auc = _auc(rule, curves)
        left_out = [_auc(rule, [c for c in curves if proxy_of(c) != p]) for p in proxies]
        n = len(proxies)
        spread = np.std(left_out) * (n - 1) ** 0.5 if n > 1 else math.nan
        scores.append(DetectorScore(rule.name, auc, float(spread)))
    return sorted(scores, key=lambda s: (math.isnan(s.auc), -s.auc))


def _auc(rule: Rule, curves: Sequence[Curve]) -> float:
    """Share of pairs (a point past its peak, one up to its peak) that the signal orders; ties half."""
    signal, past = [np.empty(0)], [np.empty(0, bool)]
    for curve in curves:
        s = signals(rule, curve)
        keep = np.isfinite(s)
        signal.append(s[keep] if rule.side == "above" else -s[keep])
        past.append((np.arange(len(s)) > oracle(gold_gain(curve)))[keep])
    label = np.concatenate(past)
    n_past, n_before = int(label.sum()), int((~label).sum())
    if n_past == 0 or n_before == 0:
        return math.nan
    ranks = rankdata(np.concatenate(signal))
    return float((ranks[label].sum() - n_past * (n_past + 1) / 2) / (n_past * n_before))


def rule_named(name: str) -> Rule:
    """The stopping rule called ``name``."""
    return next(rule for rule in RULES if rule.name == name)
