"""Policies whose every response can be listed, so that expectations are sums and not samples."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from overopt.base.datatypes import Prompts, Sequences, join
from overopt.base.seeding import torch_generator
from overopt.methods.policy_gradient import Batch
from overopt.nets.block import LlamaConfig
from overopt.nets.llama import Llama

EOS = 2


def small_llama(seed: int = 0, vocab: int = 6) -> Llama:
    """A random Llama in float64 with logits of a size that matters."""
    cfg = LlamaConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    model = Llama(cfg)
    model.init_weights(torch_generator(seed, "small"))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(10)
    return model.double()


class Everything(NamedTuple):
    """Every response of at most two tokens to one prompt.

    seq: R joined rows; mask (R, 2); logp (R, 2) under the policy, 0 where masked; p (R,), sums to 1.
    """

    seq: Sequences
    mask: Tensor
    logp: Tensor
    p: Tensor


def everything(policy: Llama, n_tokens: int = 2) -> Everything:
    """All responses of ``policy`` to the prompt 1 4, cut after two tokens; differentiable."""
    vocab = range(policy.cfg.vocab_size)
    rows = [(EOS, 0)] + [r for r in itertools.product(vocab, vocab) if r[0] != EOS]
    ids = torch.tensor(rows)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 1] = False
    prompt = torch.tensor([[1, 4]]).expand(len(ids), 2)
    prompts = Prompts(prompt, torch.ones_like(prompt, dtype=torch.bool), torch.arange(len(ids)))
    seq = join(prompts, ids, mask)
    hidden = policy(seq.ids)
    logp = policy.logits(hidden[:, 1:3]).log_softmax(-1).gather(2, ids[..., None])[..., 0] * mask
    return Everything(seq, mask, logp, logp.sum(1).exp())


def batch_of(every: Everything, advantage: Tensor, ref_logp: Tensor | None = None) -> Batch:
    """What a rollout of every response once would be."""
    logp = every.logp.detach()
    length = every.mask.sum(1)
    nothing = torch.zeros(len(length))
    ref = logp if ref_logp is None else ref_logp.detach()
    return Batch(None, every.seq, nothing, nothing, advantage, logp, ref, length, every.seq.length)


def gradients(loss: Tensor, policy: Llama) -> Tensor:
    """Gradient of ``loss`` in all weights, in a row."""
    grads = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for p, g in zip(policy.parameters(), grads, strict=True)
        ]
    )


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two gradients."""
    return float(a @ b / (a.norm() * b.norm()))
