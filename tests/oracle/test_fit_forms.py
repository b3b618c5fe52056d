"""Forms, linear fits and intervals against closed forms, scipy and profile likelihood."""

import numpy as np
import pytest
from scipy.optimize import curve_fit, minimize_scalar

from overopt.fits.compare import fit_baseline
from overopt.fits.fit import fit_curve
from overopt.fits.forms import (
    FORMS,
    PEAKED_FORMS,
    best_of_from_sqrt_kl,
    bon,
    expected_gaussian_max,
    peak,
    rl,
)
from overopt.fits.profile import profile_ci
from overopt.fits.replicates import holm

SOLVER_TOLERANCE = 1e-8
"""Agreement asked of two solvers of one least-squares problem, relative to the estimate."""

TRUTH = {"bon": (1.6, 0.5), "rl": (1.2, 0.75), "rl_log1p": (2.0, 1.3)}


def noisy_curve(form: str, seed: int = 3, k: int = 14):
    rng = np.random.default_rng(seed)
    d = np.linspace(0.3, 2.8, k)
    factor = np.tril(rng.uniform(0.2, 1.0, (k, k))) * 0.01
    covariance = factor @ factor.T + np.diag((0.01 + 0.01 * d) ** 2)
    alpha, beta = TRUTH[form]
    gold = FORMS[form].evaluate(d, {"alpha": alpha, "beta": beta})
    gold = gold + np.linalg.cholesky(covariance) @ rng.standard_normal(k)
    return d, gold, covariance


def test_gold_forms_match_their_formulas_by_hand():
    # d = 2: 2(1 - 0.25·2) = 1; 2(1 - 0.25·ln 2); both vanish at 0.
    assert bon(2.0, 1.0, 0.25) == 1.0
    assert rl(2.0, 1.0, 0.25) == pytest.approx(2.0 * (1.0 - 0.25 * 0.6931471805599453), rel=1e-15)
    for form in FORMS.values():
        params = dict.fromkeys(form.params, 0.7)
        assert form.evaluate([0.0], params) == pytest.approx(0.0, abs=1e-12)


def test_peaks_of_gao_are_the_published_closed_forms():
    assert peak("bon", 1.5, 0.4) == pytest.approx((1.5 / 0.8, 1.5**2 / 1.6), rel=1e-15)
    expected = np.exp(1.2 / 0.7 - 1.0)
    assert peak("rl", 1.2, 0.7) == pytest.approx((expected, 0.7 * expected), rel=1e-14)


@pytest.mark.parametrize("form", PEAKED_FORMS)
def test_peak_is_where_a_numerical_search_finds_the_maximum(form):
    alpha, beta = TRUTH[form]
    params = {"alpha": alpha, "beta": beta}
    found = minimize_scalar(
        lambda d: -float(FORMS[form].evaluate(d, params)),
        bounds=(1e-3, 30.0),
        method="bounded",
        options={"xatol": 1e-9},
    )
    where, height = peak(form, alpha, beta)
    # A search finds a flat maximum only to the root of the machine epsilon.
    assert where == pytest.approx(found.x, rel=1e-6)
    assert height == pytest.approx(-found.fun, rel=1e-12)


def test_curves_without_maximum_peak_at_infinity_or_at_zero():
    assert peak("bon", 1.0, -0.1) == (np.inf, np.inf)
    assert peak("bon", -1.0, 0.1) == (0.0, 0.0)
    assert peak("rl_log1p", -1.0, 0.5) == (0.0, 0.0)


def test_expected_gaussian_max_matches_order_statistics():
    n = np.array([1.0, 2.0, 3.0])
    d = np.sqrt(np.log(n) - (n - 1.0) / n)
    assert best_of_from_sqrt_kl(d) == pytest.approx(n, rel=1e-12)
    # Next to n = 1 the inverse is a square-root branch point, where the formula changes.
    near = best_of_from_sqrt_kl([0.99999e-4, 1.00001e-4])
    assert near == pytest.approx(np.exp(np.sqrt(2.0) * 1e-4), rel=1e-7)
    assert np.diff(near) > 0
    # E max of 2 and 3 standard normals: 1/√π and 3/(2√π).
    exact = [0.0, 1.0 / np.sqrt(np.pi), 1.5 / np.sqrt(np.pi)]
    assert expected_gaussian_max(d) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("form", ["bon", "rl", "rl_log1p", "linear", "gaussian_max"])
@pytest.mark.parametrize("correlated", [False, True])
def test_linear_solve_equals_scipy_curve_fit(form, correlated):
    d, gold, covariance = noisy_curve("bon")
    sigma = np.sqrt(np.diag(covariance))
    model = FORMS[form]
    fit = fit_curve(
        d,
        gold,
        sigma,
        form,
        covariance=covariance if correlated else None,
        estimator="gls" if correlated else "wls",
    )
    params, covar = curve_fit(
        lambda x, *p: model.evaluate(x, dict(zip(model.params, p, strict=True))),
        d,
        gold,
        p0=np.ones(len(model.params)),
        sigma=covariance if correlated else sigma,
        absolute_sigma=True,
        # Tight stopping: by default scipy stops at 1.5e-8.
        ftol=1e-15,
        xtol=1e-15,
        gtol=1e-15,
    )
    assert list(fit.params.values()) == pytest.approx(params, rel=SOLVER_TOLERANCE)
    # scipy's Jacobian is a forward difference, good to about 1e-7.
    assert fit.covar == pytest.approx(covar, rel=1e-6)


