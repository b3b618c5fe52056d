"""Ensembles, length penalties, shaping: against formulas, limits, and a planted ordering error."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import FP32

from overopt.base.seeding import torch_generator
from overopt.methods.targets import adapted_kl_coef
from overopt.pools.best_of_n import best_of_n
from overopt.rewards.transforms import ensembles, length, shaping
from overopt.rewards.transforms.ensembles import ENSEMBLES
from overopt.rewards.transforms.inputs import RewardInputs, Step, chain

STRENGTH = 0.7
COMBINATIONS = sorted(set(ENSEMBLES) - {"weight_average"})


def table(root_seed, m=5, r=40):
    """Inputs with members of scores like those of trained proxies."""
    generator = torch_generator(root_seed, "mitigations")
    return RewardInputs(
        torch.randn(m, r, generator=generator) * 1.5,
        torch.randint(1, 48, (r,), generator=generator),
        20.0,
        torch.randn(r, generator=generator),
    )


def with_scores(inputs, scores):
    return RewardInputs(scores, inputs.n_tokens, inputs.ref_tokens, inputs.ref_scores)


def expected(name, x, s):
    """The formula in float64, member axis first."""
    x = x.double().numpy()
    return {
        "mean": lambda: x.mean(0),
        "worst_case": lambda: x.min(0),
        "median": lambda: np.median(x, 0),
        "mean_minus_variance": lambda: x.mean(0) - s * (x**2).mean(0) + s * x.mean(0) ** 2,
        "mean_minus_std": lambda: x.mean(0) - s * np.std(x, 0, ddof=0),
        "log_mean_exp": lambda: -s * np.log(np.exp(-x / s).sum(0) / len(x)),
    }[name]()


@pytest.mark.parametrize("m", [2, 5])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_combinations_are_their_formulas(name, m):
    inputs = table(1, m=m)
    out = ENSEMBLES[name](inputs, strength=STRENGTH)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out, expected(name, inputs.scores, STRENGTH), atol=FP32)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_one_member_and_identical_members_are_the_single_proxy_exactly(name):
    single = table(2, m=1)
    for m in (1, 3, 5):
        copies = with_scores(single, single.scores.repeat(m, 1))
        assert torch.equal(ENSEMBLES[name](copies, strength=STRENGTH), single.scores[0])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), m=st.integers(2, 8), shift=st.floats(-20, 20))
def test_order_translation_and_bounds(seed, m, shift):
    inputs = table(seed, m=m, r=12)
    order = torch.randperm(m, generator=torch_generator(seed, "order"))
    lowest, highest = inputs.scores.amin(0), inputs.scores.amax(0)
    for name in COMBINATIONS:
        reward = ENSEMBLES[name]
        out = reward(inputs, strength=STRENGTH)
        permuted = reward(with_scores(inputs, inputs.scores[order]), strength=STRENGTH)
        assert torch.equal(out, permuted), name
        moved = reward(with_scores(inputs, inputs.scores + shift), strength=STRENGTH)
        torch.testing.assert_close(moved, out + shift, atol=1e-4, rtol=0)
        assert (out <= highest + FP32).all()
        if name in ("mean", "worst_case", "median", "log_mean_exp"):
            assert (out >= lowest - FP32).all()


def test_strength_zero_is_exactly_the_mean():
    inputs = table(3)
    mean = ensembles.mean(inputs)
    assert torch.equal(ensembles.mean_minus_variance(inputs, strength=0.0), mean)
    assert torch.equal(ensembles.mean_minus_std(inputs, strength=0.0), mean)
    assert torch.equal(length.linear(inputs, strength=0.0), mean)
    assert torch.equal(length.hinge(inputs, strength=0.0), mean)


def test_soft_minimum_runs_from_worst_case_to_mean_without_losing_digits():
    inputs = table(4)
    near = {b: ensembles.log_mean_exp(inputs, strength=b) for b in (1e-6, 1e-30, 1e6, 1e30)}
    mean, worst = ensembles.mean(inputs), ensembles.worst_case(inputs)
    for beta in (1e-6, 1e-30):
        torch.testing.assert_close(near[beta], worst, atol=FP32, rtol=0)
    for beta in (1e6, 1e30):
        torch.testing.assert_close(near[beta], mean, atol=FP32, rtol=0)
    between = [ensembles.log_mean_exp(inputs, strength=b) for b in (0.1, 0.3, 1.0, 3.0, 10.0)]
    for lower, higher in zip(between[:-1], between[1:], strict=True):
        assert (lower < higher).all()


def test_soft_minimum_is_mean_minus_variance_to_second_order():
    inputs, beta = table(5), 200.0
    soft = ensembles.log_mean_exp(inputs, strength=beta) - ensembles.mean(inputs)
    second = ensembles.mean_minus_variance(inputs, strength=1 / (2 * beta)) - ensembles.mean(inputs)
    # The third-order term is E(r − mean)³/(6β²), here below 4e-5; both sides are about −5e-3.
    assert float(second.abs().max()) > 5e-3
    torch.testing.assert_close(soft, second, atol=1e-4, rtol=0)


def test_length_penalties():
    inputs = table(6, m=1)
    tokens = inputs.n_tokens.double().numpy()
    score = inputs.scores[0].double().numpy()
    np.testing.assert_allclose(
        length.linear(inputs, strength=0.1), score - 0.1 * (tokens - 20), atol=FP32
    )
    free = length.hinge(inputs, strength=0.1, budget=1.5)
    np.testing.assert_allclose(free, score - 0.1 * np.maximum(tokens - 30, 0), atol=FP32)
    assert (tokens < 30).any() and (tokens > 30).any()


def test_shapings():
    inputs = table(7, m=1)
    score, ref = inputs.scores[0].double().numpy(), inputs.ref_scores.double().numpy()
    sigma = 1 / (1 + np.exp(-2 * (score - ref)))
    np.testing.assert_allclose(shaping.par(inputs, strength=2.0), sigma, atol=FP32)
    np.testing.assert_allclose(shaping.log_sigmoid(inputs, strength=2.0), np.log(sigma), atol=FP32)
    np.testing.assert_array_equal(
        shaping.clip(inputs, strength=1.0), np.clip(inputs.scores[0].numpy(), -1, 1)
    )
    with pytest.raises(ValueError, match="ref_scores"):
        shaping.par(RewardInputs(inputs.scores, inputs.n_tokens, 20.0), strength=1.0)


@pytest.mark.parametrize("name", ["par", "log_sigmoid"])
def test_monotone_shaping_leaves_best_of_n_unchanged(name):
    rng = np.random.default_rng(0)
    gold, proxy = rng.standard_normal((2, 4, 50))
    # The reference is one number a prompt, so within a prompt the shaping is monotone.
    ref = np.repeat(rng.standard_normal(4), 50)
    flat = RewardInputs(
        torch.from_numpy(proxy.reshape(1, -1)), torch.ones(200), 1.0, torch.from_numpy(ref)
    )
    shaped = shaping.SHAPINGS[name](flat, strength=1.0).numpy().reshape(4, 50)
    ns = [1, 5, 50]
    assert (shaped != proxy).all()
    plain = best_of_n(proxy, {"gold": gold}, ns)["gold"].per_prompt
    np.testing.assert_array_equal(best_of_n(shaped, {"gold": gold}, ns)["gold"].per_prompt, plain)


def test_mitigations_chain_in_order():
    inputs = table(8)
    steps = [Step(ensembles.worst_case, 0.0), Step(length.linear, 0.1), Step(shaping.clip, 1.0)]
    by_hand = (inputs.scores.amin(0) - 0.1 * (inputs.n_tokens - 20.0)).clamp(-1, 1)
    torch.testing.assert_close(chain(steps, inputs), by_hand, atol=FP32, rtol=0)
    assert not torch.equal(chain(steps, inputs), chain(steps[::-1], inputs))


def test_gold_curve_of_an_ensemble_follows_its_own_order():
    rng = np.random.default_rng(3)
    gold = rng.standard_normal(7)
    members = gold + 1.2 * rng.standard_normal((4, 7))
    inputs = RewardInputs(torch.from_numpy(members), torch.ones(7), 1.0)
    for name in COMBINATIONS:
        proxy = ENSEMBLES[name](inputs, strength=STRENGTH).numpy()
        for n in (2, 4):
            subsets = [list(s) for s in combinations(range(7), n)]
            own = np.mean([gold[s][proxy[s].argmax()] for s in subsets])
            of_first_member = np.mean([gold[s][members[0][s].argmax()] for s in subsets])
            two = best_of_n(np.stack([proxy] * 2), {"gold": np.stack([gold] * 2)}, [n])
            found = two["gold"].mean[0]
            assert found == pytest.approx(own, abs=1e-12)
            assert abs(found - of_first_member) > 0.01


def test_adaptive_kl_moves_towards_its_target():
    assert adapted_kl_coef(0.2, 6.0, target=6.0, gain=0.1) == 0.2
    assert adapted_kl_coef(0.2, 6.6, target=6.0, gain=0.1) == pytest.approx(0.2 * 1.01)
    assert adapted_kl_coef(0.2, 600.0, target=6.0, gain=0.1) == pytest.approx(0.2 * 1.02)
    assert adapted_kl_coef(0.2, -1.0, target=6.0, gain=0.1) == pytest.approx(0.2 * 0.98)
    # A process whose KL falls as the weight rises settles at the target.
    coef = 1.0
    for _ in range(600):
        coef = adapted_kl_coef(coef, 3.0 / coef, target=6.0, gain=0.1)
    assert 3.0 / coef == pytest.approx(6.0, rel=1e-3)
