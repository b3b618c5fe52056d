"""The pool estimators against brute force, exact binomials and closed forms."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from overopt.base.errors import DataError
from overopt.bench.groups.estimators import bench_against_big_integers, log_spaced_ns
from overopt.pools import table
from overopt.pools.best_of_n import best_of_n, kl_bon, kl_bon_ties
from overopt.pools.soft import best_of_poisson, kl_best_of_poisson, soft_best_of_n
from overopt.pools.table import bootstrap_prompts
from overopt.pools.tilt import exponential_tilt

BRUTE_FORCE_ATOL = 1e-12


def brute_force(proxy, values, n):
    """Mean over all n-subsets of the mean value of the subset's best, one prompt."""
    best = []
    for subset in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in subset)
        best.append(np.mean([values[i] for i in subset if proxy[i] == top]))
    return np.mean(best)


def xlogx(x):
    return special.xlogy(x, x)


def pool(n_prompts, pool_size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_prompts, pool_size)), rng.normal(size=(n_prompts, pool_size))


# --------------------------------------------------------------------------------------- best_of_n


@pytest.mark.parametrize("pool_size", [1, 2, 5, 10])
@pytest.mark.parametrize("n_levels", [None, 3, 1])
def test_best_of_n_is_the_mean_over_all_subsets(pool_size, n_levels):
    proxy, gold = pool(3, pool_size)
    if n_levels is not None:
        proxy = np.random.default_rng(1).integers(n_levels, size=proxy.shape)
    ns = np.arange(1, pool_size + 1)
    expected = [[brute_force(r, v, n) for r, v in zip(proxy, gold, strict=True)] for n in ns]
    result = best_of_n(proxy, gold, ns)
    np.testing.assert_allclose(result.per_prompt, expected, rtol=0, atol=BRUTE_FORCE_ATOL)
    np.testing.assert_allclose(
        result.mean, np.mean(expected, axis=1), rtol=0, atol=BRUTE_FORCE_ATOL
    )


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_best_of_n_is_the_mean_over_all_subsets_for_arbitrary_ties(data):
    size = data.draw(st.integers(1, 8))
    levels = st.lists(st.integers(0, 3), min_size=size, max_size=size)
    values = st.lists(st.floats(-10, 10), min_size=size, max_size=size)
    proxy = [data.draw(levels), data.draw(levels)]
    gold = [data.draw(values), data.draw(values)]
    n = data.draw(st.integers(1, size))
    expected = [brute_force(r, v, n) for r, v in zip(proxy, gold, strict=True)]
    per_prompt = best_of_n(proxy, gold, [n]).per_prompt[0]
    np.testing.assert_allclose(per_prompt, expected, rtol=0, atol=BRUTE_FORCE_ATOL)


@pytest.mark.parametrize("pool_size", [1, 63, 64, 65, 200, 1500])
def test_weights_are_the_exact_rational_binomials(pool_size):
    """Indicator values read the weights back; Fractions know them exactly."""
    ns = np.unique(np.geomspace(1, pool_size, 9).round().astype(int))
    proxy = np.tile(np.arange(pool_size), (2, 1))
    ranks = np.unique(np.linspace(0, pool_size - 1, 25).round().astype(int))
    for rank in ranks:
        got = best_of_n(proxy, (proxy == rank).astype(float), ns).per_prompt[:, 0]
        exact = [float(Fraction(math.comb(rank, n - 1), math.comb(pool_size, n))) for n in ns]
        # Weights under the truncation are returned as 0; the others keep 12 digits.
        np.testing.assert_allclose(got, exact, rtol=1e-12, atol=table.NEGLIGIBLE_MASS)


def test_weights_sum_to_one_for_every_n_of_a_large_pool():
    proxy = np.tile(np.random.default_rng(0).permutation(5_000), (2, 1))
    ones = best_of_n(proxy, np.ones(proxy.shape), np.arange(1, 5_001)).mean
    np.testing.assert_allclose(ones, 1.0, rtol=0, atol=1e-12)


def test_best_of_n_of_uniform_ranks_is_the_order_statistic():
    """E[largest of n out of 1 … N] = n (N + 1)/(n + 1)."""
    size = 60_000
    ranks = np.tile(np.arange(1.0, size + 1), (2, 1))
    ns = log_spaced_ns(size, 60)
    expected = ns * (size + 1) / (ns + 1)
    np.testing.assert_allclose(best_of_n(ranks, ranks, ns).mean, expected, rtol=1e-12)


