"""Win rates against closed forms, brute force, and the coupling of evaluation samples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overopt.base.errors import DataError
from overopt.base.seeding import numpy_rng
from overopt.measure.win_rate import paired_win_rate, pool_win_share
from overopt.pools.best_of_n import best_of_n

NS = [1, 2, 4, 16, 64, 256]


def test_pool_share_is_what_counting_gives_with_ties():
    gold = numpy_rng(0, "ties").integers(0, 4, size=(5, 9)).astype(float)
    counted = [
        [
            sum((row[i] > row[j]) + 0.5 * (row[i] == row[j]) for j in range(9) if j != i) / 8
            for i in range(9)
        ]
        for row in gold
    ]
    np.testing.assert_allclose(pool_win_share(gold), counted, rtol=1e-14)


@pytest.mark.parametrize("size", [256, 1024])
def test_perfect_proxy_has_the_closed_form(size):
    gold = numpy_rng(1, "perfect").normal(size=(3, size))
    n = np.array(NS)
    found = best_of_n(gold, pool_win_share(gold), NS).mean
    np.testing.assert_allclose(found, (n * size - 1) / ((n + 1) * (size - 1)), rtol=1e-11)
    assert np.abs(found - n / (n + 1)).max() < 1 / (size - 1)


def test_reversed_proxy_loses_as_often():
    gold = numpy_rng(1, "perfect").normal(size=(3, 512))
    n = np.array(NS)
    found = best_of_n(-gold, pool_win_share(gold), NS).mean
    assert np.abs(found - 1 / (n + 1)).max() < 1 / 511


def test_first_of_n_wins_exactly_half():
    gold = numpy_rng(2, "half").integers(0, 5, size=(20, 37)).astype(float)
    proxy = numpy_rng(3, "half").normal(size=gold.shape)
    found = best_of_n(proxy, pool_win_share(gold), [1]).per_prompt
    np.testing.assert_allclose(found, 0.5, atol=1e-14)


def test_noisy_proxy_is_estimated_within_the_stated_bias():
    rng = numpy_rng(4, "noisy")
    gold = rng.normal(size=(2000, 40))
    proxy = gold + rng.normal(size=gold.shape)
    n = 10
    found = best_of_n(proxy, pool_win_share(gold), [n])
    # Independent draws: n candidates and an opponent of their own, many times over.
    g = rng.normal(size=(400_000, n))
    best = np.argmax(g + rng.normal(size=g.shape), axis=1)
    win = g[np.arange(len(g)), best] > rng.normal(size=len(g))
    noise = 4 * math.hypot(float(found.stderr[0]), float(win.std() / len(g) ** 0.5))
    assert abs(found.mean[0] - win.mean()) < 1 / 39 + noise
    assert noise < 0.01


@given(
    st.integers(0, 10_000).map(
        lambda s: numpy_rng(s, "any").integers(-3, 4, size=(4, 2 + s % 4)).astype(float)
    )
)
def test_initial_policy_against_itself_is_half(gold):
    np.testing.assert_array_equal(paired_win_rate(gold, gold), 0.5)


def test_coupled_samples_do_not_bias_the_win_rate():
    rng = numpy_rng(5, "coupled")
    start = rng.normal(size=(20_000, 2))
    shift = 0.3
    found = paired_win_rate(start + shift, start)  # coupled as tightly as can be
    exact = 0.5 * (1 + math.erf(shift / 2))  # P(N(shift, 2) > 0)
    stderr = found.std() / len(found) ** 0.5
    assert abs(found.mean() - exact) < 4 * stderr
    assert stderr < 0.003  # the coupled pairs would all have won


def test_paired_win_rate_counts_pairs_of_different_columns():
    rng = numpy_rng(6, "pairs")
    gold, start = rng.integers(0, 3, size=(2, 6, 4)).astype(float)
    counted = [
        np.mean(
            [(g[i] > s[j]) + 0.5 * (g[i] == s[j]) for i in range(4) for j in range(4) if i != j]
        )
        for g, s in zip(gold, start, strict=True)
    ]
    np.testing.assert_allclose(paired_win_rate(gold, start), counted, rtol=1e-14)


@pytest.mark.parametrize("shape", [(3, 1), (3,)])
def test_one_response_a_prompt_is_refused(shape):
    one = np.zeros(shape)
    with pytest.raises(DataError, match="two responses"):
        pool_win_share(one)
    with pytest.raises(DataError, match="two responses"):
        paired_win_rate(one, one)
    with pytest.raises(DataError, match="equal shapes"):
        paired_win_rate(np.zeros((3, 2)), np.zeros((3, 4)))
