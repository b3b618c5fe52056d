"""Shared α, scaling lines and forecasts: planted values, JSON, scores, errors."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2, linregress, t

from overopt.base.errors import ConfigError, DataError
from overopt.fits.crossed import crossed_mean
from overopt.fits.fit import fit_curve
from overopt.fits.forms import FORMS
from overopt.fits.replicates import ReplicateCurve, fit_replicates
from overopt.fits.scaling import (
    Forecast,
    ScalingPoint,
    fit_scaling,
    forecast,
    score_forecast,
)
from overopt.fits.shared_alpha import CurvePoints, fit_shared_alpha

D = np.linspace(0.2, 3.0, 14)
SIZES = (5e4, 2e5, 8e5, 3e6)


def line(form, size):
    """Planted (α, β) of a proxy: linear in log10 of its size."""
    x = np.log10(size) - 5.0
    return (1.4 + 0.1 * x, 0.5 - 0.08 * x) if form == "bon" else (1.2, 0.7 - 0.05 * x)


def curve(form, size, rng, sigma=0.01):
    alpha, beta = line(form, size)
    noise = sigma * rng.standard_normal(len(D))
    return FORMS[form].evaluate(D, {"alpha": alpha, "beta": beta}) + noise


def scaling_points(form="bon", sizes=SIZES, seed=0, sigma=0.01, scatter=0.0):
    rng = np.random.default_rng(seed)
    points = []
    for size in sizes:
        gold = curve(form, size, rng, sigma) + scatter * rng.standard_normal() * D
        points.append(
            ScalingPoint(
                label=f"{size:g}",
                n_params=size,
                n_pairs=1000.0,
                fit=fit_curve(D, gold, np.full(len(D), sigma), form),
            )
        )
    return points


def test_shared_alpha_is_one_least_squares_problem():
    rng = np.random.default_rng(1)
    curves = {
        str(size): CurvePoints(sqrt_kl=D, gold=curve("rl", size, rng), sigma=np.full(14, 0.01))
        for size in SIZES
    }
    shared = fit_shared_alpha(curves)
    # The same as lstsq on one tall design matrix.
    tall = np.zeros((4 * 14, 5))
    for i in range(4):
        rows = slice(14 * i, 14 * (i + 1))
        tall[rows, 0], tall[rows, 1 + i] = D, -D * np.log(D)
    gold = np.concatenate([np.asarray(c.gold) for c in curves.values()])
    expected, *_ = np.linalg.lstsq(tall, gold, rcond=None)
    assert [shared.alpha, *shared.beta.values()] == pytest.approx(expected, rel=1e-10)
    assert shared.covar == pytest.approx(1e-4 * np.linalg.inv(tall.T @ tall), rel=1e-9)
    # Independent points: AIC counts two for each parameter.
    assert shared.aic == pytest.approx(shared.chi2 + 2 * 5, rel=1e-10)
    separate = sum(fit.chi2 for fit in shared.separate.values()) + 2 * 8
    assert shared.aic_separate == pytest.approx(separate, rel=1e-10)
    # The Wald statistic of linear constraints is the rise of χ² they cause.
    rise = shared.chi2 - sum(fit.chi2 for fit in shared.separate.values())
    assert shared.p_value == pytest.approx(chi2.sf(rise, 3), rel=1e-8)
    assert shared.delta_aic < 0 < shared.p_value
    assert shared.peak["50000.0"].in_range
    assert shared.predict("50000.0", 1.0) == pytest.approx(shared.alpha, rel=1e-12)


def test_shared_alpha_is_rejected_where_alpha_differs():
    rng = np.random.default_rng(2)
    curves = {
        str(size): CurvePoints(sqrt_kl=D, gold=curve("bon", size, rng), sigma=np.full(14, 0.01))
        for size in SIZES
    }
    shared = fit_shared_alpha(curves, "bon")
    assert shared.delta_aic > 10
    assert shared.p_value < 1e-4


def test_shared_alpha_takes_the_covariance_between_curves():
    rng = np.random.default_rng(3)
    curves = {
        name: CurvePoints(sqrt_kl=D, gold=curve("rl", 1e6, rng), sigma=np.full(14, 0.01))
        for name in ("a", "b")
    }
    alone = fit_shared_alpha(curves)
    block = fit_shared_alpha(curves, covariance=np.eye(28) * 1e-4)
    assert block.covar == pytest.approx(alone.covar, rel=1e-10)
    # Two copies of the same errors are worth one: the variance of the mean alpha doubles.
    twins = fit_shared_alpha(curves, covariance=np.kron(np.ones((2, 2)), np.eye(14)) * 1e-4)
    assert twins.alpha_stderr == pytest.approx(np.sqrt(2) * alone.alpha_stderr, rel=1e-6)


@pytest.mark.parametrize(("form", "constant"), [("bon", ()), ("rl", ("alpha",))])
def test_scaling_recovers_a_planted_line(form, constant):
    scaling = fit_scaling(scaling_points(form, sigma=1e-6), constant=constant)
    intercepts = line(form, 1.0)
    assert scaling.coef["alpha"]["intercept"] == pytest.approx(intercepts[0], rel=1e-4)
    assert scaling.coef["beta"]["intercept"] == pytest.approx(intercepts[1], rel=1e-4)
    slope = {"bon": -0.08, "rl": -0.05}[form]
    assert scaling.coef["beta"]["log10_n_params"] == pytest.approx(slope, rel=1e-3)
    assert ("log10_n_params" in scaling.coef["alpha"]) == (not constant)
    assert scaling.dof == 2  # four proxies, two coefficients of a line
    band = scaling.band("beta", [1e5, 1e7])
    assert band.gold == pytest.approx([line(form, 1e5)[1], line(form, 1e7)[1]], rel=1e-3)
    assert (band.low < band.gold).all()


def test_pairs_are_a_second_term():
    rng = np.random.default_rng(4)
    points = []
    for size in SIZES:
        for pairs in (500.0, 5000.0):
            alpha, beta = line("bon", size)
            beta = beta - 0.1 * np.log10(pairs)
            gold = FORMS["bon"].evaluate(D, {"alpha": alpha, "beta": beta})
            gold = gold + 1e-6 * rng.standard_normal(14)
            fit = fit_curve(D, gold, np.full(14, 1e-6))
            points.append(ScalingPoint(label="", n_params=size, n_pairs=pairs, fit=fit))
    scaling = fit_scaling(points, terms=("log10_n_params", "log10_n_pairs"))
    assert scaling.coef["beta"]["log10_n_pairs"] == pytest.approx(-0.1, rel=1e-3)
    assert scaling.coef["alpha"]["log10_n_pairs"] == pytest.approx(0.0, abs=1e-4)
    with pytest.raises(DataError, match="n_pairs is None"):
        forecast(scaling, 1e6)


@pytest.mark.parametrize("form", ["bon", "rl"])
def test_forecasts_cover_a_proxy_not_yet_trained(form):
    # A proxy four times larger than any fitted; 300 experiments, standard error 1.3 %.
    alpha, beta = line(form, 1.2e7)
    measured, true = [], []
    for seed in range(300):
        prediction = forecast(fit_scaling(scaling_points(form, seed=seed, sigma=0.02)), 1.2e7)
        truth = (alpha, beta, *peak_of(form, alpha, beta))
        names = ("alpha", "beta", "peak_sqrt_kl", "peak_gold")
        true.append(
            [
                prediction.ci[n].low <= t <= prediction.ci[n].high
                for n, t in zip(names, truth, strict=True)
            ]
        )
        gold = curve(form, 1.2e7, np.random.default_rng(10_000 + seed), 0.02)
        rows = score_forecast(prediction, fit_curve(D, gold, np.full(14, 0.02), form))
        measured.append([row.inside for row in rows[:2]])
    assert np.mean(measured, axis=0) == pytest.approx(0.95, abs=0.04)
    # True values lie closer to the line than measured ones.
    assert (np.mean(true, axis=0) >= np.mean(measured) - 0.02).all()


def peak_of(form, alpha, beta):
    if form == "bon":
        return alpha / (2 * beta), alpha**2 / (4 * beta)
    where = np.exp(alpha / beta - 1)
    return where, beta * where


def test_lines_and_forecasts_are_those_of_the_textbook():
    points = scaling_points(scatter=0.05)
    x, alpha = np.log10(SIZES), [p.fit.params["alpha"] for p in points]
    scaling = fit_scaling(points)
    oracle = linregress(x, alpha)
    assert scaling.coef["alpha"]["log10_n_params"] == pytest.approx(oracle.slope, rel=1e-9)
    assert scaling.covar[1, 1] ** 0.5 == pytest.approx(oracle.stderr, rel=1e-9)
    assert scaling.covar[0, 0] ** 0.5 == pytest.approx(oracle.intercept_stderr, rel=1e-9)
    assert scaling.mean.dof(np.eye(4)[1]) == 2
    rest = np.array(alpha) - oracle.intercept - oracle.slope * x
    lever = 1 + 1 / 4 + (7 - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
    half = t.ppf(0.975, 2) * (rest @ rest / 2 * lever) ** 0.5
    low, high = forecast(scaling, 1e7).ci["alpha"]
    assert (high - low) / 2 == pytest.approx(half, rel=1e-9)
    assert (high + low) / 2 == pytest.approx(oracle.intercept + 7 * oracle.slope, rel=1e-9)


def test_a_line_without_slope_is_the_mean_of_a_two_way_table():
    """Proxies and prompts as units and prompts of `crossed_mean`, prompts with effects on all."""
    rng = np.random.default_rng(6)
    common = 0.3 * rng.standard_normal(20)
    points = []
    for i, size in enumerate(SIZES):
        slope = 1.5 + common + 0.1 * rng.standard_normal() + 0.2 * rng.standard_normal(20)
        gold = np.multiply.outer(D, slope) - 0.4 * D[:, None] ** 2
        gold += 0.01 * rng.standard_normal(gold.shape)
        fit = fit_replicates([ReplicateCurve(gold_KP=gold, sqrt_kl=D)])
        assert fit.by_prompt.mean(axis=0) == pytest.approx(list(fit.params.values()))
        points.append(ScalingPoint(label=str(i), n_params=size, fit=fit))
    scaling = fit_scaling(points, terms=())
    oracle = crossed_mean(np.stack([p.fit.by_prompt for p in points]))
    assert scaling.mean.estimate == pytest.approx(oracle.estimate, rel=1e-9)
    assert scaling.covar == pytest.approx(oracle.covar, rel=1e-9)
    assert scaling.mean.dof([1.0, 0.0]) == pytest.approx(oracle.dof([1.0, 0.0]), rel=1e-9)
    # Without values by prompt, what prompts do to all proxies is not seen.
    blind = fit_scaling([replace(p, fit=replace(p.fit, by_prompt=None)) for p in points], terms=())
    assert blind.covar[0, 0] < 0.5 * scaling.covar[0, 0]
    # Nor is it among the errors that residuals are compared with.
    assert scaling.chi2 > blind.chi2
    assert "by_prompt" not in scaling.fitted_on[0] and "by_prompt" not in points[0].fit.to_dict()


def test_scatter_between_proxies_widens_the_forecast():
    smooth, rough = (forecast(fit_scaling(scaling_points(scatter=s)), 1e7) for s in (0.0, 0.1))
    width = [f.ci["alpha"].high - f.ci["alpha"].low for f in (smooth, rough)]
    assert width[1] > 3 * width[0]
    assert fit_scaling(scaling_points(scatter=0.1)).p_value < 1e-4


def test_a_forecast_survives_json_and_is_scored():
    scaling = fit_scaling(scaling_points())
    prediction = forecast(scaling, 1e7)
    text = json.dumps(prediction.to_dict(), allow_nan=False)
    again = Forecast.from_dict(json.loads(text))
    assert again == prediction
    assert [row["label"] for row in prediction.fitted_on] == ["50000", "200000", "800000", "3e+06"]
    gold = curve("bon", 1e7, np.random.default_rng(5))
    observed = fit_curve(D, gold, np.full(14, 0.01))
    rows = {row.quantity: row for row in score_forecast(again, observed)}
    row = rows["peak_gold"]
    assert row.error == pytest.approx(observed.peak_gold - prediction.peak_gold)
    assert row.inside is (row.ci.low <= row.observed <= row.ci.high)
    assert abs(row.error_sigma) < 3
    unseen = fit_curve(D, gold, np.full(14, 0.01), cut_off=1.0)
    missing = {row.quantity: row for row in score_forecast(again, unseen)}
    assert missing["peak_sqrt_kl"].inside is None
    assert np.isnan(missing["peak_sqrt_kl"].error_sigma)
    assert missing["alpha"].inside is not None
    with pytest.raises(DataError, match="forecast is for form 'bon'"):
        score_forecast(again, fit_curve(D, gold, np.full(14, 0.01), "rl"))


def test_unusable_scaling_inputs_are_named():
    points = scaling_points()
    with pytest.raises(DataError, match="2 proxies for 2 coefficients of a line"):
        fit_scaling(points[:2])
    with pytest.raises(DataError, match="point 1 .* 'rl'"):
        fit_scaling([points[0], scaling_points("rl")[1], points[2]])
    few = fit_curve(D[:2], np.asarray(D[:2]), [0.1, 0.1])
    bad = ScalingPoint(label="tiny", n_params=1e3, fit=few)
    with pytest.raises(DataError, match=r"point 0 \(tiny\) has no uncertainty"):
        fit_scaling([bad, *points])
    with pytest.raises(ConfigError, match="unknown term 'size'"):
        fit_scaling(points, terms=("size",))
    with pytest.raises(ConfigError, match="constant names 'gamma'"):
        fit_scaling(points, constant=("gamma",))
    with pytest.raises(DataError, match="1 curves"):
        fit_shared_alpha({"a": CurvePoints(sqrt_kl=D, gold=D, sigma=D)})
    with pytest.raises(ConfigError, match="needs alpha and beta"):
        fit_shared_alpha({"a": CurvePoints(sqrt_kl=D, gold=D)}, "linear")
