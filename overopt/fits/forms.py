"""Functional forms of gold and proxy score against d = √KL, as pure functions of arrays.

First station of the analysis: `fit`, `replicates`, `bootstrap` and `compare` take a form by name
and never spell a formula themselves. Every form here is linear in its parameters once at most one
*shape* parameter is fixed, so one linear solve fits all of them. Gold is recentred to 0 at d = 0,
and every form vanishes there: the point d = 0 carries no information.

Differs from the reference (Gao, Schulman and Hilton 2022) in listing the forms they rejected and
several for the proxy score, for which they found none, side by side with the two they kept.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import lambertw, log_ndtr

from overopt.base.errors import ConfigError

Array = NDArray[np.float64]


class Peak(NamedTuple):
    """Where a fitted curve turns over, and how high it is there.

    ``sqrt_kl`` is in √nats, ``gold`` in the unit of the scores. Both are ``inf`` where the curve
    rises for ever and 0 where it falls from the start.
    """

    sqrt_kl: Array
    gold: Array


@dataclass(frozen=True, kw_only=True)
class TurnOver:
    """The part of a form d(α − β ψ(d)) that knows about its maximum.

    Setting the derivative to zero gives α/β = h(d) with h = (dψ)', increasing in d, so the peak
    location is a monotone function of the ratio α/β alone.
    """

    psi: Callable[[Array], Array]
    """ψ(d), increasing."""
    ratio: Callable[[Array], Array]
    """h(d): the ratio α/β whose curve peaks at d."""
    location: Callable[[Array], Array]
    """h⁻¹: the peak location for a ratio α/β; 0 where the curve falls from the start."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One functional form: ``basis(d, shape) @ linear coefficients``."""

    name: str
    formula: str
    """The formula in words of d and the parameters, for tables and legends."""
    linear: tuple[str, ...]
    """Names of the parameters in which the form is linear, in the order of the basis columns."""
    basis: Callable[[Array, float], Array]
    """Design matrix (..., K, len(linear)) from d (..., K) and the shape parameter (or nan)."""
    shape: str | None = None
    """Name of the one nonlinear parameter, or None."""
    shape_range: tuple[float, float] = (np.nan, np.nan)
    """Search interval of the shape parameter."""
    turn_over: TurnOver | None = None
    """Present for two-parameter forms d(α − β ψ(d))."""

    @property
    def params(self) -> tuple[str, ...]:
        """All parameter names, the shape parameter last."""
        return self.linear if self.shape is None else (*self.linear, self.shape)

    def evaluate(self, sqrt_kl: ArrayLike, params: Mapping[str, float]) -> Array:
        """Value of the form at ``sqrt_kl``, any shape, for parameters given by name."""
        d = np.asarray(sqrt_kl, dtype=float)
        shape = np.nan if self.shape is None else float(params[self.shape])
        coef = np.array([params[name] for name in self.linear], dtype=float)
        return self.basis(d, shape) @ coef


def d_log_d(d: ArrayLike) -> Array:
    """d · log d with its limit 0 at d = 0 (natural logarithm)."""
    d = np.asarray(d, dtype=float)
    return d * np.log(np.where(d > 0, d, 1.0))


def bon(sqrt_kl: ArrayLike, alpha: float, beta: float) -> Array:
    """Best-of-n form d(α − β d), in the unit of the scores (Gao et al. 2022, section 3.1)."""
    d = np.asarray(sqrt_kl, dtype=float)
    return d * (alpha - beta * d)


def rl(sqrt_kl: ArrayLike, alpha: float, beta: float) -> Array:
    """RL form d(α − β log d), natural logarithm, 0 at d = 0 (Gao et al. 2022, section 3.1)."""
    d = np.asarray(sqrt_kl, dtype=float)
    return d * alpha - d_log_d(d) * beta


def peak(form: str, alpha: ArrayLike, beta: ArrayLike) -> Peak:
    """Location (√nats) and height of the maximum over d >= 0, elementwise in α and β.

    BoN: α/2β and α²/4β. RL: exp(α/β − 1) and β·exp(α/β − 1). Both are ``inf`` where β <= 0 (no
    maximum), and 0 where the curve falls from the start.
    """
    turn = get_form(form).turn_over
    if turn is None:
        raise ConfigError(f"form {form!r} has no closed-form peak; forms that do: {PEAKED_FORMS}")
    alpha, beta = np.broadcast_arrays(np.asarray(alpha, float), np.asarray(beta, float))
    turns = beta > 0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        where = turn.location(alpha / np.where(turns, beta, 1.0))
        # At the peak α = β h, so the height d(α − βψ) is also β d (h − ψ): no cancellation.
        height = beta * where * (turn.ratio(where) - turn.psi(where))
    height = np.where(where > 0, height, 0.0)
    return Peak(np.where(turns, where, np.inf), np.where(turns, height, np.inf))


def best_of_from_sqrt_kl(sqrt_kl: ArrayLike) -> Array:
    """The n, not rounded, whose best-of-n has log n − (n−1)/n = d² nats.

    With x = 1/n the equation reads x e^(−x) = e^(−1−d²), so x is a branch of Lambert's W. At d = 0
    that branch ends, and next to it log n = √2 d + d²/3 + O(d³) takes over.
    """
    d = np.asarray(sqrt_kl, dtype=float)
    small = d < 1e-4
    inverse = -np.real(lambertw(-np.exp(-1.0 - np.where(small, 1.0, d) ** 2)))
    return np.where(small, np.exp(np.sqrt(2.0) * d + d**2 / 3.0), 1.0 / inverse)