@pytest.mark.parametrize("form", ["power", "concave_power", "log1p", "saturating_max"])
def test_shape_parameter_agrees_with_scipy_curve_fit(form):
    d, gold, _ = noisy_curve("rl")
    sigma = 0.02 + 0.01 * d
    model = FORMS[form]
    fit = fit_curve(d, gold, sigma, form)
    start = [1.05 * value for value in fit.params.values()]
    params, covar = curve_fit(
        lambda x, *p: model.evaluate(x, dict(zip(model.params, p, strict=True))),
        d,
        gold,
        p0=start,
        sigma=sigma,
        absolute_sigma=True,
        ftol=1e-14,
        xtol=1e-14,
    )
    assert not fit.at_bound
    # χ² is flat to second order at its minimum: parameters agree to the root of its precision.
    assert list(fit.params.values()) == pytest.approx(params, rel=1e-4)
    assert list(fit.stderr.values()) == pytest.approx(np.sqrt(np.diag(covar)), rel=1e-3)


@pytest.mark.parametrize("form", PEAKED_FORMS)
@pytest.mark.parametrize("quantity", ["peak_sqrt_kl", "peak_gold"])
def test_peak_intervals_equal_the_profile_likelihood(form, quantity):
    d, gold, covariance = noisy_curve(form)
    fit = fit_curve(d, gold, None, form, covariance=covariance, estimator="gls")
    interval = getattr(fit, f"{quantity}_ci")
    profile = profile_ci(d, gold, None, form, quantity, covariance=covariance)
    # The height's ellipse has 2,048 points: 1e-6 of the interval's width.
    assert interval == pytest.approx(profile, rel=1e-6)
    assert interval.low < getattr(fit, quantity) < interval.high


def test_wls_with_covariance_is_the_sandwich_of_the_normal_equations():
    d, gold, covariance = noisy_curve("bon")
    fit = fit_curve(d, gold, None, "bon", covariance=covariance)
    design = np.stack([d, -(d**2)], axis=1)
    weight = np.diag(1.0 / np.diag(covariance))
    bread = np.linalg.inv(design.T @ weight @ design)
    meat = design.T @ weight @ covariance @ weight @ design
    assert list(fit.params.values()) == pytest.approx(bread @ design.T @ weight @ gold, rel=1e-10)
    assert fit.covar == pytest.approx(bread @ meat @ bread, rel=1e-10)


def test_aic_of_independent_points_adds_two_for_each_parameter():
    d, gold, _ = noisy_curve("bon")
    for form, p in (("linear", 1), ("bon", 2), ("power", 3)):
        fit = fit_curve(d, gold, np.full(len(d), 0.05), form)
        assert fit.aic == pytest.approx(fit.chi2 + 2 * p, rel=1e-9)
        assert fit.aicc == pytest.approx(fit.aic + 2 * p * (p + 1) / (len(d) - p - 1), rel=1e-9)


def test_small_sample_gls_is_ancova_on_the_residual_contrasts():
    # Rao 1967: GLS with an estimated covariance is a regression of the estimating contrasts on
    # the residual contrasts, whose intercept an ordinary regression gives with its exact stderr.
    rng = np.random.default_rng(5)
    d = np.linspace(0.4, 2.4, 6)
    values_PK = rng.standard_normal((20, 6)) @ rng.standard_normal((6, 6)) * 0.1 + d
    fit = fit_curve(
        d,
        values_PK.mean(axis=0),
        None,
        "linear",
        covariance=np.cov(values_PK.T) / 20,
        covariance_dof=19,
        estimator="gls",
    )
    estimating = values_PK @ d / (d @ d)
    complement = np.linalg.svd(d[None])[2][1:]
    design = np.column_stack([np.ones(20), values_PK @ complement.T])
    coef, residual, *_ = np.linalg.lstsq(design, estimating, rcond=None)
    variance = residual[0] / (20 - 6) * np.linalg.inv(design.T @ design)[0, 0]
    assert fit.params["alpha"] == pytest.approx(coef[0], rel=1e-9)
    assert fit.stderr["alpha"] == pytest.approx(np.sqrt(variance), rel=1e-9)
    assert fit.quantile_dof["alpha"] == 20 - 6


def test_baselines_interpolate_exact_data_and_extrapolate_as_stated():
    d = np.linspace(0.2, 2.0, 10)
    line = 0.7 * d
    spline = fit_baseline("spline", d, line, np.full(10, 0.1))
    assert spline([0.0, 1.0, 3.0]) == pytest.approx([0.0, 0.7, 2.1], abs=1e-9)
    humped = np.array([1.0, 3.0, 2.0])
    steps = fit_baseline("isotonic", [1.0, 2.0, 3.0], humped, [1.0, 1.0, 1.0])
    # The violating pair is pooled to its mean.
    assert steps([0.0, 1.0, 2.0, 3.0, 9.0]) == pytest.approx([0.0, 1.0, 2.5, 2.5, 2.5], rel=1e-12)


def test_holm_by_hand():
    # Sorted 0.01·4, 0.02·3, 0.03·2, 0.5·1, made increasing.
    assert holm([0.5, 0.01, np.nan, 0.03, 0.02]) == pytest.approx(
        [0.5, 0.04, np.nan, 0.06, 0.06], nan_ok=True
    )
    # 0.01·3, 0.02·2, 0.021·1 would fall at the end.
    assert holm([0.01, 0.02, 0.021]) == pytest.approx([0.03, 0.04, 0.04])
