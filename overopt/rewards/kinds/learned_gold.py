"""A learned gold: a reward model fitted to comparisons that the rubric labels, then frozen.

It is trained on responses of the initial policy and of tilted copies of it, whose logits for joyful
words, quotation marks, names and other words are raised or lowered: policies under optimisation
will visit such text, and a gold that never saw it would be a proxy. Labels are soft, the rubric's
own σ(margin), which is worth many hard labels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from overopt.base.datatypes import Prompts, Responses, concat_responses
from overopt.base.seeding import derive_seed, torch_generator
from overopt.nets.llama import Llama
from overopt.nets.sampling import sample
from overopt.rewards.kinds.rubric import JOY, SORROW
from overopt.rewards.training.pairs import TrainingPairs


@dataclass(frozen=True)
class Tilt:
    """Additions to the logits of word classes."""

    joy: float = 0.0
    sorrow: float = 0.0
    quote: float = 0.0
    temperature: float = 1.0


# A third of the responses is untilted; the rest spreads over mild and strong tilts.
TILTS = (
    Tilt(),
    Tilt(),
    Tilt(joy=1.5),
    Tilt(joy=3.0),
    Tilt(joy=4.5),
    Tilt(joy=6.5, temperature=1.3),
    Tilt(joy=2.0, quote=2.0),
    Tilt(quote=3.5),
    Tilt(sorrow=2.5),
    Tilt(joy=3.0, sorrow=-3.0, temperature=0.7),
    Tilt(temperature=1.6),
    Tilt(joy=5.0, quote=1.0, temperature=0.8),
)


def tilt_bias(tokenizer: Tokenizer, tilt: Tilt) -> Tensor:
    """Logit additions (V,) of a tilt: pieces that are whole words of a class, and quotation marks.

    "▁" and "Ġ" are how tokenizers write the space in front of a word.
    """
    bias = torch.zeros(tokenizer.get_vocab_size())
    for piece, i in tokenizer.get_vocab().items():
        word = piece.strip("▁Ġ").lower()
        if word in JOY:
            bias[i] += tilt.joy
        elif word in SORROW:
            bias[i] += tilt.sorrow
        elif '"' in word:
            bias[i] += tilt.quote
    return bias


def sample_tilted(
    policy: Llama, prompts: Prompts, tokenizer: Tokenizer, *, copies: int, n_tokens: int, seed: int
) -> Responses:
    """``copies`` responses a prompt, copies adjacent, copy c from tilt c modulo their number."""
    # An embedding may have more rows than the tokenizer has pieces.
    spare = (0, policy.cfg.vocab_size - tokenizer.get_vocab_size())
    parts = [
        sample(
            policy,
            prompts,
            n_tokens=n_tokens,
            seed=derive_seed(seed, "tilt", c),
            temperature=TILTS[c % len(TILTS)].temperature,
            logit_bias=F.pad(tilt_bias(tokenizer, TILTS[c % len(TILTS)]), spare).to(policy.device),
        )
        for c in range(copies)
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
