"""Worlds in which overoptimization is known in closed form, or to a stated quadrature error.

Where it sits: beside the language worlds, as their test-bed. Put the proxy score of a random
sample on its quantile u in [0, 1]. Then best-of-n, best-of-Poisson and the exponential tilt are
densities over u whatever the proxy is, the gold score is a function g(u), and each curve is one
integral. A world here knows g, can be sampled like a language world (a pool of proxy and gold
scores, prompts differing), and so says whether an estimator is right and its error bars honest.

Two worlds: ``HumpWorld``, gold rising and then falling in u, and ``AdditiveErrorWorld``, proxy =
gold + independent error, whose tail decides between regressional and catastrophic Goodhart.

Deliberately different from a simulation: nothing is sampled for the exact curves. Integrals use
the trapezoid rule after a change of variable that makes the integrand decay at both ends, where
the rule converges exponentially; halving the step gives the stated error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from overopt.base.errors import ConfigError, DataError
from overopt.base.seeding import numpy_rng
from overopt.pools.best_of_n import BestOfNResult, best_of_n
from overopt.pools.soft import BestOfPoissonResult, best_of_poisson, kl_best_of_poisson
from overopt.pools.tilt import TiltResult, exponential_tilt

Floats = NDArray[np.floating]
QuantileMethod = Literal["bon", "best_of_poisson", "tilt"]
COORD: dict[str, str] = {"bon": "n", "best_of_poisson": "mu", "tilt": "strength"}


class Nodes(NamedTuple):
    """A quadrature rule over proxy quantiles, with both scores at its nodes; all (J,)."""

    u: Floats  # proxy quantile
    v: Floats  # 1 − u, accurate where u rounds to 1
    weight: Floats  # du
    gold: Floats  # E[gold | u]
    proxy: Floats  # proxy score at u


class Pool(NamedTuple):
    """Sampled scores of N responses to each of P prompts; both (P, N)."""

    proxy: Floats
    gold: Floats


class QuantileWorld(Protocol):
    """What the exact curves need to know of a world."""

    def nodes(self, step: float) -> Nodes:
        """A trapezoid rule of the given step in the world's own variable."""
        ...

    def sample_pool(self, n_prompts: int, pool_size: int, *, rng: np.random.Generator) -> Pool:
        """Independent samples; the exact curves are expectations over prompts and samples."""
        ...


# ----------------------------------------------------------------------------------------- worlds


@dataclass(frozen=True, kw_only=True)
class HumpWorld:
    """Gold u^p (1 − u)/C on uniform proxy quantiles: it rises, peaks, and falls to 0 at u = 1."""

    power: float = 8.0
    """p > 0; the larger, the later the peak (best-of-n peaks at n = √(p(p+1)))."""
    scale: float = 0.05
    """C > 0, in 1/gold units; p^p/(p+1)^(p+1) makes the highest gold 1."""
    prompt_std: float = 0.3
    """Spread over prompts, of the gold offset and (relatively) of the hump's height."""
    noise_std: float = 0.2
    """Standard deviation of gold around g(u) from sample to sample, in gold units."""

    def __post_init__(self) -> None:
        _require_positive(power=self.power, scale=self.scale)
        _require_not_negative(prompt_std=self.prompt_std, noise_std=self.noise_std)

    def gold(self, u: ArrayLike) -> Floats:
        """E[gold] at proxy quantile u."""
        u = np.asarray(u, dtype=np.float64)
        return u**self.power * (1 - u) / self.scale

    def bon_gold(self, ns: ArrayLike) -> Floats:
        """E[gold of the best of n] = n/(C (n + p)(n + p + 1)), exactly."""
        n = np.asarray(ns, dtype=np.float64)
        return n / (self.scale * (n + self.power) * (n + self.power + 1))

    def nodes(self, step: float) -> Nodes:
        """Trapezoid rule in the logit of u."""
        # u = 1/(1 + e^{−y}); the density of every method times u(1 − u) is below 1e-16 outside.
        y = np.arange(-45.0, 45.0 + step / 2, step)
        u, v = special.expit(y), special.expit(-y)
        return Nodes(u, v, step * u * v, u**self.power * v / self.scale, u)

    def sample_pool(self, n_prompts: int, pool_size: int, *, rng: np.random.Generator) -> Pool:
        """Proxy u + offset and gold height·g(u) + offset + noise; (P, N) each.

        Proxy offsets are standard normal. They change no method: within a prompt only
        differences of proxy scores matter.
        """
        shape = (n_prompts, pool_size)
        u = rng.uniform(size=shape)
        proxy_offset, height, gold_offset = rng.normal(size=(3, n_prompts, 1))
        gold = (1 + self.prompt_std * height) * self.gold(u) + self.prompt_std * gold_offset
        return Pool(u + proxy_offset, gold + self.noise_std * rng.normal(size=shape))


