"""Scorers: what turns whole responses into numbers. Gold, proxies and the rubric share one shape.

A reward model reads the hidden state of the last real token of prompt plus response, the end token
included where there is one; the same convention everywhere. Scores are normalised to mean 0 and
standard deviation 1 under the initial policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from overopt.datatypes import Responses
from overopt.gold.rubric import Rubric
from overopt.nets import ScalarHeadModel
from overopt.sampling import sequence_batches
from overopt.world.stories import StoriesWorld


@torch.no_grad()
def raw_scores(model: ScalarHeadModel, responses: Responses, *, batch_tokens: int = 8192) -> Tensor:
    """Head output (R,) at the last real token of each response, before normalisation."""
    out = torch.zeros(len(responses))
    device = model.head.weight.device
    for rows, seq in sequence_batches(responses, batch_tokens):
        out[rows] = model.at_last_token(seq.ids.to(device), seq.length.to(device)).float().cpu()
    return out


@dataclass(frozen=True)
class RewardModelScorer:
    """A reward model with the mean and std of its raw score under the initial policy."""

    model: ScalarHeadModel
    mean: float
    std: float

    def score(self, responses: Responses) -> Tensor:
        """Normalised scores (R,) float32."""
        return (raw_scores(self.model, responses) - self.mean) / self.std


@dataclass(frozen=True)
class RubricScorer:
    """The rubric behind the same interface; it reads text."""

    rubric: Rubric
    world: StoriesWorld

    def score(self, responses: Responses) -> Tensor:
        """Normalised scores (R,) float32."""
        world = self.world
        scores = self.rubric.score(
            world.prompt_texts(responses), world.response_texts(responses), responses.ended.tolist()
        )
        return torch.from_numpy(scores).float()


def mean_std(scores: Tensor | Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation (ddof 0) of scores under the initial policy."""
    x = torch.as_tensor(scores, dtype=torch.float64)
    return float(x.mean()), float(x.std(correction=0))
