"""Hierarchical bootstrap of curves and fits: prompts within RM seed within data seed.

Resamples what `replicates` treats analytically, for quantities that have no closed form and as its
cross-check. Prompts are common to all replicates, so one draw of prompts serves them all; data
seeds are drawn, then RM seeds within each drawn data seed. Every draw is refitted, by batched
linear algebra rather than a loop.

**Few seeds.** The bootstrap variance of a mean of S seeds is (S − 1)/S of the right one and its
quantiles are normal, not t: where seeds dominate, a nominal 95 % interval covers about 75 % with 3
seeds and 85 % with 5.
`BootstrapFit.undercovers` says when that is so; `replicates.fit_replicates` is the interval to
report then.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from overopt.base.errors import ConfigError
from overopt.fits.fit import FitResult
from overopt.fits.forms import Array, Form, get_form, peak
from overopt.fits.linear import linear_operator
from overopt.fits.peaks import NO_INTERVAL, Interval, PeakStatus
from overopt.fits.replicates import (
    ReplicateCurve,
    check_replicates,
    fit_replicates,
    mean_curve,
    per_prompt_fit,
    pool_weights,
)

Method = Literal["percentile", "bca", "studentized"]

FEW_SEEDS = 12
"""Below this many top-level units the top level makes bootstrap intervals too short."""


class Weights(NamedTuple):
    """Resampling weights of B draws; each row sums to 1."""

    prompts_BP: Array
    replicates_BS: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class CurveDraws:
    """Bootstrap draws of the mean curve."""

    sqrt_kl: Array
    """(K,) of the data."""
    gold: Array
    """(K,) of the data."""
    sqrt_kl_BK: Array
    gold_BK: Array
    covariance: Array
    """(K, K) of the draws of gold; pass ``covariance_dof = prompts − 1`` along with it."""

    def interval(self, ci_level: float = 0.95) -> tuple[Array, Array]:
        """Percentile interval of gold at each point: low (K,) and high (K,)."""
        low, high = np.quantile(self.gold_BK, _tails(ci_level), axis=0)
        return low, high


@dataclass(frozen=True, kw_only=True, eq=False)
class BootstrapFit:
    """Bootstrap intervals of the parameters and the peak of one fitted form."""

    form: str
    method: str
    estimate: Mapping[str, float]
    """By quantity: the parameters, and ``peak_sqrt_kl``, ``peak_gold`` where the form has one."""
    stderr: Mapping[str, float]
    """Standard deviation of the draws; nan where some draws have no turn-over."""
    ci: Mapping[str, Interval]
    ci_level: float
    draws: Mapping[str, Array]
    """(B,) each; a draw without turn-over has its peak at inf."""
    n_draws: int
    n_prompts: int
    n_replicates: int
    n_data_seeds: int
    share_without_peak: float
    """Share of draws that do not turn over, or do so outside the measured range."""
    peak_status: PeakStatus
    """As in `PeakEstimate`; unless ``in_range``, the estimates of the peak are nan."""
    has_uncertainty: bool
    undercovers: bool
    """Too few seeds for a bootstrap: the true coverage is well below ``ci_level``."""
    message: str


def bootstrap_curve(
    curves: Sequence[ReplicateCurve], *, rng: np.random.Generator, n_draws: int = 2000
) -> CurveDraws:
    """Draws and covariance of the mean curve over prompts and seeds.

    All replicates need the same number of points; measured KL is resampled along with gold.
    """
    curves = canonical_order(check_replicates(curves))
    mean = mean_curve(curves)
    weights = draw_weights(curves, rng=rng, n_draws=n_draws)
    gold_BK = np.zeros((n_draws, len(mean.gold)))
    kl_BK = np.zeros_like(gold_BK)
    for curve, share in zip(curves, weights.replicates_BS.T, strict=True):
        gold_BK += share[:, None] * (weights.prompts_BP @ np.asarray(curve.gold_KP).T)
        kl_BK += share[:, None] * _resampled_kl(curve, weights.prompts_BP)
    centred = gold_BK - gold_BK.mean(axis=0)
    return CurveDraws(
        sqrt_kl=mean.sqrt_kl,
        gold=mean.gold,
        sqrt_kl_BK=np.sqrt(np.maximum(kl_BK, 0.0)),
        gold_BK=gold_BK,
        covariance=centred.T @ centred / (n_draws - 1),
    )


def bootstrap_fit(
    curves: Sequence[ReplicateCurve],
    form: str = "bon",
    *,
    rng: np.random.Generator,
    n_draws: int = 2000,
    method: Method = "percentile",
    cut_off: float | None = None,
    ci_level: float = 0.95,
) -> BootstrapFit:
    """Refit a linear form in every bootstrap draw and take intervals of parameters and peak.

    Parameters
    ----------
    curves, form, cut_off, ci_level
        As in `fit_replicates`, whose estimate this is the bootstrap of. The weights 1/sigma² stay
        those of the data in every draw.
    rng
        Source of the draws. The order of prompts and replicates does not matter: they are put into
        a canonical order before anything is drawn.
    method
        ``percentile``: quantiles of the draws. ``bca``: corrected for bias and skewness by a
        jackknife over prompts and seeds (Efron 1987). ``studentized``: quantiles of
        (draw − estimate)/stderr(draw), the most accurate for few prompts; one replicate only.

    Returns
    -------
    `BootstrapFit`. Fewer than two prompts: intervals are nan and ``has_uncertainty`` False.

    Raises
    ------
    ConfigError
        ``studentized`` with several replicates: with a handful of seeds a resample may hold one
        seed only and has no stderr.
    """
    _check_bootstrap(method, n_draws)
    curves = canonical_order(check_replicates(curves))
    if method == "studentized" and len(curves) > 1:
        raise ConfigError(
            "method='studentized' resamples prompts of one replicate only; for several replicates "
            "use fit_replicates"
        )
    model = get_form(form)
    fit = fit_replicates(curves, form, cut_off=cut_off, ci_level=ci_level)
    weights = draw_weights(curves, rng=rng, n_draws=n_draws)
    theta_Bp = _refit(curves, model, weights, fit.cut_off)
    draws = _quantities(model, theta_Bp)
    data = _quantities(model, np.array([list(fit.params.values())]))
    point = {name: float(value[0]) for name, value in data.items()}
    ci = _intervals(curves, model, fit, method, weights, theta_Bp)

    share, status = np.nan, fit.peak.status
    if "peak_sqrt_kl" in draws:
        share, status = _peak_of_draws(draws["peak_sqrt_kl"], fit)
        if status != "in_range":
            point |= {"peak_sqrt_kl": np.nan, "peak_gold": np.nan}
            ci |= {name: _open_above(ci[name], status) for name in ("peak_sqrt_kl", "peak_gold")}
    n_data_seeds = len({curve.data_seed for curve in curves})
    units = n_data_seeds if n_data_seeds > 1 else len(curves)
    undercovers = 1 < units < FEW_SEEDS
    notes = [fit.message] if fit.message != "ok" else []
    if undercovers:
        notes.append(
            f"{units} seeds at the top level: bootstrap intervals are too short, report "
            "fit_replicates"
        )
    return BootstrapFit(
        form=form,
        method=method,
        estimate=point,
        stderr={name: _std(values) for name, values in draws.items()},
        ci=ci,
        ci_level=ci_level,
        draws=draws,
        n_draws=n_draws,
        n_prompts=weights.prompts_BP.shape[1],
        n_replicates=len(curves),
        n_data_seeds=n_data_seeds,
        share_without_peak=share,
        peak_status=status,
        has_uncertainty=fit.has_uncertainty,
        undercovers=undercovers,
        message="; ".join(notes) or "ok",
    )


def _check_bootstrap(method: str, n_draws: int) -> None:
    if method not in ("percentile", "bca", "studentized"):
        raise ConfigError(f"method is {method!r}; use 'percentile', 'bca' or 'studentized'")
    if n_draws < 2:
        raise ConfigError(f"n_draws is {n_draws}; use at least 2, better 2000")


def _intervals(
    curves: Sequence[ReplicateCurve],
    model: Form,
    fit: FitResult,
    method: Method,
    weights: Weights,
    theta_Bp: Array,
) -> dict[str, Interval]:
    """Interval of every quantity by ``method``, at the level of ``fit``."""
    draws = _quantities(model, theta_Bp)
    if not fit.has_uncertainty:
        return dict.fromkeys(draws, NO_INTERVAL)
    if method == "studentized":
        return _studentized(curves[0], model, fit, weights, theta_Bp, draws, fit.ci_level)
    if method == "percentile":
        return {name: _order_interval(values, fit.ci_level) for name, values in draws.items()}
    data = _quantities(model, np.array([list(fit.params.values())]))
    jackknife = _jackknife(curves, model, fit.cut_off)
    return {
        name: _bca(values, float(data[name][0]), [x[name] for x in jackknife], fit.ci_level)
        for name, values in draws.items()
    }


def _peak_of_draws(where: Array, fit: FitResult) -> tuple[float, PeakStatus]:
    """Share of draws without a peak among the points, and the status that they leave the fit's."""
    share = float(np.mean(~((where >= fit.d_min) & (where <= fit.d_max))))
    status: PeakStatus = fit.peak.status
    if status == "in_range" and np.mean(~np.isfinite(where)) > (1.0 - fit.ci_level) / 2.0:
        status = "not_significant"
    return share, status


