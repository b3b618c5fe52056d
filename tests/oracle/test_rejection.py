"""Rejection sampling: rounds of an idealised step are one best-of-n^k; what is kept and mixed in."""

import itertools
import math

import pytest
import torch

from overopt.base.errors import ConfigError
from overopt.methods import rejection

A = 5


def best_of_4(p, r):
    """The distribution (A,) of the winner of 4 draws from ``p``, over all A^4 of them."""
    draws = torch.tensor(list(itertools.product(range(A), repeat=4)))
    rows = rejection.winners(r[draws].flatten(), 4)
    won = draws.flatten()[rows]
    return torch.zeros(A, dtype=p.dtype).index_add(0, won, p[draws].prod(1))


def test_two_rounds_of_best_of_4_are_one_best_of_16():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(A, generator=generator, dtype=torch.float64).softmax(0)
    r = torch.randn(A, generator=generator, dtype=torch.float64)
    twice = best_of_4(best_of_4(p, r), r)
    order = r.argsort()
    cdf = torch.cat([torch.zeros(1, dtype=p.dtype), p[order].cumsum(0)])
    once = torch.zeros(A, dtype=p.dtype)
    once[order] = (cdf**16).diff()
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-12)
    kl = float((twice * (twice / p).log()).sum())
    assert 0 < kl <= rejection.kl_bound(4, 2)


def test_the_bound_by_hand():
    assert rejection.kl_bound(4, 2) == pytest.approx(math.log(16) - 15 / 16)
    assert rejection.kl_bound(8, 1) == pytest.approx(math.log(8) - 7 / 8)


def test_the_first_among_equals_wins():
    score = torch.tensor([1.0, 3.0, 3.0, 2.0, 2.0, 0.0])
    assert rejection.winners(score, 3).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 1}, "method.n = 1"),
        ({"batch": 100}, "method.batch = 100"),
        ({"reference_share": 1.0}, "method.reference_share = 1.0"),
        ({"shaping": "clip", "shaping_scale": 2.0}, "method.shaping = 'clip'"),
    ],
)
def test_settings_say_what_is_wrong(settings, message):
    with pytest.raises(ConfigError, match=message):
        rejection.Settings(**settings)
