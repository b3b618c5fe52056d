"""Hierarchical bootstrap: determinism, invariance, brute force, and flags."""

import numpy as np
import pytest
from scipy import stats

from overopt.base.errors import ConfigError
from overopt.fits.bootstrap import bootstrap_curve, bootstrap_fit, canonical_order, draw_weights
from overopt.fits.fit import fit_curve
from overopt.fits.forms import FORMS
from overopt.fits.replicates import ReplicateCurve, fit_replicates

D = np.sqrt(np.linspace(0.1, 6.0, 10))
METHODS = ["percentile", "bca", "studentized"]


def make_curves(seeds=((0, 0),), *, prompts=24, form="bon", measured=False, beta=0.42, seed=0):
    rng = np.random.default_rng(seed)
    truth = FORMS[form].evaluate(D, {"alpha": 1.5, "beta": beta})
    curves = []
    for data_seed, rm_seed in seeds:
        gold = truth[:, None] + 0.3 * D[:, None] * rng.standard_normal((1, prompts))
        gold = gold + 0.05 * rng.standard_normal(gold.shape) * D[:, None]
        kl = D[:, None] ** 2 * np.exp(0.2 * rng.standard_normal((1, prompts)))
        x = {"kl_seq_nats_KP": kl} if measured else {"sqrt_kl": D}
        curves.append(ReplicateCurve(gold_KP=gold, data_seed=data_seed, rm_seed=rm_seed, **x))
    return curves


NESTED = ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2))


@pytest.mark.parametrize("method", METHODS)
def test_same_rng_gives_the_same_intervals_under_any_global_seed(method):
    curves = make_curves()
    results = []
    for global_seed in (0, 1):
        np.random.seed(global_seed)  # noqa: NPY002
        rng = np.random.default_rng(7)
        results.append(bootstrap_fit(curves, rng=rng, n_draws=200, method=method).ci)
    assert results[0] == results[1]
    other = bootstrap_fit(curves, rng=np.random.default_rng(8), n_draws=200, method=method).ci
    assert other != results[0]


@pytest.mark.parametrize("measured", [False, True])
def test_order_of_prompts_and_seeds_changes_no_draw(measured):
    curves = make_curves(NESTED, measured=measured)
    order = np.random.default_rng(1).permutation(24)
    shuffled = [
        ReplicateCurve(
            gold_KP=c.gold_KP[:, order],
            sqrt_kl=c.sqrt_kl,
            kl_seq_nats_KP=c.kl_seq_nats_KP[:, order] if measured else None,
            # New labels too: only the grouping matters.
            rm_seed=f"other {c.rm_seed}",
            data_seed=-c.data_seed,
        )
        for c in reversed(curves)
    ]
    a, b = (bootstrap_fit(x, rng=np.random.default_rng(2), n_draws=100) for x in (curves, shuffled))
    for name in a.draws:
        assert a.draws[name] == pytest.approx(b.draws[name], rel=1e-12)


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("form", ["bon", "rl"])
def test_batched_refits_equal_a_loop_over_fit_curve(form, measured):
    curves = canonical_order(make_curves(NESTED, form=form, measured=measured))
    found = bootstrap_fit(curves, form, rng=np.random.default_rng(3), n_draws=20)
    weights = draw_weights(curves, rng=np.random.default_rng(3), n_draws=20)
    variances = [np.var(c.gold_KP, axis=1, ddof=1) / 24 for c in curves]
    if not measured:
        variances = [np.mean(variances, axis=0)] * len(curves)
    for draw in range(20):
        prompts, shares = weights.prompts_BP[draw], weights.replicates_BS[draw]
        total = np.zeros(2)
        for curve, share, variance in zip(curves, shares, variances, strict=True):
            d = np.sqrt(curve.kl_seq_nats_KP @ prompts) if measured else D
            fit = fit_curve(d, curve.gold_KP @ prompts, np.sqrt(variance), form)
            total += share * np.array(list(fit.params.values()))
        drawn = [found.draws["alpha"][draw], found.draws["beta"][draw]]
        assert drawn == pytest.approx(total, rel=1e-10)


