"""How overoptimization depends on proxy size, comparisons or policy size: slopes per decade.

A run is described by four numbers, the first of which is never read off the prompts that chose it:
the height of its peak, the √KL of the peak, its end, and the fall from peak to end.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from overopt.analysis.effects import paired_effect
from overopt.analysis.metrics import at_peak, half_splits
from overopt.base.errors import ConfigError, DataError
from overopt.fits.forms import Array
from overopt.fits.replicates import PairedDifference
from overopt.fits.spread import Spread, spread
from overopt.fits.trend import PERMUTATIONS, Trend, trend
from overopt.records.curves import Curve

SHAPE = {
    "peak": "gold gain at the run's own peak, cross-fitted",
    "peak_sqrt_kl": "√KL of that peak, or the horizon if it lies there or beyond",
    "end": "gold gain at the end",
    "fall": "peak minus end, cross-fitted",
}
"""What describes a run: gains in sd of gold, √KL in √nats."""
AXES = {"n_params": "backbone", "n_pairs": "n_pairs", "policy_params": "start_policy"}
"""What slopes can be on: the column that measures it -> the column that names what varies."""
SAME = ("method", "label_rule", "label_flip_rate", "mitigation", "kl_coef")
"""Columns in which curves of one sweep may not differ."""


@dataclass(frozen=True, kw_only=True)
class ShapeAt:
    """Runs of one size (or one number of comparisons)."""

    size: float
    n_runs: int
    shape: Mapping[str, PairedDifference]
    """By quantity of `SHAPE`: mean with t interval over seeds and prompts, p-value against 0; over
    seeds alone for ``peak_sqrt_kl``."""
    share_censored: float
    """Share of runs whose gold is highest at the horizon or beyond: their peak was not seen."""
    ends: Spread
    """Gold gain at the end of each run: mean, median, share that collapsed, two clusters or one."""


@dataclass(frozen=True, kw_only=True)
class ShapeSlopes:
    """Slopes per decade of size or of comparisons, and what they were taken from."""

    method: str
    by: str
    slopes: Mapping[str, Trend]
    """By quantity of `SHAPE`, per factor of ten."""
    horizon: float
    """√KL up to which every run was seen: the smallest √KL at which a run ends, √nats."""
    at: tuple[ShapeAt, ...]
    """Sizes increasing."""
    ends: Spread
    """Ends of all runs of all sizes together."""
    n_seeds: int
    """Data seeds of the smallest group; where paired, of every group."""
    n_prompts: int
    note: str
    """What a reader of the slopes has to be told; empty if nothing."""


def shape_slopes(
    curves: Sequence[Curve],
    by: str = "n_params",
    *,
    rng: np.random.Generator,
    collapsed_below: float = 0.0,
    n_permutations: int = PERMUTATIONS,
    ci_level: float = 0.95,
) -> ShapeSlopes:
    """Slopes of peak, its √KL, end and fall per decade of proxy size, of comparisons or of policy size.

    From a directory with ``records.jsonl`` and ``curves.npz``::

        from overopt.analysis.slopes import shape_slopes
        from overopt.base.seeding import numpy_rng
        from overopt.records.curves import load_curves

        curves = load_curves("results/world")
        moved = [c for c in curves if not c.is_bon and c.meta["n_pairs"] == 600]  # of one method
        found = shape_slopes(moved, "n_params", rng=numpy_rng(0, "slopes"))
        found.slopes["end"].slope  # estimate, stderr, ci, p_value, dof: per decade of parameters
        found.slopes["end"].p_permutation
        found.at[0].shape["fall"].p_value  # does the smallest proxy turn over?
        found.at[0].ends  # mean, median, sd, share that collapsed, two clusters or one

        small = [c for c in curves if c.meta["method"] == "bon" and c.meta["n_params"] == 55585]
        shape_slopes(small, "n_pairs", rng=numpy_rng(0, "slopes"))  # per decade of comparisons

    Values without records go to `overopt.fits.trend.trend`, as (seeds, prompts) tables.

    Parameters
    ----------
    curves
        Runs of one method under one treatment, on the same prompts in the same order: two sizes (or
        numbers of comparisons) or more, two data seeds or more each. Runs of one data seed and size
        (seeds of the proxy, seeds of the method) are averaged: the data seed is the replicate.
    by
        ``n_params`` for curves of one number of comparisons, ``n_pairs`` for curves of one backbone,
        ``policy_params`` for curves of both.
    rng
        Random halves of the prompts, and permutations.
    collapsed_below
        A run collapsed if its gold gain at the end is below this: by default below its start.
    n_permutations, ci_level
        As in `overopt.fits.trend.trend`.

    Raises
    ------
    ConfigError
        ``by`` is not one of `AXES`.
    DataError
        Curves that differ in more than size and seed, prompts that differ, or too few seeds.

    Notes
    -----
    **Cross-fitting.** The peak is chosen by mean gold over one half of a run's prompts and read on the
    other, over 32 random halves (`overopt.analysis.metrics.at_peak`). Without a true fall the expected
    fall is then at most 0, so that a significant one is no product of the choice.

    **Censoring.** A run whose gold is highest where it ends has its peak there or beyond. Locations
    are therefore those up to the horizon, min(√KL of the peak, horizon), as restricted mean survival
    times are, and the horizon is the same for all runs. No location beyond it is guessed: the more
    runs are censored, the closer the slope is to 0. ``share_censored`` says how many are. Their
    p-value holds all the same, for it asks whether restricted locations differ.

    **Uncertainty.** Where all sizes have the same data seeds, a seed has one slope for each prompt,
    and t is over seeds and prompts, crossed. Otherwise seeds are nested in sizes, and ``note`` says so.
    Both speak of new seeds and prompts with these backbones.
    """
    groups = _grouped(curves, by)
    n_prompts = curves[0].arrays["gold"].shape[1]
    splits = half_splits(n_prompts, rng=rng)
    horizon = min(float(c["sqrt_kl"][-1]) for c in curves)
    of_size = {
        size: {seed: [_shape(c, splits, horizon) for c in runs] for seed, runs in by_seed.items()}
        for size, by_seed in groups.items()
    }
    tables = {
        name: [
            np.stack([np.mean([run[name] for run in runs], axis=0) for runs in by_seed.values()])
            for by_seed in of_size.values()
        ]
        for name in SHAPE
    }
    seeds = [list(by_seed) for by_seed in groups.values()]
    slopes = {
        name: trend(
            np.log10(list(groups)),
            values,
            seeds,
            rng=rng,
            n_permutations=n_permutations,
            ci_level=ci_level,
        )
        for name, values in tables.items()
    }
    at = tuple(
        _shape_at(
            size,
            [c for runs in by_seed.values() for c in runs],
            {name: tables[name][row] for name in SHAPE},
            horizon,
            collapsed_below,
            ci_level,
        )
        for row, (size, by_seed) in enumerate(groups.items())
    )
    return ShapeSlopes(
        method=curves[0].meta["method"],
        by=by,
        slopes=slopes,
        horizon=horizon,
        at=at,
        ends=spread([_end(c) for c in curves], below=collapsed_below),
        n_seeds=min(map(len, seeds)),
        n_prompts=n_prompts,
        note="; ".join(_notes(groups, at, slopes["end"].is_paired)),
    )


def _grouped(curves: Sequence[Curve], by: str) -> dict[float, dict[Hashable, list[Curve]]]:
    """Size -> data seed -> runs, sizes and seeds increasing; DataError unless it is one sweep."""
    if by not in AXES:
        raise ConfigError(f"by is {by!r}; use one of {', '.join(AXES)}")
    if not curves:
        raise DataError("no curves given; choose the curves of one method")
    for column in (*SAME, *_others(by)):
        found = {c.meta.get(column) for c in curves}
        if len(found) > 1:
            raise DataError(
                f"curves differ in {column} ({', '.join(sorted(map(str, found)))}): slopes on {by}"
                " need curves that differ in nothing else but their seeds; choose one"
            )
    prompts = {c.arrays["gold"].shape[1] for c in curves}
    if len(prompts) > 1:
        raise DataError(f"curves have {sorted(prompts)} prompts; score the same prompts with all")
    groups: dict[float, dict[Hashable, list[Curve]]] = {}
    for curve in sorted(curves, key=lambda c: (c.meta[by], c.meta["data_seed"])):
        if not curve.meta[by] > 0:
            raise DataError(
                f"run {curve.meta['run_id']} has {by} = {curve.meta[by]}: leave out proxies without"
                " a size"
            )
        by_seed = groups.setdefault(float(curve.meta[by]), {})
        by_seed.setdefault(curve.meta["data_seed"], []).append(curve)
    for size, by_seed in groups.items():
        named = {c.meta.get(AXES[by]) for runs in by_seed.values() for c in runs}
        if len(named) > 1:
            raise DataError(
                f"{', '.join(sorted(map(str, named)))} all have {by} = {size:g}: choose one"
            )
    return groups


def _others(by: str) -> tuple[str, ...]:
    """Columns of the other axes, in which curves of a sweep may not differ."""
    return tuple(column for axis, column in AXES.items() if axis != by)


def sweeps(curves: Sequence[Curve]) -> list[tuple[str, list[Curve]]]:
    """What `shape_slopes` can be asked about these curves: each ``by`` with the curves for it.

    A sweep has two sizes (or numbers of comparisons) or more, with two data seeds or more each.
    Gold as its own proxy is no size.
    """
    found = []
    for by in AXES:
        alike: dict[Hashable, list[Curve]] = {}
        for curve in curves:
            is_sized = curve.meta["backbone"] != "gold" and curve.meta["n_params"] > 0
            if is_sized and curve.meta.get(by) is not None:
                key = tuple(curve.meta.get(column) for column in (*SAME, *_others(by)))
                alike.setdefault(key, []).append(curve)
        for same in alike.values():
            seeds: dict[float, set[Hashable]] = {}
            for curve in same:
                seeds.setdefault(curve.meta[by], set()).add(curve.meta["data_seed"])
            if len(seeds) > 1 and min(map(len, seeds.values())) > 1:
                found.append((by, same))
    return found


def _shape(curve: Curve, splits: NDArray[np.bool_], horizon: float) -> dict[str, Array]:
    """The quantities of `SHAPE` of one run: (P,) by prompt, (1,) for the location."""
    gold = curve.gain("gold")
    where = np.minimum(curve["sqrt_kl"], horizon)
    location = where[(splits @ gold.T).argmax(axis=1)].mean()
    (peak,) = at_peak(gold, [gold], splits)
    return {
        "peak": peak,
        "peak_sqrt_kl": np.array([location]),
        "end": gold[-1],
        "fall": peak - gold[-1],
    }


def _end(curve: Curve) -> float:
    return float(curve.gain("gold")[-1].mean())


def _shape_at(
    size: float,
    runs: Sequence[Curve],
    tables: Mapping[str, Array],
    horizon: float,
    collapsed_below: float,
    ci_level: float,
) -> ShapeAt:
    peaks = [float(c["sqrt_kl"][c.gain("gold").mean(axis=1).argmax()]) for c in runs]
    return ShapeAt(
        size=size,
        n_runs=len(runs),
        shape={
            name: paired_effect(table, np.zeros_like(table), ci_level=ci_level)
            for name, table in tables.items()
        },
        share_censored=float(np.mean(np.array(peaks) >= horizon)),
        ends=spread([_end(c) for c in runs], below=collapsed_below, ci_level=ci_level),
    )


def _notes(
    groups: Mapping[float, Mapping[Hashable, Sequence[Curve]]],
    at: Sequence[ShapeAt],
    is_paired: bool,
) -> list[str]:
    notes = []
    if not is_paired:
        every = {seed for by_seed in groups.values() for seed in by_seed}
        common = every.intersection(*groups.values())
        notes.append(
            f"data seeds {sorted(map(str, every - common))} are not there at every size: seeds count"
            " as independent"
        )
    if all(s.share_censored == 1 for s in at):
        notes.append("every peak lies at the horizon or beyond: nothing is known of its √KL")
    return notes
