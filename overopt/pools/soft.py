"""Soft best-of-n and best-of-Poisson: relatives of best-of-n that need the same pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from overopt.base.errors import DataError
from overopt.pools.table import (
    NEGLIGIBLE_MASS,
    Floats,
    Ints,
    best_of_n_per_prompt,
    checked_ns,
    checked_points,
    checked_pool,
    over_prompts,
)


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
    pool = checked_pool(proxy, values)
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
        estimates = best_of_n_per_prompt(noisy, pool.columns, ns)
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
            **over_prompts(mean),
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
    pool = checked_pool(proxy, values)
    mus = checked_points("mus", mus, minimum=0.0)
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
    estimates = best_of_n_per_prompt(pool.proxy, pool.columns, extra[used] + 1)
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
            **over_prompts(per_prompt),
        )
    return results if pool.is_mapping else results[pool.names[0]]


def kl_best_of_poisson(mus: ArrayLike) -> Floats:
    """KL(best-of-Poisson‖π_init) in nats for each μ; exact without ties, else an upper bound.

    Notes
    -----
    ∫₀¹ f log f du with f(u) = (1 + μu) e^{μ(u−1)} (Khalaf et al. 2025), by 128-point
    Gauss-Legendre quadrature in y = μ(1 − u) on [0, min(μ, 60)]; relative error below 1e-12.
    """
    mu = checked_points("mus", mus, minimum=0.0)[:, None]
    nodes, weights = np.polynomial.legendre.leggauss(128)
    # f du = (1 + μ − y) e^{−y} dy / μ; u itself is the variable while μ < 1, so that μ = 0 works.
    length = np.minimum(1.0, 60.0 / np.maximum(mu, 1e-300))
    gap = length * (nodes + 1) / 2
    log_density = np.log1p(mu * (1 - gap)) - mu * gap
    return np.maximum((length / 2 * weights * np.exp(log_density) * log_density).sum(axis=1), 0.0)
