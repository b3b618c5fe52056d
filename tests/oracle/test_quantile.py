"""Worlds with known curves, against closed forms and quadrature; estimators against the worlds."""

import math

import numpy as np
import pytest
from scipy import integrate, special, stats

from overopt.base.errors import ConfigError, DataError
from overopt.pools.best_of_n import best_of_n, kl_bon
from overopt.pools.quantile import (
    AdditiveErrorWorld,
    HumpWorld,
    exact_curve,
    hedge_tune,
    kl_tilt,
    quantile_demo,
)
from overopt.pools.soft import best_of_poisson, kl_best_of_poisson
from overopt.pools.tilt import exponential_tilt


def xlogx(x):
    return special.xlogy(x, x)


def quadrature(integrand, low, middle, high):
    options = {"epsabs": 1e-15, "epsrel": 1e-11, "limit": 300}
    return sum(
        integrate.quad(integrand, a, b, **options)[0] for a, b in ((low, middle), (middle, high))
    )


HEAVY = AdditiveErrorWorld(tail_index=3.0)
GAUSSIAN = AdditiveErrorWorld(gold_std=1.5, error_scale=0.8)


# ---------------------------------------------------------------------------- exact curves


@pytest.mark.parametrize("power", [0.5, 1.0, 8.0, 60.0])
def test_bon_of_the_hump_is_its_closed_form_within_the_stated_error(power):
    world = HumpWorld(power=power, scale=0.02)
    ns = np.array([1, 1.5, 2, 7, 64, 1e3, 6e4, 1e6])
    curve = exact_curve(world, "bon", ns)
    expected = ns / (0.02 * (ns + power) * (ns + power + 1))
    assert (np.abs(curve.gold - expected) <= curve.gold_error).all()
    assert (curve.gold_error <= 1e-12 * curve.gold.max()).all()
    np.testing.assert_allclose(world.bon_gold(ns), expected, rtol=1e-14)
    np.testing.assert_allclose(curve.proxy, ns / (ns + 1), rtol=1e-12)  # E[max of n uniforms]
    np.testing.assert_allclose(curve.kl_seq_nats[[0, 2, 3]], kl_bon([1, 2, 7]), rtol=1e-14)


@pytest.mark.parametrize(
    ("method", "points", "density"),
    [
        ("best_of_poisson", [0, 0.5, 9, 80], lambda x, u: (1 + x * u) * math.exp(x * (u - 1))),
        ("tilt", [0.3, 2, 40], lambda x, u: x * math.exp(x * u) / (math.exp(x) - 1)),
    ],
)
def test_other_methods_are_the_integrals_of_their_density(method, points, density):
    world = HumpWorld(power=3.0)
    curve = exact_curve(world, method, points)
    for k, point in enumerate(points):

        def f(u, point=point):
            return density(point, u)

        mass, gold, kl = (
            quadrature(integrand, 0, 0.9, 1)
            for integrand in (f, lambda u, f=f: f(u) * world.gold(u), lambda u, f=f: xlogx(f(u)))
        )
        assert mass == pytest.approx(1, abs=1e-12)
        assert abs(curve.gold[k] - gold) <= curve.gold_error[k] + 1e-12
        assert curve.kl_seq_nats[k] == pytest.approx(kl, abs=1e-11)


def test_kl_tilt_joins_its_series():
    np.testing.assert_allclose(kl_tilt([0.99e-4, 1.01e-4]), np.array([0.99e-4, 1.01e-4]) ** 2 / 24,
                               rtol=1e-6, atol=3e-16)  # fmt: skip
    assert kl_tilt(0.0)[0] == 0
    assert kl_tilt(1e5)[0] == pytest.approx(math.log(1e5) - 1)


def test_bon_is_nearly_the_optimal_tilt_and_poisson_nearer():
    """At equal mean proxy quantile the tilt has the least KL; best-of-Poisson within 8e-4 nats."""
    world = HumpWorld()
    strengths = np.geomspace(0.01, 3_000, 4_000)
    tilt = exact_curve(world, "tilt", strengths)
    for method, points, gap in (("bon", [2, 8, 64], 0.2), ("best_of_poisson", [1, 8, 64], 8.5e-4)):
        curve = exact_curve(world, method, points)
        least = np.interp(curve.proxy, tilt.proxy, tilt.kl_seq_nats)
        excess = curve.kl_seq_nats - least
        assert (excess > -1e-5).all()
        assert (excess < gap).all()


