"""fit_curve and compare: input errors, flags instead of numbers, weights, JSON."""

import json

import numpy as np
import pytest

from overopt.base.errors import ConfigError, DataError, FitError
from overopt.fits.compare import compare_forms, extrapolate
from overopt.fits.fit import fit_curve
from overopt.fits.forms import FORMS
from overopt.fits.profile import profile_ci

D = np.linspace(0.2, 2.6, 13)
SIGMA = np.full(13, 0.02)


def planted(form="bon", alpha=1.6, beta=0.5, seed=0, d=D):
    noise = 0.02 * np.random.default_rng(seed).standard_normal(len(d))
    return FORMS[form].evaluate(d, {"alpha": alpha, "beta": beta}) + noise


def replaced(array, row, value):
    array = np.array(array, dtype=float)
    array[row] = value
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sqrt_kl": replaced(D, 4, D[3])}, "sqrt_kl.*row 4"),
        ({"sqrt_kl": D - 0.5}, "sqrt_kl row 0 is -0.3"),
        ({"sqrt_kl": replaced(D, 2, np.nan)}, "sqrt_kl row 2 is nan"),
        ({"gold": replaced(D, 5, np.nan)}, "gold row 5 is nan"),
        ({"gold": D[:-1]}, "gold has 12 rows"),
        ({"gold": np.ones((13, 2))}, "gold has shape"),
        ({"sigma": replaced(SIGMA, 6, 0.0)}, "sigma row 6 is 0"),
        ({"sigma": replaced(SIGMA, 6, -1.0)}, "sigma row 6 is -1"),
        ({"sigma": replaced(SIGMA, 6, np.inf)}, "sigma row 6 is inf"),
        ({"sigma": None}, "sigma is None"),
        ({"sigma": None, "covariance": np.eye(3)}, "covariance has shape"),
        ({"covariance": np.eye(13) + np.triu(np.ones((13, 13)))}, "not symmetric"),
        ({"cut_off": 0.3}, "1 points.*cut_off=0.3.*at least 2"),
    ],
)
def test_unusable_points_are_named(change, message):
    args = {"sqrt_kl": D, "gold": planted(), "sigma": SIGMA} | change
    with pytest.raises(DataError, match=message):
        fit_curve(**args)


def test_unknown_names_are_met_with_the_known_ones():
    with pytest.raises(ConfigError, match="unknown form 'bno'; nearest: bon"):
        fit_curve(D, planted(), SIGMA, "bno")
    with pytest.raises(ConfigError, match="estimator is 'ols'"):
        fit_curve(D, planted(), SIGMA, estimator="ols")
    with pytest.raises(ConfigError, match="ci_level is 95"):
        fit_curve(D, planted(), SIGMA, ci_level=95)


def test_gls_refuses_what_it_cannot_invert():
    with pytest.raises(FitError, match="not positive definite"):
        fit_curve(D, planted(), None, covariance=np.ones((13, 13)), estimator="gls")
    covariance = np.diag(SIGMA**2)
    with pytest.raises(FitError, match="covariance_dof=8") as caught:
        fit_curve(D, planted(), None, covariance=covariance, covariance_dof=8, estimator="gls")
    assert set(caught.value.best) == {"alpha", "beta"}


@pytest.mark.parametrize("form", ["bon", "rl"])
def test_the_origin_carries_no_information(form):
    gold = planted(form)
    fit = fit_curve(D, gold, SIGMA, form)
    covariance = np.diag(np.append(0.0, SIGMA**2))
    with_origin = fit_curve(
        np.append(0.0, D), np.append(0.0, gold), None, form, covariance=covariance
    )
    assert with_origin.n_points == fit.n_points == 13
    assert list(with_origin.params.values()) == pytest.approx(list(fit.params.values()), rel=1e-13)
    assert with_origin.chi2 == pytest.approx(fit.chi2, rel=1e-12)


def test_gold_that_was_not_recentred_is_refused():
    with pytest.raises(DataError, match="gold row 0 is 0.3 at sqrt_kl 0; subtract"):
        fit_curve(np.append(0.0, D), np.append(0.3, planted()), np.append(0.02, SIGMA))


