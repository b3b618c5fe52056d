"""The sampler against exact probabilities, and what its results must not depend on."""

import itertools
import math

import pytest
import torch
from scipy.stats import chi2
from tolerances import CHI2_P, FP32

from overopt.base.datatypes import Prompts, concat_responses
from overopt.base.errors import DataError
from overopt.base.seeding import scoped_torch_seed, torch_generator
from overopt.nets import sampling
from overopt.nets.sampling import sample, score_logprobs, token_logprobs

FIELDS = ("ids", "mask", "logprobs", "ended")


def _same(a, b):
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in FIELDS)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_match_enumerated_probabilities(tiny_llama, temperature):
    policy, vocab, n_tokens, copies = tiny_llama(4, vocab_size=4, scale=15.0), 4, 3, 20_000
    prompts = Prompts(torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool), torch.arange(1))
    made = sample(
        policy, prompts, n_tokens=n_tokens, seed=0, copies=copies, temperature=temperature
    )
    counts: dict = {}
    for ids, n in zip(made.ids.tolist(), made.length.tolist(), strict=True):
        counts[tuple(ids[:n])] = counts.get(tuple(ids[:n]), 0) + 1
    statistic = cells = 0
    for y in itertools.product(range(vocab), repeat=n_tokens):
        stop = y.index(1) + 1 if 1 in y else n_tokens
        if any(y[stop:]):
            continue
        ids = torch.tensor([[1, 2, *y[:stop]]])
        logits = policy.logits(policy(ids[:, :-1])) / temperature
        p = math.exp(float(token_logprobs(logits, ids[:, 1:])[0, 1:].sum()))
        if p * copies > 5:
            statistic += (counts.get(y[:stop], 0) - p * copies) ** 2 / (p * copies)
            cells += 1
    assert cells > 8
    assert chi2.sf(statistic, cells - 1) > CHI2_P


def test_inverse_cdf_equals_a_float64_cumulative_sum():
    generator = torch_generator(0, "cdf")
    logits = 4 * torch.randn(4000, 150, generator=generator)
    logits[:, 7] = -torch.inf
    u = torch.rand(4000, generator=generator, dtype=torch.float64)
    u[:3] = torch.tensor([0.0, 1 - 2**-53, 0.5])
    token, logp = sampling._inverse_cdf(logits, u)
    cdf = logits.double().softmax(1).cumsum(1)
    low = torch.nn.functional.pad(cdf, (1, 0)).gather(1, token[:, None])[:, 0]
    high = cdf.gather(1, token[:, None])[:, 0]
    assert bool(((u >= low - 1e-6) & (u <= high + 1e-6)).all())
    assert not bool((token == 7).any())
    expected = logits.double().log_softmax(1).gather(1, token[:, None])[:, 0]
    torch.testing.assert_close(logp, expected, rtol=FP32, atol=FP32)


@pytest.mark.parametrize("n_kv_heads", [2, 1])
def test_logprobs_equal_those_of_the_training_path(tiny_llama, ragged_prompts, n_kv_heads):
    policy = tiny_llama(5, num_key_value_heads=n_kv_heads)
    prompts = ragged_prompts(5, [3, 9, 1, 5])
    made = sample(policy, prompts, n_tokens=12, seed=1, copies=6)
    assert bool(made.ended.any()) and not bool(made.ended.all())
    for batch_tokens in (10_000, 30, 1):  # other batch mates, other padding
        again = score_logprobs(policy, made, batch_tokens=batch_tokens)
        torch.testing.assert_close(again, made.logprobs, rtol=FP32, atol=FP32)


def test_layout_of_ends_and_padding(tiny_llama, ragged_prompts):
    made = sample(tiny_llama(5), ragged_prompts(5, [3, 9, 1, 5]), n_tokens=12, seed=1, copies=6)
    for r, n in enumerate(made.length.tolist()):
        ids = made.ids[r].tolist()
        assert bool(made.ended[r]) == (ids[n - 1] == 1) == (1 in ids)
        assert 1 not in ids[: n - 1] and set(ids[n:]) <= {0} and (n == 12 or bool(made.ended[r]))
    assert not made.logprobs[~made.mask].any()


