"""Effects of mitigations: paired differences from a baseline with intervals and p-values.

Seeds and prompts are crossed and both are samples, so the interval of an effect is the t interval of
`overopt.fits.replicates.paired_difference`, which holds its level with five seeds; a bootstrap of
the same table, which does not, stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from overopt.fits.forms import Array
from overopt.fits.peaks import NO_INTERVAL, Interval
from overopt.fits.replicates import PairedDifference, holm, paired_difference

CI_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One metric of one mitigation, and its difference from the baseline with 95 % interval.

    ``p_holm`` is corrected over the mitigations of one method and metric. The baseline's own
    effects are nan. ``over_never`` and what follows it compare with never optimising in the same way,
    p-values corrected over all rows but that one.
    """

    value: float
    over_never: float = math.nan
    never_low: float = math.nan
    never_high: float = math.nan
    p_never: float = math.nan
    difference: float = math.nan
    stderr: float = math.nan
    ci_low: float = math.nan
    ci_high: float = math.nan
    dof: float = math.nan
    p_value: float = math.nan
    p_holm: float = math.nan
    bootstrap_low: float = math.nan
    bootstrap_high: float = math.nan


def effects_of(
    tables: Mapping[str, Array], baseline: str, never: str, *, rng: np.random.Generator
) -> dict[str, Effect]:
    """Effects of one metric: mitigation -> its effect, p-values corrected over the mitigations.

    Parameters
    ----------
    tables : mitigation -> values by seed and prompt, (S, P); the baseline's among them.
    baseline : the mitigation that the others are compared with; its own effects are nan.
    never : the row of never optimising.
    rng : bootstrap draws.
    """
    base = tables[baseline]
    paired, adjusted = _against(tables, baseline)
    floor, floor_adjusted = _against(tables, never)
    effects = {}
    for name, table in tables.items():
        value = float(table.mean())
        effect = Effect(value=value)
        if name != never:
            effect = replace(
                effect,
                over_never=floor[name].estimate,
                never_low=floor[name].ci.low,
                never_high=floor[name].ci.high,
                p_never=floor_adjusted[name],
            )
        effects[name] = effect
        if name == baseline:
            continue
        bootstrap = bootstrap_interval(table - base, rng=rng)
        effects[name] = replace(
            effect,
            difference=paired[name].estimate,
            stderr=paired[name].stderr,
            ci_low=paired[name].ci.low,
            ci_high=paired[name].ci.high,
            dof=paired[name].dof,
            p_value=paired[name].p_value,
            p_holm=adjusted[name],
            bootstrap_low=bootstrap.low,
            bootstrap_high=bootstrap.high,
        )
    return effects


def _against(
    tables: Mapping[str, Array], other: str
) -> tuple[dict[str, PairedDifference], dict[str, float]]:
    """Every table minus that of ``other``, and p-values corrected over them (Holm)."""
    paired = {name: paired_effect(t, tables[other]) for name, t in tables.items() if name != other}
    adjusted = holm([p.p_value for p in paired.values()])
    return paired, dict(zip(paired, map(float, adjusted), strict=True))


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
        return PairedDifference(
            estimate=math.nan,
            stderr=math.nan,
            ci=NO_INTERVAL,
            ci_level=ci_level,
            dof=math.nan,
            p_value=math.nan,
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