@dataclass(frozen=True, kw_only=True)
class AdditiveErrorWorld:
    """Proxy = gold + independent error; gold is normal with mean 0, error normal or Student's t.

    Under a normal error gold keeps rising, at the regressional slope (Gao et al. 2022, appendix
    A). Under a heavy-tailed one the largest proxy scores are all error: gold returns to its
    starting value while the proxy grows without bound (Kwa et al. 2024).
    """

    gold_std: float = 1.0
    """Standard deviation of gold under the initial policy."""
    error_scale: float = 1.0
    """Standard deviation of a normal error; scale of a Student's t error."""
    tail_index: float | None = None
    """None for a normal error; else ν ≥ 1, degrees of freedom: P(error > x) falls as x^−ν."""
    prompt_std: float = 0.3
    """Standard deviation over prompts of a shift common to gold and proxy."""

    def __post_init__(self) -> None:
        _require_positive(gold_std=self.gold_std, error_scale=self.error_scale)
        _require_not_negative(prompt_std=self.prompt_std)
        if self.tail_index is not None and not 1 <= self.tail_index < 1e3:
            raise ConfigError(
                f"tail_index: {self.tail_index} is outside 1 … 1000; use None for a normal error"
            )
        if self.tail_index is not None and self.error_scale < self.gold_std / 20:
            raise ConfigError(
                f"error_scale: {self.error_scale} is under a twentieth of gold_std = "
                f"{self.gold_std}, too narrow for the quadrature; use a larger one"
            )

    @property
    def is_catastrophic(self) -> bool:
        """Whether gold returns to its starting value as the proxy is optimised."""
        return self.tail_index is not None

    @property
    def regressional_slope(self) -> float:
        """Var(gold)/(Var(gold) + Var(error)): the slope of the best linear guess of gold.

        With a normal error E[gold | proxy] is this line. 0 where the error's variance is infinite.
        """
        variance = self.error_scale**2
        if self.tail_index is not None:
            if self.tail_index <= 2:
                return 0.0
            variance *= self.tail_index / (self.tail_index - 2)
        return self.gold_std**2 / (self.gold_std**2 + variance)

    def nodes(self, step: float) -> Nodes:
        """Trapezoid rule in the proxy score, or in its arsinh where the error has a heavy tail."""
        scale = float(np.hypot(self.gold_std, self.error_scale))
        if self.tail_index is None:
            t = np.arange(-11.0, 11.0 + step / 2, step)
            density = np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)
            weight = step * density
            gold = self.regressional_slope * scale * t
            return Nodes(special.ndtr(t), special.ndtr(-t), weight, gold, scale * t)
        # s = scale · sinh t reaches into a power-law tail; the convolutions with the normal gold
        # are themselves trapezoid rules in x, fine enough for the narrower of the two densities.
        reach = np.arcsinh(1e28 ** (1 / self.tail_index) * 10)
        t = np.arange(-reach, reach + step / 2, step)
        proxy = scale * np.sinh(t)
        x_step = 2.5 * step * min(self.gold_std, self.error_scale)
        x = np.arange(-9 * self.gold_std, 9 * self.gold_std + x_step / 2, x_step)
        mass = x_step * np.exp(-((x / self.gold_std) ** 2) / 2)
        mass /= mass.sum()
        error = (proxy[:, None] - x) / self.error_scale
        conditional = mass * _student_density(error, self.tail_index) / self.error_scale
        density = conditional.sum(axis=1)
        return Nodes(
            special.stdtr(self.tail_index, error) @ mass,
            special.stdtr(self.tail_index, -error) @ mass,
            step * scale * np.cosh(t) * density,
            conditional @ x / density,
            proxy,
        )

    def sample_pool(self, n_prompts: int, pool_size: int, *, rng: np.random.Generator) -> Pool:
        """Gold and proxy = gold + error, both shifted by the prompt; (P, N) each."""
        shape = (n_prompts, pool_size)
        gold = self.gold_std * rng.normal(size=shape)
        if self.tail_index is None:
            error = rng.normal(size=shape)
        else:
            error = rng.standard_t(self.tail_index, size=shape)
        shift = self.prompt_std * rng.normal(size=(n_prompts, 1))
        return Pool(gold + self.error_scale * error + shift, gold + shift)

    def tilt_by_score(self, betas: ArrayLike) -> tuple[Floats, Floats]:
        """Gold and KL in nats, (K,) each, under π ∝ π_init exp(proxy/β), for a normal error.

        Proxy ~ N(0, σ²) is shifted by σ²/β, gold by Var(gold)/β, and KL is σ²/(2β²).

        Raises
        ------
        DataError
            With a heavy-tailed error: exp(proxy/β) has no mean, so there is no such policy.
        """
        if self.tail_index is not None:
            raise DataError(
                f"tail_index: {self.tail_index} gives exp(proxy/beta) an infinite mean; "
                "tilt the quantile instead (exact_curve with method 'tilt')"
            )
        beta = np.asarray(betas, dtype=np.float64)
        variance = self.gold_std**2 + self.error_scale**2
        return self.gold_std**2 / beta, variance / (2 * beta**2)


