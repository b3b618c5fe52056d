"""Mitigations against a baseline: the leaderboard of one method.

Pure functions of curves, downstream of the comparison that decides what is run. Every metric
(`overopt.analysis.metrics`) is first a table of values by seed and prompt, (S, P), for the baseline
and for the mitigation alike; an effect (`overopt.analysis.effects`) is the mean of the difference of
the two tables. Reference points come from tuning runs (`overopt.analysis.tuning`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from overopt.analysis.effects import Effect, effects_of
from overopt.analysis.metrics import METRICS, PRIMARY, half_splits, metric_tables, number_of
from overopt.analysis.reach import truncate
from overopt.analysis.tuning import Reference
from overopt.base.errors import DataError
from overopt.records.curves import Curve

COSTS = ("gold_labels", "rm_calls", "cpu_s")
NEVER = "never optimise"
"""The row that every mitigation must beat: runs that stop before their first step, and cost nothing."""
FEW_SEEDS = 5
"""Below this many seeds p-values that Holm's correction has to read far in the tail are too small."""
FEW_MITIGATIONS, SEEDS_FOR_MORE = 5, 8
"""Correcting for more mitigations reads further in the tail, for which it takes so many seeds."""


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
    """Standings of all mitigations under one method and of `NEVER`, best `PRIMARY` metric first.

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
        Seeds or prompts that differ between mitigations, or one that is called `NEVER`.
    """
    check_paired(curves)
    if NEVER in curves:
        raise DataError(f"a mitigation is called {NEVER!r}, as the row that all have to beat is")
    curves = {**curves, NEVER: [truncate(curve, 0) for curve in curves[baseline]]}
    families = {**families, NEVER: NEVER}
    n_prompts = curves[baseline][0].arrays["gold"].shape[1]
    splits = half_splits(n_prompts, rng=rng)
    tables = {name: metric_tables(same, reference, splits) for name, same in curves.items()}
    effects: dict[str, dict[str, Effect]] = {name: {} for name in curves}
    for metric in METRICS:
        of_metric = {name: tables[name][metric] for name in curves}
        for name, effect in effects_of(of_metric, baseline, NEVER, rng=rng).items():
            effects[name][metric] = effect
    standings = [
        Standing(
            mitigation=name,
            family=families[name],
            method=same[0].meta["method"],
            n_seeds=len(same),
            n_prompts=n_prompts,
            reach_sqrt_kl=float(np.mean([curve["sqrt_kl"].max() for curve in same])),
            costs=dict.fromkeys(COSTS, 0.0)
            if name == NEVER
            else {
                "gold_labels": _mean_cost(same, "gold_labels"),
                "rm_calls": _mean_cost(same, "rm_calls"),
                "cpu_s": math.nan if cpu_s is None else cpu_s.get(name, math.nan),
            },
            effects=effects[name],
        )
        for name, same in curves.items()
    ]
    return sorted(standings, key=lambda s: -s.effects[PRIMARY[0]].value)


def _mean_cost(curves: Sequence[Curve], column: str) -> float:
    return float(np.mean([number_of(curve.rows[-1].get(column)) for curve in curves]))


def check_paired(curves: Mapping[str, Sequence[Curve]]) -> None:
    """Raise DataError unless all mitigations have the same seeds, in order, and prompts."""
    first = next(iter(curves))
    wanted = [curve.seeds for curve in curves[first]]
    prompts = {c.arrays["gold"].shape[1] for same in curves.values() for c in same}
    if len(prompts) > 1:
        raise DataError(f"curves have {sorted(prompts)} prompts; score the same prompts with all")
    for name, same in curves.items():
        if [curve.seeds for curve in same] != wanted:
            raise DataError(
                f"{name!r} has the seeds {[c.seeds for c in same]}, {first!r} has {wanted}: pair the"
                " same seeds in the same order"
            )
