"""The step that GRPO, RLOO and REINFORCE share: gradients of penalties, weights of tokens, clip.

Expectations are sums over every response of a small Llama, in float64.
"""

import math

import pytest
import torch
from enumerable import batch_of, everything, gradients, small_llama

from overopt.methods import losses, policy_gradient, reinforce
from overopt.nets.compute import Compute


def loss_of(policy, every, weights, *, ref_policy=None, advantage=None, ref_logp=None, **settings):
    """The code's loss over all responses with given weights of tokens."""
    n = len(every.p)
    advantage = torch.zeros(n) if advantage is None else advantage
    return policy_gradient._losses(
        torch.arange(n),
        policy=policy,
        ref_policy=ref_policy or policy,
        batch=batch_of(every, advantage, ref_logp),
        weights=weights,
        settings=reinforce.Settings(**settings),
        clip=None,
        ways=Compute(),
        n_tokens=int(every.mask.sum()),
        with_entropy=False,
    )[0]


def two_policies():
    policy, ref = small_llama(0), small_llama(1)
    return policy, ref, everything(policy), everything(ref)


def sequence_kl(p, q):
    """KL(p‖q) of whole responses from log-probabilities (R,)."""
    return (p.exp() * (p - q)).sum()


def test_every_response_is_listed_once():
    every = everything(small_llama())
    assert float(every.p.detach().sum()) == pytest.approx(1, abs=1e-12)


def test_k3_is_unbiased_in_value():
    _, _, mine, ref = two_policies()
    a, b = (x.logp.detach().sum(1) for x in (mine, ref))
    value = (a.exp() * losses.k3(a, b)).sum()
    assert float(value) == pytest.approx(float(sequence_kl(a, b)), rel=1e-10)


def token_kl(policy, ref_policy, every, *, reverse):
    """Σ over tokens of the KL over the vocabulary, in states drawn from π and held fixed."""
    logits, target = (
        model.logits(model(every.seq.ids)[:, 1:3]).log_softmax(-1) for model in (policy, ref_policy)
    )
    a, b = (target.detach(), logits) if reverse else (logits, target.detach())
    kl = (a.exp() * (a - b)).sum(-1)
    return (every.p.detach()[:, None] * kl * every.mask).sum()


def penalty_alone(kl_in):
    """The code's loss when there is nothing but the penalty, and what it is to be compared with."""
    policy, ref_policy, mine, ref = two_policies()
    settings = {"kl_coef": 1.0, "kl_in": kl_in, "ref_policy": ref_policy, "ref_logp": ref.logp}
    loss = loss_of(policy, mine, mine.p.detach(), **settings)
    forward, reverse = (
        token_kl(policy, ref_policy, mine, reverse=reverse) for reverse in (False, True)
    )
    found = [gradients(x, policy) for x in (loss, forward, reverse)]
    return float(loss.detach()), float(forward.detach()), *found


def test_k3_as_a_loss_has_the_gradient_of_the_other_kl():
    """Its value is KL(π‖π_ref), its gradient that of KL(π_ref‖π) at each token."""
    value, kl, ours, forward, reverse = penalty_alone("k3_loss")
    assert value == pytest.approx(kl, rel=1e-5)
    assert float((ours - reverse).norm() / reverse.norm()) < 1e-5
    assert float((ours - forward).norm() / forward.norm()) > 0.1


@pytest.mark.parametrize("kl_in", ["exact_loss", "weighted_k3_loss"])
def test_penalty_has_the_gradient_of_the_vocabulary_kl(kl_in):
    value, kl, ours, forward, reverse = penalty_alone(kl_in)
    assert value == pytest.approx(kl, rel=1e-5)
    assert float((ours - forward).norm() / forward.norm()) < 1e-5
    assert float((ours - reverse).norm() / reverse.norm()) > 0.1


def test_summed_over_tokens_the_exact_penalty_is_the_kl_of_responses():
    _, kl, *_ = penalty_alone("exact_loss")
    _, _, mine, ref = two_policies()
    whole = sequence_kl(mine.logp.sum(1), ref.logp.sum(1)).detach()
    assert kl == pytest.approx(float(whole), rel=1e-9)


def test_far_from_the_reference_the_chi2_penalty_stays_finite():
    far = policy_gradient.penalty_in_reward(torch.tensor([0.0, 10.0, 500.0]), "chi2_reward")
    assert far.tolist() == pytest.approx([2.0, 2 * math.exp(10), 2 * math.exp(10)])


@pytest.mark.parametrize(
    ("kl_in", "divergence"),
    [
        ("k1_reward", lambda p, q: (p.exp() * (p - q)).sum()),
        ("chi2_reward", lambda p, q: (2 * p - q).exp().sum() - 1),
    ],
)
def test_a_penalty_in_the_reward_has_the_gradient_of_its_divergence(kl_in, divergence):
    policy, _, mine, ref = two_policies()
    a, b = mine.logp.sum(1), ref.logp.sum(1)
    penalty = policy_gradient.penalty_in_reward((a - b).detach(), kl_in)
    ours = gradients(loss_of(policy, mine, mine.p.detach(), advantage=-penalty), policy)
    exact = gradients(divergence(a, b.detach()), policy)
    assert float((ours - exact).norm() / exact.norm()) < 1e-6


def test_weights_of_tokens_by_hand():
    length = torch.tensor([2, 4])
    weights = {
        how: policy_gradient.token_weights(length, how, longest=10).tolist()
        for how in ("grpo", "bnpo", "dr_grpo", "sequence")
    }
    assert weights["grpo"] == pytest.approx([1 / 4, 1 / 8])
    assert weights["bnpo"] == pytest.approx([1 / 6, 1 / 6])
    assert weights["dr_grpo"] == pytest.approx([1 / 20, 1 / 20])
    assert weights["sequence"] == pytest.approx([1 / 2, 1 / 2])


def test_the_clip_cuts_what_gains_and_not_what_loses():
    logp = torch.tensor([0.5, 0.5, -0.5, -0.5]).requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    found = losses.surrogate(logp, torch.zeros(4), advantage, clip=0.2)
    (grad,) = torch.autograd.grad(found.value.sum(), logp)
    assert grad.tolist() == pytest.approx([0.0, -math.exp(0.5), math.exp(-0.5), 0.0])
    assert found.clipped.tolist() == [1, 1, 1, 1]


def test_with_and_without_a_ratio_the_first_gradient_is_the_same():
    logp = torch.randn(5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    advantage = torch.arange(5.0)
    grads = [
        torch.autograd.grad(
            losses.surrogate(logp, logp.detach(), advantage, clip=clip).value.sum(), logp
        )[0]
        for clip in (None, 0.2)
    ]
    torch.testing.assert_close(grads[0], grads[1])


def test_loss_does_not_depend_on_how_rows_are_divided():
    policy, ref_policy, mine, ref = two_policies()
    n = len(mine.p)
    advantage = torch.linspace(-1, 1, n)

    def parts(division):
        return sum(
            policy_gradient._losses(
                rows,
                policy=policy,
                ref_policy=ref_policy,
                batch=batch_of(mine, advantage)._replace(old_logp=ref.logp.detach()),
                weights=torch.full((n,), 1 / n),
                settings=reinforce.Settings(kl_coef=0.3, kl_in="exact_loss"),
                clip=0.2,
                ways=Compute(),
                n_tokens=int(mine.mask.sum()),
                with_entropy=True,
            ).detach()
            for rows in torch.arange(n).split(division)
        )

    whole = parts(n)
    assert (whole[1:] > 0).all()
    torch.testing.assert_close(parts(7), whole, rtol=1e-5, atol=1e-6)