def _std(values: Array) -> float:
    """Standard deviation of the draws; nan where some are not finite."""
    return float(values.std(ddof=1)) if np.isfinite(values).all() else np.nan


def draw_weights(
    curves: Sequence[ReplicateCurve], *, rng: np.random.Generator, n_draws: int
) -> Weights:
    """Weights of hierarchical resamples: prompts once per draw, RM seeds within data seeds.

    A replicate's weight is its share of draws within its data seed, times its data seed's share.
    A single data seed, or a single RM seed within one, is kept as it is.
    """
    n_prompts = np.asarray(curves[0].gold_KP).shape[1]
    prompts = rng.multinomial(n_prompts, np.full(n_prompts, 1.0 / n_prompts), size=n_draws)
    groups = _groups(curves)
    n_groups, largest = len(groups), max(map(len, groups))
    sizes = np.array([len(rows) for rows in groups])
    members = np.array([rows + [rows[0]] * (largest - len(rows)) for rows in groups])
    group = rng.integers(n_groups, size=(n_draws, n_groups))
    # A slot for each drawn data seed; in it, as many RM-seed draws as that data seed has.
    pick = (rng.random((n_draws, n_groups, largest)) * sizes[group][..., None]).astype(int)
    share = (np.arange(largest) < sizes[group][..., None]) / (sizes[group][..., None] * n_groups)
    replicate = members[group[..., None], pick]
    weights = np.zeros((n_draws, len(curves)))
    draw = np.broadcast_to(np.arange(n_draws)[:, None, None], replicate.shape)
    np.add.at(weights, (draw, replicate), share)
    return Weights(prompts / n_prompts, weights)


