"""A proxy point as a constraint: the multiplier by hand, and the optimum against the exact tilt."""

import method_toy
import numpy as np
import pytest
from scipy.optimize import brentq

from overopt.base.errors import ConfigError
from overopt.measure.evaluate import measure_kl
from overopt.methods import grpo, ppo, rloo
from overopt.methods.targets import next_multiplier
from overopt.nets.sampling import sample
from overopt.stages.points import correlation, moments

TARGET, BETA = 1.0, 0.3


def test_the_multiplier_goes_down_the_dual():
    settings = ppo.Settings(kl_coef=0.1, proxy_target=2.0, proxy_gain=0.05)
    assert next_multiplier(0.5, 1.0, settings) == pytest.approx(0.55)
    assert next_multiplier(0.5, 4.0, settings) == pytest.approx(0.4)
    assert next_multiplier(1.0, 0.0, settings) == 1.0
    assert next_multiplier(-0.95, 30.0, settings) == -1.0
    assert next_multiplier(0.3, 9.0, ppo.Settings()) == 1.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"proxy_target": 1.0}, r"method\.proxy_target = 1.0: needs method\.kl_coef above 0"),
        ({"proxy_target": -1.0}, r"method\.proxy_target = -1.0: must be at least 0"),
        ({"proxy_gain": 0.2}, r"method\.proxy_gain = 0.2.*needs method\.proxy_target"),
    ],
)
@pytest.mark.parametrize("module", [ppo, grpo, rloo])
def test_wrong_settings_are_named(module, more, message):
    with pytest.raises(ConfigError, match=message):
        module.Settings(**more)
    with pytest.raises(ConfigError, match=r"needs method\.sd=false or a penalty in the reward"):
        grpo.Settings(kl_coef=0.1, proxy_target=1.0)


def exact_optimum():
    """KL of the tilt of the initial policy whose mean score is the target, from many samples."""
    made = sample(
        method_toy.policy(), method_toy.prompts(), n_tokens=method_toy.T, seed=9, copies=20_000
    )
    score = method_toy.LikesToken().score(made).numpy().astype(float)

    def tilted(strength):
        weight = np.exp(strength * score)
        return weight / weight.sum()

    strength = brentq(lambda s: tilted(s) @ score - TARGET, 0, 20)
    weight = tilted(strength)
    return score.mean(), float((weight * np.log(weight * len(weight))).sum())


@pytest.mark.parametrize(
    ("module", "more"),
    [
        (ppo, {"adv_scale": "fixed"}),
        (grpo, {"sd": False, "length": "dr_grpo"}),
        (rloo, {"kl_in": "k1_reward"}),
    ],
    ids=["ppo", "grpo", "rloo"],
)
def test_the_policy_stays_at_its_point_at_about_the_least_kl(module, more):
    start, least = exact_optimum()
    assert start < 0.6 * TARGET  # there is something to do
    settings = method_toy.settings_of(
        module, batch=128, lr=1e-2, steps=160, kl_coef=BETA, proxy_target=TARGET, **more
    )
    task = method_toy.problem()
    state = method_toy.started(module, settings, task)
    logs = method_toy.steps(module, state, settings, task, settings.steps)
    late = np.mean([log["train_proxy_score"] for log in logs[-40:]])
    assert late == pytest.approx(TARGET, abs=0.12)
    assert 0 < np.mean([log["multiplier"] for log in logs[-40:]]) < 1
    made = sample(state.policy, method_toy.prompts(), n_tokens=method_toy.T, seed=11, copies=2000)
    kl = float(measure_kl(state.policy, method_toy.policy(), made).exact.mean())
    assert 0.8 * least < kl < 1.6 * least


def test_without_the_constraint_the_score_goes_on():
    """The same penalty alone ends elsewhere, so the point is the constraint's doing."""
    settings = method_toy.settings_of(rloo, batch=128, lr=1e-2, steps=160, kl_coef=0.05)
    task = method_toy.problem()
    state = method_toy.started(rloo, settings, task)
    logs = method_toy.steps(rloo, state, settings, task, settings.steps)
    assert np.mean([log["train_proxy_score"] for log in logs[-40:]]) > TARGET + 0.5


def test_the_recorded_correlation_is_that_of_numpy():
    rng = np.random.default_rng(0)
    proxy = rng.normal(3.0, 2.0, size=(7, 50))
    gold = 0.4 * proxy + rng.normal(size=proxy.shape)
    tables = {"proxy": proxy, "gold": gold} | moments(proxy, gold)
    expected = np.corrcoef(proxy.ravel(), gold.ravel())[0, 1]
    assert correlation(tables) == pytest.approx(expected, abs=1e-12)
    by_prompt = {name: table.mean(1) for name, table in tables.items()}
    assert correlation(by_prompt) == pytest.approx(expected, abs=1e-12)
    flat = np.full_like(proxy, 0.1)
    assert correlation({"proxy": proxy, "gold": flat} | moments(proxy, flat)) is None
