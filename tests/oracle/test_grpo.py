"""GRPO: its advantages against RLOO's, and the bias that the division by the sd brings."""

import itertools

import pytest
import torch
from enumerable import cosine, everything, gradients, small_llama
from test_policy_gradient import loss_of

from overopt.base.errors import ConfigError
from overopt.methods import grpo
from overopt.methods.policy_gradient import group_advantages, leave_one_out


def rewards(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_without_sd_it_is_rloo_times_a_constant():
    r = rewards(24)
    ours = group_advantages(r, group=4, divide_by_sd=False) * 4 / 3
    torch.testing.assert_close(ours, leave_one_out(r, group=4), rtol=0, atol=1e-14)


def test_advantages_by_hand():
    r = torch.tensor([0.0, 2.0, 5.0, 5.0])
    assert group_advantages(r, group=2, divide_by_sd=False).tolist() == [-1, 1, 0, 0]
    with_sd = group_advantages(r, group=2, divide_by_sd=True)
    assert with_sd[1] == pytest.approx(1 / (2**0.5 + 1e-4))
    assert with_sd[2:].tolist() == [0, 0]  # a group of equals teaches nothing, and divides by no 0


def expected_advantage(p, r, divide_by_sd):
    """E over the other member of a group of 2, for each response (R,)."""
    n = len(r)
    pairs = torch.tensor(list(itertools.product(range(n), repeat=2)))
    a = group_advantages(r[pairs].flatten(), group=2, divide_by_sd=divide_by_sd)
    return (a.view(n, n, 2)[:, :, 0] * p).sum(1)


def test_the_sd_biases_the_direction():
    policy = small_llama()
    every = everything(policy)
    p, r = every.p.detach(), rewards(len(every.p))
    exact = gradients(-(every.p * r).sum(), policy)
    found = {
        sd: gradients(loss_of(policy, every, p, advantage=expected_advantage(p, r, sd)), policy)
        for sd in (False, True)
    }
    # Groups of 2: without the sd half the exact gradient, (G − 1)/G of it.
    assert float((2 * found[False] - exact).norm() / exact.norm()) < 1e-6
    assert 0.5 < cosine(found[True], exact) < 0.999


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group": 1}, "method.group = 1"),
        ({"batch": 20}, "method.batch = 20"),
        ({"kl_in": "k1_reward"}, "method.kl_in = 'k1_reward'"),
        ({"epochs": 0}, "method.epochs = 0"),
        ({"clip": 0.0}, "method.clip = 0.0"),
    ],
)
def test_settings_say_what_is_wrong(settings, message):
    with pytest.raises(ConfigError, match=message):
        grpo.Settings(**settings)