def canonical_order(curves: Sequence[ReplicateCurve]) -> list[ReplicateCurve]:
    """The replicates and their prompts in an order that depends on their values alone.

    Makes every draw independent of the order in which prompts and seeds were handed over.
    """
    keys = [np.sort(np.asarray(curve.gold_KP), axis=None).tolist() for curve in curves]
    first: dict[Hashable, list[float]] = {}
    for curve, key in zip(curves, keys, strict=True):
        first[curve.data_seed] = min(key, first.get(curve.data_seed, key))
    order = sorted(range(len(curves)), key=lambda i: (first[curves[i].data_seed], keys[i]))
    ordered = [curves[i] for i in order]
    tables = [np.asarray(curve.gold_KP) for curve in ordered]
    tables += [np.asarray(c.kl_seq_nats_KP) for c in ordered if c.kl_seq_nats_KP is not None]
    columns = np.lexsort(np.concatenate(tables))
    return [
        ReplicateCurve(
            gold_KP=np.asarray(curve.gold_KP)[:, columns],
            sqrt_kl=curve.sqrt_kl,
            kl_seq_nats_KP=None
            if curve.kl_seq_nats_KP is None
            else np.asarray(curve.kl_seq_nats_KP)[:, columns],
            rm_seed=curve.rm_seed,
            data_seed=curve.data_seed,
        )
        for curve in ordered
    ]


