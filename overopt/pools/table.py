"""The pool as a table: checked arrays of shape (P, N), weights over ranks, bootstrap over prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from overopt.base.errors import DataError

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

# Ranks below the top of the pool whose total weight is less than this are left out of a sum. The
# error is at most this fraction of the largest |value|, far under a rounding error of float64.
NEGLIGIBLE_MASS = 1e-24
# Samples handled at a time: bounds the working memory (about 100 MB) whatever the pool's size.
CHUNK_SAMPLES = 1 << 20


# -------------------------------------------------------------------------------------- bootstrap


def bootstrap_prompts(per_prompt: ArrayLike, *, n_draws: int, rng: np.random.Generator) -> Floats:
    """Means over resampled prompts, (B, K): one bootstrap draw of the curve per row.

    Parameters
    ----------
    per_prompt
        (K, P) estimates per prompt, as in ``BestOfNResult.per_prompt``. The pool is not touched:
        a draw reuses each prompt's estimate as often as the prompt was drawn, at every point of
        the curve, which keeps the correlation between points.
    n_draws
        B, number of bootstrap draws.
    rng
        Source of the draws.

    Raises
    ------
    DataError
        For an array that is not (K, P), with fewer than 2 prompts, or with values not finite.
    """
    array = np.asarray(per_prompt, dtype=np.float64)
    if array.ndim != 2:
        raise DataError(f"per_prompt: shape {array.shape} is not (points, prompts)")
    _check_prompts("per_prompt", array.shape[1])
    if not np.isfinite(array).all():
        point, prompt = np.argwhere(~np.isfinite(array))[0]
        raise DataError(
            f"per_prompt: {array[point, prompt]} at point {point}, prompt {prompt} is not finite; "
            "leave out the prompt or the point"
        )
    n_prompts = array.shape[1]
    counts = rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=n_draws)
    return counts.astype(np.float64) @ array.T / n_prompts


# ------------------------------------------------------------------------------- the kernel: BoN


class _WeightBlock(NamedTuple):
    """Weights of consecutive ranks for the smallest of the sorted ns."""

    start: int
    stop: int
    weights: Floats  # (k, stop − start), ranks counted from the top of the pool


def best_of_n_per_prompt(proxy: NDArray, columns: list[NDArray], ns: Ints) -> list[Floats]:
    """Best-of-n estimates (K, P) of each column, for checked arguments."""
    n_prompts, pool_size = proxy.shape
    unique_ns, inverse = np.unique(ns, return_inverse=True)
    blocks = list(_weight_blocks(unique_ns, pool_size))
    results = [np.zeros((n_prompts, len(unique_ns))) for _ in columns]
    for rows in chunks(n_prompts, pool_size):
        scores = np.asarray(proxy[rows])
        best_first = np.argsort(scores, axis=1)[:, ::-1]
        scores = np.take_along_axis(scores, best_first, axis=1)
        is_tied = scores[:, 1:] == scores[:, :-1]
        for result, column in zip(results, columns, strict=True):
            ranked = np.take_along_axis(column[rows].astype(np.float64), best_first, axis=1)
            _average_ties(ranked, is_tied)
            for start, stop, weights in blocks:
                result[rows, : len(weights)] += ranked[:, start:stop] @ weights.T
    return [result.T[inverse] for result in results]


def _weight_blocks(ns: Ints, pool_size: int) -> Iterator[_WeightBlock]:
    """Weights C(i−1, n−1)/C(N, n) by rank from the top, in blocks, for ascending unique ns.

    The weights of a large n fall off fast with rank, so each block holds only the ns whose
    remaining mass C(i, n)/C(N, n) still matters: about N log N of the N² weights for all n.
    """
    n = ns.astype(np.float64)
    top = n / pool_size
    start, width = 0, 64
    while start < pool_size and len(n):
        stop = min(start + width, pool_size)
        i = pool_size - np.arange(start, stop, dtype=np.float64)
        # w_{i−1} / w_i = (i − n)/(i − 1), and 0 from i = n down.
        steps = np.maximum(i - n[:, None], 0.0) / np.maximum(i - 1, 1.0)
        weights = np.empty_like(steps)
        weights[:, 0] = top
        np.cumprod(steps[:, :-1], axis=1, out=weights[:, 1:])
        weights[:, 1:] *= top[:, None]
        yield _WeightBlock(start, stop, weights)
        top = weights[:, -1] * steps[:, -1]
        remaining = top * (pool_size - stop) / n
        n_active = int((remaining > NEGLIGIBLE_MASS).sum())
        n, top = n[:n_active], top[:n_active]
        start, width = stop, min(2 * width, 4096)


def _average_ties(ranked: Floats, is_tied: NDArray[np.bool_]) -> None:
    """Replace, in place, the values (p, N) in each tied block by the block's mean."""
    for row in np.flatnonzero(is_tied.any(axis=1)):
        starts = np.concatenate(([0], np.flatnonzero(~is_tied[row]) + 1))
        sizes = np.diff(np.concatenate((starts, [ranked.shape[1]])))
        ranked[row] = np.repeat(np.add.reduceat(ranked[row], starts) / sizes, sizes)


