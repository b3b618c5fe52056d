"""``overopt stops`` as text: rules for stopping without gold, scored over proxies."""

import math
from pathlib import Path

from overopt.analysis import stopping
from overopt.base.errors import DataError
from overopt.records.curves import load_curves, results_dir
from overopt.reports.text import with_error

FEW_PROXIES = 5  # below, thresholds and errors of stopping rules are not to be trusted


def stops(records: str | Path) -> str:
    """Rules for stopping PPO without gold, as a table: what each loses against the oracle.

    Raises
    ------
    DataError
        Fewer than two proxies with PPO curves: thresholds are tuned on the others.
    """
    curves = [c for c in load_curves(results_dir(records)) if c.meta["method"] == "ppo"]
    if not curves:
        raise DataError(f"records {str(records)!r} hold no PPO curve: stopping rules need one")
    scores = stopping.compare_rules(curves)
    detectors = {d.rule: d for d in stopping.rank_detectors(curves)}
    rules = {rule.name: rule for rule in stopping.RULES}
    lines = [
        f"{len(curves)} PPO curves; regret in sd of gold against the oracle, tuned on other proxies"
        " and on the other half of the prompts",
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
            f"{score.rule:20} {regret:>13} {score.regret.in_sample:9.2f} {score.lead:17.1f}"
            f" {auc:>11}  {threshold}"
        )
    absent = [r.name for r in stopping.RULES if r.name not in detectors]
    if absent:
        lines.append(f"not in these records: what {', '.join(absent)} would watch")
    n_proxies = len({stopping.proxy_of(c) for c in curves})
    if n_proxies < FEW_PROXIES:
        lines.append(
            f"{n_proxies} proxies are few to tune a threshold on and to score it: the errors are too"
            " small; use more RM seeds"
        )
    return "\n".join(lines)


def _threshold(rule: stopping.Rule, value: float) -> str:
    """In words where it is infinite: every signal is past it, or none."""
    if math.isfinite(value):
        return f"{value:.3g} {rule.unit}"
    return "at once" if (value > 0) == (rule.side == "below") else "never"
