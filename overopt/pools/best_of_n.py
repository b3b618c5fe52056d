"""What best-of-n and its relatives achieve, estimated from one pool of scored samples.

Where it sits: a pool holds ``N`` samples of the initial policy for each of ``P`` prompts, scored by
a proxy and by anything else (gold, rubric, length). From these arrays alone the functions here
estimate what a method that follows the proxy would obtain, at every strength at once, and how far
(KL, in nats) it would have moved from the initial policy. The results feed the fits and figures.

Deliberately different from the usual code: no samples are thrown away (best-of-n averages over
*all* n-subsets of the pool), tied scores are averaged over instead of being broken by storage
order, several value columns share one sort (so gold can never be left in another column's order),
and a standard error over prompts comes with every mean.

Only numpy and scipy; pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from overopt.pools.table import (
    Floats,
    Ints,
    best_of_n_per_prompt,
    checked_ids,
    checked_ns,
    checked_pool,
    over_prompts,
)

# ---------------------------------------------------------------------------------------- results


@dataclass(frozen=True, kw_only=True, eq=False)
class BestOfNResult:
    """Expected value of the best of n by proxy, for each n."""

    ns: Ints
    """(K,) numbers of samples from which the best is taken."""
    mean: Floats
    """(K,) mean over prompts, in the unit of the values."""
    stderr: Floats
    """(K,) standard error of ``mean`` over prompts (ddof 1)."""
    per_prompt: Floats
    """(K, P) the estimate for each prompt; a bootstrap over prompts resamples these."""
    pool_size: int
    """N, samples per prompt."""

    @property
    def n_prompts(self) -> int:
        """P, the number of prompts."""
        return self.per_prompt.shape[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class TiesKLResult:
    """KL of best-of-n from the initial policy, in nats, with repeated scores as atoms."""

    ns: Ints
    """(K,) numbers of samples from which the best is taken."""
    mean: Floats
    """(K,) mean over prompts."""
    stderr: Floats
    """(K,) standard error of ``mean`` over prompts."""
    per_prompt: Floats
    """(K, P) KL for each prompt; never above ``kl_bon(ns)``."""
    repeated: Floats
    """(P,) fraction of the pool's samples that share their score or their id with another."""

    @property
    def n_prompts(self) -> int:
        """P, the number of prompts."""
        return self.per_prompt.shape[1]


# ------------------------------------------------------------------------------------- best-of-n


@overload
def best_of_n(
    proxy: ArrayLike, values: Mapping[str, ArrayLike], ns: ArrayLike
) -> dict[str, BestOfNResult]: ...
@overload
def best_of_n(proxy: ArrayLike, values: ArrayLike, ns: ArrayLike) -> BestOfNResult: ...
def best_of_n(
    proxy: ArrayLike, values: ArrayLike | Mapping[str, ArrayLike], ns: ArrayLike
) -> BestOfNResult | dict[str, BestOfNResult]:
    """Unbiased estimate of E[value of the best of n samples by proxy], for each n.

    Parameters
    ----------
    proxy
        (P, N) scores by which the best is chosen; higher is better.
    values
        (P, N) what is averaged for the chosen sample (gold, rubric, length, the proxy itself), or
        a mapping from names to such arrays. All columns share one sort.
    ns
        (K,) integers, 1 ≤ n ≤ N, in any order.

    Returns
    -------
    BestOfNResult
        Or a dict of them, one per name, if ``values`` is a mapping.

    Raises
    ------
    DataError
        For scores that are not finite (the message names prompt and sample), fewer than 2 prompts,
        shapes that differ, an n that is not an integer or lies outside 1 … N.

    Notes
    -----
    With v₍ᵢ₎ the value of the sample of rank i by proxy, ascending (Nakano et al. 2021, WebGPT,
    appendix I)::

        Σ_{i=n}^{N} C(i−1, n−1) / C(N, n) · v₍ᵢ₎

    which is the average over all n-subsets of the pool. The weights come from the recursion
    w_N = n/N, w_{i−1} = w_i (i−n)/(i−1), without factorials. Samples that tie are exchangeable:
    each gets the mean value of its tied block, which averages over every order within the block.

    Examples
    --------
    >>> best_of_n([[1, 2, 3], [3, 2, 1]], [[1, 2, 3], [1, 2, 3]], [1, 2]).per_prompt[1].round(4)
    array([2.6667, 1.3333])
    """
    pool = checked_pool(proxy, values)
    ns = checked_ns(ns, pool.size)
    per_prompt = best_of_n_per_prompt(pool.proxy, pool.columns, ns)
    results = {
        name: BestOfNResult(ns=ns, per_prompt=column, pool_size=pool.size, **over_prompts(column))
        for name, column in zip(pool.names, per_prompt, strict=True)
    }
    return results if pool.is_mapping else results[pool.names[0]]


def kl_bon(ns: ArrayLike) -> Floats:
    """KL(best-of-n‖π_init) in nats: log n − (n−1)/n, for each n; of the shape of ``ns``.

    Exact if no two samples ever tie by proxy, an upper bound otherwise (Stiennon et al. 2020,
    appendix G.3; Beirami et al. 2024). It does not depend on the policy or the proxy.

    Raises
    ------
    DataError
        For an n that is not an integer or is below 1.
    """
    array = np.asarray(ns)
    n = checked_ns(array.reshape(-1), None).reshape(array.shape).astype(np.float64)
    return (np.log(n) - (n - 1) / n)[()]


