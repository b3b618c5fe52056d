"""KL estimators against exact enumeration over every response of a policy with few of them."""

import itertools
import math

import pytest
import torch
from tolerances import FP32, FP64, SIGMAS

from overopt.base.datatypes import Prompts
from overopt.base.seeding import torch_generator
from overopt.measure.kl import exact_token_kl, sequence_kl, sqrt_kl
from overopt.nets.sampling import sample, score_logprobs, token_logprobs

T, V = 3, 5


def _pair(tiny_llama):
    return (tiny_llama(i, vocab_size=V, scale=20.0) for i in (10, 11))


@torch.no_grad()
def _enumerated_kl(policy, ref, prompt):
    """KL(π‖π_ref) = Σ_y π(y) log(π(y)/π_ref(y)) over all responses, each a full forward."""
    total = mass = 0.0
    for y in itertools.product(range(V), repeat=T):
        stop = y.index(1) + 1 if 1 in y else T
        if any(y[stop:]):  # one representative of each response that ends early
            continue
        ids = torch.tensor([prompt + list(y[:stop])])
        logp = [
            token_logprobs(m.logits(m(ids[:, :-1])).double(), ids[:, 1:])[0, len(prompt) - 1 :]
            for m in (policy, ref)
        ]
        p = math.exp(float(logp[0].sum()))
        mass += p
        total += p * float((logp[0] - logp[1]).sum())
    assert mass == pytest.approx(1, abs=FP32)
    return total


@torch.no_grad()
def test_estimators_against_enumeration(tiny_llama):
    policy, ref = _pair(tiny_llama)
    prompt = [1, 3]
    prompts = Prompts(torch.tensor([prompt]), torch.ones(1, 2, dtype=torch.bool), torch.arange(1))
    truth = _enumerated_kl(policy, ref, prompt)
    assert truth > 0.1
    responses = sample(policy, prompts, n_tokens=T, seed=3, copies=20_000)
    log_ratio = responses.logprobs - score_logprobs(ref, responses)
    est = sequence_kl(log_ratio, responses.mask)
    ids = torch.cat([responses.prompts.ids, responses.ids], 1)[:, :-1]
    step = exact_token_kl(*(m.logits(m(ids)[:, 1:]) for m in (policy, ref)))
    exact = (step * responses.mask).double().sum(1)

    def z(x):
        return float((x.mean() - truth) / (x.std() / math.sqrt(len(x))))

    for x in (est.k1, est.k3, exact):
        assert abs(z(x)) < SIGMAS
    assert exact.std() < 0.9 * est.k1.std()
    # Negative: k2, and k3 with the ratio upside down, are noticeably biased.
    assert abs(z(est.k2)) > 2 * SIGMAS
    total = (log_ratio * responses.mask).double().sum(1)
    assert abs(z(torch.expm1(total) - total)) > 2 * SIGMAS


def test_exact_kl_is_zero_for_equal_logits_and_else_equals_the_definition():
    generator = torch_generator(0, "logits")
    a, b = torch.randn(2, 7, 9, 33, generator=generator)
    assert torch.equal(exact_token_kl(a, a.clone()), torch.zeros(7, 9))
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    torch.testing.assert_close(
        exact_token_kl(a, b).double(), (p * (p / q).log()).sum(-1), rtol=FP32, atol=FP32
    )
    nearly = exact_token_kl(a, a + 1e-7 * b)
    assert bool((nearly >= 0).all()) and float(nearly.max()) < FP32


def test_kl_is_exactly_zero_at_step_zero(tiny_llama, ragged_prompts):
    policy = tiny_llama(0)
    responses = sample(policy, ragged_prompts(0, [3, 5, 2]), n_tokens=8, seed=0)
    log_ratio = score_logprobs(policy, responses) - score_logprobs(policy, responses)
    for k in sequence_kl(log_ratio, responses.mask):
        assert torch.equal(k, torch.zeros(3, dtype=k.dtype))


def test_masked_tokens_do_not_count():
    mask = torch.tensor([[True, True, False]])
    k = sequence_kl(torch.tensor([[0.5, -0.2, 99.0]]), mask)
    assert float(k.k1) == pytest.approx(0.3, abs=FP32)


def test_sqrt_kl():
    assert sqrt_kl(2.25) == pytest.approx(1.5, abs=FP64)
    with pytest.raises(ValueError, match="exact"):
        sqrt_kl(-0.1)
