"""Length-controlled proxies, bootstrap resamples, and heads on one trunk, against formulas."""

import numpy as np
import pytest
import torch
from tolerances import FP32

from overopt.base.datatypes import Prompts, Responses
from overopt.base.seeding import torch_generator
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.kinds.heads import heads_loss, prompt_counts, resample_prompts
from overopt.rewards.kinds.length_control import (
    LENGTH,
    QUALITY,
    correlation,
    length_controlled_loss,
    quality_model,
    two_headed,
)
from overopt.rewards.scorer import raw_scores
from overopt.rewards.training.pairs import PairBatches, TrainingPairs
from overopt.rewards.training.train import preference_loss, train_reward_model


def pairs(n_prompts=30, copies=4, seed=0, vocab=48, width=10):
    """All pairs of random responses; the longer is preferred, the prompt's first token breaks ties."""
    generator = torch_generator(seed, "pairs")
    n = n_prompts * copies
    length = torch.randint(1, width + 1, (n,), generator=generator)
    mask = torch.arange(width) < length[:, None]
    ids = torch.randint(2, vocab, (n, width), generator=generator) * mask
    prompt = torch.randint(2, vocab, (n_prompts, 3), generator=generator)
    prompts = Prompts(prompt, torch.ones(n_prompts, 3, dtype=torch.bool), torch.arange(n_prompts))
    responses = Responses(
        prompts.repeat(copies), ids, mask, torch.zeros(n, width), torch.ones(n, dtype=torch.bool)
    )
    first, second = torch.triu_indices(copies, copies, 1)
    rows = torch.arange(n_prompts)[:, None] * copies
    a, b = (rows + first).flatten(), (rows + second).flatten()
    longer = length[a] >= length[b]
    return TrainingPairs(
        responses, torch.where(longer, a, b), torch.where(longer, b, a), torch.ones(len(a))
    )


def batch_of(data):
    return next(iter(PairBatches(data, batch_prompts=5, seed=1).epoch(0)))


def train(model, data, **kw):
    return train_reward_model(
        model, data, epochs=6, lr=2e-2, batch_prompts=3, weight_decay=0.0, seed=0,
        validate=dict, progress=lambda done, total: None, **kw,
    )  # fmt: skip


def test_correlation_is_pearsons():
    x, y = torch.randn(2, 20, generator=torch_generator(0, "xy"))
    expected = np.corrcoef(x.numpy(), y.numpy())[0, 1]
    assert float(correlation(x, y)) == pytest.approx(expected, abs=FP32)
    assert float(correlation(torch.ones(20), y)) == 0.0


def test_responses_of_one_length_pull_neither_head():
    """Everything truncated at the limit: no correlation, and gradients of preferences alone."""
    batch = batch_of(pairs())
    flat = batch._replace(seq=batch.seq._replace(length=torch.full_like(batch.seq.length, 9)))
    scores = torch.randn(len(batch.seq.ids), 2, generator=torch_generator(1, "scores"))
    gradients = [
        torch.autograd.grad(length_controlled_loss(strength)(x, flat), x)[0]
        for strength in (0.0, 1.0)
        for x in (scores.clone().requires_grad_(),)
    ]
    assert gradients[0].isfinite().all()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_length_controlled_loss_is_its_formula():
    batch = batch_of(pairs())
    scores = torch.randn(len(batch.seq.ids), 2, generator=torch_generator(1, "scores"))
    s = scores.double().numpy()
    margin = s[batch.first].sum(1) - s[batch.second].sum(1)
    n_tokens = (batch.seq.length - batch.seq.n_prompt).numpy()
    rho = [np.corrcoef(s[:, head], n_tokens)[0, 1] for head in (QUALITY, LENGTH)]
    expected = np.log1p(np.exp(-margin)).mean() + 0.3 * (abs(rho[0]) - rho[1])
    assert float(length_controlled_loss(0.3)(scores, batch)) == pytest.approx(expected, abs=FP32)