def test_a_noisier_point_moves_the_fit_less():
    gold = planted()
    moved = replaced(gold, 8, gold[8] + 0.3)

    def shift(sigma):
        with_error = np.array(list(fit_curve(D, moved, sigma).params.values()))
        return np.abs(with_error - list(fit_curve(D, gold, sigma).params.values()))

    # 13 equal points share the fit: a point 10 times noisier keeps about 1 % of its pull.
    assert (shift(replaced(SIGMA, 8, 0.2)) < 0.02 * shift(SIGMA)).all()


def test_scaling_sigma_scales_stderr_and_leaves_the_estimate():
    once, twice = (fit_curve(D, planted(), factor * SIGMA) for factor in (1.0, 2.0))
    assert twice.params == pytest.approx(once.params, rel=1e-12)
    assert twice.stderr["beta"] == pytest.approx(2.0 * once.stderr["beta"], rel=1e-12)
    assert twice.chi2 == pytest.approx(once.chi2 / 4.0, rel=1e-12)


def test_a_peak_inside_the_range_is_a_number():
    fit = fit_curve(D, FORMS["bon"].evaluate(D, {"alpha": 1.6, "beta": 0.5}), SIGMA)
    assert fit.peak_in_range
    assert (fit.peak_sqrt_kl, fit.peak_gold) == pytest.approx((1.6, 1.28), rel=1e-12)
    assert fit.peak_sqrt_kl_ci.low < 1.6 < fit.peak_sqrt_kl_ci.high
    assert fit.peak_gold_ci.low < 1.28 < fit.peak_gold_ci.high
    assert fit.message == "ok"


@pytest.mark.parametrize("form", ["bon", "rl"])
def test_a_peak_beyond_the_range_is_a_bound_and_a_flag(form):
    # Both curves peak near d = 1.6 to 2; only the points up to d = 1.2 are used.
    beta = {"bon": 0.5, "rl": 0.9}[form]
    gold = FORMS[form].evaluate(D, {"alpha": 1.6, "beta": beta})
    fit = fit_curve(D, gold, 0.05 * SIGMA, form, cut_off=1.2)
    assert fit.peak.status == "beyond_range"
    assert not fit.peak_in_range
    assert np.isnan([fit.peak_sqrt_kl, fit.peak_gold]).all()
    assert fit.peak_sqrt_kl_ci == pytest.approx((fit.d_max, np.inf))
    # The bound on the height is a height that was seen.
    assert 0.9 * gold[5] < fit.peak_gold_ci.low <= gold[5]
    assert fit.peak_gold_ci.high == np.inf
    assert "beyond_range" in fit.message
    asked = fit.extrapolated_peak()
    exact = {"bon": 1.6, "rl": np.exp(1.6 / 0.9 - 1)}[form]
    assert asked.sqrt_kl == pytest.approx(exact, rel=1e-9)
    assert asked.sqrt_kl_ci.low < exact < asked.sqrt_kl_ci.high


def test_an_insignificant_turn_over_has_no_number():
    gold = FORMS["bon"].evaluate(D, {"alpha": 1.0, "beta": 0.01})
    fit = fit_curve(D, gold, SIGMA)
    assert fit.peak.status == "not_significant"
    assert np.isnan(fit.peak_sqrt_kl)
    assert fit.peak_sqrt_kl_ci.high == np.inf
    with pytest.raises(FitError, match="unbounded"):
        profile_ci(D, gold, SIGMA, "bon", "peak_sqrt_kl")


@pytest.mark.parametrize("alpha", [1.0, -1.0])
def test_curves_that_only_rise_or_fall_do_not_turn_over(alpha):
    gold = FORMS["bon"].evaluate(D, {"alpha": alpha, "beta": -0.5 * alpha})
    fit = fit_curve(D, gold, SIGMA)
    assert fit.peak.status == "no_turn_over"
    assert np.isnan([*fit.peak_sqrt_kl_ci, *fit.peak_gold_ci]).all()


def test_a_peak_before_the_first_point_is_flagged():
    late = np.linspace(1.5, 3.0, 12)
    fit = fit_curve(late, planted(beta=1.0, d=late), np.full(12, 0.02))
    assert fit.peak.status == "before_range"
    assert fit.peak_sqrt_kl_ci == (0.0, 1.5)


