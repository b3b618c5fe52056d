"""Continuous batching against the sampler that decodes block by block."""

import pytest
import torch
from tolerances import FP32

from overopt.base.datatypes import Prompts
from overopt.base.seeding import torch_generator
from overopt.nets import lanes
from overopt.nets.block import LlamaConfig
from overopt.nets.checkpoints import load_lm
from overopt.nets.llama import Llama
from overopt.nets.sampling import _inverse_cdf, sample, score_logprobs
from overopt.worlds.prompts import load_openings
from overopt.worlds.stories import StoriesWorld
from overopt.worlds.tokenizers import load_tokenizer

N_TOKENS = 7


def small(n_kv, *, bias=False, tied=True, n_positions=256):
    model = Llama(
        LlamaConfig(
            vocab_size=70,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=n_kv,
            max_position_embeddings=n_positions,
            attention_bias=bias,
            tie_word_embeddings=tied,
        )
    )
    generator = torch_generator(0, "weights")
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.3, generator=generator)
    return model.eval()


def prompts_of(n, cfg):
    """Left-padded prompts of 1 to 5 tokens."""
    generator = torch_generator(0, "prompts")
    ids = torch.randint(2, cfg.vocab_size, (n, 5), generator=generator)
    mask = torch.arange(5) >= torch.randint(0, 5, (n, 1), generator=generator)
    return Prompts(ids * mask, mask, torch.arange(n))


def in_lanes(model, prompts, copies, n_lanes, *, seed=3, **settings):
    """The table of `sample`, decoded in lanes; rows padded behind their end."""
    row = torch.arange(len(prompts)).repeat_interleave(copies)
    uniform = torch.rand(
        (256, N_TOKENS), generator=torch_generator(seed, "uniform", 0), dtype=torch.float64
    )
    return lanes.sample_rows(
        model, prompts.ids, prompts.mask, row, uniform[: len(row)], _inverse_cdf,
        n_lanes=n_lanes, **settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("n_kv", "bias", "tied"), [(4, False, True), (2, True, False), (1, False, True)]
)
@pytest.mark.parametrize("n_lanes", [1, 5, 100])
def test_lanes_give_what_blocks_give(n_kv, bias, tied, n_lanes):
    model = small(n_kv, bias=bias, tied=tied)
    prompts = prompts_of(6, model.cfg)
    expected = sample(model, prompts, n_tokens=N_TOKENS, seed=3, copies=4)
    made = in_lanes(model, prompts, 4, n_lanes)
    assert expected.ended.any() and not expected.ended.all()
    torch.testing.assert_close(made.ids[expected.mask], expected.ids[expected.mask])
    torch.testing.assert_close(
        made.logprobs[expected.mask], expected.logprobs[expected.mask], rtol=0, atol=FP32
    )


def test_temperature_and_bias_enter_as_in_blocks():
    model = small(2)
    prompts = prompts_of(6, model.cfg)
    bias = torch.linspace(-2, 2, model.cfg.vocab_size)
    expected = sample(
        model, prompts, n_tokens=N_TOKENS, seed=3, copies=2, temperature=0.7, logit_bias=bias
    )
    made = in_lanes(model, prompts, 2, 5, temperature=0.7, logit_bias=bias)
    torch.testing.assert_close(made.ids[expected.mask], expected.ids[expected.mask])


def test_a_second_call_follows_changed_weights_and_prompts():
    model = small(2)
    prompts = prompts_of(6, model.cfg)
    in_lanes(model, prompts, 2, 12)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    other = prompts.select(torch.tensor([5, 4, 3, 2, 1, 0]))
    expected = sample(model, other, n_tokens=N_TOKENS, seed=3, copies=2)
    made = in_lanes(model, other, 2, 12)
    torch.testing.assert_close(made.ids[expected.mask], expected.ids[expected.mask])


def test_free_lanes_stay_inside_a_context_that_slots_do_not_divide():
    model = small(2, n_positions=5 + N_TOKENS)
    prompts = prompts_of(6, model.cfg)
    expected = sample(model, prompts, n_tokens=N_TOKENS, seed=3, copies=4)
    made = in_lanes(model, prompts, 4, 7)
    torch.testing.assert_close(made.ids[expected.mask], expected.ids[expected.mask])


def test_bf16_reports_the_distribution_it_samples_from():
    model = small(2)
    prompts = prompts_of(200, model.cfg)
    made = sample(model, prompts, n_tokens=N_TOKENS, seed=3, precision="bf16")
    exact = score_logprobs(model, made)
    difference = (made.logprobs - exact)[made.mask]
    assert 0 < difference.abs().max() < 0.2
    assert difference.abs().mean() < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("source", ["ladder:0.05m", "ladder:policy-0.8m"])
