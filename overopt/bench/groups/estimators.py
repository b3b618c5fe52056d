"""Speed of the pool estimators, as ratios to a reference measured in the same run.

Each function returns one row (see `harness.ROW_FIELDS`). Seconds are medians of CPU seconds of this
process, so that other work on the machine does not enter; the ratio is reference over ours, above 1
where ours is faster, and None where a reference on the same input would take hours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from overopt.base.seeding import numpy_rng
from overopt.bench.harness import Row, make_row
from overopt.bench.setting import Group, Setting
from overopt.pools.best_of_n import best_of_n, kl_bon_ties
from overopt.pools.table import bootstrap_prompts

NAMES = ("estimators",)
REPEATS = 5


def group(setting: Setting) -> Group:
    """All rows on the CPU, whatever the setting's device: the estimators are numpy's."""
    return Group(NAMES, lambda: run_all(root_seed=setting.root_seed))


def big_integer_weights(n: int, pool_size: int) -> np.ndarray:
    """Weights C(i−1, n−1)/C(N, n) for i = 1 … N, (N,), each from exact integer binomials."""
    subsets = math.comb(pool_size, n)
    return np.array([math.comb(i - 1, n - 1) / subsets for i in range(1, pool_size + 1)])


def big_integer_best_of_n(proxy: np.ndarray, values: np.ndarray, ns: list[int]) -> np.ndarray:
    """Best-of-n estimates (K, P) for proxies (P, N) without ties, by exact integer binomials."""
    ranked = np.take_along_axis(values, np.argsort(proxy, axis=1), axis=1)
    return np.array([ranked @ big_integer_weights(n, proxy.shape[1]) for n in ns])


def bench_against_big_integers(
    n_prompts: int = 20, pool_size: int = 6_000, root_seed: int = 0
) -> Row:
    """best_of_n against exact integer binomials on the same pool; agreement to 1e-10 is checked."""
    proxy, gold = _pool(n_prompts, pool_size, root_seed)
    ns = [2**k for k in range(int(math.log2(pool_size)) + 1)]
    ours = _timed(lambda: best_of_n(proxy, gold, ns))
    theirs = _timed(lambda: big_integer_best_of_n(proxy, gold, ns), repeats=1)
    worst = float(np.abs(ours.result.per_prompt - theirs.result).max())
    if worst > 1e-10:
        raise ArithmeticError(f"best_of_n differs from exact binomials by {worst:.3g}")
    return make_row(
        "best_of_n",
        ours.seconds,
        theirs.seconds,
        note=f"{n_prompts} prompts x {pool_size} samples, {len(ns)} values of n; "
        f"reference, once: math.comb per term; largest difference {worst:.1e}",
    )


def bench_large_pool(n_prompts: int = 100, pool_size: int = 60_000, root_seed: int = 0) -> Row:
    """best_of_n at 60 values of n up to the pool's size, sorting included."""
    proxy, gold = _pool(n_prompts, pool_size, root_seed)
    ns = log_spaced_ns(pool_size, 60)
    ours = _timed(lambda: best_of_n(proxy, gold, ns))
    sort = _timed(lambda: np.argsort(proxy, axis=1))
    return make_row(
        "best_of_n_vs_sort",
        ours.seconds,
        sort.seconds,
        against="limit",
        note=f"{n_prompts} prompts x {pool_size} samples, {len(ns)} values of n; "
        "reference: one argsort of the pool; ratio at most 1",
    )


def bench_bootstrap(
    n_prompts: int = 1_000, pool_size: int = 12_600, n_draws: int = 1_000, root_seed: int = 0
) -> Row:
    """Bootstrap over prompts of a whole curve, against re-estimating for each draw.

    The reference is extrapolated from one draw that runs the estimator on the resampled pool.
    """
    proxy, gold = _pool(n_prompts, pool_size, root_seed)
    ns = log_spaced_ns(pool_size, 60)
    rng = numpy_rng(root_seed, "estimator_bench", "bootstrap")

    def curve_and_draws() -> np.ndarray:
        return bootstrap_prompts(best_of_n(proxy, gold, ns).per_prompt, n_draws=n_draws, rng=rng)

    ours = _timed(curve_and_draws)
    drawn = rng.integers(n_prompts, size=n_prompts)
    one_draw = _timed(lambda: best_of_n(proxy[drawn], gold[drawn], ns), repeats=1)
    return make_row(
        "bootstrap_prompts",
        ours.seconds,
        [seconds * n_draws for seconds in one_draw.seconds],
        note=f"{n_prompts} prompts x {pool_size} samples, {len(ns)} values of n, {n_draws} draws, "
        "curve included; reference, extrapolated: one re-estimated draw times the number of draws",
    )


def bench_ties_kl(n_prompts: int = 100, pool_size: int = 12_600, root_seed: int = 0) -> Row:
    """kl_bon_ties on a proxy with 1,000 levels, against best_of_n on the same pool."""
    proxy, gold = _pool(n_prompts, pool_size, root_seed)
    proxy = np.round(proxy * 150)
    ns = log_spaced_ns(pool_size, 60)
    ours = _timed(lambda: kl_bon_ties(proxy, ns))
    theirs = _timed(lambda: best_of_n(proxy, gold, ns))
    return make_row(
        "kl_bon_ties_vs_best_of_n",
        ours.seconds,
        theirs.seconds,
        against="limit",
        note=f"{n_prompts} prompts x {pool_size} samples, {len(ns)} values of n; reference: "
        "best_of_n on the same tied pool",
    )


def run_all(root_seed: int = 0) -> list[Row]:
    """All rows of this module, a few CPU seconds in total."""
    return [
        bench_against_big_integers(root_seed=root_seed),
        bench_large_pool(root_seed=root_seed),
        bench_bootstrap(root_seed=root_seed),
        bench_ties_kl(root_seed=root_seed),
    ]


def log_spaced_ns(pool_size: int, n_points: int) -> np.ndarray:
    """About evenly log-spaced distinct integers from 1 to ``pool_size``, (n_points,)."""
    wanted = min(n_points, pool_size)
    ns = np.arange(0)
    n_raw = wanted
    while len(ns) < wanted:
        # Rounding merges the small ones, so ask for more until enough are distinct.
        ns = np.unique(np.geomspace(1, pool_size, n_raw).round().astype(int))
        n_raw += 1
    return np.delete(ns, slice(1, 1 + len(ns) - wanted))


def _pool(n_prompts: int, pool_size: int, root_seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = numpy_rng(root_seed, "estimator_bench", "pool")
    return rng.normal(size=(n_prompts, pool_size)), rng.normal(size=(n_prompts, pool_size))


class _Timed(NamedTuple):
    """Result of the last call and CPU seconds of each."""

    result: Any
    seconds: list[float]


def _timed(function: Callable[[], Any], repeats: int = REPEATS) -> _Timed:
    seconds, result = [], None
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        seconds.append(time.process_time() - start)
    return _Timed(result, seconds)