# ----------------------------------------------------------------------------------- exact curves


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactCurve:
    """What a method obtains in a quantile world, without sampling; all (K,)."""

    method: QuantileMethod
    points: Floats
    """n, μ or λ."""
    gold: Floats
    """E[gold]."""
    gold_error: Floats
    """Error of ``gold``, absolute: the change on halving the step, plus rounding."""
    proxy: Floats
    """E[proxy]; nan where the error's tail makes it infinite or too slow to converge."""
    kl_seq_nats: Floats
    """KL(π‖π_init), nats."""


def exact_curve(world: QuantileWorld, method: QuantileMethod, points: ArrayLike) -> ExactCurve:
    """Expected gold and proxy score, and KL in nats, of a method at each of its points.

    Parameters
    ----------
    world
        A ``HumpWorld``, an ``AdditiveErrorWorld``, or anything with their ``nodes``.
    method
        ``"bon"``: best of n, density n u^{n−1}; n may be any real of at least 1.
        ``"best_of_poisson"``: best of 1 + Poisson(μ), density (1 + μu) e^{μ(u−1)}, μ ≥ 0.
        ``"tilt"``: π ∝ π_init e^{λu}, density λe^{λu}/(e^λ − 1), λ ≥ 0; the tilt of the *quantile*.
    points
        (K,) values of n, μ or λ, at most 1e8.

    Raises
    ------
    DataError
        For points outside the method's range.

    Notes
    -----
    Densities and closed-form KLs: Stiennon et al. 2020 (best-of-n), Khalaf et al. 2025 (the
    others). E[proxy] is by the same quadrature; with a Student's t error of tail index below 1.5 it
    does not exist or converges too slowly, and is nan.
    """
    array = np.atleast_1d(np.asarray(points, dtype=np.float64))
    lowest = 1.0 if method == "bon" else 0.0
    if array.ndim != 1 or not ((array >= lowest) & (array <= 1e8)).all():
        raise DataError(
            f"points: {array.tolist()[:5]} for method {method!r} must be a list of numbers in "
            f"{lowest:g} … 1e8"
        )
    coarse, fine = world.nodes(1 / 16), world.nodes(1 / 32)
    density = _density(method, array, fine)
    gold = density @ (fine.weight * fine.gold)
    coarse_gold = _density(method, array, coarse) @ (coarse.weight * coarse.gold)
    # The densities' exponents reach about 40, which costs them 40 units in the last place.
    rounding = 1e-14 * (density @ (fine.weight * np.abs(fine.gold)))
    proxy = density @ (fine.weight * fine.proxy)
    if isinstance(world, AdditiveErrorWorld) and _has_no_mean(world):
        proxy = np.full_like(proxy, np.nan)
    return ExactCurve(
        method=method,
        points=array,
        gold=gold,
        gold_error=np.abs(gold - coarse_gold) + rounding,
        proxy=proxy,
        kl_seq_nats=_kl(method, array),
    )