def _groups(curves: Sequence[ReplicateCurve]) -> list[list[int]]:
    """Row numbers of the replicates of each data seed, in order of appearance."""
    groups: dict[Hashable, list[int]] = {}
    for row, curve in enumerate(curves):
        groups.setdefault(curve.data_seed, []).append(row)
    return list(groups.values())


def _uniform_replicates(curves: Sequence[ReplicateCurve]) -> Array:
    """(S,) weights of the data: equal data seeds, equal RM seeds within each."""
    weights = np.zeros(len(curves))
    groups = _groups(curves)
    for rows in groups:
        weights[rows] = 1.0 / (len(rows) * len(groups))
    return weights


def _resampled_kl(curve: ReplicateCurve, prompts_BP: Array) -> Array:
    """Mean KL of each draw and point, nats: (B, K) where measured, (1, K) where known."""
    if curve.kl_seq_nats_KP is None:
        return np.square(curve.d)[None]
    return prompts_BP @ np.asarray(curve.kl_seq_nats_KP).T


def _refit(
    curves: Sequence[ReplicateCurve], form: Form, weights: Weights, cut_off: float | None
) -> Array:
    """Parameters (B, p) of every draw: replicate by replicate, all draws at once."""
    theta = np.zeros((len(weights.prompts_BP), len(form.params)))
    for weighted, share in zip(pool_weights(curves), weights.replicates_BS.T, strict=True):
        curve = weighted.curve
        used = (curve.d > 0) & (curve.d <= (np.inf if cut_off is None else cut_off))
        sigma = weighted.sigma[used]
        d_BK = np.sqrt(np.maximum(_resampled_kl(curve, weights.prompts_BP)[:, used], 0.0))
        operator = linear_operator(form.basis(d_BK, np.nan) / sigma[:, None]) / sigma
        gold_BK = weights.prompts_BP @ np.asarray(curve.gold_KP)[used].T
        theta += share[:, None] * np.einsum("bpk,bk->bp", *_broadcast_draws(operator, gold_BK))
    return theta


def _broadcast_draws(operator: Array, gold_BK: Array) -> tuple[Array, Array]:
    return np.broadcast_to(operator, (len(gold_BK), *operator.shape[1:])), gold_BK


def _quantities(form: Form, theta_Bp: Array) -> dict[str, Array]:
    """Parameters and peak of each row, by name."""
    values = dict(zip(form.params, theta_Bp.T, strict=True))
    if form.turn_over is not None:
        where, height = peak(form.name, theta_Bp[:, 0], theta_Bp[:, 1])
        values |= {"peak_sqrt_kl": where, "peak_gold": height}
    return values


def _jackknife(
    curves: Sequence[ReplicateCurve], form: Form, cut_off: float | None
) -> list[dict[str, Array]]:
    """Leave-one-out quantities by level: prompts, then top-level seeds where there are several."""
    n_prompts = np.asarray(curves[0].gold_KP).shape[1]
    whole = _uniform_replicates(curves)
    left_out = (1.0 - np.eye(n_prompts)) / (n_prompts - 1)
    levels = [Weights(left_out, np.tile(whole, (n_prompts, 1)))]
    groups = _groups(curves)
    units = groups if len(groups) > 1 else [[row] for row in groups[0]]
    if len(units) > 1:
        without = np.tile(whole, (len(units), 1))
        for row, members in enumerate(units):
            without[row, members] = 0.0
        without /= without.sum(axis=1, keepdims=True)
        levels.append(Weights(np.full((len(units), n_prompts), 1.0 / n_prompts), without))
    return [_quantities(form, _refit(curves, form, level, cut_off)) for level in levels]


def _tails(ci_level: float) -> tuple[float, float]:
    return 0.5 - ci_level / 2.0, 0.5 + ci_level / 2.0


def _order_interval(values: Array, ci_level: float) -> Interval:
    """Percentile interval from order statistics, which infinite draws do not turn into nan."""
    low, high = np.quantile(values, _tails(ci_level), method="inverted_cdf")
    return Interval(float(low), float(high))


