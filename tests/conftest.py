"""Shared fixtures: tiny random models and prompts. Nothing here seeds a global generator."""

import sys
from pathlib import Path

import pytest
import torch

from overopt.base.datatypes import Prompts
from overopt.base.seeding import torch_generator
from overopt.nets.block import LlamaConfig
from overopt.nets.llama import Llama

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture
def tiny_llama():
    """A function (root_seed, **shape) -> random Llama with weights large enough to be peaked."""

    def make(root_seed: int, *, scale: float = 8.0, **shape) -> Llama:
        default = dict(
            vocab_size=48,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
        model = Llama(LlamaConfig(**(default | shape)))
        model.init_weights(torch_generator(root_seed, "tiny"))
        with torch.no_grad():
            generator = torch_generator(root_seed, "norms")
            for p in model.parameters():
                if p.ndim == 2:
                    p.mul_(scale)
                else:  # norm weights that differ from 1, so that leaving one out shows
                    p.add_(0.2 * torch.randn(p.shape, generator=generator))
        return model.eval()

    return make


@pytest.fixture
def ragged_prompts():
    """A function (root_seed, lengths, vocab) -> left-padded random prompts."""

    def make(root_seed: int, lengths: list[int], vocab: int = 48) -> Prompts:
        width, n = max(lengths), len(lengths)
        generator = torch_generator(root_seed, "ragged")
        ids = torch.randint(2, vocab, (n, width), generator=generator)
        mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
        return Prompts(ids * mask, mask, torch.arange(n))

    return make
