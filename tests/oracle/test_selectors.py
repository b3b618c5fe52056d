"""Ways to choose from a pool, against enumeration of all draws and against numerical optimisation."""

from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import poisson as poisson_of

from overopt.base.errors import ConfigError
from overopt.base.seeding import numpy_rng
from overopt.pools import selection
from overopt.pools.best_of_n import kl_bon
from overopt.pools.hedge import hedge_n
from overopt.pools.selection import BETAS, Grid, ScoredPool, best_of, ess, kl_nats
from overopt.pools.selectors import (
    hedged,
    majority,
    pessimism,
    poisson,
    soft,
    tails,
    tilt,
    weighted_majority,
)
from overopt.pools.tilt import exponential_tilt

SCORES = np.array([0.3, -1.2, 0.3, 1.7, 0.9])  # two are equal
GRID = Grid(ns=(1, 2, 3, 4), strength=2.0)
NAMES = selection.names()
BY_SCORE = tuple(name for name in NAMES if not selection.reads_answers(name))


def pool_of(scores, gold=None):
    proxy = np.atleast_2d(scores)
    return ScoredPool(proxy, np.zeros_like(proxy) if gold is None else gold)


def large(n_prompts=6, size=400):
    rng = numpy_rng(3, "selectors")
    return ScoredPool(*rng.normal(size=(2, n_prompts, size)))


def weights_of(name, pool, grid=GRID):
    return list(selection.selector(name).weights(pool, grid))


def by_enumeration(n, pick):
    """Probability of each response over all draws of n with replacement; pick: draw -> odds (n,)."""
    weight = np.zeros(len(SCORES))
    for draw in product(range(len(SCORES)), repeat=n):
        odds = pick(SCORES[list(draw)])
        np.add.at(weight, list(draw), odds / odds.sum() / len(SCORES) ** n)
    return weight


def test_best_of_n_is_that_of_all_draws():
    found = best_of(SCORES, GRID.ns)
    for row, n in zip(found, GRID.ns, strict=True):
        expected = by_enumeration(n, lambda r: (r == r.max()).astype(float))
        np.testing.assert_allclose(row, expected, atol=1e-14)


def test_soft_best_of_n_is_that_of_all_draws():
    (found,) = weights_of("soft", pool_of(SCORES))
    for row, n in zip(found, GRID.ns, strict=True):
        expected = by_enumeration(n, lambda r: np.exp(GRID.strength * r))
        np.testing.assert_allclose(row, expected, atol=1e-10)


def test_soft_best_of_n_goes_to_the_tilt_with_n_and_to_best_of_n_with_its_strength():
    (many,) = weights_of("soft", pool_of(SCORES), Grid((1, 100_000), 1 / BETAS[4]))
    (tilted,) = weights_of("tilt", pool_of(SCORES))
    np.testing.assert_allclose(many[1], tilted[5], atol=1e-4)
    (strong,) = weights_of("soft", pool_of(SCORES), Grid(GRID.ns, 400.0))
    np.testing.assert_allclose(strong, best_of(SCORES, GRID.ns), atol=1e-10)


def test_best_of_poisson_is_the_mixture_of_best_of_n():
    (found,) = weights_of("poisson", pool_of(SCORES))
    extra = np.arange(60)
    mixed = [poisson_of.pmf(extra, n - 1) @ best_of(SCORES, extra + 1) for n in GRID.ns]
    np.testing.assert_allclose(found, mixed, atol=1e-13)


