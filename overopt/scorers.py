"""Scorers: what turns whole responses into numbers. Gold, proxies and the rubric share one shape.

A reward model reads the hidden state of the last real token of prompt plus response, the end token
included where there is one; the same convention everywhere. Scores are normalised to mean 0 and
standard deviation 1 under the initial policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from overopt.compute import fit_memory
from overopt.datatypes import Responses, Scorer
from overopt.errors import DataError, DivergenceError
from overopt.gold.rubric import Rubric
from overopt.mitigations.inputs import RewardInputs, Step, chain
from overopt.nets import ScalarHeadModel
from overopt.sampling import sequence_batches
from overopt.world.hf import World, in_own_tokens

# Padded tokens of one call. On a CPU few, so that what one layer writes is in the cache of the next.
_BATCH_TOKENS, _BATCH_TOKENS_CPU = 8192, 2048


@torch.no_grad()
def raw_scores(
    model: ScalarHeadModel, responses: Responses, *, batch_tokens: int | None = None
) -> Tensor:
    """Head output (R,) at the last real token of each response, before normalisation.

    (R, k) of a model with k > 1 heads. A model of another tokenizer reads the responses' text.
    ``batch_tokens``: padded tokens of one call; None: what suits the device.
    """
    responses = in_own_tokens(model.backbone, responses)
    n_heads = model.head.out_features
    out = torch.zeros(len(responses), n_heads).squeeze(-1)
    device = model.head.weight.device
    if batch_tokens is None:
        batch_tokens = _BATCH_TOKENS_CPU if device.type == "cpu" else _BATCH_TOKENS

    def fill(batch_tokens: int) -> None:
        for rows, seq in sequence_batches(responses, batch_tokens, device):
            out[rows] = model.at_last_token(seq.ids, seq.length).float().cpu()

    fit_memory(fill, batch_tokens, "padded tokens")
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
    world: World

    def score(self, responses: Responses) -> Tensor:
        """Normalised scores (R,) float32."""
        world = self.world
        scores = self.rubric.score(
            world.prompt_texts(responses), world.response_texts(responses), responses.ended.tolist()
        )
        return torch.from_numpy(scores).float()


@dataclass(frozen=True)
class MultiHeadScorer:
    """A model with k heads on one trunk: k members for the price of one forward pass.

    mean, std: of each head's raw score under the initial policy.
    """

    model: ScalarHeadModel
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def member_scores(self, responses: Responses) -> Tensor:
        """Normalised scores (k, R) float32 of each head."""
        raw = raw_scores(self.model, responses)
        return ((raw - torch.tensor(self.mean)) / torch.tensor(self.std)).T

    def score(self, responses: Responses) -> Tensor:
        """Mean of the normalised scores, (R,) float32."""
        return self.member_scores(responses).mean(0)


@dataclass(frozen=True)
class EnsembleScorer:
    """Reward models and the mitigations that make one score of them.

    Attributes
    ----------
    parts : tuple of Scorer
        Each gives one member, a `MultiHeadScorer` several.
    steps : tuple of Step
        Mitigations in order (combination, length penalty).
    ref_tokens : float
        Mean response tokens of the initial policy.
    center, spread : float
        Mean and standard deviation of the combined score under the initial policy, in sd of a
        member. The score is normalised by them like that of a single model: it changes no ranking,
        and KL penalties mean the same to every combination.
    """

    parts: tuple[Scorer, ...]
    steps: tuple[Step, ...]
    ref_tokens: float
    center: float = 0.0
    spread: float = 1.0

    def member_scores(self, responses: Responses) -> Tensor:
        """Normalised scores (M, R) float32 of each member, one by one."""
        tables = [
            part.member_scores(responses)
            if isinstance(part, MultiHeadScorer)
            else part.score(responses)[None]
            for part in self.parts
        ]
        return torch.cat(tables)

    def combine(self, member_scores: Tensor, n_tokens: Tensor) -> Tensor:
        """Normalised score (R,) from member scores (M, R) and response tokens (R,)."""
        inputs = RewardInputs(member_scores, n_tokens, self.ref_tokens)
        return (chain(self.steps, inputs) - self.center) / self.spread

    def score(self, responses: Responses) -> Tensor:
        """Normalised scores (R,) float32."""
        return self.combine(self.member_scores(responses), responses.length)

    @property
    def mean(self) -> float:
        """Logit of the score 0: as if the combination had the members' average zero and unit."""
        scale, offset = self._logits
        return offset + scale * self.center

    @property
    def std(self) -> float:
        """Logits of one unit of the score."""
        return self._logits[0] * self.spread

    @property
    def _logits(self) -> tuple[float, float]:
        """Mean over members of the standard deviation and of the mean of their raw scores."""
        stds = [x for part in self.parts for x in _listed(getattr(part, "std", 1.0))]
        means = [x for part in self.parts for x in _listed(getattr(part, "mean", 0.0))]
        return sum(stds) / len(stds), sum(means) / len(means)


def _listed(x: float | tuple[float, ...]) -> tuple[float, ...]:
    return x if isinstance(x, tuple) else (x,)


def normalised_ensemble(
    parts: Sequence[Scorer], steps: Sequence[Step], base: Responses
) -> EnsembleScorer:
    """An ensemble whose combined score has mean 0 and standard deviation 1 on ``base``.

    ``base``: responses of the initial policy. A combination that is one member's score already is
    left as it is.

    Raises
    ------
    DataError
        A member is not normalised on ``base`` (one that is constant may be 0), or the combined
        score is constant there.
    """
    n_tokens = base.length
    ensemble = EnsembleScorer(tuple(parts), tuple(steps), float(n_tokens.double().mean()))
    members = ensemble.member_scores(base)
    for i, scores in enumerate(members):
        mean, std = mean_std(scores)
        if abs(mean) > 1e-3 or (abs(std - 1) > 1e-3 and std > 0):
            raise DataError(
                f"member {i} has mean {mean:.4g} and standard deviation {std:.4g} under the initial"
                " policy, not 0 and 1: normalise it before it is combined with others"
            )
    combined = ensemble.combine(members, n_tokens)
    if torch.equal(combined, members[0]):
        return ensemble
    center, spread = mean_std(combined)
    if spread == 0:
        raise DataError(
            f"the combined score of {len(members)} members is {center:.4g} for every response of the"
            " initial policy: it ranks nothing; lower reward.strength or change reward.transform"
        )
    return replace(ensemble, center=center, spread=spread)


class Normalisation(NamedTuple):
    """Zero and unit of a score; ``is_constant``: it had no spread, and the unit is 1."""

    mean: float
    std: float
    is_constant: bool


def normalisation(scores: Tensor) -> Normalisation:
    """Mean and standard deviation of scores (R,) under the initial policy, safe to divide by.

    Raises
    ------
    DivergenceError
        A score is not finite.
    """
    n_bad = int((~torch.isfinite(scores)).sum())
    if n_bad > 0:
        raise DivergenceError(
            f"{n_bad} of {scores.numel()} scores under the initial policy are not finite: the reward"
            " model diverged after its last loss; lower its learning rate (proxy.lr or gold.lr)"
        )
    mean, std = mean_std(scores)
    is_constant = bool(scores.max() == scores.min())
    return Normalisation(mean, 1.0 if is_constant else std, is_constant)


def mean_std(scores: Tensor | Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation (ddof 0) of scores under the initial policy."""
    x = torch.as_tensor(scores, dtype=torch.float64)
    return float(x.mean()), float(x.std(correction=0))