def test_gaussian_error_gives_the_regressional_line():
    """E[gold | proxy] = slope · proxy, and the proxy is the largest of n normals."""
    ns = np.array([1, 2, 3, 100])
    curve = exact_curve(GAUSSIAN, "bon", ns)
    sd = math.hypot(1.5, 0.8)
    # E[max] of 1, 2, 3 standard normals: 0, 1/√π, 3/(2√π); of 100 by quadrature.
    hundred = integrate.quad(
        lambda t: t * 100 * stats.norm.cdf(t) ** 99 * stats.norm.pdf(t), -8, 12, epsabs=1e-12
    )[0]
    best = np.array([0, 1 / math.sqrt(math.pi), 1.5 / math.sqrt(math.pi), hundred])
    np.testing.assert_allclose(curve.proxy, sd * best, atol=1e-11)
    np.testing.assert_allclose(curve.gold, 1.5**2 / sd**2 * sd * best, atol=1e-11)
    assert GAUSSIAN.regressional_slope == pytest.approx(1.5**2 / (1.5**2 + 0.8**2))
    assert not GAUSSIAN.is_catastrophic


@pytest.mark.parametrize("tail_index", [1.0, 1.5, 3.0, 7.5])
def test_heavy_error_nodes_are_the_convolution(tail_index):
    world = AdditiveErrorWorld(gold_std=1.2, error_scale=0.7, tail_index=tail_index)
    nodes = world.nodes(1 / 32)
    assert nodes.weight.sum() == pytest.approx(1, abs=1e-13)
    np.testing.assert_allclose(nodes.u + nodes.v, 1, atol=1e-13)
    for j in np.searchsorted(nodes.proxy, [-2.0, 0.3, 5.0, 30.0]):
        s = nodes.proxy[j]

        def joint(x, s=s, error=stats.t.pdf):
            return stats.norm.pdf(x, scale=1.2) * error((s - x) / 0.7, tail_index)

        tail, density, moment = (
            quadrature(integrand, -11, min(s, 10.9), 11)
            for integrand in (
                lambda x, f=joint: f(x, error=stats.t.sf),
                joint,
                lambda x, f=joint: x * f(x),
            )
        )
        assert nodes.v[j] == pytest.approx(tail, rel=1e-9)
        assert nodes.gold[j] == pytest.approx(moment / density, rel=1e-8, abs=1e-10)


def test_heavy_error_is_catastrophic_and_light_error_is_not():
    ns = np.array([1, 4, 1e3, 1e6, 1e8])
    heavy, light = exact_curve(HEAVY, "bon", ns), exact_curve(GAUSSIAN, "bon", ns)
    assert heavy.gold[0] == pytest.approx(0, abs=1e-12)
    assert heavy.gold[1] > 0.4
    assert (np.diff(heavy.gold[1:]) < 0).all() and 0 < heavy.gold[-1] < 0.03
    assert (np.diff(heavy.proxy) > 0).all() and heavy.proxy[-1] > 300
    assert (np.diff(light.gold) > 0).all()
    assert (heavy.gold_error < 1e-9).all() and (light.gold_error < 1e-9).all()
    assert HEAVY.is_catastrophic


def test_regressional_slope_of_a_students_t_error():
    assert HEAVY.regressional_slope == pytest.approx(1 / (1 + 3))  # variance ν/(ν − 2) = 3
    assert AdditiveErrorWorld(tail_index=2.0).regressional_slope == 0


def test_proxy_without_a_mean_is_nan():
    assert np.isnan(exact_curve(AdditiveErrorWorld(tail_index=1.0), "bon", [4]).proxy).all()


@pytest.mark.parametrize("power", [1.0, 8.0, 60.0])
def test_hedge_tune_finds_the_peak_of_the_hump(power):
    """d/dn of n/((n+p)(n+p+1)) vanishes at n = √(p(p+1))."""
    peak = hedge_tune(HumpWorld(power=power))
    assert peak.is_interior
    assert peak.n == pytest.approx(math.sqrt(power * (power + 1)), rel=1e-10)


def test_hedge_tune_of_the_additive_worlds():
    heavy = hedge_tune(HEAVY)
    around = exact_curve(HEAVY, "bon", heavy.n * np.array([0.99, 1, 1.01])).gold
    assert heavy.is_interior and around.argmax() == 1
    light = hedge_tune(GAUSSIAN)
    assert math.isnan(light.n) and not light.is_interior


# ------------------------------------------------------------------------- estimators against them


@pytest.mark.parametrize("world", [HumpWorld(), GAUSSIAN, HEAVY], ids=["hump", "gaussian", "heavy"])
def test_best_of_n_from_a_pool_agrees_with_the_exact_curve(world):
    pool = world.sample_pool(400, 1_000, rng=np.random.default_rng(11))
    ns = np.array([1, 2, 8, 32, 128, 512])
    estimate, curve = best_of_n(pool.proxy, pool.gold, ns), exact_curve(world, "bon", ns)
    z = (estimate.mean - curve.gold) / estimate.stderr
    assert (np.abs(z) < 3.5).all()
    assert (estimate.stderr < 0.1).all()