@pytest.mark.parametrize("order", [1.0, 1.3, 1.75, 2.0])
@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_tsallis_weights_maximise_their_objective(order, beta):
    """Against a numerical optimiser that knows nothing of the closed form."""
    scores = np.array([0.3, -1.2, 0.4, 1.7, 0.9])

    def lost(w):
        ratio = np.maximum(len(w) * w, 1e-300)
        if order == 1:
            divergence = (w * np.log(ratio)).sum()
        else:
            divergence = ((ratio**order).mean() - 1) / (order * (order - 1))
        return beta * divergence - w @ scores

    best = min(
        (
            minimize(
                lost,
                start,
                method="SLSQP",
                bounds=[(0, 1)] * 5,
                constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
                options={"ftol": 1e-14, "maxiter": 1000},
            )
            for start in (np.full(5, 0.2), np.array([0.1, 0.1, 0.1, 0.4, 0.3]))
        ),
        key=lambda r: r.fun,
    )
    found = tails.tsallis_optimal(scores, beta, order)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert lost(found) <= best.fun + 1e-8
    np.testing.assert_allclose(found, best.x, atol=2e-4)


def test_best_of_tails_is_the_tilt_of_light_tails_and_pessimism_of_heavy_ones():
    rng = numpy_rng(5, "tails")
    light, heavy = rng.uniform(size=800), rng.pareto(0.7, size=800)
    assert tails.hill(light) < 0.2 and tails.hill(heavy) > 1
    assert tails.hill(np.zeros(50)) == 0
    (found,) = weights_of("tails", pool_of(heavy))
    (expected,) = weights_of("pessimism", pool_of(heavy))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    equal = np.r_[np.zeros(60), np.ones(40)]  # the upper tail is one value
    (found,) = weights_of("tails", pool_of(equal))
    (expected,) = weights_of("tilt", pool_of(equal))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    # P(X > x) = x^{-2}, shifted by the median m and cut at the upper tenth u: with a = m/u the mean of
    # log((X − m)/(u − m)) is −log(1−a)/a² − 1/a.
    a = 2**0.5 / 10**0.5
    found = tails.hill(rng.pareto(2.0, size=200_000))
    assert found == pytest.approx(-np.log(1 - a) / a**2 - 1 / a, abs=0.02)


def test_the_tilt_is_that_of_the_pool_estimates():
    pool = large()
    found = np.stack(weights_of("tilt", pool), axis=1)  # (K, P, N)
    expected = exponential_tilt(pool.proxy, pool.gold, BETAS)
    np.testing.assert_allclose((found[1:] * pool.gold).sum(2), expected.per_prompt, atol=1e-12)
    kl = np.stack([kl_nats(w) for w in weights_of("tilt", pool)], axis=1)
    np.testing.assert_allclose(kl[1:], expected.kl_per_prompt, atol=1e-12)
    sizes = np.stack([ess(w) for w in weights_of("tilt", pool)], axis=1)
    np.testing.assert_allclose(sizes[1:], expected.ess, rtol=1e-12)


def test_the_kl_of_best_of_n_in_a_pool_without_ties_is_the_known_one():
    scores = numpy_rng(1, "kl").normal(size=20_000)
    np.testing.assert_allclose(kl_nats(best_of(scores, (1, 4, 32))), kl_bon((1, 4, 32)), atol=2e-3)


def test_a_hedge_stops_where_gold_of_the_other_half_turns():
    pool = large(8)
    gold = pool.proxy - 0.6 * np.maximum(pool.proxy - 0.5, 0) ** 2 * 2
    grid = Grid((1, 2, 8, 32, 100), 3.0)
    found = weights_of("hedged", ScoredPool(pool.proxy, gold), grid)
    n = [hedge_n(pool.proxy[1::2], gold[1::2], max_n=m).n for m in grid.ns[1:]]
    assert n[-1] == pytest.approx(n[-2], rel=1e-6) and n[-1] < 32  # it has turned
    np.testing.assert_allclose(found[0], best_of(pool.proxy[0], [1, *n]), atol=1e-12)
    other = gold.copy()
    other[::2] = -other[::2]  # gold of the prompts themselves
    again = weights_of("hedged", ScoredPool(pool.proxy, other), grid)
    np.testing.assert_array_equal(again[0], found[0])
    assert not np.allclose(again[1], found[1])


