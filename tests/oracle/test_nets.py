"""The compact Llama against transformers' classes, and its cached paths against the full forward."""

from dataclasses import replace

import pytest
import torch
from tolerances import FP32
from transformers import AutoConfig, AutoModelForCausalLM

from overopt.base.errors import CheckpointError, ConfigError
from overopt.base.seeding import torch_generator
from overopt.nets.layout import from_transformers_state, to_transformers_state


def _ids(seed, shape):
    return torch.randint(0, 48, shape, generator=torch_generator(seed, "ids"))


def _theirs(model):
    spec = model.cfg.to_transformers()
    cfg = AutoConfig.for_model(spec.pop("model_type"), **spec)
    theirs = AutoModelForCausalLM.from_config(cfg).eval()
    left = theirs.load_state_dict(to_transformers_state(model), strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) <= ({"lm_head.weight"} if cfg.tie_word_embeddings else set())
    theirs.tie_weights()
    return theirs


GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 1e5}
SHAPES = {
    "ladder": {},
    "grouped": GROUPED,
    "untied": GROUPED | {"tie_word_embeddings": False, "rms_norm_eps": 1e-3},
    "one_kv_head": {"num_key_value_heads": 1},
    "qwen2": GROUPED | {"attention_bias": True},
}


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_equal_transformers_and_weights_survive_the_round_trip(tiny_llama, shape):
    model, ids = tiny_llama(0, **shape), _ids(0, (3, 20))
    theirs = _theirs(model)
    torch.testing.assert_close(model.logits(model(ids)), theirs(ids).logits, rtol=FP32, atol=FP32)
    back = from_transformers_state(theirs.state_dict(), model.cfg)
    assert len(list(back.parameters())) == len(list(model.parameters()))
    for (name, a), b in zip(model.named_parameters(), back.parameters(), strict=True):
        assert torch.equal(a, b), name


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_last_token_alone_equals_the_full_forward(tiny_llama, shape):
    model, ids, length = tiny_llama(2, **shape), _ids(2, (4, 9)), torch.tensor([9, 1, 4, 8])
    full = model(ids)[torch.arange(4), length - 1]
    torch.testing.assert_close(model.at_last_token(ids, length), full, rtol=FP32, atol=FP32)


@torch.no_grad()
def test_chosen_positions_equal_the_full_forward(tiny_llama):
    model, ids = tiny_llama(2), _ids(6, (3, 9))
    at = torch.tensor([[0, 4], [8, 8], [3, 1]])
    expected = model(ids)[torch.arange(3)[:, None], at]
    torch.testing.assert_close(model(ids, at), expected, rtol=FP32, atol=FP32)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_decoder_equals_the_full_forward(tiny_llama, ragged_prompts, shape):
    model, prompts, n_tokens = tiny_llama(3, **shape), ragged_prompts(3, [5, 1, 3]), 40
    row, new = torch.tensor([0, 0, 1, 2, 2, 2]), _ids(3, (6, n_tokens))
    decoder, alive = model.decoder(prompts.ids, prompts.mask, row, n_tokens), torch.arange(6)
    for t in range(n_tokens):
        if t == 7:
            alive = torch.tensor([1, 2, 5])
            decoder.keep(alive)
        for hidden, r in zip(decoder.hidden, alive.tolist(), strict=True):
            prompt = prompts.ids[row[r]][prompts.mask[row[r]]]
            full = model(torch.cat([prompt, new[r, :t]])[None])[0, -1]
            torch.testing.assert_close(hidden, full, rtol=FP32, atol=FP32)
        assert decoder.step(new[alive, t]) is decoder.hidden
    with pytest.raises(ValueError, match="for more tokens"):
        decoder.step(new[alive, 0])


def test_weights_and_shapes_without_a_place_are_refused(tiny_llama):
    model = tiny_llama(0, attention_bias=True)
    state = to_transformers_state(model)
    extra = state | {"model.layers.0.self_attn.o_proj.bias": torch.zeros(16)}
    with pytest.raises(CheckpointError, match="o_proj.bias"):
        from_transformers_state(extra, model.cfg)
    with pytest.raises(CheckpointError, match="q_proj.bias"):
        from_transformers_state(state, replace(model.cfg, attention_bias=False))
    with pytest.raises(ConfigError, match="num_key_value_heads = 3"):
        replace(model.cfg, num_key_value_heads=3)
    with pytest.raises(ConfigError, match="hidden_size = 18"):
        replace(model.cfg, hidden_size=18)


def test_gradients_equal_transformers(tiny_llama):
    # No pad id: transformers passes no gradient to its embedding.
    model, ids = tiny_llama(1), _ids(1, (2, 10)).clamp_min(1)
    theirs = _theirs(model)
    model.logits(model(ids)).logsumexp(-1).sum().backward()
    theirs(ids).logits.logsumexp(-1).sum().backward()
    expected = theirs.model.embed_tokens.weight.grad
    scale = float(expected.abs().max())
    torch.testing.assert_close(model.embed.weight.grad, expected, rtol=0, atol=FP32 * scale)
