"""Steps and evaluations by KL: the controller by hand, the KL of a step against an exact sum."""

import copy

import method_toy
import pytest
import torch

from overopt.base.errors import ConfigError
from overopt.measure.evaluate import measure_kl
from overopt.methods import grpo, losses, ppo, rloo
from overopt.methods.pace import KL_LOGGED, next_rate
from overopt.nets.sampling import sample

LR = 3e-3
CASES = [(ppo, {}), (grpo, {}), (rloo, {"kl_coef": 0.05, "kl_in": "exact_loss"})]


def test_a_rate_follows_the_root_of_kl_within_bounds():
    assert next_rate(1e-3, 0.04, target=0.01, peak=1e-3) == pytest.approx(5e-4)
    assert next_rate(1e-3, 0.02, target=0.01, peak=1e-3) == pytest.approx(1e-3 / 2**0.5)
    assert next_rate(1e-3, 0.01, target=0.01, peak=1e-3) == pytest.approx(1e-3)
    assert next_rate(1e-3, 0.0, target=0.01, peak=1e-3) == pytest.approx(2e-3)  # at most doubled
    assert next_rate(1e-3, 9.0, target=0.01, peak=1e-3) == pytest.approx(5e-4)  # at most halved
    assert next_rate(8e-3, 0.0, target=0.01, peak=1e-3) == pytest.approx(1e-2)
    assert next_rate(1e-5, 9.0, target=0.01, peak=1e-3) == pytest.approx(1e-5)


def log_of(*kls):
    return [{KL_LOGGED: kl} for kl in kls]


def test_wishes_come_at_new_multiples_and_at_the_limit():
    settings = ppo.Settings(eval_sqrt_kl=0.5, stop_sqrt_kl=2.0)
    log = log_of(-0.1, 0.2, 0.3, 0.2, 0.3, 0.9, 2.5, 1.1, 4.0)  # multiples 0 0 1 0 1 1 3 2 4
    wishes = [settings.wish(log[: k + 1]) for k in range(len(log))]
    none, one = "go on", "evaluate"
    assert wishes == [none, none, one, none, none, none, one, none, "stop"]
    assert ppo.Settings(stop_sqrt_kl=2.0).wish(log_of(3.9)) == "go on"
    assert ppo.Settings(eval_every=2).wish([{}]) == "go on"  # not even measured
    assert settings.evaluation_steps == (0, settings.steps)


@pytest.mark.parametrize("name", ["step_kl", "eval_sqrt_kl", "stop_sqrt_kl"])
@pytest.mark.parametrize("value", [-1.0, float("inf")])
def test_a_pace_that_cannot_be_is_refused(name, value):
    with pytest.raises(ConfigError, match=rf"method\.{name}.*must be at least 0|finite"):
        grpo.Settings(**{name: value})
    with pytest.raises(ConfigError, match=r"at least method\.eval_sqrt_kl = 0\.5"):
        ppo.Settings(eval_sqrt_kl=0.5, stop_sqrt_kl=0.2)


@pytest.mark.parametrize(("module", "more"), CASES, ids=["ppo", "grpo", "rloo"])
def test_each_step_moves_the_kl_that_was_asked_for(module, more):
    """Against KL over the vocabulary along fresh responses of the policy before the step."""
    settings = method_toy.settings_of(
        module, batch=128, minibatches=2, lr=LR, steps=30, step_kl=0.02, **more
    )
    task = method_toy.problem()
    state = method_toy.started(module, settings, task)
    measured, logged = [], []
    for k in range(settings.steps):
        old = copy.deepcopy(state.policy)
        logged.append(module.step(state, settings, task)["step_kl_seq_nats"])
        made = sample(old, method_toy.prompts(), n_tokens=method_toy.T, seed=100 + k, copies=64)
        measured.append(float(measure_kl(old, state.policy, made).exact.mean()))
    late = slice(8, None)  # the first rate is a guess
    assert torch.tensor(measured)[late].mean() == pytest.approx(0.02, rel=0.3)
    ratio = torch.tensor(logged)[late] / torch.tensor(measured)[late]
    assert float(ratio.median()) == pytest.approx(1, abs=0.1)


def test_the_kl_of_the_rollouts_is_logged_where_it_is_watched():
    for module in (ppo, grpo, rloo):
        logs = []
        for more in ({}, {"eval_sqrt_kl": 0.5}):
            task = method_toy.problem()
            settings = method_toy.settings_of(module, **more)
            state = method_toy.started(module, settings, task)
            logs.append(method_toy.steps(module, state, settings, task, 3))
            weights = module.state_tensors(state)
        plain, watched = logs
        assert all(KL_LOGGED not in row for row in plain)
        assert watched[0][KL_LOGGED] == pytest.approx(0, abs=1e-5) and watched[2][KL_LOGGED] > 0
        assert [row | {KL_LOGGED: 0} for row in plain] == [row | {KL_LOGGED: 0} for row in watched]
        assert "lr" not in weights


def test_a_fixed_scale_is_that_of_the_first_batch():
    settings = method_toy.settings_of(ppo, adv_scale="fixed")
    for scale in (1.0, 4.0):  # a unit of the proxy is divided out, as by whitening
        task = method_toy.problem(method_toy.LikesToken(scale=scale))
        state = method_toy.started(ppo, settings, task)
        batch = ppo._roll_out(state, settings, task)
        first = ppo._advantages(state, batch, settings)
        mask = batch.mask
        white = losses.whiten(
            losses.gae(
                losses.rewards_from_scores(batch.reward, batch.log_ratio, mask, kl_coef=0),
                batch.values, mask, gamma=settings.gamma, lam=settings.lam,
            ).advantages,
            mask,
        )  # fmt: skip
        assert torch.equal(first.advantages, white)
        # The same responses with a tenth of the spread: gradients get a tenth, not the same.
        later = ppo._advantages(state, batch._replace(reward=batch.reward / 10), settings)
        torch.testing.assert_close(later.advantages, white / 10, rtol=1e-4, atol=1e-5)
        assert float(losses.spread(later.advantages, mask)) == pytest.approx(0.1, rel=1e-3)