def expected_gaussian_max(sqrt_kl: ArrayLike) -> Array:
    """Mean of the largest of n standard normals, at the n whose best-of-n KL is d² nats.

    ∫ z n Φ(z)^(n−1) φ(z) dz by the trapezoid rule, spectrally accurate for this integrand. It is
    what best-of-n does to a Gaussian proxy score: steep at first, then close to √2·d.
    """
    n = best_of_from_sqrt_kl(sqrt_kl)[..., None]
    z = np.linspace(-12.0, 12.0, 1201)
    log_density = np.log(n) + (n - 1.0) * log_ndtr(z) - 0.5 * z**2 - 0.5 * np.log(2.0 * np.pi)
    return (z * np.exp(log_density)).sum(axis=-1) * (z[1] - z[0])


def _two_terms(second: Callable[[Array], Array]) -> Callable[[Array, float], Array]:
    """Basis (d, −second(d)) of a form αd − β·second(d)."""
    return lambda d, _: np.stack([d, -second(d)], axis=-1)


def _one_term(term: Callable[[Array, float], Array]) -> Callable[[Array, float], Array]:
    """Basis of a form with a single coefficient."""
    return lambda d, shape: term(d, shape)[..., None]


def _log1p_location(ratio: Array) -> Array:
    """Peak of d(α − β log(1+d)): with t = 1+d, log t + 1 − 1/t = α/β, so 1/t = W(e^(1−α/β))."""
    x = np.real(lambertw(np.exp(1.0 - np.maximum(ratio, 0.0))))
    return 1.0 / x - 1.0


_ALL = (
    Form(
        name="bon",
        formula="d(alpha - beta d)",
        linear=("alpha", "beta"),
        basis=_two_terms(np.square),
        turn_over=TurnOver(
            psi=lambda d: d, ratio=lambda d: 2.0 * d, location=lambda r: np.maximum(r, 0.0) / 2.0
        ),
    ),
    Form(
        name="rl",
        formula="d(alpha - beta log d)",
        linear=("alpha", "beta"),
        basis=_two_terms(d_log_d),
        turn_over=TurnOver(
            psi=np.log, ratio=lambda d: 1.0 + np.log(d), location=lambda r: np.exp(r - 1.0)
        ),
    ),
    Form(
        name="rl_log1p",
        formula="d(alpha - beta log(1 + d))",
        linear=("alpha", "beta"),
        basis=_two_terms(lambda d: d * np.log1p(d)),
        turn_over=TurnOver(
            psi=np.log1p, ratio=lambda d: np.log1p(d) + d / (1.0 + d), location=_log1p_location
        ),
    ),
    Form(
        name="power",
        formula="d(alpha - beta d^gamma)",
        linear=("alpha", "beta"),
        basis=lambda d, gamma: np.stack([d, -(d ** (1.0 + gamma))], axis=-1),
        shape="gamma",
        # At gamma = 0 the two columns coincide (the log form is that limit).
        shape_range=(0.02, 4.0),
    ),
    Form(
        name="linear",
        formula="alpha d",
        linear=("alpha",),
        basis=_one_term(lambda d, _: d),
    ),
    Form(
        name="concave_power",
        formula="alpha d^gamma",
        linear=("alpha",),
        # A score with tail exp(−x^p) has E max of order (log n)^(1/p), that is d^(2/p).
        basis=_one_term(lambda d, gamma: d**gamma),
        shape="gamma",
        shape_range=(0.05, 2.0),
    ),
    Form(
        name="log1p",
        formula="alpha log(1 + d / scale)",
        linear=("alpha",),
        basis=_one_term(lambda d, scale: np.log1p(d / scale)),
        shape="scale",
        shape_range=(0.02, 50.0),
    ),
    Form(
        name="gaussian_max",
        formula="alpha m(d), m = expected maximum of n(d) standard normals",
        linear=("alpha",),
        basis=_one_term(lambda d, _: expected_gaussian_max(d)),
    ),
    Form(
        name="saturating_max",
        formula="alpha scale (1 - exp(-m(d) / scale)), m as in gaussian_max",
        linear=("alpha",),
        # A squashed Gaussian: slope alpha at first, ceiling alpha*scale, as for a bounded RM head.
        basis=_one_term(lambda d, scale: -scale * np.expm1(-expected_gaussian_max(d) / scale)),
        shape="scale",
        shape_range=(0.1, 100.0),
    ),
)

FORMS: Mapping[str, Form] = {form.name: form for form in _ALL}
"""Every parametric form, by name."""

PEAKED_FORMS = tuple(form.name for form in _ALL if form.turn_over is not None)
"""Names of the forms with a closed-form peak and an interval for it."""

GOLD_FORMS = ("bon", "rl", "rl_log1p", "power")
"""Candidates for the gold score."""

PROXY_FORMS = ("linear", "concave_power", "log1p", "gaussian_max", "saturating_max", "bon", "rl")
"""Candidates for the proxy score, for which the literature has no satisfactory form."""

BASELINES = ("isotonic", "spline")
"""Nonparametric curves that a form has to beat (see `compare.fit_baseline`)."""


def get_form(name: str) -> Form:
    """The form called ``name``; raises `ConfigError` with the nearest names if there is none."""
    if name in FORMS:
        return FORMS[name]
    near = difflib.get_close_matches(str(name), FORMS, n=3, cutoff=0.3)
    hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(FORMS)}"
    raise ConfigError(f"unknown form {name!r}; {hint}")