def test_the_stderr_of_best_of_n_is_that_of_repetition():
    """Over repeated pools z has mean 0 and standard deviation 1."""
    world = HumpWorld()
    ns = [2, 16, 100]
    exact = exact_curve(world, "bon", ns).gold
    z = []
    for seed in range(300):
        pool = world.sample_pool(60, 100, rng=np.random.default_rng([5, seed]))
        estimate = best_of_n(pool.proxy, pool.gold, ns)
        z.append((estimate.mean - exact) / estimate.stderr)
    np.testing.assert_allclose(np.mean(z, axis=0), 0, atol=4 / math.sqrt(300))
    np.testing.assert_allclose(np.std(z, axis=0), 1, atol=4 / math.sqrt(600))


def test_poisson_and_tilt_from_a_pool_agree_with_the_exact_curve():
    world = HumpWorld()
    pool = world.sample_pool(400, 2_000, rng=np.random.default_rng(12))
    mus, strengths = [0.5, 4.0, 100.0], np.array([0.5, 4.0, 40.0])
    poisson = best_of_poisson(pool.proxy, pool.gold, mus)
    tilt = exponential_tilt(pool.proxy, pool.gold, 1 / strengths)
    for estimate, method, points in (
        (poisson, "best_of_poisson", mus),
        (tilt, "tilt", strengths),
    ):
        curve = exact_curve(world, method, points)
        assert (np.abs(estimate.mean - curve.gold) < 3.5 * estimate.stderr).all()
    np.testing.assert_array_equal(poisson.kl_seq_nats, kl_best_of_poisson(mus))
    assert tilt.reliable.all()
    assert (np.abs(tilt.kl_seq_nats - kl_tilt(strengths)) < 4 * tilt.kl_stderr + 2e-3).all()


def test_tilt_by_score_of_the_gaussian_world():
    pool = GAUSSIAN.sample_pool(400, 2_000, rng=np.random.default_rng(13))
    betas = np.array([20.0, 4.0, 2.0])
    gold, kl = GAUSSIAN.tilt_by_score(betas)
    estimate = exponential_tilt(pool.proxy, pool.gold, betas)
    assert (np.abs(estimate.mean - gold) < 3.5 * estimate.stderr).all()
    assert (np.abs(estimate.kl_seq_nats - kl) < 4 * estimate.kl_stderr + 2e-3).all()
    with pytest.raises(DataError, match="infinite mean"):
        HEAVY.tilt_by_score(betas)


def test_a_shuffled_gold_column_is_noticed():
    world = HumpWorld()
    rng = np.random.default_rng(14)
    pool = world.sample_pool(100, 500, rng=rng)
    shuffled = best_of_n(pool.proxy, rng.permuted(pool.gold, axis=1), [4, 32])
    z = (shuffled.mean - exact_curve(world, "bon", [4, 32]).gold) / shuffled.stderr
    assert (np.abs(z) > 5).all()


# ------------------------------------------------------------------------------------ demonstration


def test_the_demonstration_agrees_with_itself():
    rows = quantile_demo(0)
    assert {row["method"] for row in rows} == {"bon", "best_of_poisson", "tilt"}
    z = np.array([row["discrepancy_stderrs"] for row in rows])
    assert np.abs(z).max() < 4
    exact = [row["gold_exact"] for row in rows if row["method"] == "bon"]
    assert 0 < int(np.argmax(exact)) < len(exact) - 1  # the hump is in view


def test_the_demonstration_depends_on_its_seed_alone():
    np.random.seed(1)  # noqa: NPY002
    first = quantile_demo(3, n_prompts=5, pool_size=1_024)
    np.random.seed(2)  # noqa: NPY002
    assert first == quantile_demo(3, n_prompts=5, pool_size=1_024)
    assert first != quantile_demo(4, n_prompts=5, pool_size=1_024)


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HumpWorld(power=0.0), "power: 0.0"),
        (lambda: HumpWorld(prompt_std=-1.0), "prompt_std: -1.0"),
        (lambda: AdditiveErrorWorld(error_scale=float("inf")), "error_scale: inf"),
        (lambda: AdditiveErrorWorld(tail_index=0.5), "tail_index: 0.5"),
        (lambda: AdditiveErrorWorld(tail_index=3.0, error_scale=0.01), "error_scale: 0.01"),
    ],
)
def test_unusable_worlds_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("method", "points"), [("bon", [0.5]), ("tilt", [-1.0]), ("bon", [np.nan]), ("tilt", [1e9])]
)
def test_points_outside_the_range_are_refused(method, points):
    with pytest.raises(DataError, match="points"):
        exact_curve(HumpWorld(), method, points)
