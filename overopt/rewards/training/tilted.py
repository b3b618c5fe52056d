"""Responses of tilted policies, and soft labels among them: what a learned gold is trained on.

Policies under optimisation will visit text that the initial policy hardly writes, and a gold that
never saw it would be a proxy. Labels are soft, the intent's own σ(margin), which is worth many hard
labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from overopt.base.datatypes import Prompts, Responses, concat_responses
from overopt.base.seeding import derive_seed, torch_generator
from overopt.nets.backbone import Backbone
from overopt.nets.sampling import sample
from overopt.rewards.training.pairs import TrainingPairs
from overopt.worlds.world import Tilt, World


def tilt_bias(world: World, tilt: Tilt) -> Tensor:
    """Logit additions (V,) of a tilt: to pieces that are words of a class, as the world tells them.

    "▁" and "Ġ" are how tokenizers write the space in front of a word.
    """
    bias = torch.zeros(world.tokenizer.get_vocab_size())
    for piece, i in world.tokenizer.get_vocab().items():
        name = world.word_class(piece.strip("▁Ġ").lower())
        if name is not None:
            bias[i] += tilt.additions.get(name, 0.0)
    return bias


def sample_tilted(
    policy: Backbone, prompts: Prompts, world: World, *, copies: int, n_tokens: int, seed: int
) -> Responses:
    """``copies`` responses a prompt, copies adjacent, copy c from tilt c modulo their number."""
    # An embedding may have more rows than the tokenizer has pieces.
    spare = (0, policy.cfg.vocab_size - world.tokenizer.get_vocab_size())
    tilts = [world.tilts[c % len(world.tilts)] for c in range(copies)]
    parts = [
        sample(
            policy,
            prompts,
            n_tokens=n_tokens,
            seed=derive_seed(seed, "tilt", c),
            temperature=tilt.temperature,
            logit_bias=F.pad(tilt_bias(world, tilt), spare).to(policy.device),
        )
        for c, tilt in enumerate(tilts)
    ]
    rows = torch.arange(copies * len(prompts)).view(copies, -1).T.flatten()
    return concat_responses(parts).select(rows)


def soft_pairs(
    responses: Responses, score: Tensor, *, copies: int, pairs_per_prompt: int, seed: int
) -> TrainingPairs:
    """Random pairs within each prompt, labelled P(first preferred) = σ(score difference)."""
    n_prompts = len(responses) // copies
    i, j = torch.triu_indices(copies, copies, offset=1)
    generator = torch_generator(seed, "pairs")
    picks = torch.stack(
        [torch.randperm(len(i), generator=generator)[:pairs_per_prompt] for _ in range(n_prompts)]
    )
    starts = torch.arange(n_prompts)[:, None] * copies
    first, second = (starts + i[picks]).flatten(), (starts + j[picks]).flatten()
    return TrainingPairs(responses, first, second, torch.sigmoid(score[first] - score[second]))
