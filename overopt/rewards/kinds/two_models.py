"""Two reward models for two aims, and the piecewise score that Llama 2 is optimised against.

Touvron et al. 2023: one model says how helpful a response is, one how safe. With R = σ(head),

    R_c = R_safe      where the prompt is tagged unsafe, or R_safe < threshold,
          R_helpful   elsewhere,

and the reward is whiten(logit(R_c)): logit(R_c) is the head of the model that is taken, and zero and
unit are those under the initial policy, as for every score here.

In a world with a judge, what is helpful is the right answer, or whatever ``helpful`` names; what is
safe, ``safe``. A prompt is tagged by a word in it: here by that which leads astray, a number that has
nothing to do with the problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from overopt.base import files
from overopt.base.config import require
from overopt.base.errors import CheckpointError
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed
from overopt.rewards.judged import Verifying
from overopt.rewards.kind import Job, Place, Standardised, Trained
from overopt.worlds.world import Verdict, World

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from overopt.base.datatypes import Responses
    from overopt.nets import checkpoints
    from overopt.nets.heads import ScalarHeadModel
    from overopt.rewards import scorer
    from overopt.rewards.kinds import outcome, reward_model
else:
    torch, checkpoints = lazy("torch"), lazy("overopt.nets.checkpoints")
    scorer, outcome = lazy("overopt.rewards.scorer"), lazy("overopt.rewards.kinds.outcome")
    reward_model = lazy("overopt.rewards.kinds.reward_model")

AIMS = ("helpful", "safe")
HOLDS: dict[str, Callable[[Verdict], bool]] = {
    "right": lambda v: v.right,
    "listed": lambda v: v.listed,
    "valid": lambda v: v.valid,
    "one_answer": lambda v: v.n_answers == 1,
    "no_checks": lambda v: v.n_checks == 0,
}
"""What can be asked of a response, by the judge's verdict."""


@dataclass(frozen=True, kw_only=True)
class Settings(Verifying):
    """A model for what is helpful and one for what is safe, combined piecewise.

    Backbone, training and seed are those of `Fitted`, loss and flips those of `Verifying`, for each.

    Attributes
    ----------
    helpful : "right" or "listed"
        The answer is right; or the right answer is among those given.
    safe : "valid", "one_answer" or "no_checks"
        No step is wrong or missing; there is exactly one answer; no step is redundant.
    threshold : float
        Probability of a safe response below which safety alone counts, in (0, 1).
    tagged : str
        Word that marks a prompt as unsafe, where safety alone counts; empty for none.
    """

    helpful: Literal["right", "listed"] = "right"
    safe: Literal["valid", "one_answer", "no_checks"] = "valid"
    threshold: float = 0.15
    tagged: str = "friend"

    def __post_init__(self) -> None:
        Verifying.__post_init__(self)
        require(0 < self.threshold < 1, "proxy.threshold", self.threshold, "must be in (0, 1)")

    @property
    def title(self) -> str:
        """Kind, aims, threshold, tag, size, loss and flips."""
        tag = f" tag {self.tagged}" if self.tagged else " no tag"
        aims = f"{self.helpful} and {self.safe}"
        return f"two models {aims} below {self.threshold:g}{tag} {self.treated}"

    @property
    def rate(self) -> float:
        """CPU seconds to score 2,000 pairs: two models."""
        return 12.0

    def cost_s(self, n_pairs: int) -> float:
        """Estimated CPU seconds of training on the default backbone."""
        return 6 + 0.004 * self.epochs * n_pairs


def train(settings: Settings, job: Job) -> Trained:
    """Fit both models to the responses of the comparisons; a job's start goes on.

    Raises
    ------
    DataError
        No prompt has both kinds of responses, and the loss compares within prompts.
    """
    models, histories = {}, {}
    for aim in AIMS:
        own = replace(job, seed=derive_seed(job.seed, aim))
        models[aim] = _network(settings, own, aim)
        holds = HOLDS[getattr(settings, aim)]
        histories[aim] = outcome.fit(settings, own, models[aim], holds)
        models[aim].eval()
    made = TwoModelsScorer(
        models["helpful"], models["safe"], settings.threshold, settings.tagged, job.world
    )
    return Trained(made, histories)


def _network(settings: Settings, job: Job, aim: str) -> ScalarHeadModel:
    """The untrained network on the device, or the one to train further."""
    if isinstance(job.start, TwoModelsScorer):
        return getattr(job.start, aim).to(job.device)
    if job.start is not None:
        raise CheckpointError(f"a {type(job.start).__name__} is no pair of models: it cannot go on")
    return reward_model.fresh(settings.backbone, job, layers=settings.layers)


def piecewise(helpful: Tensor, safe: Tensor, is_tagged: Tensor, threshold: float) -> Tensor:
    """logit(R_c) (R,) from both heads (R,): safety where a prompt is tagged or σ(safe) < threshold."""
    floor = math.log(threshold / (1 - threshold))
    return torch.where(is_tagged | (safe < floor), safe, helpful)


@dataclass(frozen=True)
class TwoModelsScorer(Standardised):
    """Both models, with the mean and std of the combined score under the initial policy.

    world : gives the words of prompts, among which ``tagged`` is looked for.
    """

    helpful: ScalarHeadModel
    safe: ScalarHeadModel
    threshold: float
    tagged: str
    world: World
    mean: float = 0.0
    std: float = 1.0

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of one of the models."""
        return checkpoints.n_params(self.helpful)

    def is_tagged(self, responses: Responses) -> Tensor:
        """Whether the prompt of each response has the word, (R,) bool."""
        if not self.tagged:
            return torch.zeros(len(responses), dtype=torch.bool)
        texts = self.world.prompt_texts(responses)
        return torch.tensor([self.tagged in text.split() for text in texts], dtype=torch.bool)

    def raw(self, responses: Responses) -> Tensor:
        """logit(R_c), (R,) float32."""
        helpful, safe = (scorer.raw_scores(m, responses) for m in (self.helpful, self.safe))
        return piecewise(helpful, safe, self.is_tagged(responses), self.threshold)

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Each model in a folder of its own; how they are combined, and the unit."""
        for aim in AIMS:
            (folder / aim).mkdir()
            reward_model.save_network(getattr(self, aim), folder / aim, {})
        here = {"kind": "two_models", "threshold": self.threshold, "tagged": self.tagged}
        unit = {"mean": self.mean, "std": self.std}
        files.save_json(folder / "scorer.json", info | here | unit)


def load(folder: Path, info: dict[str, Any], place: Place) -> TwoModelsScorer:
    """What `TwoModelsScorer.save` wrote."""
    models = []
    for aim in AIMS:
        own = files.load_object(folder / aim / "scorer.json", ("kind",))
        models.append(reward_model.load_network(folder / aim, own, place))
    helpful, safe = models
    threshold, tagged = info["threshold"], info["tagged"]
    return TwoModelsScorer(helpful, safe, threshold, tagged, place.world, info["mean"], info["std"])
