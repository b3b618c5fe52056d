"""The exponential tilt π·exp(proxy/β) of a pool, self-normalised, with its effective sample size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from overopt.base.errors import DataError
from overopt.pools.table import Floats, checked_points, checked_pool, chunks, over_prompts


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
    pool = checked_pool(proxy, values)
    betas = checked_points("betas", betas, minimum=0.0)
    if (betas <= 0).any():
        raise DataError(f"betas: {betas.min():g} is not positive; use beta > 0")
    with np.errstate(over="ignore"):
        spread = (pool.proxy.max().astype(np.float64) - pool.proxy.min()) / betas.min()
    if not np.isfinite(spread):
        raise DataError(f"betas: proxy / {betas.min():g} overflows; use a larger beta")
    n_points, n_prompts = len(betas), len(pool.proxy)
    kl, ess = np.empty((2, n_points, n_prompts))
    estimates = [np.empty((n_points, n_prompts)) for _ in pool.names]
    for rows in chunks(*pool.proxy.shape):
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
    kl_summary = over_prompts(kl)
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
            **over_prompts(estimate),
        )
        for name, estimate in zip(pool.names, estimates, strict=True)
    }
    return results if pool.is_mapping else results[pool.names[0]]


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