def kl_tilt(strengths: ArrayLike) -> Floats:
    """KL(tilt of the quantile‖π_init) in nats: log(λ/(1 − e^{−λ})) − 1 + λ/(e^λ − 1), (K,)."""
    strength = np.atleast_1d(np.asarray(strengths, dtype=np.float64))
    # Below 1e-4 the formula cancels; its series is λ²/24.
    safe = np.maximum(strength, 1e-4)
    with np.errstate(over="ignore"):
        exact = np.log(safe / -np.expm1(-safe)) - 1 + safe / np.expm1(safe)
    return np.where(strength < 1e-4, strength**2 / 24, np.maximum(exact, 0.0))


class HedgeTune(NamedTuple):
    """Where best-of-n is at its best."""

    n: float
    """Real-valued n of highest expected gold; nan if it lies at an end of the range."""
    is_interior: bool
    """Whether gold peaks inside the range; False where it rises or falls throughout."""


def hedge_tune(world: QuantileWorld, *, max_n: float = 1e6) -> HedgeTune:
    """The n at which expected gold of best-of-n peaks, inside 1 … ``max_n``.

    Notes
    -----
    The root of E[g(u)(1/n + log u)] = 0 over the best-of-n density, which is the derivative of
    E[g(u)] by n (HedgeTune, Khalaf et al. 2025). There is at most one interior extremum if g
    is unimodal; a root with gold falling to its left (a minimum) is not a peak.
    """
    fine = world.nodes(1 / 32)
    gold = fine.weight * fine.gold
    log_u = _log_u(fine)

    def slope(log_n: float) -> float:
        n = np.exp(log_n)
        # Scaled by n, so that its size does not vanish for large n.
        return float(_density("bon", np.array([n]), fine)[0] @ (gold * (1 + n * log_u)))

    ends = 0.0, float(np.log(max_n))
    if not (slope(ends[0]) > 0 > slope(ends[1])):
        return HedgeTune(float("nan"), False)
    return HedgeTune(float(np.exp(optimize.brentq(slope, *ends, xtol=1e-13))), True)


# -------------------------------------------------------------------------------- demonstration


