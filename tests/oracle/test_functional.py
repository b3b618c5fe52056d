"""Losses and reductions against definitions, closed forms and tables worked out by hand."""

import pytest
import torch
from tolerances import FP32, FP64, SHARE

from overopt.base.seeding import torch_generator
from overopt.methods import losses as fn
from overopt.nets import sampling
from overopt.rewards.training import train


@pytest.fixture
def table():
    """values, rewards, old and new log-probs (4, R, T) in float64, and a right-padded mask."""
    x = torch.randn(4, 5, 6, generator=torch_generator(0, "table"), dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 4, 5])[:, None]
    return x, mask


def test_rewards_sum_to_score_minus_penalty_and_score_is_at_the_last_token(table):
    (log_ratio, *_), mask = table
    score = torch.arange(5.0, dtype=torch.float64) + 1
    rewards = fn.rewards_from_scores(score, log_ratio, mask, kl_coef=0.3)
    expected = score - 0.3 * (log_ratio * mask).sum(1)
    torch.testing.assert_close(rewards.sum(1), expected, rtol=0, atol=FP64)
    alone = fn.rewards_from_scores(score, log_ratio, mask, kl_coef=0.0)
    for row, n in enumerate([6, 1, 3, 4, 5]):
        assert float(alone[row, n - 1]) == score[row] and int((alone[row] != 0).sum()) == 1
    assert not rewards[~mask].any()


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_gae_equals_its_definition(table, gamma, lam):
    (values, rewards, *_), mask = table
    got = fn.gae(rewards * mask, values, mask, gamma=gamma, lam=lam)
    for r in range(5):
        n = int(mask[r].sum())
        v = [*values[r, :n].tolist(), 0.0]
        delta = [float(rewards[r, t]) + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            expected = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n))
            assert float(got.advantages[r, t]) == pytest.approx(expected, abs=FP64)
            assert float(got.returns[r, t]) == pytest.approx(expected + v[t], abs=FP64)
    assert not got.advantages[~mask].any() and not got.returns[~mask].any()


def test_policy_loss_hand_table():
    # ε = 0.2. ratio, A -> surrogate min(ρA, clip(ρ)A):
    #   1.5, +1 -> min(1.5, 1.2) = 1.2  (clipped)      0.5, +1 -> min(0.5, 0.8) = 0.5
    #   1.5, -1 -> min(-1.5, -1.2) = -1.5              0.5, -1 -> min(-0.5, -0.8) = -0.8 (clipped)
    #   1.1, +2 -> 2.2 (inside)                        masked: 9.9, +5 -> nothing
    # Sum 1.6 over 5 tokens: loss -0.32.
    ratio = torch.tensor([[1.5, 0.5, 1.5], [0.5, 1.1, 9.9]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, 1, -1], [-1, 2, 5]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    new = ratio.log().requires_grad_()
    got = fn.clipped_policy_loss(
        new, torch.zeros_like(ratio), advantages, mask, clip=0.2, n_tokens=5
    )
    assert float(got.loss.detach()) == pytest.approx(-0.32, abs=FP64)
    got.loss.backward()
    # dloss/dlogp = -ρA/5 where the clip does not bind, else 0.
    expected = torch.tensor([[0, -0.1, 0.3], [0, -0.44, 0]], dtype=torch.float64)
    torch.testing.assert_close(new.grad, expected, rtol=0, atol=FP64)
    # Ratio outside [0.8, 1.2]: four of five. k3 = ρ - 1 - log ρ, mean over five.
    assert float(got.clip_fraction) == pytest.approx(0.8)
    real = ratio[mask]
    k3 = float((real - 1 - real.log()).sum() / 5)
    assert float(got.update_kl_token_nats) == pytest.approx(k3, abs=FP64)


def test_value_loss_hand_table():
    # c = 0.5, old 0. new 1, G 2: max((1-2)², (0.5-2)²) = 2.25; new -1, G -0.8: max(0.04, 0.09);
    # new 0.2, G 0: 0.04 both. Half the sum over 4 tokens: 2.38 / 8.
    new, returns = torch.tensor([[1.0, -1, 0.2, 7]]), torch.tensor([[2.0, -0.8, 0, 0]])
    mask = torch.tensor([[True, True, True, False]])
    got = fn.clipped_value_loss(new, torch.zeros(1, 4), returns, mask, clip=0.5, n_tokens=4)
    assert float(got) == pytest.approx(2.38 / 8, abs=FP32)


def test_losses_do_not_depend_on_the_micro_batch_split(table):
    (new, old, advantages, returns), mask = table
    n = int(mask.sum())

    def losses(rows):
        a, b, c, d, m = (x[rows] for x in (new, old, advantages, returns, mask))
        policy = fn.clipped_policy_loss(a, b, c, m, clip=0.2, n_tokens=n)
        return torch.stack([*policy, fn.clipped_value_loss(a, b, d, m, clip=0.2, n_tokens=n)])

    whole = losses(slice(None))
    for split in ([0, 1, 5], [0, 2, 4, 5], [0, 3, 5]):
        parts = [losses(slice(a, b)) for a, b in zip(split[:-1], split[1:], strict=True)]
        torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=0, atol=SHARE)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_centers_only_when_asked(table, shift_mean):
    (x, *_), mask = table
    x = x + 3
    white = fn.whiten(x, mask, shift_mean=shift_mean)
    real = white[mask]
    assert float(real.mean()) == pytest.approx(0 if shift_mean else float(x[mask].mean()), abs=1e-7)
    assert float(real.std(correction=0)) == pytest.approx(1, abs=1e-7)
    assert not white[~mask].any()


def test_bradley_terry_loss_and_gradient_closed_form():
    chosen = torch.tensor([0.3, -2.0, 50.0, -800.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.1, 1.0, 0.0, 0.0], dtype=torch.float64)
    loss = train.bradley_terry_loss(chosen, rejected)
    loss.backward()
    margin = (chosen - rejected).detach()
    # d/dΔ of -log σ(Δ) is σ(Δ) - 1, over C pairs.
    torch.testing.assert_close(chosen.grad, (margin.sigmoid() - 1) / 4, rtol=0, atol=1e-8)
    assert torch.isfinite(loss)
    # A target of ½ is minimal at Δ = 0, where it costs log 2; a target of 1 is the plain loss.
    half = train.bradley_terry_loss(torch.zeros(2), torch.zeros(2), torch.full((2,), 0.5))
    assert float(half) == pytest.approx(0.6931471805599453, abs=FP32)
    ones = train.bradley_terry_loss(chosen, rejected, torch.ones(4, dtype=torch.float64))
    assert float(ones.detach()) == pytest.approx(float(loss.detach()), abs=FP64)


def test_logprobs_and_entropy_equal_torch_distributions():
    logits = torch.randn(4, 7, 11, generator=torch_generator(1, "x"), dtype=torch.float64) * 3
    ids = torch.randint(0, 11, (4, 7), generator=torch_generator(1, "ids"))
    d = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(
        sampling.token_logprobs(logits, ids), d.log_prob(ids), rtol=0, atol=FP64
    )
    torch.testing.assert_close(sampling.entropy(logits), d.entropy(), rtol=0, atol=FP64)
