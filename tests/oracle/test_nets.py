"""The compact Llama against transformers' class, and its cached paths against the full forward."""

import torch
from tolerances import FP32
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM

from overopt.nets import from_transformers_state, to_transformers_state
from overopt.seeding import torch_generator


def _ids(seed, shape):
    return torch.randint(0, 48, shape, generator=torch_generator(seed, "ids"))


def _theirs(model):
    theirs = LlamaForCausalLM(TheirConfig(**model.cfg.to_transformers())).eval()
    theirs.load_state_dict(to_transformers_state(model), strict=False)
    theirs.tie_weights()
    return theirs


@torch.no_grad()
def test_logits_equal_transformers_and_weights_survive_the_round_trip(tiny_llama):
    model, ids = tiny_llama(0), _ids(0, (3, 20))
    theirs = _theirs(model)
    torch.testing.assert_close(model.logits(model(ids)), theirs(ids).logits, rtol=FP32, atol=FP32)
    back = from_transformers_state(theirs.state_dict(), model.cfg)
    for (name, a), b in zip(model.named_parameters(), back.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_gradients_equal_transformers(tiny_llama):
    # No pad id: transformers passes no gradient to its embedding.
    model, ids = tiny_llama(1), _ids(1, (2, 10)).clamp_min(1)
    theirs = _theirs(model)
    model.logits(model(ids)).logsumexp(-1).sum().backward()
    theirs(ids).logits.logsumexp(-1).sum().backward()
    expected = theirs.model.embed_tokens.weight.grad
    scale = float(expected.abs().max())
    torch.testing.assert_close(model.embed.weight.grad, expected, rtol=0, atol=FP32 * scale)


@torch.no_grad()
def test_prefill_and_steps_equal_the_full_forward(tiny_llama):
    model, ids = tiny_llama(2), _ids(2, (3, 12))
    full = model(ids)
    cache, n = model.new_cache(3, 12), 5
    position = torch.arange(n).expand(3, n)
    hidden = [model.extend(ids[:, :n], position, cache, 0, None)]
    bias = torch.full((1, 1, 12), -torch.inf)
    bias[..., :n] = 0
    for slot in range(n, 12):
        bias[..., slot] = 0
        hidden.append(model.step(ids[:, slot], torch.full((3,), slot), cache, slot, bias)[:, None])
    torch.testing.assert_close(torch.cat(hidden, 1), full, rtol=FP32, atol=FP32)


@torch.no_grad()
def test_extending_token_by_token_equals_the_full_forward(tiny_llama):
    model, ids = tiny_llama(3), _ids(3, (2, 6))
    cache = model.new_cache(2, 6)
    parts = [
        model.extend(ids[:, t : t + 1], torch.full((2, 1), t), cache, t, None) for t in range(6)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=FP32, atol=FP32)