def _bca(values: Array, estimate: float, jackknife: list[Array], ci_level: float) -> Interval:
    """Bias-corrected accelerated interval; influences of all levels enter the acceleration."""
    if not (np.isfinite(estimate) and all(np.isfinite(level).all() for level in jackknife)):
        return _order_interval(values, ci_level)
    below = np.mean(values < estimate) + 0.5 * np.mean(values == estimate)
    n = len(values)
    z0 = stats.norm.ppf(np.clip(below, 0.5 / n, 1.0 - 0.5 / n))
    influence = np.concatenate(
        [(len(level) - 1) / len(level) * (level.mean() - level) for level in jackknife]
    )
    second = np.sum(influence**2)
    acceleration = np.sum(influence**3) / (6.0 * second**1.5) if second > 0 else 0.0
    z = z0 + stats.norm.ppf(_tails(ci_level))
    probabilities = stats.norm.cdf(z0 + z / (1.0 - acceleration * z))
    low, high = np.quantile(values, probabilities, method="inverted_cdf")
    return Interval(float(low), float(high))


def _studentized(
    curve: ReplicateCurve,
    form: Form,
    fit: FitResult,
    weights: Weights,
    theta_Bp: Array,
    draws: Mapping[str, Array],
    ci_level: float,
) -> dict[str, Interval]:
    """Intervals from (draw − estimate)/stderr(draw); the peak location is studentized as a log.

    The stderr of a draw comes from the resampled per-prompt parameters, by the delta method for
    the peak: location and height are functions of θ with known gradients.
    """
    [weighted] = pool_weights([curve])
    theta_Pp = per_prompt_fit(weighted, form, fit.cut_off).theta_P
    n = len(theta_Pp)
    products = theta_Pp[:, :, None] * theta_Pp[:, None, :]
    second = np.tensordot(weights.prompts_BP, products, axes=1)
    first = weights.prompts_BP @ theta_Pp
    covar_B = (second - first[:, :, None] * first[:, None, :]) / (n - 1)
    theta = np.array([list(fit.params.values())])

    def stderr(gradient: Array, covar: Array) -> Array:
        return np.sqrt(np.maximum(np.einsum("bi,bij,bj->b", gradient, covar, gradient), 0.0))

    intervals = {}
    for name in draws:
        at_draws = _gradient(form, name, theta_Bp)
        at_data = _gradient(form, name, theta)
        value = _quantities(form, theta)[name]
        log = name == "peak_sqrt_kl"
        with np.errstate(divide="ignore", invalid="ignore"):
            shift = np.log(draws[name] / value) if log else draws[name] - value
            t = shift / stderr(at_draws, covar_B)
        low, high = np.quantile(
            np.where(np.isnan(t), np.inf, t), _tails(ci_level), method="inverted_cdf"
        )
        own = stderr(at_data, fit.covar[None])[0]
        ends = np.array([-high * own, -low * own])
        ends = value * np.exp(ends) if log else value + ends
        intervals[name] = Interval(float(ends[0]), float(ends[1]))
    return intervals


def _gradient(form: Form, name: str, theta_Bp: Array) -> Array:
    """Gradient (B, p) of a quantity by θ; of the logarithm for the peak location."""
    if name in form.params:
        row = np.eye(len(form.params))[form.params.index(name)]
        return np.broadcast_to(row, theta_Bp.shape)
    turn = form.turn_over
    assert turn is not None
    alpha, beta = theta_Bp.T
    with np.errstate(all="ignore"):
        where = peak(form.name, alpha, beta).sqrt_kl
        if name == "peak_gold":
            return np.stack([where, -where * turn.psi(where)], axis=-1)
        # d* = h⁻¹(ρ), so ∂ log d*/∂ρ = 1/(d* h'(d*)), with h' by a central difference.
        step = 1e-6 * where
        slope = (turn.ratio(where + step) - turn.ratio(where - step)) / (2.0 * step)
        by_ratio = 1.0 / (where * slope)
        return np.stack([by_ratio / beta, -by_ratio * alpha / beta**2], axis=-1)


def _open_above(interval: Interval, status: PeakStatus) -> Interval:
    """What remains of a peak's interval when the peak itself was not seen."""
    if status in ("not_significant", "beyond_range"):
        return Interval(interval.low, np.inf)
    return NO_INTERVAL