def test_rows_that_never_end_are_truncated(tiny_llama, ragged_prompts):
    bias = torch.zeros(48)
    bias[1] = -torch.inf
    made = sample(tiny_llama(5), ragged_prompts(5, [2, 4]), n_tokens=7, seed=0, logit_bias=bias)
    assert not bool(made.ended.any()) and bool(made.mask.all())


def test_pieces_of_whole_blocks_equal_one_call(tiny_llama, ragged_prompts, monkeypatch):
    monkeypatch.setattr(sampling, "SAMPLE_BLOCK", 8)
    policy, prompts = tiny_llama(6), ragged_prompts(6, [3, 5, 2, 7, 4, 4])
    whole = sample(policy, prompts, n_tokens=10, seed=2, copies=4)
    pieces = [
        sample(policy, prompts.select(slice(i, i + 2)), n_tokens=10, seed=2, copies=4,
               first_block=i // 2)
        for i in (0, 2, 4)
    ]  # fmt: skip
    assert _same(whole, concat_responses(pieces))


def test_rows_depend_neither_on_block_mates_nor_on_leaving_the_batch(
    tiny_llama, ragged_prompts, monkeypatch
):
    policy, prompts = tiny_llama(7), ragged_prompts(7, [3, 6, 2, 5])
    made = sample(policy, prompts, n_tokens=16, seed=3, copies=5)
    assert bool(made.ended.any())
    fewer = sample(policy, prompts.select(slice(0, 1)), n_tokens=16, seed=3, copies=5)
    monkeypatch.setattr(sampling, "_COMPACT_BELOW", 0.0)
    kept = sample(policy, prompts, n_tokens=16, seed=3, copies=5)
    for other in (kept, fewer):
        first = made.select(slice(0, len(other)))
        assert torch.equal(other.ids, first.ids)
        torch.testing.assert_close(other.logprobs, first.logprobs, rtol=FP32, atol=FP32)


def test_prompts_of_one_token_and_padding_change_nothing(tiny_llama, ragged_prompts):
    policy, prompts = tiny_llama(9), ragged_prompts(9, [1, 1])
    made = sample(policy, prompts, n_tokens=20, seed=0, copies=3)
    torch.testing.assert_close(score_logprobs(policy, made), made.logprobs, rtol=FP32, atol=FP32)
    ids, mask = (torch.nn.functional.pad(t, (5, 0)) for t in (prompts.ids, prompts.mask))
    padded = sample(policy, Prompts(ids, mask, prompts.prompt_id), n_tokens=20, seed=0, copies=3)
    assert _same(made, padded)
    longer = ragged_prompts(9, [1, 1, 7])  # a batch mate for which both are padded
    longer = Prompts(longer.ids.clone(), longer.mask, longer.prompt_id)
    longer.ids[:2, -1:] = prompts.ids
    mixed = sample(policy, longer, n_tokens=20, seed=0, copies=3).select(slice(0, 6))
    assert torch.equal(mixed.ids, made.ids)
    torch.testing.assert_close(mixed.logprobs, made.logprobs, rtol=FP32, atol=FP32)


def test_global_generator_is_neither_read_nor_moved(tiny_llama, ragged_prompts):
    policy, prompts = tiny_llama(8), ragged_prompts(8, [2, 3])
    made = []
    for seed in (1, 2):
        with scoped_torch_seed(seed):
            before = torch.get_rng_state()
            made.append(sample(policy, prompts, n_tokens=6, seed=0, copies=3))
            assert torch.equal(before, torch.get_rng_state())
    assert _same(*made)
    assert not _same(made[0], sample(policy, prompts, n_tokens=6, seed=1, copies=3))


def test_errors_name_the_remedy(tiny_llama, ragged_prompts):
    policy, prompts = tiny_llama(0), ragged_prompts(0, [4, 2])
    with pytest.raises(DataError, match="context is 64"):
        sample(policy, prompts, n_tokens=61, seed=0)
    with pytest.raises(DataError, match="temperature = 0"):
        sample(policy, prompts, n_tokens=2, seed=0, temperature=0)
    with pytest.raises(DataError, match="0 rows"):
        sample(policy, prompts.select(slice(0, 0)), n_tokens=2, seed=0)
