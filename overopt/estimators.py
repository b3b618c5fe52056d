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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from overopt.errors import DataError

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

# Ranks below the top of the pool whose total weight is less than this are left out of a sum. The
# error is at most this fraction of the largest |value|, far under a rounding error of float64.
NEGLIGIBLE_MASS = 1e-24
# Samples handled at a time: bounds the working memory (about 100 MB) whatever the pool's size.
CHUNK_SAMPLES = 1 << 20


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
class SoftBestOfNResult:
    """Expected value of soft best-of-n, for each n at one strength."""

    ns: Ints
    """(K,) numbers of samples drawn."""
    strength: float
    """λ in exp(λ · proxy), per unit of proxy score."""
    mean: Floats
    """(K,) mean over prompts."""
    stderr: Floats
    """(K,) standard error of ``mean`` over prompts; it contains the Monte Carlo noise."""
    mc_stderr: Floats
    """(K,) the part of ``stderr`` that more noise draws would remove."""
    per_prompt: Floats
    """(K, P) the estimate for each prompt."""
    pool_size: int
    """N, samples per prompt."""

    @property
    def n_prompts(self) -> int:
        """P, the number of prompts."""
        return self.per_prompt.shape[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class BestOfPoissonResult:
    """Expected value of the best of 1 + Poisson(μ), for each μ."""

    mus: Floats
    """(K,) Poisson means."""
    mean: Floats
    """(K,) mean over prompts."""
    stderr: Floats
    """(K,) standard error of ``mean`` over prompts."""
    per_prompt: Floats
    """(K, P) the estimate for each prompt."""
    truncated_mass: Floats
    """(K,) probability of drawing more samples than the pool holds; the rest was renormalised."""
    kl_seq_nats: Floats
    """(K,) KL(π‖π_init) in nats, exact when no two samples tie, an upper bound otherwise."""
    pool_size: int
    """N, samples per prompt."""

    @property
    def n_prompts(self) -> int:
        """P, the number of prompts."""
        return self.per_prompt.shape[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class TiltResult:
    """Expected value under π ∝ π_init · exp(proxy / β), for each β."""

    betas: Floats
    """(K,) temperatures of the tilt, in the unit of the proxy score."""
    mean: Floats
    """(K,) mean over prompts."""
    stderr: Floats
    """(K,) standard error of ``mean`` over prompts."""
    per_prompt: Floats
    """(K, P) the self-normalised estimate for each prompt."""
    kl_seq_nats: Floats
    """(K,) mean over prompts of the estimated KL(π‖π_init), in nats."""
    kl_stderr: Floats
    """(K,) standard error of ``kl_seq_nats`` over prompts."""
    kl_per_prompt: Floats
    """(K, P) estimated KL for each prompt; never above log N, so low where ``ess`` is small."""
    ess: Floats
    """(K, P) effective sample size, (Σ w)² / Σ w²."""
    reliable: NDArray[np.bool_]
    """(K,) whether at least 95 % of the prompts have ``ess`` of at least ``min_ess``."""
    warning: str | None
    """Which β are unreliable and what to do, or None."""
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
    pool = _checked_pool(proxy, values)
    ns = checked_ns(ns, pool.size)
    per_prompt = _best_of_n_per_prompt(pool.proxy, pool.columns, ns)
    results = {
        name: BestOfNResult(ns=ns, per_prompt=column, pool_size=pool.size, **_over_prompts(column))
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
    pool = _checked_pool(proxy, {})
    ns = checked_ns(ns, pool.size)
    ids_array = None if ids is None else _checked_ids(ids, pool.proxy.shape)
    bound = kl_bon(ns)
    per_prompt = np.empty((len(ns), len(pool.proxy)))
    repeated = np.empty(len(pool.proxy))
    for prompt, scores in enumerate(pool.proxy):
        row_ids = None if ids_array is None else ids_array[prompt]
        pieces = _repeated_pieces(scores, row_ids)
        per_prompt[:, prompt] = np.maximum(bound - _kl_excess(pieces, ns), 0.0)
        repeated[prompt] = pieces.share.sum()
    return TiesKLResult(
        ns=ns, per_prompt=per_prompt, repeated=repeated, **_over_prompts(per_prompt)
    )


# ------------------------------------------------------------------------ relatives of best-of-n


@overload
def soft_best_of_n(
    proxy: ArrayLike,
    values: Mapping[str, ArrayLike],
    ns: ArrayLike,
    *,
    strength: float,
    rng: np.random.Generator,
    n_noise: int = 32,
) -> dict[str, SoftBestOfNResult]: ...
@overload
def soft_best_of_n(
    proxy: ArrayLike,
    values: ArrayLike,
    ns: ArrayLike,
    *,
    strength: float,
    rng: np.random.Generator,
    n_noise: int = 32,
) -> SoftBestOfNResult: ...
def soft_best_of_n(
    proxy: ArrayLike,
    values: ArrayLike | Mapping[str, ArrayLike],
    ns: ArrayLike,
    *,
    strength: float,
    rng: np.random.Generator,
    n_noise: int = 32,
) -> SoftBestOfNResult | dict[str, SoftBestOfNResult]:
    """Unbiased estimate of E[value] when one of n samples is picked with odds exp(λ · proxy).

    Parameters
    ----------
    proxy, values, ns
        As in ``best_of_n``.
    strength
        λ ≥ 0 per unit of proxy score: 0 picks at random, large λ picks the best.
    rng
        Source of the noise draws.
    n_noise
        Noise draws to average over, at least 2. The Monte Carlo error falls as 1/√n_noise and is
        returned as ``mc_stderr``; ``stderr`` contains it.

    Raises
    ------
    DataError
        As ``best_of_n``, and for a strength that is negative or makes λ · proxy overflow.

    Notes
    -----
    Soft best-of-n as in Verdun et al. 2025. Picking i with probability ∝ exp(λ r_i) is the same as
    taking the largest of λ r_i + g_i with independent standard Gumbel g_i (Gumbel-max). So soft
    best-of-n is best-of-n by a noisy score, and the average over all n-subsets is exact for each
    draw of the noise; only the noise itself is sampled. The same identity bounds its KL by
    ``kl_bon(n)``: (response, noise) is an ordinary best-of-n without ties, and forgetting the
    noise cannot increase KL.
    """
    pool = _checked_pool(proxy, values)
    ns = checked_ns(ns, pool.size)
    if n_noise < 2:
        raise DataError(f"n_noise: {n_noise} draws give no Monte Carlo error; use at least 2")
    with np.errstate(over="ignore"):
        tilted = strength * pool.proxy.astype(np.float64)
    if not (strength >= 0 and np.isfinite(tilted).all()):
        raise DataError(
            f"strength: {strength} is negative or makes strength * proxy overflow; "
            "use 0 <= strength, or best_of_n for the limit of a very large one"
        )
    # Welford's running mean and sum of squares: the draws need not be kept.
    means = [np.zeros((len(ns), len(tilted))) for _ in pool.names]
    squares = [np.zeros_like(mean) for mean in means]
    for draw in range(n_noise):
        noisy = tilted + rng.gumbel(size=tilted.shape)
        estimates = _best_of_n_per_prompt(noisy, pool.columns, ns)
        for mean, square, estimate in zip(means, squares, estimates, strict=True):
            delta = estimate - mean
            mean += delta / (draw + 1)
            square += delta * (estimate - mean)
    n_prompts = len(tilted)
    results = {
        name: SoftBestOfNResult(
            ns=ns,
            strength=float(strength),
            per_prompt=mean,
            mc_stderr=np.sqrt(square.mean(axis=1) / (n_noise - 1) / n_noise / n_prompts),
            pool_size=pool.size,
            **_over_prompts(mean),
        )
        for name, mean, square in zip(pool.names, means, squares, strict=True)
    }
    return results if pool.is_mapping else results[pool.names[0]]


@overload
def best_of_poisson(
    proxy: ArrayLike,
    values: Mapping[str, ArrayLike],
    mus: ArrayLike,
    *,
    max_truncated: float = 1e-6,
) -> dict[str, BestOfPoissonResult]: ...
@overload
def best_of_poisson(
    proxy: ArrayLike, values: ArrayLike, mus: ArrayLike, *, max_truncated: float = 1e-6
) -> BestOfPoissonResult: ...
def best_of_poisson(
    proxy: ArrayLike,
    values: ArrayLike | Mapping[str, ArrayLike],
    mus: ArrayLike,
    *,
    max_truncated: float = 1e-6,
) -> BestOfPoissonResult | dict[str, BestOfPoissonResult]:
    """Estimate of E[value of the best of 1 + Poisson(μ) samples by proxy], for each μ.

    Parameters
    ----------
    proxy, values
        As in ``best_of_n``.
    mus
        (K,) Poisson means, μ ≥ 0.
    max_truncated
        Largest tolerated probability of a draw larger than the pool. The estimate is unbiased up
        to this mass, which is renormalised away and returned as ``truncated_mass``.

    Raises
    ------
    DataError
        As ``best_of_n``, for a μ that is negative or not finite, and for a μ too large for the
        pool.

    Notes
    -----
    Best-of-Poisson as in Khalaf et al. 2025; on proxy quantiles its density is
    (1 + μu) e^{μ(u−1)}. The estimate is the Poisson mixture of the unbiased ``best_of_n``.
    """
    pool = _checked_pool(proxy, values)
    mus = _checked_points("mus", mus, minimum=0.0)
    truncated = special.pdtrc(pool.size - 1, mus)
    if (truncated > max_truncated).any():
        worst = float(mus[np.argmax(truncated)])
        raise DataError(
            f"mus: 1 + Poisson({worst:g}) exceeds the pool of N = {pool.size} with probability "
            f"{truncated.max():.3g} > max_truncated = {max_truncated:g}; use a smaller mu or a "
            "larger pool"
        )
    extra = np.arange(pool.size)
    log_pmf = special.xlogy(extra, mus[:, None]) - special.gammaln(extra + 1) - mus[:, None]
    pmf = np.exp(log_pmf)
    used = (pmf > NEGLIGIBLE_MASS).any(axis=0)
    mixture = pmf[:, used] / pmf[:, used].sum(axis=1, keepdims=True)
    estimates = _best_of_n_per_prompt(pool.proxy, pool.columns, extra[used] + 1)
    kl = kl_best_of_poisson(mus)
    results: dict[str, BestOfPoissonResult] = {}
    for name, estimate in zip(pool.names, estimates, strict=True):
        per_prompt = mixture @ estimate
        results[name] = BestOfPoissonResult(
            mus=mus,
            per_prompt=per_prompt,
            truncated_mass=truncated,
            kl_seq_nats=kl,
            pool_size=pool.size,
            **_over_prompts(per_prompt),
        )
    return results if pool.is_mapping else results[pool.names[0]]


def kl_best_of_poisson(mus: ArrayLike) -> Floats:
    """KL(best-of-Poisson‖π_init) in nats for each μ; exact without ties, else an upper bound.

    Notes
    -----
    ∫₀¹ f log f du with f(u) = (1 + μu) e^{μ(u−1)} (Khalaf et al. 2025), by 128-point
    Gauss-Legendre quadrature in y = μ(1 − u) on [0, min(μ, 60)]; relative error below 1e-12.
    """
    mu = _checked_points("mus", mus, minimum=0.0)[:, None]
    nodes, weights = np.polynomial.legendre.leggauss(128)
    # f du = (1 + μ − y) e^{−y} dy / μ; u itself is the variable while μ < 1, so that μ = 0 works.
    length = np.minimum(1.0, 60.0 / np.maximum(mu, 1e-300))
    gap = length * (nodes + 1) / 2
    log_density = np.log1p(mu * (1 - gap)) - mu * gap
    return np.maximum((length / 2 * weights * np.exp(log_density) * log_density).sum(axis=1), 0.0)


@overload
def exponential_tilt(
    proxy: ArrayLike, values: Mapping[str, ArrayLike], betas: ArrayLike, *, min_ess: float = 50.0
) -> dict[str, TiltResult]: ...
@overload
def exponential_tilt(
    proxy: ArrayLike, values: ArrayLike, betas: ArrayLike, *, min_ess: float = 50.0
) -> TiltResult: ...
def exponential_tilt(
    proxy: ArrayLike,
    values: ArrayLike | Mapping[str, ArrayLike],
    betas: ArrayLike,
    *,
    min_ess: float = 50.0,
) -> TiltResult | dict[str, TiltResult]:
    """Self-normalised estimate of E[value] under π ∝ π_init exp(proxy/β), for each β.

    No policy has a higher mean proxy score at the same mean KL from π_init: this is what a perfect
    optimiser of KL-penalised reward would reach, the yardstick for best-of-n and PPO.

    Parameters
    ----------
    proxy, values
        As in ``best_of_n``.
    betas
        (K,) temperatures β > 0 in the unit of the proxy score; one β serves all prompts.
    min_ess
        Effective samples below which a prompt's estimate is not to be trusted.

    Raises
    ------
    DataError
        As ``best_of_n``, and for a β that is not positive or makes proxy/β overflow.

    Notes
    -----
    Per prompt, with ŵᵢ = exp(rᵢ/β)/Σⱼ exp(rⱼ/β): value Σ ŵᵢ vᵢ, KL Σ ŵᵢ log(N ŵᵢ), effective
    sample size 1/Σ ŵᵢ². Self-normalised importance sampling is biased by O(1/ess), and the KL
    estimate cannot exceed log N: hence the ``reliable`` flag and the ``warning``.
    """
    pool = _checked_pool(proxy, values)
    betas = _checked_points("betas", betas, minimum=0.0)
    if (betas <= 0).any():
        raise DataError(f"betas: {betas.min():g} is not positive; use beta > 0")
    with np.errstate(over="ignore"):
        spread = (pool.proxy.max().astype(np.float64) - pool.proxy.min()) / betas.min()
    if not np.isfinite(spread):
        raise DataError(f"betas: proxy / {betas.min():g} overflows; use a larger beta")
    n_points, n_prompts = len(betas), len(pool.proxy)
    kl, ess = np.empty((2, n_points, n_prompts))
    estimates = [np.empty((n_points, n_prompts)) for _ in pool.names]
    for rows in _chunks(*pool.proxy.shape):
        scores = pool.proxy[rows].astype(np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        columns = [column[rows].astype(np.float64) for column in pool.columns]
        for k, beta in enumerate(betas):
            exponent = scores / beta
            weight = np.exp(exponent)
            total = weight.sum(axis=1)
            weight /= total[:, None]
            ess[k, rows] = 1 / np.einsum("pn,pn->p", weight, weight)
            kl[k, rows] = np.einsum("pn,pn->p", weight, exponent) - np.log(total / pool.size)
            for estimate, column in zip(estimates, columns, strict=True):
                estimate[k, rows] = np.einsum("pn,pn->p", weight, column)
    np.maximum(kl, 0.0, out=kl)
    reliable = (ess >= min_ess).mean(axis=1) >= 0.95
    kl_summary = _over_prompts(kl)
    results = {
        name: TiltResult(
            betas=betas,
            per_prompt=estimate,
            kl_seq_nats=kl_summary["mean"],
            kl_stderr=kl_summary["stderr"],
            kl_per_prompt=kl,
            ess=ess,
            reliable=reliable,
            warning=_tilt_warning(betas, ess, reliable, min_ess),
            pool_size=pool.size,
            **_over_prompts(estimate),
        )
        for name, estimate in zip(pool.names, estimates, strict=True)
    }
    return results if pool.is_mapping else results[pool.names[0]]


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


def _best_of_n_per_prompt(proxy: NDArray, columns: list[NDArray], ns: Ints) -> list[Floats]:
    """Best-of-n estimates (K, P) of each column, for checked arguments."""
    n_prompts, pool_size = proxy.shape
    unique_ns, inverse = np.unique(ns, return_inverse=True)
    blocks = list(_weight_blocks(unique_ns, pool_size))
    results = [np.zeros((n_prompts, len(unique_ns))) for _ in columns]
    for rows in _chunks(n_prompts, pool_size):
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


def _checked_pool(proxy: ArrayLike, values: ArrayLike | Mapping[str, ArrayLike]) -> _Pool:
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
    for rows in _chunks(*array.shape):
        finite = np.isfinite(array[rows])
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise DataError(
                f"{name}: {array[rows][row, column]} at row {rows.start + row} (prompt), column "
                f"{column} (sample) is not finite; score the sample again or drop the prompt"
            )


def _checked_points(name: str, points: ArrayLike, *, minimum: float) -> Floats:
    array = np.atleast_1d(np.asarray(points, dtype=np.float64))
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"{name}: shape {array.shape} is not a list of at least one number")
    if not (np.isfinite(array).all() and array.min() >= minimum):
        bad = array[~(np.isfinite(array) & (array >= minimum))][0]
        raise DataError(f"{name}: {bad} is not a finite number of at least {minimum:g}")
    return array


def _checked_ids(ids: ArrayLike, shape: tuple[int, ...]) -> NDArray:
    array = np.asarray(ids)
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"ids: dtype {array.dtype} is not integer; number the distinct responses")
    if array.shape != shape:
        raise DataError(f"ids: shape {array.shape} differs from the proxy's {shape}")
    return array


def _chunks(n_prompts: int, pool_size: int) -> Iterator[slice]:
    """Consecutive rows of a (P, N) table, at least 16 and about ``CHUNK_SAMPLES`` samples."""
    step = max(16, CHUNK_SAMPLES // max(pool_size, 1))
    for start in range(0, n_prompts, step):
        yield slice(start, min(start + step, n_prompts))


def _over_prompts(per_prompt: Floats) -> dict[str, Floats]:
    """Mean (K,) over prompts and its standard error, of (K, P)."""
    n_prompts = per_prompt.shape[1]
    return {
        "mean": per_prompt.mean(axis=1),
        "stderr": per_prompt.std(axis=1, ddof=1) / np.sqrt(n_prompts),
    }


def _tilt_warning(
    betas: Floats, ess: Floats, reliable: NDArray[np.bool_], min_ess: float
) -> str | None:
    if reliable.all():
        return None
    worst = np.flatnonzero(~reliable)
    listed = ", ".join(f"{betas[k]:g} (median ess {np.median(ess[k]):.3g})" for k in worst[:5])
    more = f" and {len(worst) - 5} more" if len(worst) > 5 else ""
    return (
        f"the pool does not support the tilt at beta = {listed}{more}: more than 5 % of the "
        f"prompts have an effective sample size under {min_ess:g}; value and KL are biased "
        "towards the pool's best samples. Use larger betas or a larger pool"
    )
