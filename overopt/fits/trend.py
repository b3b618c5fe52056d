"""Slopes over groups of runs, such as proxies of several sizes, with t and permutation p-values."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from overopt.base.errors import DataError
from overopt.fits.crossed import crossed_mean, nested_mean
from overopt.fits.forms import Array
from overopt.fits.replicates import PairedDifference, t_test

PERMUTATIONS = 9999


class Trend(NamedTuple):
    """A least-squares slope over groups, and whether it differs from 0."""

    slope: PairedDifference
    """Per unit of x, with t interval and p-value."""
    p_permutation: float
    """Two-sided p-value of the mean slope over prompts when values are permuted among groups, within
    a seed where seeds are paired. Exact if the group does not matter at all; it speaks of these
    prompts. Never below 1/(permutations + 1)."""
    is_paired: bool
    """Whether every group has the same seeds, so that each seed has a slope of its own."""


def trend(
    x: ArrayLike,
    values: Sequence[ArrayLike],
    seeds: Sequence[Sequence[Hashable]],
    *,
    rng: np.random.Generator,
    n_permutations: int = PERMUTATIONS,
    ci_level: float = 0.95,
) -> Trend:
    """Slope on ``x`` of values by seed and prompt, over groups.

    Parameters
    ----------
    x
        (G,) place of each group, such as log10 of the proxy's parameters.
    values
        Values of each group, (S_g, P): a row a seed, column p the same prompt everywhere. P = 1 for
        what a run has one value of.
    seeds
        Labels of each group's rows. Where all groups have the same seeds, a seed is one replicate of
        all groups: slopes are taken within seeds, and t has about as many degrees of freedom as there
        are seeds, less one. Otherwise the rows count as independent, which, for seeds that are shared
        by some groups and push them the same way, errs on the safe side.
    rng
        Permutations.

    Raises
    ------
    DataError
        Fewer than two places or two seeds a group, seeds given twice, prompts that differ, or values
        that are not finite.

    Notes
    -----
    The slope is Σ_g w_g (mean of group g), w = (x − x̄)/Σ(x − x̄)². The interval speaks of new seeds
    and new prompts (`overopt.fits.crossed`), and of these groups: how far groups scatter about a
    line is no part of it. `overopt.fits.scaling` has that part.
    """
    places = np.asarray(x, dtype=float)
    tables = _checked(places, values, seeds)
    centred = places - places.mean()
    weights = centred / (centred @ centred)
    is_paired = all(set(labels) == set(seeds[0]) for labels in seeds)
    n_runs = sum(map(len, tables))
    if is_paired:
        order = [[list(labels).index(seed) for seed in seeds[0]] for labels in seeds]
        aligned = np.stack([t[rows] for t, rows in zip(tables, order, strict=True)])
        mean = crossed_mean(np.einsum("g,gsp->sp", weights, aligned)[..., None])
        permuted = _permuted_slopes(aligned.mean(axis=2).T, weights, rng, n_permutations)
    else:
        mean = nested_mean(tables, weights)
        each = np.concatenate([t.mean(axis=1) for t in tables])
        share = np.repeat(weights / [len(t) for t in tables], [len(t) for t in tables])
        permuted = _permuted_slopes(each[None], share, rng, n_permutations)
    observed = abs(float(mean.estimate[0]))
    # Equal but for rounding counts as reached.
    reached = int(np.sum(np.abs(permuted) >= observed - 1e-9 * np.abs(permuted).max(initial=0.0)))
    return Trend(
        t_test(mean, n_replicates=n_runs, ci_level=ci_level),
        (1 + reached) / (1 + n_permutations),
        is_paired,
    )


def _permuted_slopes(
    values_BG: Array, weights: Array, rng: np.random.Generator, n_permutations: int
) -> Array:
    """Mean over blocks of the slope after permuting each block, (n_permutations,)."""
    slopes = np.zeros(n_permutations)
    for block in values_BG:
        shuffled = rng.permuted(np.tile(block, (n_permutations, 1)), axis=1)
        slopes += shuffled @ weights
    return slopes / len(values_BG)


def _checked(
    places: Array, values: Sequence[ArrayLike], seeds: Sequence[Sequence[Hashable]]
) -> list[Array]:
    """The tables as arrays, if a slope can be taken over them."""
    if places.ndim != 1 or len(places) != len(values) or len(values) != len(seeds):
        raise DataError(
            f"x of shape {places.shape}, {len(values)} tables of values and {len(seeds)} lists of"
            " seeds: give one of each for every group"
        )
    if len(np.unique(places)) < 2 or not np.isfinite(places).all():
        raise DataError(f"x = {places.tolist()}: a slope needs two places that differ")
    tables = [np.asarray(table, dtype=float) for table in values]
    for place, table, labels in zip(places, tables, seeds, strict=True):
        where = f"group at x = {place:g}"
        if table.ndim != 2 or table.shape[1:] != tables[0].shape[1:] or len(table) != len(labels):
            raise DataError(
                f"{where}: values of shape {table.shape} and {len(labels)} seeds; give (S, P) with"
                f" S seeds and the prompts of the first group, whose shape is {tables[0].shape}"
            )
        if len(set(labels)) < len(labels):
            raise DataError(f"{where}: seeds {list(labels)} repeat; average a seed's runs first")
        if len(table) < 2:
            raise DataError(f"{where} has {len(table)} seed: a slope with an interval needs two")
        for row, column in np.argwhere(~np.isfinite(table))[:1]:
            raise DataError(
                f"{where}: value of seed {labels[row]!r}, prompt {column} is {table[row, column]}"
            )
    # A slope does not see a constant; without it, values that are all alike have a slope of exactly 0.
    constant = tables[0][0, 0]
    return [table - constant for table in tables]
