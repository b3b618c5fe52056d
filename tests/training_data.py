"""Small pairs, examples and policies that tests of training share, also across processes."""

import torch

from overopt.base.datatypes import Prompts, Responses
from overopt.base.seeding import torch_generator
from overopt.nets.block import LlamaConfig
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.llama import Llama
from overopt.rewards.training.pairs import TrainingPairs

VOCAB = 24


def backbone(seed: int = 0, **shape: int) -> Llama:
    """A random Llama of two layers, with norm weights that differ from 1."""
    default = dict(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    model = Llama(LlamaConfig(**(default | shape)))
    model.init_weights(torch_generator(seed, "backbone"))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(6)
            else:
                p.add_(0.2 * torch.randn(p.shape, generator=torch_generator(seed, "norm")))
    return model


def reward_model(seed: int = 0, **shape: int) -> ScalarHeadModel:
    """A reward model on `backbone`."""
    model = ScalarHeadModel(backbone(0, **shape))
    model.init_head(torch_generator(seed, "head"))
    return model


def prompts(n: int, width: int = 5) -> Prompts:
    """Left-padded prompts of 1 to ``width`` tokens."""
    generator = torch_generator(0, "prompts")
    length = torch.randint(1, width + 1, (n,), generator=generator)
    mask = torch.arange(width) >= width - length[:, None]
    ids = torch.randint(2, VOCAB, (n, width), generator=generator)
    return Prompts(ids * mask, mask, torch.arange(n))


def training_pairs(n_prompts: int = 12, copies: int = 3, seed: int = 0) -> TrainingPairs:
    """All pairs among ``copies`` responses of 1 to 9 tokens to each prompt, with soft labels."""
    generator = torch_generator(seed, "responses")
    n_rows, width = n_prompts * copies, 9
    length = torch.randint(1, width + 1, (n_rows,), generator=generator)
    mask = torch.arange(width) < length[:, None]
    ids = torch.randint(2, VOCAB, (n_rows, width), generator=generator) * mask
    asked = prompts(n_prompts).repeat(copies)
    responses = Responses(asked, ids, mask, torch.zeros(ids.shape), length < width)
    i, j = torch.triu_indices(copies, copies, 1)
    start = torch.arange(n_prompts)[:, None] * copies
    first, second = (start + i).flatten(), (start + j).flatten()
    return TrainingPairs(responses, first, second, torch.rand(len(first), generator=generator))


def examples(n: int = 40) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses for fine-tuning: token 9, again and again."""
    generator = torch_generator(0, "examples")
    asked, answers = [], []
    for _ in range(n):
        n_prompt, n_response = torch.randint(1, 6, (2,), generator=generator).tolist()
        asked.append(torch.randint(2, VOCAB, (n_prompt,), generator=generator).tolist())
        answers.append([9] * n_response + [1])
    return asked, answers


class CountsToken:
    """A proxy that counts one token."""

    def score(self, responses: Responses) -> torch.Tensor:
        """How often token 9 stands in each response."""
        return ((responses.ids == 9) & responses.mask).sum(1).float()
