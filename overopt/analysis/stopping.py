"""When to stop optimising without looking at gold, and what each rule of thumb costs.

Gold falls while the proxy still rises, so a user who only has the proxy needs another sign that it
is time to stop. A rule (`overopt.analysis.rules`) watches such a sign along a curve; `tune` sets its
threshold on curves of other proxies; `compare_rules` says how much gold it loses against the oracle
that sees gold (`overopt.analysis.regret`). For best-of-n, where stopping means choosing n, see
`overopt.analysis.hedging`.

Analysis of records: numpy and scipy only.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from overopt.analysis.regret import Regret, halves, oracle, proxy_of, regret
from overopt.analysis.rules import RULES, Rule, can_watch, column, signals, stop, stops_of
from overopt.base.errors import DataError
from overopt.records.curves import Curve


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
    every = np.arange(curves[0].gain("gold").shape[1]) if prompts is None else np.asarray(prompts)
    gold = [c.gain("gold")[:, every].mean(1) for c in curves if can_watch(rule, c)]
    seen = np.unique(np.concatenate([s[np.isfinite(s)] for s in series]))
    candidates = np.concatenate([[-np.inf], (seen[1:] + seen[:-1]) / 2, [np.inf]])
    achieved = np.sum(
        [g[stops_of(s, rule.side, candidates)] for g, s in zip(gold, series, strict=True)], axis=0
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
    parts = halves(curves[0].gain("gold").shape[1])
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
        column(c, "value")[oracle(c.gain("gold"))] - column(c, "value")[np.asarray(at)].mean()
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
        past.append((np.arange(len(s)) > oracle(curve.gain("gold")))[keep])
    label = np.concatenate(past)
    n_past, n_before = int(label.sum()), int((~label).sum())
    if n_past == 0 or n_before == 0:
        return math.nan
    ranks = rankdata(np.concatenate(signal))
    return float((ranks[label].sum() - n_past * (n_past + 1) / 2) / (n_past * n_before))