def test_weights_are_nested_and_average_to_the_data():
    curves = make_curves(NESTED)
    weights = draw_weights(curves, rng=np.random.default_rng(4), n_draws=20_000)
    assert weights.prompts_BP.sum(axis=1) == pytest.approx(1.0)
    assert weights.replicates_BS.sum(axis=1) == pytest.approx(1.0)
    # Two data seeds count the same, however many RM seeds each has.
    expected = [0.25, 0.25, 1 / 6, 1 / 6, 1 / 6]
    assert weights.replicates_BS.mean(axis=0) == pytest.approx(expected, abs=0.01)
    # A data seed is drawn 0, 1 or 2 times of 2.
    share = weights.replicates_BS[:, :2].sum(axis=1)
    assert sorted(set(share.round(9))) == [0.0, 0.5, 1.0]
    # Variance of a data seed's share: binomial, 1/8.
    assert share.var() == pytest.approx(0.125, rel=0.05)


def test_bootstrap_stderr_is_the_analytic_one_for_many_prompts():
    curves = make_curves(prompts=300)
    boot = bootstrap_fit(curves, rng=np.random.default_rng(5), n_draws=4000)
    fit = fit_replicates(curves)
    # Monte Carlo error of 4,000 draws is 1.1 %.
    assert boot.stderr["alpha"] == pytest.approx(fit.stderr["alpha"], rel=0.04)
    assert boot.stderr["beta"] == pytest.approx(fit.stderr["beta"], rel=0.04)
    assert dict(fit.params) == pytest.approx(
        {name: boot.estimate[name] for name in fit.params}, rel=1e-10
    )
    curve = bootstrap_curve(curves, rng=np.random.default_rng(6), n_draws=4000)
    sample = np.cov(curves[0].gold_KP) / 300
    assert curve.covariance == pytest.approx(sample, rel=0.1)
    low, high = curve.interval(0.95)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(np.diag(sample)), rel=0.06)


def test_bca_and_percentile_agree_with_scipy_on_a_skewed_mean():
    # Gold p is z_p·d, so alpha of the linear form is the mean of z.
    z = np.exp(np.random.default_rng(7).standard_normal(16))
    curves = [ReplicateCurve(gold_KP=z * D[:, None], sqrt_kl=D)]
    ci = {
        method: bootstrap_fit(
            curves, "linear", rng=np.random.default_rng(8), n_draws=20_000, method=method
        ).ci["alpha"]
        for method in METHODS
    }
    for method, name in (("percentile", "percentile"), ("bca", "BCa")):
        reference = stats.bootstrap(
            (z,), np.mean, n_resamples=20_000, method=name, rng=np.random.default_rng(9)
        ).confidence_interval
        # Monte Carlo error of a quantile in the tail: about 1 % of the interval's width.
        width = reference.high - reference.low
        assert ci[method] == pytest.approx(tuple(reference), abs=0.03 * width)
    assert ci["bca"].high > ci["percentile"].high + 0.05 * width
    # Studentized intervals of skewed data reach furthest on the long side.
    assert ci["studentized"].high > ci["bca"].high


def test_few_seeds_are_flagged():
    boot = bootstrap_fit(make_curves(((0, 0), (0, 1), (0, 2))), rng=np.random.default_rng(9))
    assert boot.undercovers
    assert "3 seeds" in boot.message
    assert not bootstrap_fit(make_curves(), rng=np.random.default_rng(9)).undercovers
    with pytest.raises(ConfigError, match="fit_replicates"):
        bootstrap_fit(make_curves(NESTED), rng=np.random.default_rng(9), method="studentized")


@pytest.mark.parametrize("method", METHODS)
def test_a_turn_over_that_is_not_there_is_a_flag(method):
    boot = bootstrap_fit(
        make_curves(beta=0.003), rng=np.random.default_rng(10), n_draws=300, method=method
    )
    assert boot.peak_status != "in_range"
    assert boot.share_without_peak > 0.5
    assert np.isnan([boot.estimate["peak_sqrt_kl"], boot.estimate["peak_gold"]]).all()
    assert not np.isfinite(boot.ci["peak_sqrt_kl"].high)
    assert np.isfinite(boot.ci["alpha"]).all()


def test_one_prompt_gives_no_interval():
    boot = bootstrap_fit(make_curves(prompts=1), rng=np.random.default_rng(11), n_draws=50)
    assert not boot.has_uncertainty
    assert np.isnan([*boot.ci["alpha"], *boot.ci["peak_gold"]]).all()


def test_unknown_settings_are_refused():
    with pytest.raises(ConfigError, match="method is 'normal'"):
        bootstrap_fit(make_curves(), rng=np.random.default_rng(0), method="normal")
    with pytest.raises(ConfigError, match="n_draws is 1"):
        bootstrap_fit(make_curves(), rng=np.random.default_rng(0), n_draws=1)
