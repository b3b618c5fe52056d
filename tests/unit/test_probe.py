"""The probe: its head against another solver, its states against the whole sequence, end to end."""

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad, minimize

from overopt.base.errors import ConfigError
from overopt.base.overrides import apply_overrides
from overopt.nets import checkpoints, sampling
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.sampling import sample
from overopt.rewards.kinds import probe
from overopt.stages.settings import RunConfig
from overopt.worlds import stories
from overopt.worlds.load import load_world


def comparisons(rng, n=300, d=5):
    states = rng.normal(size=(n, d)) * np.array([1, 10, 0.1, 3, 0])  # one state never moves
    truth = np.array([1.0, 0.05, -4.0, 0.0, 0.0])
    first, second = rng.integers(0, n, 900), rng.integers(0, n, 900)
    wins = rng.random(900) < 1 / (1 + np.exp(-(states[first] - states[second]) @ truth))
    return states, np.where(wins, first, second), np.where(wins, second, first), truth


def test_the_head_is_the_minimum_that_newton_finds():
    states, chosen, rejected, _ = comparisons(np.random.default_rng(0))
    got = probe.fit_head(states, chosen, rejected, 3.0)
    scale = np.where(states.std(0) > 0, states.std(0), 1)
    margin = (states[chosen] - states[rejected]) / scale
    w = np.zeros(5)
    for _ in range(50):
        p = 1 / (1 + np.exp(margin @ w))
        hessian = (margin * (p * (1 - p))[:, None]).T @ margin + 3.0 * np.eye(5)
        w -= np.linalg.solve(hessian, 3.0 * w - margin.T @ p)
    assert got.weight * scale == pytest.approx(w, abs=1e-5)


def test_the_head_finds_what_was_planted():
    states, chosen, rejected, truth = comparisons(np.random.default_rng(1))
    got = probe.fit_head(states, chosen, rejected, 1e-3)
    assert got.weight[:4] == pytest.approx(truth[:4], abs=0.9)
    assert got.weight[4] == 0
    assert got.loss < np.log(2)


def test_gradient():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 3))
    f = lambda w: np.logaddexp(0, -x @ w).sum() + 2 * w @ w  # noqa: E731
    g = lambda w: 4 * w - x.T @ (1 / (1 + np.exp(x @ w)))  # noqa: E731
    assert check_grad(f, g, rng.normal(size=3)) < 1e-5
    states = np.concatenate([x, np.zeros_like(x)])
    scale = states.std(0)
    got = probe.fit_head(states, np.arange(40), np.arange(40, 80), 4.0)
    want = minimize(lambda w: np.logaddexp(0, -(x / scale) @ w).sum() + 2 * w @ w, np.zeros(3)).x
    assert got.weight * scale == pytest.approx(want, abs=1e-4)


@pytest.fixture(scope="module")
def responses():
    world = load_world(stories.Settings())
    policy = checkpoints.load_lm("ladder:policy-0.8m")
    return sample(policy, world.prompts("eval", 3), n_tokens=12, seed=1, copies=3)


def test_states_are_those_behind_each_token(responses, monkeypatch):
    model = ScalarHeadModel(checkpoints.load_trunk("ladder:0.05m"))
    got = probe.pooled_states(model, responses)
    for i in range(len(responses)):
        one = responses.select(slice(i, i + 1))
        prompt = one.prompts.ids[0][one.prompts.mask[0]]
        ids = torch.cat([prompt, one.ids[0][one.mask[0]]])
        with torch.no_grad():
            hidden = model.backbone(ids[None])[0, len(prompt) :]
        assert torch.allclose(got[i], hidden.sum(0) / len(hidden) ** 0.5, atol=1e-4)
    monkeypatch.setattr(sampling, "continuations", lambda *_, **__: None)
    assert torch.allclose(probe.pooled_states(model, responses), got, atol=1e-4)


def test_settings_that_make_no_sense_are_refused():
    for override in ("proxy.ridge=0", "proxy.layers=-1"):
        with pytest.raises(ConfigError, match=override.split("=")[0]):
            apply_overrides(RunConfig(), ["proxy.kind=probe", override])
    with pytest.raises(ConfigError, match="no other members"):
        apply_overrides(RunConfig(), ["proxy.kind=probe", "reward.members=3"])
