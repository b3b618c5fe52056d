"""DPO and its kin: closed forms on a policy that is a table, losses by hand, steps over the data."""

import itertools
import math

import pytest
import torch
from enumerable import everything, small_llama

from overopt.base.errors import ConfigError
from overopt.methods import dpo
from overopt.methods.pair_losses import PairLogprobs, margins, pair_loss
from overopt.nets.compute import Compute

A = 8  # responses, one token each


def table():
    generator = torch.Generator().manual_seed(0)
    ref = torch.randn(A, generator=generator, dtype=torch.float64).log_softmax(0)
    r = torch.randn(A, generator=generator, dtype=torch.float64)
    mu = torch.randn(A, generator=generator, dtype=torch.float64).softmax(0)
    return ref, r, mu


def all_pairs(logp, ref, lengths=None):
    """Every ordered pair, i chosen over j."""
    i, j = torch.tensor(list(itertools.product(range(A), repeat=2))).T
    n = torch.ones(A, dtype=torch.float64) if lengths is None else lengths
    return PairLogprobs(logp[i], logp[j], ref[i], ref[j], n[i], n[j])


def minimum(loss):
    """The log-probabilities (A,) that minimise ``loss(logp)``."""
    theta = torch.zeros(A, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=2000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        value = loss(theta.log_softmax(0))
        value.backward()
        return value

    optimizer.step(closure)
    return theta.detach().log_softmax(0)


def test_dpo_on_exact_bradley_terry_is_the_tilt():
    ref, r, mu = table()
    beta = 0.5
    p = torch.sigmoid(r[:, None] - r)  # i beats j
    weight = (mu[:, None] * mu * p).flatten()

    def loss(logp):
        each = pair_loss(all_pairs(logp, ref), "dpo", beta=beta, smoothing=0, margin=0)
        return (weight * each).sum()

    logp = minimum(loss)
    tilt = (ref + r / beta).log_softmax(0)
    assert float((logp - tilt).abs().max()) < 1e-5
    implicit = beta * (logp - ref) - r
    assert float(implicit.max() - implicit.min()) < 1e-5


@pytest.mark.parametrize("kind", ["ipo_sum", "ipo_mean"])
def test_ipo_is_its_closed_form(kind):
    """π ∝ π_ref·exp(p/τ), p(y) = P(y beats a draw from μ); of one token, sum and mean are equal."""
    ref, r, mu = table()
    tau = 0.5
    p = torch.sigmoid(r[:, None] - r)
    weight = (mu[:, None] * mu * p).flatten()

    def loss(logp):
        each = pair_loss(all_pairs(logp, ref), kind, beta=tau, smoothing=0, margin=0)
        return (weight * each).sum()

    closed = (ref + (p * mu).sum(1) / tau).log_softmax(0)
    assert float((minimum(loss) - closed).abs().max()) < 1e-6


def test_cdpo_stops_where_the_labels_are_believed_that_much():
    """With all labels one way, DPO goes on for ever and cDPO stops at σ(βm) = 1 − ε."""
    m = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    optimizer = torch.optim.LBFGS([m], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        pairs = PairLogprobs(m, zero, zero, zero, one, one)
        value = pair_loss(pairs, "cdpo", beta=0.5, smoothing=0.1, margin=0).sum()
        value.backward()
        return value

    optimizer.step(closure)
    assert float(torch.sigmoid(0.5 * m.detach())) == pytest.approx(0.9, abs=1e-5)


def test_losses_by_hand():
    """log π/π_ref is 0.6 over 3 tokens and −0.4 over 2: m = 1.0 in sum, 0.4 in mean."""
    x = [torch.tensor([v]) for v in (-2.4, -3.4, -3.0, -3.0, 3.0, 2.0)]
    pairs = PairLogprobs(*x)
    beta = 0.5

    def log_sigmoid(v):
        return -math.log1p(math.exp(-v))

    by_hand = {
        "dpo": -log_sigmoid(0.5),
        "cdpo": -0.9 * log_sigmoid(0.5) - 0.1 * log_sigmoid(-0.5),
        "ipo_sum": (1.0 - 1.0) ** 2,
        "ipo_mean": (0.4 - 1.0) ** 2,
        "slic": 1 - 0.5,
        "simpo": -log_sigmoid(0.5 * (-2.4 / 3 + 3.4 / 2) - 0.3),
    }
    for kind, value in by_hand.items():
        smoothing = 0.1 if kind == "cdpo" else 0.0
        found = pair_loss(pairs, kind, beta=beta, smoothing=smoothing, margin=0.3)
        assert float(found) == pytest.approx(value, abs=1e-6), kind
    slack = pair_loss(pairs, "slic", beta=2.0, smoothing=0, margin=0)
    assert float(slack) == 0.0


def test_step_takes_each_pair_once_an_epoch():
    n, batch = 10, 4
    steps = [dpo.pairs_of_step(n, batch=batch, seed=3, step=k) for k in range(5)]
    order = torch.cat(steps)
    assert order[:n].sort().values.tolist() == list(range(n))
    assert order[n:].sort().values.tolist() == list(range(n))
    assert order[:n].tolist() != order[n:].tolist()
    whole = dpo.pairs_of_step(n, batch=25, seed=3, step=0)
    assert whole[:20].tolist() == order.tolist()


def test_the_loss_of_a_policy_is_that_of_its_log_probabilities():
    policy, ref = small_llama(0), small_llama(1)
    mine, theirs = everything(policy), everything(ref)
    n = len(mine.p) // 2
    logp, ref_logp = (x.logp.detach().sum(1)[: 2 * n] for x in (mine, theirs))
    length = mine.mask.sum(1)[: 2 * n].double()
    pairs = PairLogprobs(*logp.chunk(2), *ref_logp.chunk(2), *length.chunk(2))
    settings = dpo.Settings(loss="ipo_mean", beta=0.7)
    by_hand = pair_loss(pairs, "ipo_mean", beta=0.7, smoothing=0, margin=0)
    seq = type(mine.seq)(*(t[: 2 * n] for t in mine.seq))
    for division in (n, 4):
        parts = [
            dpo._loss(
                rows,
                policy=policy,
                seq=seq,
                ref_logp=ref_logp,
                settings=settings,
                ways=Compute(),
            ).detach()
            for rows in torch.arange(n).split(division)
        ]
        sums = torch.stack(parts).sum(0)
        assert float(sums[0]) == pytest.approx(float(by_hand.mean()), rel=1e-5)
        right = (margins(pairs, "ipo_mean") > 0).double().mean()
        assert float(sums[1]) == pytest.approx(float(right), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "method.beta = 0.0"),
        ({"loss": "cdpo"}, "method.smoothing = 0.0"),
        ({"smoothing": 0.1}, "method.smoothing = 0.1"),
        ({"margin": 1.0}, "method.margin = 1.0"),
        ({"shaping": "clip", "shaping_scale": 2.0}, "method.shaping = 'clip'"),
    ],
)
def test_settings_say_what_is_wrong(settings, message):
    with pytest.raises(ConfigError, match=message):
        dpo.Settings(**settings)