# ----------------------------------------------------------------------------------------- checks


class _Pool(NamedTuple):
    """Checked arguments of an estimator."""

    proxy: NDArray  # (P, N)
    names: list[str]
    columns: list[NDArray]  # each (P, N)
    is_mapping: bool

    @property
    def size(self) -> int:
        return self.proxy.shape[1]


def checked_ns(ns: ArrayLike, pool_size: int | None) -> Ints:
    """``ns`` as an int64 array (K,), or a DataError; ``pool_size`` None means no upper limit."""
    array = np.asarray(ns)
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"ns: shape {array.shape} is not a list of at least one number of samples")
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"ns: {array.tolist()[:5]} are not integers; pass whole numbers as int")
    if array.min() < 1:
        raise DataError(f"ns: {array.min()} is below 1; the best is taken of at least one sample")
    if pool_size is not None and array.max() > pool_size:
        raise DataError(
            f"ns: {array.max()} exceeds the pool of N = {pool_size} samples per prompt; "
            "use n <= N or a larger pool"
        )
    return array.astype(np.int64)


def checked_pool(proxy: ArrayLike, values: ArrayLike | Mapping[str, ArrayLike]) -> _Pool:
    """Arrays of equal shape (P, N), finite, with at least 2 prompts; or a DataError."""
    is_mapping = isinstance(values, Mapping)
    named = values if isinstance(values, Mapping) else {"values": values}
    proxy_array = _numeric("proxy", proxy)
    if proxy_array.ndim != 2 or proxy_array.shape[1] < 1:
        raise DataError(
            f"proxy: shape {proxy_array.shape} is not (prompts, samples per prompt); "
            "pass one row per prompt"
        )
    _check_prompts("proxy", len(proxy_array))
    _check_finite("proxy", proxy_array)
    columns = []
    for name, column in named.items():
        array = _numeric(name, column)
        if array.shape != proxy_array.shape:
            raise DataError(
                f"{name}: shape {array.shape} differs from the proxy's {proxy_array.shape}; "
                "all columns are tables of the same prompts and samples"
            )
        _check_finite(name, array)
        columns.append(array)
    return _Pool(proxy_array, list(named), columns, is_mapping)


def _numeric(name: str, array: ArrayLike) -> NDArray:
    result = np.asarray(array)
    if not (np.issubdtype(result.dtype, np.floating) or np.issubdtype(result.dtype, np.integer)):
        raise DataError(f"{name}: dtype {result.dtype} is not a real number; convert it to float")
    return result


def _check_prompts(name: str, n_prompts: int) -> None:
    if n_prompts < 2:
        raise DataError(
            f"{name}: {n_prompts} prompt(s) give no standard error; use at least 2 prompts"
        )


def _check_finite(name: str, array: NDArray) -> None:
    for rows in chunks(*array.shape):
        finite = np.isfinite(array[rows])
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise DataError(
                f"{name}: {array[rows][row, column]} at row {rows.start + row} (prompt), column "
                f"{column} (sample) is not finite; score the sample again or drop the prompt"
            )


def checked_points(name: str, points: ArrayLike, *, minimum: float) -> Floats:
    """``points`` as float64 (K,), finite and at least ``minimum``; else `DataError` with ``name``."""
    array = np.atleast_1d(np.asarray(points, dtype=np.float64))
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"{name}: shape {array.shape} is not a list of at least one number")
    if not (np.isfinite(array).all() and array.min() >= minimum):
        bad = array[~(np.isfinite(array) & (array >= minimum))][0]
        raise DataError(f"{name}: {bad} is not a finite number of at least {minimum:g}")
    return array


def checked_ids(ids: ArrayLike, shape: tuple[int, ...]) -> NDArray:
    """``ids`` as an integer array of ``shape``; else `DataError`."""
    array = np.asarray(ids)
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"ids: dtype {array.dtype} is not integer; number the distinct responses")
    if array.shape != shape:
        raise DataError(f"ids: shape {array.shape} differs from the proxy's {shape}")
    return array


def chunks(n_prompts: int, pool_size: int) -> Iterator[slice]:
    """Consecutive rows of a (P, N) table, at least 16 and about ``CHUNK_SAMPLES`` samples."""
    step = max(16, CHUNK_SAMPLES // max(pool_size, 1))
    for start in range(0, n_prompts, step):
        yield slice(start, min(start + step, n_prompts))


def over_prompts(per_prompt: Floats) -> dict[str, Floats]:
    """Mean (K,) over prompts and its standard error, of (K, P)."""
    n_prompts = per_prompt.shape[1]
    return {
        "mean": per_prompt.mean(axis=1),
        "stderr": per_prompt.std(axis=1, ddof=1) / np.sqrt(n_prompts),
    }