def kl_bon_ties(proxy: ArrayLike, ns: ArrayLike, ids: ArrayLike | None = None) -> TiesKLResult:
    """KL(best-of-n‖π_init) in nats when samples repeat, ties being broken at random, for each n.

    Parameters
    ----------
    proxy
        (P, N) scores by which the best is chosen.
    ns
        (K,) integers, 1 ≤ n ≤ N.
    ids
        (P, N) integers; within a prompt, equal ids mark copies of one response. Needed only where
        copies of one response may differ in score (numerical noise of a batched scorer):
        copies that score alike are recognised by their score.

    Raises
    ------
    DataError
        As ``best_of_n``, and for ids that are not integers.

    Notes
    -----
    A block of tied samples covers an interval (a, b] of the pool's proxy quantiles. The best of n
    falls into it with probability bⁿ − aⁿ, and is then a random one of its members, whether these
    are copies of one response or different responses with the same score: either way
    π/π_init is constant on the block, and it adds (bⁿ − aⁿ) log((bⁿ − aⁿ)/(b − a)).

    A sample that neither its score nor its id repeats is *not* treated as an atom of mass 1/N,
    which would cap the estimate at log N: it stands for a stretch of a continuous distribution,
    over which it adds ∫ n uⁿ⁻¹ log(n uⁿ⁻¹) du. Hence the value is exactly ``kl_bon`` where nothing
    repeats, the exact KL where everything is an atom whose frequency the pool gets right, and
    never above ``kl_bon``. Known bias: a response so rare that the pool holds it once is taken for
    continuous, so the estimate is from above.

    With ids, KL is taken over distinct responses: copies that noise has put at several ranks are
    merged, q log(q/p) with p their share of the pool and q the sum of their chances to be chosen.
    """
    pool = checked_pool(proxy, {})
    ns = checked_ns(ns, pool.size)
    ids_array = None if ids is None else checked_ids(ids, pool.proxy.shape)
    bound = kl_bon(ns)
    per_prompt = np.empty((len(ns), len(pool.proxy)))
    repeated = np.empty(len(pool.proxy))
    for prompt, scores in enumerate(pool.proxy):
        row_ids = None if ids_array is None else ids_array[prompt]
        pieces = _repeated_pieces(scores, row_ids)
        per_prompt[:, prompt] = np.maximum(bound - _kl_excess(pieces, ns), 0.0)
        repeated[prompt] = pieces.share.sum()
    return TiesKLResult(ns=ns, per_prompt=per_prompt, repeated=repeated, **over_prompts(per_prompt))


# -------------------------------------------------------------------------- the kernel: KL of ties


class _Pieces(NamedTuple):
    """Repeated samples of one prompt, grouped by tied block and by response."""

    low: Floats  # (A,) quantile at which the block of the piece begins
    high: Floats  # (A,) quantile at which it ends
    share: Floats  # (A,) the piece's share of the pool; at most high − low
    group: Ints  # (A,) ascending; pieces of one group are one atom


def _repeated_pieces(scores: NDArray, ids: NDArray | None) -> _Pieces:
    """Samples (N,) that repeat, as pieces; blocks in which nothing repeats are left out."""
    order = np.argsort(scores)
    if ids is not None:
        # Copies next to each other inside a block, so that a piece is a run.
        order = np.lexsort((ids, scores))
    ranked = scores[order]
    block = np.concatenate(([0], np.cumsum(ranked[1:] != ranked[:-1])))
    block_size = np.bincount(block)
    block_end = np.cumsum(block_size)
    if ids is None:
        response = block
        response_size = block_size
    else:
        _, response, counts = np.unique(ids[order], return_inverse=True, return_counts=True)
        response_size = counts
    repeats = (block_size[block] > 1) | (response_size[response] > 1)
    changes = (block[1:] != block[:-1]) | (response[1:] != response[:-1])
    starts = np.flatnonzero(np.concatenate(([True], changes)))
    sizes = np.diff(np.concatenate((starts, [len(scores)])))
    kept = repeats[starts]
    starts, sizes = starts[kept], sizes[kept]
    by_group = np.argsort(response[starts], kind="stable")
    starts, sizes = starts[by_group], sizes[by_group]
    piece_block = block[starts]
    high = block_end[piece_block] / len(scores)
    low = (block_end - block_size)[piece_block] / len(scores)
    return _Pieces(low, high, sizes / len(scores), response[starts])


def _kl_excess(pieces: _Pieces, ns: Ints) -> Floats:
    """By how much ``kl_bon`` exceeds the KL with these atoms, (K,), never negative."""
    if not len(pieces.share):
        return np.zeros(len(ns))
    n = ns[:, None].astype(np.float64)
    low, high = pieces.low, pieces.high
    with np.errstate(divide="ignore"):  # log 0 = −∞ is meant: the lowest block begins at 0
        log_low, log_high = np.log(low), np.log(high)
        # bⁿ − aⁿ = bⁿ (1 − (a/b)ⁿ), without cancellation.
        log_mass = n * log_high + np.log(-np.expm1(n * (log_low - log_high)))
    # A piece has its part of the block's mass and of the block's continuous KL.
    part = pieces.share / (high - low)
    continuous = (_kl_below(high, n) - _kl_below(low, n)) * part
    starts = np.flatnonzero(np.concatenate(([True], pieces.group[1:] != pieces.group[:-1])))
    chosen = np.add.reduceat(np.exp(log_mass) * part, starts, axis=1)
    share = np.add.reduceat(pieces.share, starts)
    atoms = special.xlogy(chosen, chosen / share)
    return np.maximum(continuous.sum(axis=1) - atoms.sum(axis=1), 0.0)


def _kl_below(u: Floats, n: Floats) -> Floats:
    """∫₀ᵘ n tⁿ⁻¹ log(n tⁿ⁻¹) dt = uⁿ (log n + (n−1)(log u − 1/n)), of shape (K, A)."""
    power = u**n
    return power * (np.log(n) - (n - 1) / n) + (n - 1) * special.xlogy(power, u)
