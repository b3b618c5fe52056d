"""REINFORCE: exact without a baseline; the batch mean shrinks the gradient by 1 − 1/batch."""

import itertools

import pytest
import torch
from enumerable import everything, gradients, small_llama
from test_policy_gradient import loss_of

from overopt.methods.reinforce import advantages


@pytest.mark.parametrize(("baseline", "share"), [("none", 1.0), ("batch", 0.5)])
def test_expected_gradient(baseline, share):
    """All batches of 2."""
    policy = small_llama()
    every = everything(policy)
    n, p = len(every.p), every.p.detach()
    r = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.zeros(n, dtype=torch.float64)
    for a, b in itertools.product(range(n), repeat=2):
        expected[a] += p[b] * advantages(r[[a, b]], baseline)[0]
    ours = gradients(loss_of(policy, every, p, advantage=expected), policy)
    exact = gradients(-(every.p * r).sum(), policy)
    assert float((ours - share * exact).norm() / exact.norm()) < 1e-6
