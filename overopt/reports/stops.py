"""``overopt stops`` as text: rules for stopping without gold, scored over proxies."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overopt.analysis.regret import proxy_of
from overopt.analysis.rules import RULES, Rule
from overopt.analysis.stopping import compare_rules, rank_detectors
from overopt.base import files
from overopt.base.errors import DataError
from overopt.records.curves import Curve
from overopt.records.view import view
from overopt.reports.text import with_error

FEW_PROXIES = 5  # below, thresholds and errors of stopping rules are not to be trusted


def stops(records: str | Path) -> str:
    """Rules for stopping without gold: what each loses against the oracle, a table a method.

    Every method whose curve is a trajectory has one; best-of-n has no steps to stop at.

    Raises
    ------
    DataError
        No curve with steps, or fewer than two proxies: thresholds are tuned on the others.
    """
    return "\n\n".join(map(_table, _trajectories(records).values()))


def stops_json(records: str | Path) -> dict[str, Any]:
    """The same as JSON types: method -> rules with regret, lead, detection and threshold.

    An infinite threshold is "inf" or "-inf", and what is not available null.
    """
    tables = {}
    for method, curves in _trajectories(records).items():
        detectors = {d.rule: d._asdict() for d in rank_detectors(curves)}
        tables[method] = [
            score._asdict()
            | {"regret": score.regret._asdict(), "detector": detectors.get(score.rule)}
            for score in compare_rules(curves)
        ]
    return files.plain(tables, infinite="text")


def _trajectories(records: str | Path) -> dict[str, list[Curve]]:
    """Curves with steps by method."""
    by_method: dict[str, list[Curve]] = {}
    for curve in view(records).curves:
        if curve.shown.moves_policy:
            by_method.setdefault(curve.meta["method"], []).append(curve)
    if not by_method:
        raise DataError(
            f"records {str(records)!r} hold no curve of an optimised policy, only best-of-n: stopping"
            " rules need one"
        )
    return by_method


def _table(curves: Sequence[Curve]) -> str:
    """The rules on the curves of one method."""
    scores = compare_rules(curves)
    detectors = {d.rule: d for d in rank_detectors(curves)}
    rules = {rule.name: rule for rule in RULES}
    lines = [
        f"{len(curves)} {curves[0].shown.label} curves; regret in sd of gold against the oracle,"
        " tuned on other proxies and on the other half of the prompts",
        f"{'rule':20} {'regret':>13} {'in sample':>9} {'steps before peak':>17}"
        f" {'AUC':>11}  {'threshold':<20}",
    ]
    for score in scores:
        found = detectors.get(score.rule)
        auc = "–" if found is None else with_error(found.auc, found.auc_stderr)
        rule = rules.get(score.rule)
        threshold = "–" if rule is None else _threshold(rule, score.threshold)
        regret = with_error(score.regret.estimate, score.regret.stderr)
        lines.append(
            f"{score.rule:20} {regret:>13} {_or_dash(score.regret.in_sample, 2):>9}"
            f" {_or_dash(score.lead, 1):>17}"
            f" {auc:>11}  {threshold}"
        )
    absent = [name for name in rules if name not in detectors]
    if absent:
        lines.append(f"not in these records: what {', '.join(absent)} would watch")
    n_proxies = len({proxy_of(c) for c in curves})
    if n_proxies < FEW_PROXIES:
        lines.append(
            f"{n_proxies} proxies are few to tune a threshold on and to score it: the errors are too"
            " small; use more RM seeds"
        )
    return "\n".join(lines)


def _or_dash(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _threshold(rule: Rule, value: float) -> str:
    """In words where it is infinite: every signal is past it, or none."""
    if math.isfinite(value):
        return f"{value:.3g} {rule.unit}"
    return "at once" if (value > 0) == (rule.side == "below") else "never"
