"""RLOO: the expected gradient is the exact one, for any number of responses."""

import itertools

import torch
from enumerable import everything, gradients, small_llama
from test_policy_gradient import loss_of

from overopt.methods.policy_gradient import leave_one_out


def test_leave_one_out_by_hand():
    r = torch.tensor([1.0, 2.0, 6.0])
    assert leave_one_out(r, group=3).tolist() == [-3.0, -1.5, 4.5]


def test_expected_gradient_is_exact():
    """All groups of 3 of 31 responses, weighed by their probability."""
    policy = small_llama()
    every = everything(policy)
    n = len(every.p)
    r = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = every.p.detach()
    groups = torch.tensor(list(itertools.product(range(n), repeat=3)))
    first = leave_one_out(r[groups].flatten(), group=3).view(-1, 3)[:, 0]
    others = p[groups[:, 1]] * p[groups[:, 2]]
    expected = torch.zeros(n, dtype=torch.float64).index_add(0, groups[:, 0], first * others)
    ours = gradients(loss_of(policy, every, p, advantage=expected), policy)
    exact = gradients(-(every.p * r).sum(), policy)
    assert float((ours - exact).norm() / exact.norm()) < 1e-6
