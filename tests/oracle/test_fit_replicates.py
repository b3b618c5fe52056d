"""Per-prompt fits and two-way variances against brute force and other implementations."""

import numpy as np
import pytest
from scipy import stats

from overopt.base.errors import ConfigError, DataError
from overopt.fits.crossed import crossed_mean
from overopt.fits.fit import fit_curve
from overopt.fits.forms import FORMS
from overopt.fits.replicates import (
    ReplicateCurve,
    fit_replicates,
    mean_curve,
    paired_difference,
)

D = np.sqrt(np.linspace(0.1, 6.0, 12))


def replicate_curves(form="bon", seeds=3, prompts=20, seed=0, measured=False):
    rng = np.random.default_rng(seed)
    truth = FORMS[form].evaluate(D, {"alpha": 1.5, "beta": 0.42})
    common = rng.standard_normal((2, prompts))
    curves = []
    for label in range(seeds):
        effect = 0.3 * common + 0.2 * rng.standard_normal((2, prompts))
        gold = truth[:, None] + D[:, None] * effect[0] + 0.3 * D[:, None] ** 2 * effect[1]
        gold += 0.02 * rng.standard_normal(gold.shape)
        kl = D[:, None] ** 2 * np.exp(0.3 * rng.standard_normal((len(D), prompts)))
        x = {"kl_seq_nats_KP": kl} if measured else {"sqrt_kl": D}
        curves.append(ReplicateCurve(gold_KP=gold, rm_seed=label, **x))
    return curves


@pytest.mark.parametrize("form", ["bon", "rl", "linear"])
def test_one_replicate_equals_fit_curve_with_the_prompt_covariance(form):
    [curve] = replicate_curves(seeds=1)
    whole = fit_curve(
        D,
        curve.gold_KP.mean(axis=1),
        None,
        form,
        covariance=np.cov(curve.gold_KP) / 20,
        covariance_dof=19,
    )
    fit = fit_replicates([curve], form)
    assert list(fit.params.values()) == pytest.approx(list(whole.params.values()), rel=1e-11)
    assert fit.covar == pytest.approx(whole.covar, rel=1e-9)
    assert fit.chi2 == pytest.approx(whole.chi2, rel=1e-9)
    assert fit.p_value == pytest.approx(whole.p_value, rel=1e-9)
    assert fit.aic == pytest.approx(whole.aic, rel=1e-9)
    assert fit.peak_gold_ci == pytest.approx(whole.peak_gold_ci, rel=1e-8, nan_ok=True)
    for name in fit.ci:
        assert fit.ci[name] == pytest.approx(whole.ci[name], rel=1e-9)
    assert "prompts, not seeds" in fit.message


def test_estimate_of_several_replicates_is_the_fit_of_their_mean_curve():
    curves = replicate_curves()
    mean = np.mean([curve.gold_KP for curve in curves], axis=0)
    sigma = np.sqrt(np.mean([curve.gold_KP.var(axis=1, ddof=1) for curve in curves], axis=0) / 20)
    fit = fit_replicates(curves)
    expected = fit_curve(D, mean.mean(axis=1), sigma).params
    assert dict(fit.params) == pytest.approx(dict(expected), rel=1e-11)


def test_crossed_mean_is_unbiased_for_the_variance_of_the_grand_mean():
    # 20,000 tables with known components: 0.5²/4 + 0.3²/10 + 0.8²/40.
    rng = np.random.default_rng(1)
    n, s, p = 20_000, 4, 10
    x = 0.5 * rng.standard_normal((n, s, 1)) + 0.3 * rng.standard_normal((n, 1, p))
    x = x + 0.8 * rng.standard_normal((n, s, p))
    truth = 0.25 / 4 + 0.09 / 10 + 0.64 / 40
    assert x.mean(axis=(1, 2)).var() == pytest.approx(truth, rel=0.03)
    sample = [crossed_mean(table[:, :, None]).covar[0, 0] for table in x[:4000]]
    # Standard error 1.1 %; the floor adds a little.
    assert np.mean(sample) == pytest.approx(truth, rel=0.04)


def test_data_seeds_are_the_units_where_there_are_several():
    rng = np.random.default_rng(2)
    values = rng.standard_normal((6, 5, 1))
    labels = ["x", "y", "x", "y", "z", "z"]
    nested = crossed_mean(values, labels)
    means = np.stack([values[[0, 2]].mean(0), values[[1, 3]].mean(0), values[[4, 5]].mean(0)])
    by_hand = crossed_mean(means)
    assert nested.n_units == 3
    assert nested.covar == pytest.approx(by_hand.covar, rel=1e-12)


def test_variance_floor_keeps_the_interaction_share():
    # Rows and columns with equal means: the subtraction alone would give −MS_e/(SP) = −4/4.
    table = np.array([[1.0, -1.0], [-1.0, 1.0]])[:, :, None]
    mean = crossed_mean(table)
    assert mean.covar[0, 0] == pytest.approx(1.0, rel=1e-15)
    vector = np.random.default_rng(0).standard_normal((3, 8, 2))
    found = crossed_mean(vector)
    assert (np.linalg.eigvalsh(found.covar - found.rest_ms) > -1e-12).all()