def test_a_gpu_samples_what_the_cpu_samples(source):
    policy = load_lm(source)
    world = StoriesWorld(tuple(load_openings()), load_tokenizer())
    prompts = world.prompts("eval", 40)
    bias = torch.linspace(-0.5, 0.5, policy.cfg.vocab_size)
    settings = {"n_tokens": 48, "seed": 1, "copies": 10, "temperature": 0.9, "logit_bias": bias}
    expected = sample(policy, prompts, **settings)
    plain = score_logprobs(policy, sample(policy, prompts, n_tokens=48, seed=1))
    policy.cuda()
    made = sample(policy, prompts, **settings)
    same = (made.ids == expected.ids).all(1)
    assert same.float().mean() > 0.97  # a token differs where u falls between two roundings
    torch.testing.assert_close(made.logprobs[same], expected.logprobs[same], rtol=0, atol=10 * FP32)
    again = sample(policy, prompts, n_tokens=48, seed=1)
    exact = score_logprobs(policy, again)
    torch.testing.assert_close(
        again.logprobs, exact[:, : again.ids.shape[1]], rtol=0, atol=10 * FP32
    )
    assert abs(float((exact.sum(1) - plain.sum(1)).mean())) < 0.5
    half = sample(policy, prompts, precision="bf16", **settings)
    assert (half.length.float().mean() - expected.length.float().mean()).abs() < 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("n_kv", "bias", "tied"), [(4, False, True), (2, True, False), (1, False, True)]
)
def test_kernels_and_refills_on_a_gpu(n_kv, bias, tied):
    model = small(n_kv, bias=bias, tied=tied)
    prompts = prompts_of(6, model.cfg)
    expected = sample(model, prompts, n_tokens=N_TOKENS, seed=3, copies=40)
    model.cuda()
    for n_lanes in (3, 50):
        made = in_lanes(model, prompts, 40, n_lanes)
        same = ((made.ids.cpu() == expected.ids) | ~expected.mask).all(1)
        assert same.float().mean() > 0.97


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("n_heads", "n_kv", "dim"), [(9, 3, 64), (4, 4, 32), (6, 2, 24)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_attention_kernel_is_attention(n_heads, n_kv, dim, dtype):
    from overopt.nets import lane_kernels

    generator, n_rows, n_slots = torch_generator(0, "attention"), 50, 96
    shapes = {
        "qkv": (n_rows, (n_heads + 2 * n_kv) * dim),
        "keys": (n_rows, n_kv, n_slots, dim),
        "values": (n_rows, n_kv, n_slots, dim),
        "angles": (128, dim // 2),
    }
    draws = {k: torch.randn(s, generator=generator).cuda() for k, s in shapes.items()}
    slot = torch.randint(0, n_slots, (n_rows,), generator=generator).cuda()
    qkv, keys, values = (draws[k].to(dtype) for k in ("qkv", "keys", "values"))
    turn = draws["angles"].cos(), draws["angles"].sin()
    exact = lanes.attend(*(t.double() for t in (qkv, keys.clone(), values.clone(), *turn)), slot)
    made = lane_kernels.attend(qkv, keys, values, *turn, slot)
    rounding = 1e-2 if dtype == torch.bfloat16 else FP32
    torch.testing.assert_close(
        made.double(), exact, rtol=0, atol=rounding * float(exact.abs().max())
    )
    expected = lanes.attend(qkv, keys.clone(), values.clone(), *turn, slot)
    torch.testing.assert_close(made, expected, rtol=rounding, atol=rounding)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("vocab", [70, 2048, 5000, 49152])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_drawing_kernel_is_the_inverse_cdf(vocab, temperature):
    from overopt.nets import lane_kernels

    generator, n_rows = torch_generator(0, "draw"), 1000
    logits = 3 * torch.randn((n_rows, vocab), generator=generator).cuda()
    uniform = torch.rand(n_rows, generator=generator, dtype=torch.float64).cuda()
    uniform[0], uniform[1] = 0.0, 1 - 2**-53
    bias = torch.zeros(vocab, device="cuda")
    bias[::7] = -torch.inf
    bias[-vocab // 3 :] = -torch.inf
    for added in (None, bias):
        whole = logits if added is None else logits + added
        token, logp = lane_kernels.draw(logits, added, uniform, temperature)
        expected, expected_logp = _inverse_cdf(whole / temperature, uniform)
        same = token == expected
        assert same.float().mean() > 0.99  # a token differs where u falls between two roundings
        torch.testing.assert_close(
            logp[same].double(), expected_logp[same].double(), rtol=0, atol=FP32
        )
        exact = (whole.double() / temperature).log_softmax(1).gather(1, token[:, None])[:, 0]
        torch.testing.assert_close(logp.double(), exact, rtol=0, atol=10 * FP32)


def test_kept_caches_stay_within_their_memory(monkeypatch):
    model = small(4)
    prompts = prompts_of(3, model.cfg)
    in_lanes(model, prompts, 2, 3)
    in_lanes(model, prompts, 2, 4)
    kept = lanes._RUNNERS[model]
    assert [r.n_lanes for r in kept.values()] == [3, 4]
    monkeypatch.setattr(lanes, "CACHE_BYTES", 2 * list(kept.values())[1].keys.nbytes)
    in_lanes(model, prompts, 2, 2)
    assert [r.n_lanes for r in kept.values()] == [2]
    in_lanes(model, prompts, 2, 2)  # again the same
    assert [r.n_lanes for r in kept.values()] == [2]