def test_too_few_points_or_prompts_give_no_interval():
    two = fit_curve(D[[5, 10]], planted()[[5, 10]], SIGMA[:2])
    assert not two.has_uncertainty
    assert np.isnan([*two.stderr.values(), *two.ci["alpha"], two.peak_sqrt_kl]).all()
    assert two.peak.status == "no_uncertainty"
    assert "2 points for 2 parameters" in two.message
    one_prompt = fit_curve(D, planted(), SIGMA, covariance_dof=0)
    assert not one_prompt.has_uncertainty
    assert "too few prompts" in one_prompt.message


def test_fewer_prompts_widen_the_intervals_by_the_t_quantile():
    known, estimated = (fit_curve(D, planted(), SIGMA, covariance_dof=n) for n in (None, 5))
    width = [fit.ci["alpha"].high - fit.ci["alpha"].low for fit in (known, estimated)]
    # t quantile 2.5706 on 5 degrees of freedom over the normal 1.9600, from tables.
    assert width[1] / width[0] == pytest.approx(2.5706 / 1.9600, rel=1e-4)


def test_a_wrong_form_is_said_to_fit_poorly():
    fit = fit_curve(D, planted("rl", 1.2, 0.75), SIGMA / 2, "linear")
    assert fit.p_value < 1e-6
    assert "poor fit" in fit.message


def test_shape_parameter_at_its_bound_is_flagged():
    # The log form is the limit gamma -> 0 of the power form.
    fit = fit_curve(D, FORMS["rl"].evaluate(D, {"alpha": 1.2, "beta": 0.9}), SIGMA, "power")
    assert fit.at_bound
    assert "end of its range" in fit.message
    assert fit.peak.status == "undefined"


def test_result_is_json_without_nan():
    fit = fit_curve(D, planted(), SIGMA, cut_off=1.2)
    data = json.loads(json.dumps(fit.to_dict(), allow_nan=False))
    assert data["params"]["alpha"] == fit.params["alpha"]
    assert data["peak"]["sqrt_kl_ci"][1] == "inf"
    assert data["peak"]["sqrt_kl"] is None


def test_predict_and_band_are_the_form_and_its_error():
    fit = fit_curve(D, planted(), SIGMA)
    band = fit.band([0.0, 1.0])
    assert band.gold == pytest.approx([0.0, fit.params["alpha"] - fit.params["beta"]], rel=1e-12)
    assert band.high[0] == band.low[0] == 0.0
    variance = fit.covar[0, 0] - 2 * fit.covar[0, 1] + fit.covar[1, 1]
    assert band.high[1] - band.gold[1] == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)


def test_compare_forms_ranks_by_aicc():
    rows = compare_forms(D, planted("rl", 1.2, 0.75), SIGMA, ("bon", "rl", "linear", "power"))
    assert rows[0].delta_aicc == 0.0
    assert rows[-1].form == "linear"
    assert sum(row.akaike_weight for row in rows) == pytest.approx(1.0, rel=1e-12)
    assert [row.aicc for row in rows] == sorted(row.aicc for row in rows)
    few = compare_forms(D[:4], planted()[:4], SIGMA[:4], ("bon", "power"))
    assert [row.form for row in few] == ["bon", "power"]
    assert np.isnan(few[1].delta_aicc)


def test_extrapolation_sees_nothing_beyond_the_cut_off():
    gold = planted()
    far = D > 1.5
    rows = extrapolate(D, gold, SIGMA, cut_off=1.5)
    changed = extrapolate(
        D, np.where(far, gold + 1.0, gold), np.where(far, 9.0, SIGMA), cut_off=1.5
    )
    after = {row.form: row for row in changed}
    assert rows[0].form == "bon"
    for row in rows:
        # Raising what is held out by 1 lowers the mean error by exactly 1: the fit stayed.
        assert after[row.form].bias == pytest.approx(row.bias - 1.0, abs=1e-12)
        assert row.n_fit + row.n_held_out == 13
    with pytest.raises(DataError, match="leaves no point to predict"):
        extrapolate(D, gold, SIGMA, cut_off=5.0)
