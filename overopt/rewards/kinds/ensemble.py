"""Several reward models as one: members, the mitigation that combines them, one zero and unit."""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overopt.base import files
from overopt.base.config import from_dict
from overopt.base.datatypes import Responses
from overopt.base.errors import CheckpointError, DataError
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.kind import Place, Scorer, Unit
from overopt.rewards.kinds.reward_model import RewardModelScorer
from overopt.rewards.load import MEMBERS, load_scorer
from overopt.rewards.scorer import mean_std, normalisation, raw_scores
from overopt.rewards.settings import RewardConfig
from overopt.rewards.transforms import length
from overopt.rewards.transforms.ensembles import ENSEMBLES
from overopt.rewards.transforms.inputs import Reward, RewardInputs, Step, chain
from overopt.rewards.transforms.own import kept_transform


def reward_steps(cfg: RewardConfig, transform: Reward | None = None) -> tuple[Step, ...]:
    """The mitigations that ``cfg`` asks for, in order; ``transform``: the user's combination."""
    steps = [Step(transform or ENSEMBLES[cfg.combine], cfg.strength)]
    match cfg.length_penalty:
        case "linear":
            steps.append(Step(length.linear, cfg.length_coef))
        case "hinge":
            hinge = functools.partial(length.hinge, budget=cfg.length_budget)
            steps.append(Step(hinge, cfg.length_coef))
    return tuple(steps)


@dataclass(frozen=True)
class EnsembleScorer(Scorer):
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

    @property
    def n_members(self) -> int:
        """Members of all parts."""
        return sum(part.n_members for part in self.parts)

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of one part."""
        return self.parts[0].sizes

    def member_scores(self, responses: Responses) -> Tensor:
        """Normalised scores (M, R) float32 of each member, one by one."""
        return torch.cat([part.member_scores(responses) for part in self.parts])

    def combine(self, member_scores: Tensor, n_tokens: Tensor) -> Tensor:
        """Normalised score (R,) from member scores (M, R) and response tokens (R,)."""
        inputs = RewardInputs(member_scores, n_tokens, self.ref_tokens)
        return (chain(self.steps, inputs) - self.center) / self.spread

    def score(self, responses: Responses) -> Tensor:
        """Normalised scores (R,) float32."""
        return self.combine(self.member_scores(responses), responses.length)

    @property
    def unit(self) -> Unit:
        """As if the combination had the average zero and unit of the members' raw scores."""
        units = [unit for part in self.parts for unit in part.units]
        std = sum(unit.std for unit in units) / len(units)
        mean = sum(unit.mean for unit in units) / len(units)
        return Unit(mean + std * self.center, std * self.spread)

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Members and normalisation; ``info`` says under "reward" how they are combined."""
        for i, part in enumerate(self.parts):
            (folder / f"member-{i}").mkdir()
            part.save(folder / f"member-{i}", {})
        here = {
            "kind": "ensemble",
            "n_parts": len(self.parts),
            "ref_tokens": self.ref_tokens,
            "center": self.center,
            "spread": self.spread,
        }
        files.save_json(folder / "scorer.json", info | here)


def load(folder: Path, info: dict[str, Any], place: Place) -> EnsembleScorer:
    """What `EnsembleScorer.save` wrote, and the user's file beside it."""
    parts = [
        load_scorer(folder / f"member-{i}", place, kinds=place.members or MEMBERS)
        for i in range(info["n_parts"])
    ]
    cfg = from_dict(RewardConfig, info["reward"])
    steps = reward_steps(
        cfg, kept_transform(folder, place.transform_sha256) if cfg.transform else None
    )
    return EnsembleScorer(tuple(parts), steps, info["ref_tokens"], info["center"], info["spread"])


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


def average_weights(members: Sequence[Scorer], base: Responses) -> RewardModelScorer:
    """One model with the mean of the members' weights (WARM, Ramé et al. 2024), normalised anew.

    ``base``: responses of the initial policy. Members should share their head's initialisation
    (``members_by = bootstrap``): heads that start apart may average to less than either.

    Raises
    ------
    CheckpointError
        A member is no reward model, or of another shape than the first.
    """
    models = []
    for i, member in enumerate(members):
        model = getattr(member, "model", None)
        if not isinstance(model, ScalarHeadModel):
            raise CheckpointError(
                f"member {i} is a {type(member).__name__}, whose weights cannot be averaged: use"
                " another reward.combine"
            )
        models.append(model)
        shape, first = models[-1].backbone.cfg, models[0].backbone.cfg
        if shape != first:
            raise CheckpointError(
                f"member {i} has shape {shape}, member 0 has {first}: only weights of one shape can"
                " be averaged; use another reward.combine"
            )
    states = [model.state_dict() for model in models]
    mean_state = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(first_value.dtype)
        for name, first_value in states[0].items()
    }
    model = copy.deepcopy(models[0])
    model.load_state_dict(mean_state)
    unit = normalisation(raw_scores(model.eval(), base))
    return RewardModelScorer(model, unit.mean, unit.std)