def test_measured_kl_adds_its_own_error():
    # Gold without noise on the true curve, KL with noise: all uncertainty comes from d.
    rng = np.random.default_rng(4)
    gold = np.repeat(FORMS["bon"].evaluate(D, {"alpha": 1.5, "beta": 0.1})[:, None], 400, axis=1)
    gold = gold + 1e-6 * rng.standard_normal(gold.shape)
    kl = D[:, None] ** 2 * rng.gamma(4.0, 0.25, size=(1, 400))
    [curve] = [ReplicateCurve(gold_KP=gold, kl_seq_nats_KP=kl)]
    fit = fit_replicates([curve])
    # KL_p = D² g_p: d scales by √mean(g) =: c, so alpha by 1/c and beta by 1/c².
    relative = np.std(kl[0] / D[0] ** 2, ddof=1) / 20 / np.mean(kl[0] / D[0] ** 2)
    assert fit.stderr["alpha"] == pytest.approx(fit.params["alpha"] * relative / 2, rel=1e-3)
    assert fit.stderr["beta"] == pytest.approx(fit.params["beta"] * relative, rel=1e-3)


def test_measured_kl_may_step_back_but_not_below_zero():
    curves = replicate_curves(measured=True, seeds=2)
    kl = np.array(curves[0].kl_seq_nats_KP)
    kl[[4, 5]] = kl[[5, 4]]
    fit_replicates([ReplicateCurve(gold_KP=curves[0].gold_KP, kl_seq_nats_KP=kl)])
    with pytest.raises(DataError, match="mean -1 at row 3"):
        kl[3] = -1.0
        ReplicateCurve(gold_KP=curves[0].gold_KP, kl_seq_nats_KP=kl)


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("form", ["bon", "rl"])
def test_order_of_prompts_and_seeds_changes_nothing(form, measured):
    curves = replicate_curves(form, measured=measured)
    order = np.random.default_rng(9).permutation(20)
    shuffled = [
        ReplicateCurve(
            gold_KP=curve.gold_KP[:, order],
            sqrt_kl=curve.sqrt_kl,
            kl_seq_nats_KP=curve.kl_seq_nats_KP[:, order] if measured else None,
            rm_seed=curve.rm_seed,
        )
        for curve in reversed(curves)
    ]
    a, b = fit_replicates(curves, form), fit_replicates(shuffled, form)
    assert list(a.params.values()) == pytest.approx(list(b.params.values()), rel=1e-12)
    for name in a.ci:
        assert a.ci[name] == pytest.approx(b.ci[name], rel=1e-12)


def test_mean_curve_of_one_replicate_has_the_usual_stderr():
    [curve] = replicate_curves(seeds=1)
    mean = mean_curve([curve])
    assert mean.gold == pytest.approx(curve.gold_KP.mean(axis=1), rel=1e-13)
    assert mean.sigma == pytest.approx(stats.sem(curve.gold_KP, axis=1), rel=1e-12)
    assert mean.dof == pytest.approx(19.0)
    low, high = stats.t.interval(0.95, 19, loc=mean.gold, scale=mean.sigma)
    assert mean.ci_low == pytest.approx(low, rel=1e-9)
    assert mean.ci_high == pytest.approx(high, rel=1e-9)


def test_paired_difference_is_the_paired_t_test():
    rng = np.random.default_rng(6)
    a = rng.standard_normal(30)
    b = a + 0.2 + 0.3 * rng.standard_normal(30)
    found = paired_difference(a, b)
    reference = stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(reference.pvalue, rel=1e-10)
    assert found.ci == pytest.approx(tuple(reference.confidence_interval(0.95)), rel=1e-10)
    assert found.dof == 29
    # Pairing removes what the two share.
    assert found.stderr < 0.5 * np.sqrt(a.var(ddof=1) / 30 + b.var(ddof=1) / 30)


def test_too_few_prompts_give_nan_and_a_flag():
    difference = paired_difference([1.0], [0.5])
    assert difference.estimate == 0.5
    assert not difference.has_uncertainty
    assert np.isnan([difference.stderr, difference.p_value, *difference.ci]).all()
    fit = fit_replicates([ReplicateCurve(gold_KP=D[:, None], sqrt_kl=D)], "linear")
    assert not fit.has_uncertainty
    assert "one prompt" in fit.message


def test_unusable_replicates_are_named():
    a, b, _ = replicate_curves()
    with pytest.raises(DataError, match="replicates 0 and 1 both have"):
        fit_replicates([a, a])
    short = ReplicateCurve(gold_KP=b.gold_KP[:, :5], sqrt_kl=D, rm_seed=1)
    with pytest.raises(DataError, match="replicate 1 has 5 prompts"):
        fit_replicates([a, short])
    with pytest.raises(DataError, match="no replicate curves"):
        fit_replicates([])
    with pytest.raises(DataError, match="exactly one of"):
        ReplicateCurve(gold_KP=a.gold_KP)
    hole = np.array(a.gold_KP)
    hole[2, 7] = np.nan
    with pytest.raises(DataError, match=r"rm_seed=4.*nan at row 2, prompt column 7"):
        ReplicateCurve(gold_KP=hole, sqrt_kl=D, rm_seed=4)
    with pytest.raises(ConfigError, match="shape parameter 'gamma'"):
        fit_replicates([a], "power")
    with pytest.raises(DataError, match="replicate 0, prompt 1"):
        paired_difference([0.0, np.nan], [0.0, 0.0])
    with pytest.raises(DataError, match="replicate 1 has 4 points"):
        mean_curve([a, ReplicateCurve(gold_KP=b.gold_KP[:4], sqrt_kl=D[:4], rm_seed=1)])