def test_quality_no_longer_follows_length(tiny_llama):
    data = pairs()
    length = data.responses.length.float()
    plain = ScalarHeadModel(tiny_llama(0, num_hidden_layers=1, scale=4.0))
    plain.init_head(torch_generator(0, "head"))
    train(plain, data)
    model = two_headed(
        tiny_llama(0, num_hidden_layers=1, scale=4.0), generator=torch_generator(0, "head")
    )
    train(model, data, pair_loss=length_controlled_loss(1.0))
    weight = model.head.weight.detach()
    assert float(weight[QUALITY] @ weight[LENGTH]) == pytest.approx(0, abs=1e-5)
    both = raw_scores(model, data.responses)
    quality = raw_scores(quality_model(model), data.responses)
    torch.testing.assert_close(quality, both[:, QUALITY])
    rho = [
        float(correlation(x, length))
        for x in (raw_scores(plain, data.responses), quality, both[:, LENGTH])
    ]
    assert rho[0] > 0.6 and rho[2] > 0.6 and abs(rho[1]) < 0.15


def test_bootstrap_draws_as_many_prompts_as_there_are():
    data = pairs()
    counts = prompt_counts(data, generator=torch_generator(3, "bootstrap"))
    prompt = data.responses.prompts.prompt_id[data.first]
    per_prompt = {int(p): set(counts[prompt == p].tolist()) for p in prompt.unique()}
    assert all(len(c) == 1 for c in per_prompt.values())  # pairs of a prompt stay together
    drawn = [c.pop() for c in per_prompt.values()]
    assert sum(drawn) == 30 and 0 in drawn and max(drawn) > 1
    again = resample_prompts(data, generator=torch_generator(3, "bootstrap"))
    original = torch.stack([again.first, again.second], 1) % len(data.responses)
    first, copies = original.unique(dim=0, return_counts=True)
    rows = {tuple(pair): n for pair, n in zip(first.tolist(), copies.tolist(), strict=True)}
    for a, b, n in zip(data.first.tolist(), data.second.tolist(), counts.tolist(), strict=True):
        assert rows.get((a, b), 0) == n
    torch.testing.assert_close(again.responses.ids[again.first], data.responses.ids[original[:, 0]])


def test_a_bootstrap_member_takes_as_many_steps_as_any_other():
    data = pairs()
    again = resample_prompts(data, generator=torch_generator(3, "bootstrap"))
    plain, drawn = (PairBatches(d, batch_prompts=3, seed=0) for d in (data, again))
    assert drawn.steps == plain.steps
    # Every draw of a prompt has the same weight in the mean over a step.
    assert {len(b.pairs) for b in drawn.epoch(0)} == {len(b.pairs) for b in plain.epoch(0)} == {18}


def test_heads_loss_is_the_loss_of_each_head_on_its_own_resample():
    data = pairs()
    batch = batch_of(data)
    scores = torch.randn(len(batch.seq.ids), 2, generator=torch_generator(1, "scores"))
    ones = torch.ones(len(data.first), 2, dtype=torch.int64)
    single = [preference_loss(scores[:, k], batch) for k in range(2)]
    assert float(heads_loss(ones)(scores, batch)) == pytest.approx(float(sum(single)) / 2, abs=FP32)
    counts = torch.zeros_like(ones)
    counts[batch.pairs[:4], 0] = 3
    few = batch._replace(first=batch.first[:4], second=batch.second[:4], target=batch.target[:4])
    by_hand = 3 * 4 * float(preference_loss(scores[:, 0], few)) / (2 * len(batch.pairs))
    assert float(heads_loss(counts)(scores, batch)) == pytest.approx(by_hand, abs=FP32)


def test_heads_learn_and_differ(tiny_llama):
    data = pairs()
    model = ScalarHeadModel(tiny_llama(0, num_hidden_layers=1, scale=4.0), n_heads=3)
    model.init_head(torch_generator(0, "head"))
    draws = [torch_generator(9, "bootstrap", i) for i in range(3)]
    counts = torch.stack([prompt_counts(data, generator=g) for g in draws], 1)
    log = train(model, data, pair_loss=heads_loss(counts))
    assert np.mean(log.loss[-10:]) < 0.75 * np.mean(log.loss[:10])
    scores = raw_scores(model, data.responses)
    right = (scores[data.first] > scores[data.second]).float().mean(0)
    assert (right > 0.75).all()
    assert float((scores - scores[:, :1]).std(0)[1:].min()) > 0.01
