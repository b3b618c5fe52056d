"""Bootstrap ensembles: members that saw other draws of the prompts, apart or on one trunk.

Resampling is by prompt, because the pairs of one prompt share responses and are not independent.
Heads on one trunk (Osband et al. 2016; Ahmed et al. 2024 for reward models) cost one forward pass.
Linear heads that minimise one convex loss on one trunk would meet in one solution whatever their
start, so each head has a bootstrap of its own and not only its own initialisation.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from overopt.rewards.training.pairs import PairBatch, TrainingPairs
from overopt.rewards.training.train import PairLoss


def prompt_counts(pairs: TrainingPairs, *, generator: torch.Generator) -> Tensor:
    """How often each pair's prompt was drawn, (C,) int64: as many draws with replacement as prompts."""
    return draw_counts(pairs.responses.prompts.prompt_id[pairs.first], generator=generator)


def draw_counts(prompt: Tensor, *, generator: torch.Generator) -> Tensor:
    """How often the prompt of each row was drawn, from the rows' prompt numbers (R,)."""
    prompts, where = prompt.unique(return_inverse=True)
    drawn = torch.randint(len(prompts), (len(prompts),), generator=generator)
    return drawn.bincount(minlength=len(prompts))[where]


def resample_prompts(pairs: TrainingPairs, *, generator: torch.Generator) -> TrainingPairs:
    """A bootstrap replicate: each pair as often as its prompt was drawn.

    Every draw counts as a prompt of its own, with a copy of the responses: a step holds as many
    draws as it would hold prompts, so that a replicate is trained for as many steps as the original
    and each draw has the same weight.
    """
    counts, n = prompt_counts(pairs, generator=generator), len(pairs.responses)
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    copy = torch.arange(len(rows)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    n_copies = int(counts.max())
    responses = pairs.responses.select(torch.arange(n).repeat(n_copies))
    prompt_id = responses.prompts.prompt_id
    apart = torch.arange(n_copies).repeat_interleave(n) * (int(prompt_id.max()) + 1)
    responses = replace(responses, prompts=replace(responses.prompts, prompt_id=prompt_id + apart))
    return TrainingPairs(
        responses, pairs.first[rows] + n * copy, pairs.second[rows] + n * copy, pairs.target[rows]
    )


def heads_loss(counts: Tensor) -> PairLoss:
    """Mean over k heads of the Bradley-Terry loss on each head's bootstrap, in nats.

    counts (C, k): how often each training pair counts for each head; 1 on average, so that the
    trunk's learning rate means what it means for a single head.
    """

    def loss(scores: Tensor, batch: PairBatch) -> Tensor:
        first, second = batch.first.to(scores.device), batch.second.to(scores.device)
        target = batch.target.to(scores.device)[:, None]
        margin = scores[first] - scores[second]
        nats = target * F.softplus(-margin) + (1 - target) * F.softplus(margin)
        return (counts[batch.pairs].to(nats) * nats).mean()

    return loss