@pytest.mark.parametrize("name", BY_SCORE)
def test_what_every_selector_keeps(name):
    """Weights add up, start at random, move away steadily, and never beat the tilt at their KL."""
    module, pool = selection.selector(name), large()
    found = weights_of(name, pool, Grid((1, 2, 4, 8, 16), 3.0))
    fine = np.geomspace(1e-3, 60, 4000)
    for prompt, weight in enumerate(found):
        assert weight.shape == (len(module.coordinates(Grid((1, 2, 4, 8, 16), 3.0))), 400)
        assert (weight >= 0).all()
        np.testing.assert_allclose(weight.sum(1), 1, atol=1e-12)
        np.testing.assert_allclose(weight[0], 1 / 400, atol=1e-12)
        kl, r = kl_nats(weight), pool.proxy[prompt]
        assert (np.diff(kl) > -1e-6).all() and kl[-1] < np.log(400)
        tilted = np.exp(fine[:, None] * (r - r.max()))
        tilted /= tilted.sum(1, keepdims=True)
        best = np.interp(kl, kl_nats(tilted), tilted @ r)
        assert (weight @ r <= best + 1e-4).all()
        # Equal scores have equal weights, and a higher score never has less.
        assert (np.diff(weight[:, np.argsort(r)], axis=1) > -1e-12).all()
    if name != "hedged":
        blind = weights_of(name, ScoredPool(pool.proxy, -pool.gold), Grid((1, 2, 4, 8, 16), 3.0))
        assert all(np.array_equal(a, b) for a, b in zip(found, blind, strict=True))


def test_selectors_are_found_by_their_files_and_others_refused():
    assert set(NAMES) == {*BY_SCORE, "majority", "weighted_majority"}
    modules = (tilt, soft, poisson, pessimism, tails, hedged, majority, weighted_majority)
    for what in ("label", "coord", "marker"):
        assert len({getattr(m.SHOWN, what) for m in modules}) == len(modules)
    with pytest.raises(ConfigError, match=r"bon\.also = 'tilts': is no selector.*hedged"):
        selection.selector("tilts")


@pytest.mark.parametrize(
    ("name", "vote"), [("majority", np.ones_like), ("weighted_majority", expit)]
)
def test_votes_against_all_draws(name, vote):
    """Five responses with three answers, one of them none; every draw of n listed."""
    scores, given, ns = np.array([0.5, -1.0, 2.0, 0.0, 1.0]), np.array([0, 0, 1, -1, 2]), (1, 2, 3)
    votes = np.where(given < 0, 0.0, vote(scores))
    pool = ScoredPool(scores[None], scores[None], given[None])
    (found,) = weights_of(name, pool, Grid(ns, 1.0))
    for k, n in enumerate(ns):
        wins = dict.fromkeys(given, 0.0)
        draws = list(product(range(5), repeat=n))
        for drawn in map(list, draws):
            sums = {g: votes[[i for i in drawn if given[i] == g]].sum() for g in given[drawn]}
            top = [g for g, x in sums.items() if x > max(sums.values()) - 1e-9]
            for g in top:
                wins[g] += 1 / len(top) / len(draws)
        exact = np.array([wins[g] / (given == g).sum() for g in given])
        spread = np.sqrt(exact * (1 - exact) / 1024)
        assert found[k].sum() == pytest.approx(1)
        assert (np.abs(found[k] - exact) <= 4.5 * spread + 1e-12).all()


def test_a_vote_moves_no_further_than_its_answers():
    """Responses that give the same answer are picked alike, so draws add next to no KL."""
    given = np.arange(2000) % 3
    pool = ScoredPool(np.zeros((1, 2000)), np.zeros((1, 2000)), given[None])
    (found,) = weights_of("majority", pool, Grid((1, 2, 64), 1.0))
    assert (kl_nats(found) < 0.01).all()
    apart = ScoredPool(np.zeros((1, 2000)), np.zeros((1, 2000)), np.arange(2000)[None])
    (found,) = weights_of("majority", apart, Grid((1, 2, 64), 1.0))
    np.testing.assert_allclose(found, 1 / 2000)