def quantile_demo(
    root_seed: int, *, n_prompts: int = 200, pool_size: int = 4_000
) -> list[dict[str, str | float]]:
    """Exact and estimated gold of three methods on one sampled pool of a hump, one row per point.

    Parameters
    ----------
    root_seed
        Seed of the pool.
    n_prompts, pool_size
        P and N of the pool.

    Returns
    -------
    list of dict
        Keys ``method``, ``coord`` (name of the point's unit), ``point``, ``kl_seq_nats`` and
        ``sqrt_kl`` (exact), ``gold_exact``, ``gold_exact_error``, ``gold``, ``gold_stderr`` and
        ``discrepancy_stderrs`` = (gold − gold_exact)/gold_stderr, which should look like draws of
        a standard normal, strongly correlated along a curve.
    """
    world = HumpWorld()
    rng = numpy_rng(root_seed, "quantile_demo", "pool")
    pool = world.sample_pool(n_prompts, pool_size, rng=rng)
    ns = [2**k for k in range(11)]
    mus = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]
    # The pool's proxy is u plus a constant of the prompt: e^{λu} tilts the score with β = 1/λ.
    strengths = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
    estimates: dict[str, BestOfNResult | BestOfPoissonResult | TiltResult] = {
        "bon": best_of_n(pool.proxy, pool.gold, ns),
        "best_of_poisson": best_of_poisson(pool.proxy, pool.gold, mus),
        "tilt": exponential_tilt(pool.proxy, pool.gold, 1 / strengths),
    }
    points: dict[QuantileMethod, ArrayLike] = {
        "bon": ns,
        "best_of_poisson": mus,
        "tilt": strengths,
    }
    rows: list[dict[str, str | float]] = []
    for method, values in points.items():
        exact, estimate = exact_curve(world, method, values), estimates[method]
        for k, point in enumerate(exact.points):
            error = estimate.mean[k] - exact.gold[k]
            rows.append(
                {
                    "method": method,
                    "coord": COORD[method],
                    "point": float(point),
                    "kl_seq_nats": float(exact.kl_seq_nats[k]),
                    "sqrt_kl": float(np.sqrt(exact.kl_seq_nats[k])),
                    "gold_exact": float(exact.gold[k]),
                    "gold_exact_error": float(exact.gold_error[k]),
                    "gold": float(estimate.mean[k]),
                    "gold_stderr": float(estimate.stderr[k]),
                    "discrepancy_stderrs": float(error / estimate.stderr[k]),
                }
            )
    return rows


# ------------------------------------------------------------------------------------------ parts


def _density(method: QuantileMethod, points: Floats, nodes: Nodes) -> Floats:
    """Density (K, J) of the method over proxy quantiles, at the nodes."""
    point, u, v = points[:, None], nodes.u, nodes.v
    match method:
        case "bon":
            return point * np.exp((point - 1) * _log_u(nodes))
        case "best_of_poisson":
            return (1 + point * u) * np.exp(-point * v)
        case "tilt":
            safe = np.maximum(point, 1e-300)
            return np.where(point > 0, safe / -np.expm1(-safe) * np.exp(-safe * v), 1.0)
    raise DataError(f"method: {method!r} is not one of {', '.join(COORD)}")


def _kl(method: QuantileMethod, points: Floats) -> Floats:
    match method:
        case "bon":
            return np.log(points) - (points - 1) / points
        case "best_of_poisson":
            return kl_best_of_poisson(points)
        case "tilt":
            return kl_tilt(points)
    raise DataError(f"method: {method!r} is not one of {', '.join(COORD)}")


def _log_u(nodes: Nodes) -> Floats:
    """log u, accurate at both ends."""
    with np.errstate(divide="ignore"):
        return np.where(nodes.u < 0.5, np.log(nodes.u), np.log1p(-nodes.v))


def _student_density(x: Floats, tail_index: float) -> Floats:
    """Density of Student's t with ν = ``tail_index``."""
    log_norm = special.gammaln((tail_index + 1) / 2) - special.gammaln(tail_index / 2)
    log_norm -= np.log(tail_index * np.pi) / 2
    return np.exp(log_norm - (tail_index + 1) / 2 * np.log1p(x**2 / tail_index))


def _has_no_mean(world: AdditiveErrorWorld) -> bool:
    return world.tail_index is not None and world.tail_index < 1.5


def _require_positive(**fields: float) -> None:
    for name, value in fields.items():
        if not (np.isfinite(value) and value > 0):
            raise ConfigError(f"{name}: {value} is not a finite positive number")


def _require_not_negative(**fields: float) -> None:
    for name, value in fields.items():
        if not (np.isfinite(value) and value >= 0):
            raise ConfigError(f"{name}: {value} is not a finite number of at least 0")