def test_extreme_ns_are_the_mean_and_the_maximum():
    proxy, gold = pool(4, 300)
    result = best_of_n(proxy, {"proxy": proxy, "gold": gold}, [1, 300])
    np.testing.assert_allclose(result["gold"].per_prompt[0], gold.mean(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(result["proxy"].per_prompt[1], proxy.max(axis=1))


def test_mean_and_stderr_are_over_prompts():
    proxy, gold = pool(7, 20)
    result = best_of_n(proxy, gold, [1, 4])
    assert (result.n_prompts, result.pool_size) == (7, 20)
    for point in range(2):
        prompts = result.per_prompt[point]
        spread = math.sqrt(sum((x - prompts.mean()) ** 2 for x in prompts) / 6)
        assert result.stderr[point] == pytest.approx(spread / math.sqrt(7), rel=1e-12)


def test_columns_share_one_order_and_ns_keep_theirs():
    proxy, gold = pool(5, 40)
    ns = [8, 1, 8, 40]
    both = best_of_n(proxy, {"a": gold, "b": -2 * gold}, ns)
    alone = best_of_n(proxy, gold, ns)
    np.testing.assert_array_equal(both["a"].per_prompt, alone.per_prompt)
    np.testing.assert_allclose(both["b"].per_prompt, -2 * alone.per_prompt, rtol=1e-13)
    np.testing.assert_array_equal(alone.ns, ns)
    for point, n in enumerate(ns):
        np.testing.assert_allclose(
            alone.per_prompt[point], best_of_n(proxy, gold, [n]).per_prompt[0], rtol=0, atol=1e-13
        )


@pytest.mark.parametrize("n_levels", [None, 5])
def test_permuting_prompts_or_pool_changes_nothing(n_levels):
    proxy, gold = pool(30, 500)
    if n_levels is not None:
        proxy = np.floor(proxy * n_levels)
    ns = [1, 3, 50, 500]
    base = best_of_n(proxy, gold, ns)
    rng = np.random.default_rng(5)
    prompts, samples = rng.permutation(30), rng.permuted(np.tile(np.arange(500), (30, 1)), axis=1)
    moved = best_of_n(proxy[prompts], gold[prompts], ns)
    np.testing.assert_allclose(moved.per_prompt, base.per_prompt[:, prompts], rtol=0, atol=1e-12)
    shuffled = best_of_n(
        np.take_along_axis(proxy, samples, 1), np.take_along_axis(gold, samples, 1), ns
    )
    np.testing.assert_allclose(shuffled.per_prompt, base.per_prompt, rtol=0, atol=1e-12)


def test_chunks_of_prompts_change_nothing(monkeypatch):
    proxy, gold = pool(50, 100)
    whole = best_of_n(np.round(proxy, 1), gold, [1, 7, 100])
    monkeypatch.setattr(table, "CHUNK_SAMPLES", 1)
    pieces = best_of_n(np.round(proxy, 1), gold, [1, 7, 100])
    np.testing.assert_allclose(pieces.per_prompt, whole.per_prompt, rtol=0, atol=1e-13)


def test_a_shuffled_gold_column_is_noticed():
    rng = np.random.default_rng(3)
    gold = rng.normal(size=(50, 256))
    proxy = gold + rng.normal(size=gold.shape)
    ns = [1, 16, 256]
    right = best_of_n(proxy, gold, ns)
    wrong = best_of_n(proxy, rng.permuted(gold, axis=1), ns)
    z = np.abs(right.mean - wrong.mean) / np.hypot(right.stderr, wrong.stderr)
    assert z[0] < 1e-6  # the order does not matter at n = 1
    assert (z[1:] > 10).all()


def test_float32_scores_are_summed_in_float64():
    proxy, gold = pool(4, 2_000)
    result = best_of_n(proxy.astype(np.float32), gold.astype(np.float32), [1, 10])
    expected = best_of_n(proxy.astype(np.float32), gold.astype(np.float32).astype(float), [1, 10])
    np.testing.assert_array_equal(result.per_prompt, expected.per_prompt)


def test_a_hundred_times_faster_than_exact_binomials():
    assert bench_against_big_integers(n_prompts=10, pool_size=6_000)["ratio"] > 100


# ------------------------------------------------------------------------------------------ errors


def with_entry(value, row=1, column=2):
    array = np.zeros((3, 4))
    array[row, column] = value
    return array


@pytest.mark.parametrize(
    ("proxy", "values", "ns", "message"),
    [
        (with_entry(np.nan), np.zeros((3, 4)), [1], r"proxy: nan at row 1 .*column 2 "),
        (np.zeros((3, 4)), with_entry(-np.inf), [1], r"values: -inf at row 1 .*column 2 "),
        (np.zeros((3, 4)), {"gold": with_entry(np.nan)}, [1], r"gold: nan at row 1"),
        (np.zeros((1, 4)), np.zeros((1, 4)), [1], "at least 2 prompts"),
        (np.zeros((3, 4)), np.zeros((4, 3)), [1], r"shape \(4, 3\) differs .*\(3, 4\)"),
        (np.zeros(4), np.zeros(4), [1], r"proxy: shape \(4,\)"),
        (np.zeros((3, 4)), np.zeros((3, 4)), [5], r"ns: 5 exceeds the pool of N = 4"),
        (np.zeros((3, 4)), np.zeros((3, 4)), [0], "ns: 0 is below 1"),
        (np.zeros((3, 4)), np.zeros((3, 4)), [2.0], "ns: .* not integers"),
        (np.zeros((3, 4)), np.zeros((3, 4)), [True], "ns: .* not integers"),
        (np.zeros((3, 4)), np.zeros((3, 4)), [], r"ns: shape \(0,\)"),
        (np.full((3, 4), "a"), np.zeros((3, 4)), [1], "proxy: dtype"),
    ],
)
def test_unusable_input_names_the_place(proxy, values, ns, message):
    with pytest.raises(DataError, match=message):
        best_of_n(proxy, values, ns)


def test_the_row_of_a_bad_score_is_right_in_a_later_chunk(monkeypatch):
    monkeypatch.setattr(table, "CHUNK_SAMPLES", 1)
    scores = np.zeros((40, 3))
    scores[37, 2] = np.nan
    with pytest.raises(DataError, match="row 37 .*column 2"):
        best_of_n(scores, np.zeros((40, 3)), [1])


# -------------------------------------------------------------------------------------- bootstrap


def test_bootstrap_does_not_depend_on_the_global_generator():
    values = np.random.default_rng(0).normal(size=(3, 20))
    draws = []
    for global_seed in (1, 2):
        np.random.seed(global_seed)  # noqa: NPY002
        draws.append(bootstrap_prompts(values, n_draws=50, rng=np.random.default_rng(7)))
    np.testing.assert_array_equal(*draws)


def test_bootstrap_has_the_moments_of_resampled_means():
    """Mean x̄ and variance Σ(x − x̄)²/P², with the points' correlation kept."""
    values = np.random.default_rng(0).normal(size=(2, 40))
    values[1] += values[0]
    draws = bootstrap_prompts(values, n_draws=20_000, rng=np.random.default_rng(1))
    assert draws.shape == (20_000, 2)
    covariance = np.cov(values, ddof=0) / 40
    np.testing.assert_allclose(draws.mean(axis=0), values.mean(axis=1), atol=5 * 0.22 / 141)
    np.testing.assert_allclose(np.cov(draws.T), covariance, rtol=0.05)


def test_bootstrap_of_equal_prompts_has_no_spread():
    draws = bootstrap_prompts(np.full((2, 5), 3.0), n_draws=10, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(draws, 3.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(4), r"shape \(4,\)"),
        (np.zeros((3, 1)), "at least 2 prompts"),
        (with_entry(np.nan), "point 1, prompt 2"),
    ],
)
def test_bootstrap_refuses(values, message):
    with pytest.raises(DataError, match=message):
        bootstrap_prompts(values, n_draws=2, rng=np.random.default_rng(0))


# ------------------------------------------------------------------------------------- KL of BoN


def test_kl_bon_is_the_integral_of_its_density():
    for n in (1, 2, 4, 64, 1000):
        integral, _ = integrate.quad(lambda u, n=n: xlogx(n * u ** (n - 1)), 0, 1)
        assert kl_bon(n) == pytest.approx(integral, abs=1e-8)
    # Gao et al. 2022: about 6 nats at n = 1,000 and 10 at n = 60,000.
    np.testing.assert_allclose(kl_bon([1, 1000, 60_000]), [0, 5.909, 10.002], atol=1e-3)
    with pytest.raises(DataError, match="below 1"):
        kl_bon(0)


def exact_kl_of_atoms(probabilities, n):
    """KL(best-of-n‖π) by enumerating n-tuples; responses of higher index score higher."""
    k = len(probabilities)
    chosen = np.zeros(k)
    for draw in itertools.product(range(k), repeat=n):
        chosen[max(draw)] += np.prod([probabilities[i] for i in draw])
    return float(special.rel_entr(chosen, probabilities).sum())


@pytest.mark.parametrize("n", [1, 2, 4])
def test_kl_of_atoms_is_the_enumerated_kl(n):
    counts = np.array([6, 3, 1, 2])
    counts[2] = 2
    scores = np.repeat(np.arange(4.0), counts)
    proxy = np.stack([scores, scores[::-1]])
    expected = exact_kl_of_atoms(counts / counts.sum(), n)
    result = kl_bon_ties(proxy, [n])
    np.testing.assert_allclose(result.per_prompt, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(result.repeated, 1.0)


@pytest.mark.parametrize("with_ids", [False, True])
def test_kl_without_repeats_is_kl_bon(with_ids):
    proxy, _ = pool(3, 50)
    ids = np.tile(np.arange(50), (3, 1)) if with_ids else None
    result = kl_bon_ties(proxy, [1, 7, 50], ids)
    np.testing.assert_array_equal(result.per_prompt, np.tile(kl_bon([1, 7, 50])[:, None], 3))
    np.testing.assert_array_equal(result.repeated, 0.0)


def test_kl_of_atom_in_a_continuum_is_the_integral():
    """The lower 40 % of the pool is one atom, the rest is continuous."""
    scores = np.concatenate([np.zeros(40), np.arange(1.0, 61)])
    for n in (2, 9):
        mass = 0.4**n
        above, _ = integrate.quad(lambda u, n=n: xlogx(n * u ** (n - 1)), 0.4, 1)
        got = kl_bon_ties(np.stack([scores, scores]), [n]).mean[0]
        assert got == pytest.approx(mass * math.log(mass / 0.4) + above, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_kl_with_ties_lies_between_zero_and_kl_bon(data):
    size = data.draw(st.integers(1, 12))
    cells = st.lists(st.integers(0, 6), min_size=size, max_size=size)
    proxy = [data.draw(cells), data.draw(cells)]
    ids = [data.draw(cells), data.draw(cells)]
    ns = np.arange(1, size + 1)
    bound = kl_bon(ns)[:, None]
    by_score = kl_bon_ties(proxy, ns).per_prompt
    by_id = kl_bon_ties(proxy, ns, ids).per_prompt
    assert (by_score <= bound).all()
    assert (by_id <= by_score + 1e-14).all()
    assert (by_id >= 0).all()


def test_ids_that_follow_the_scores_change_nothing():
    rng = np.random.default_rng(0)
    ids = rng.integers(12, size=(4, 60))
    scores = rng.normal(size=12)[ids]  # distinct responses, distinct scores
    ns = [1, 2, 8, 60]
    np.testing.assert_allclose(
        kl_bon_ties(scores, ns, ids).per_prompt, kl_bon_ties(scores, ns).per_prompt, atol=1e-12
    )


def test_ids_reveal_copies_that_noise_has_parted():
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(10, size=(4, 200)), axis=1)
    noisy = ids + 1e-7 * rng.normal(size=ids.shape)
    ns = [2, 16, 100]
    parted = kl_bon_ties(noisy, ns)
    merged = kl_bon_ties(noisy, ns, ids)
    clean = kl_bon_ties(ids.astype(float), ns)
    np.testing.assert_array_equal(parted.mean, kl_bon(ns))
    np.testing.assert_allclose(merged.per_prompt, clean.per_prompt, rtol=0, atol=1e-12)
    assert (clean.mean < kl_bon(ns) - 0.001).all()


def test_kl_of_a_constant_proxy_is_zero():
    np.testing.assert_allclose(kl_bon_ties(np.ones((2, 30)), [1, 5, 30]).per_prompt, 0, atol=1e-14)


def test_kl_ids_must_be_integers_of_the_pools_shape():
    with pytest.raises(DataError, match="ids: dtype"):
        kl_bon_ties(np.zeros((2, 3)), [1], np.zeros((2, 3)))
    with pytest.raises(DataError, match=r"ids: shape \(3, 2\)"):
        kl_bon_ties(np.zeros((2, 3)), [1], np.zeros((3, 2), dtype=int))


# ---------------------------------------------------------------------------------- soft best-of-n


def soft_brute_force(proxy, values, n, strength):
    picks = []
    for subset in itertools.combinations(range(len(proxy)), n):
        chosen = list(subset)
        picks.append(values[chosen] @ special.softmax(strength * proxy[chosen]))
    return np.mean(picks)


@pytest.mark.parametrize("strength", [0.0, 0.7, 3.0])
def test_soft_best_of_n_is_the_mean_over_subsets_within_its_mc_error(strength):
    proxy, gold = pool(40, 8)
    ns = [1, 2, 5, 8]
    rng = np.random.default_rng(2)
    result = soft_best_of_n(proxy, gold, ns, strength=strength, rng=rng, n_noise=200)
    expected = [
        np.mean([soft_brute_force(r, v, n, strength) for r, v in zip(proxy, gold, strict=True)])
        for n in ns
    ]
    np.testing.assert_allclose(result.mean[0], gold.mean(), rtol=1e-12)
    z = (result.mean[1:] - expected[1:]) / result.mc_stderr[1:]
    assert (np.abs(z) < 4).all()
    assert (result.mc_stderr[1:] < 0.02).all()


def test_soft_best_of_n_of_great_strength_is_best_of_n():
    proxy, gold = pool(5, 30)
    rng = np.random.default_rng(0)
    soft = soft_best_of_n(proxy, {"gold": gold}, [1, 6, 30], strength=1e9, rng=rng)["gold"]
    hard = best_of_n(proxy, gold, [1, 6, 30])
    np.testing.assert_allclose(soft.per_prompt, hard.per_prompt, rtol=0, atol=1e-12)
    np.testing.assert_allclose(soft.mc_stderr, 0, atol=1e-12)


def test_soft_best_of_n_mc_error_covers_repetition():
    proxy, gold = pool(6, 20)
    runs = [
        soft_best_of_n(proxy, gold, [4], strength=1.0, rng=np.random.default_rng(seed), n_noise=8)
        for seed in range(200)
    ]
    spread = np.std([run.mean[0] for run in runs], ddof=1)
    assert np.mean([run.mc_stderr[0] for run in runs]) == pytest.approx(spread, rel=0.2)


def test_soft_best_of_n_refuses():
    proxy, gold = pool(3, 4)
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="strength: -1"):
        soft_best_of_n(proxy, gold, [1], strength=-1.0, rng=rng)
    with pytest.raises(DataError, match="overflow"):
        soft_best_of_n(proxy * 1e200, gold, [1], strength=1e200, rng=rng)
    with pytest.raises(DataError, match="n_noise: 1"):
        soft_best_of_n(proxy, gold, [1], strength=1.0, rng=rng, n_noise=1)


# --------------------------------------------------------------------------------- best-of-Poisson


def test_best_of_poisson_is_the_poisson_mixture_of_brute_force():
    proxy, gold = pool(3, 10)
    mu = 0.4
    expected = [
        sum(math.exp(-mu) * mu**k / math.factorial(k) * brute_force(r, v, k + 1) for k in range(10))
        for r, v in zip(proxy, gold, strict=True)
    ]
    result = best_of_poisson(proxy, gold, [mu, 0.0])
    tail = 1 - sum(math.exp(-mu) * mu**k / math.factorial(k) for k in range(10))
    assert result.truncated_mass[0] == pytest.approx(tail, rel=1e-4)
    np.testing.assert_allclose(result.per_prompt[0], expected, atol=1e-9)
    np.testing.assert_allclose(result.per_prompt[1], gold.mean(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(result.truncated_mass[1], 0.0)


def test_best_of_poisson_refuses_a_pool_that_is_too_small():
    proxy, gold = pool(3, 10)
    with pytest.raises(DataError, match=r"Poisson\(5\) exceeds the pool of N = 10"):
        best_of_poisson(proxy, gold, [1.0, 5.0], max_truncated=1e-3)
    with pytest.raises(DataError, match="mus: -1"):
        best_of_poisson(proxy, gold, [-1.0])


def test_kl_best_of_poisson_is_its_closed_form():
    """∫ f log f by parts, with the exponential integral Ei."""
    mu = np.array([0.05, 0.5, 1.0, 3.0, 50.0, 300.0])
    ei = np.exp(-mu - 1) * (special.expi(1 + mu) + math.e - special.expi(1)) / mu
    expected = np.log1p(mu) - 1 / mu + ei - 1 - np.expm1(-mu) / mu
    np.testing.assert_allclose(kl_best_of_poisson(mu), expected, rtol=1e-11, atol=1e-13)
    assert kl_best_of_poisson(0.0)[0] == 0
    # For large μ the density is that of best-of-n with n = μ, whose KL tends to log n − 1.
    assert kl_best_of_poisson(1e9)[0] == pytest.approx(math.log(1e9) - 1, abs=1e-8)


# ---------------------------------------------------------------------------------- tilt


def test_tilt_is_the_direct_sum():
    proxy, gold = pool(3, 6)
    betas = [0.5, 2.0]
    result = exponential_tilt(proxy, {"gold": gold}, betas)["gold"]
    for k, beta in enumerate(betas):
        for p in range(3):
            weight = special.softmax(proxy[p] / beta)
            assert result.per_prompt[k, p] == pytest.approx(weight @ gold[p], abs=1e-13)
            kl = special.rel_entr(weight, np.full(6, 1 / 6)).sum()
            assert result.kl_per_prompt[k, p] == pytest.approx(kl, abs=1e-13)
            assert result.ess[k, p] == pytest.approx(1 / (weight**2).sum(), rel=1e-12)


def test_tilt_of_a_gaussian_is_the_shifted_gaussian():
    """π_init = N(m_p, 1): the tilt by exp(r/β) is N(m_p + 1/β, 1), with KL 1/(2β²)."""
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(200, 4_000)) + rng.normal(size=(200, 1))
    gold = 0.5 * proxy + rng.normal(size=proxy.shape)
    betas = np.array([4.0, 1.0, 0.7])
    gain = exponential_tilt(proxy, gold - gold.mean(axis=1, keepdims=True), betas)
    assert gain.reliable.all() and gain.warning is None
    assert (np.abs(gain.mean - 0.5 / betas) < 4 * gain.stderr + 0.003).all()
    assert (np.abs(gain.kl_seq_nats - 0.5 / betas**2) < 4 * gain.kl_stderr + 0.003).all()


def test_tilt_beats_best_of_n_on_the_proxy_at_equal_kl():
    proxy = np.random.default_rng(1).uniform(size=(50, 4_000))
    betas = np.geomspace(0.02, 2, 40)[::-1]
    tilt = exponential_tilt(proxy, proxy, betas)
    ns = np.array([2, 4, 8, 16])
    at_equal_kl = np.interp(kl_bon(ns), tilt.kl_seq_nats, tilt.mean)
    assert (at_equal_kl >= best_of_n(proxy, proxy, ns).mean).all()


def test_tilt_flags_a_pool_that_cannot_support_it():
    proxy, gold = pool(10, 200)
    result = exponential_tilt(proxy, gold, [10.0, 0.01])
    np.testing.assert_array_equal(result.reliable, [True, False])
    assert "beta = 0.01" in result.warning and "beta = 10" not in result.warning
    assert (result.kl_per_prompt <= math.log(200)).all()


def test_tilt_refuses():
    proxy, gold = pool(3, 4)
    with pytest.raises(DataError, match="betas: 0 is not positive"):
        exponential_tilt(proxy, gold, [0.0])
    with pytest.raises(DataError, match="overflows"):
        exponential_tilt(proxy * 1e200, gold, [1e-200])


def test_unreliable_weights_do_not_overflow():
    proxy = np.array([[1e300, -1e300], [0.0, 1.0]])
    result = exponential_tilt(proxy, np.array([[1.0, 2.0], [3.0, 3.0]]), [1.0])
    np.testing.assert_array_equal(result.per_prompt, [[1.0, 3.0]])
    assert result.kl_per_prompt[0, 0] == pytest.approx(math.log(2), rel=1e-15)
