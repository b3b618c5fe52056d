"""A process reward model: a scalar head that says of every step of a response whether it is right.

It is trained by cross-entropy at the tokens where steps end, on labels of the world's judge (a human
who checks each step, Lightman et al. 2023) or on what the policy makes of each step (Math-Shepherd,
Wang et al. 2024). How the steps' probabilities become one score is a choice that can be exploited:
a sum grows with every further step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from overopt.base.config import require
from overopt.base.errors import CheckpointError
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed
from overopt.rewards.judged import Judged
from overopt.rewards.kind import Job, Place, Standardised, Trained
from overopt.worlds.world import World

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from overopt.base.datatypes import Responses
    from overopt.nets import checkpoints
    from overopt.nets.heads import ScalarHeadModel
    from overopt.rewards.kinds import reward_model
    from overopt.rewards.labels import rollouts
    from overopt.rewards.training import steps as training
    from overopt.rewards.training.steps import Steps
else:
    torch, F = lazy("torch"), lazy("torch.nn.functional")
    checkpoints = lazy("overopt.nets.checkpoints")
    reward_model = lazy("overopt.rewards.kinds.reward_model")
    rollouts = lazy("overopt.rewards.labels.rollouts")
    training = lazy("overopt.rewards.training.steps")

Aggregation = Literal["min", "product", "mean", "sum", "last"]


@dataclass(frozen=True, kw_only=True)
class Settings(Judged):
    """A scalar head fitted to whether each step of a response is right, and how steps make a score.

    Backbone, training and seed are those of `Fitted`.

    Attributes
    ----------
    labels : "exact", "soft_rollouts" or "hard_rollouts"
        The judge's verdict on the step and all before it; the share of the policy's continuations
        behind the step that come to a right answer; or whether any of them does.
    rollouts : int
        Continuations behind each step, for labels by rollouts.
    aggregation : "min", "product", "mean", "sum" or "last"
        Score of a response from P(right) of its steps: the least, in log-odds; the sum of logarithms;
        the mean; the sum; the last one's, in log-odds.
    batch_responses : int
        Responses a step.
    """

    labels: Literal["exact", "soft_rollouts", "hard_rollouts"] = "exact"
    rollouts: int = 4
    aggregation: Aggregation = "product"
    batch_responses: int = 64

    def __post_init__(self) -> None:
        Judged.__post_init__(self)
        require(self.rollouts >= 1, "proxy.rollouts", self.rollouts, "must be at least 1")
        require(
            self.batch_responses >= 1,
            "proxy.batch_responses",
            self.batch_responses,
            "must be at least 1",
        )

    @property
    def title(self) -> str:
        """Kind, aggregation, labels and size."""
        by = {"exact": "", "soft_rollouts": " soft", "hard_rollouts": " hard"}[self.labels]
        by += f" rollouts {self.rollouts}" if by else ""
        return f"process {self.aggregation}{by} {self.size}"

    def cost_s(self, n_pairs: int) -> float:
        """Estimated CPU seconds: training, and rollouts where labels need them."""
        return 6.0 + n_pairs * (0.005 if self.labels == "exact" else 0.005 + 0.003 * self.rollouts)


def train(settings: Settings, job: Job) -> Trained:
    """Fit to the steps of the comparisons' responses; a job's start goes on.

    Raises
    ------
    CheckpointError
        The backbone has another tokenizer than the policy: it would not see where steps end.
    """
    model = _network(settings, job)
    if model.backbone.reader is not None:
        raise CheckpointError(
            f"proxy.backbone = {settings.backbone!r}: has another tokenizer than the policy, and steps"
            " end at the policy's tokens: use a model that shares its tokenizer"
        )
    assert job.responses is not None and job.validate is not None
    responses, validate = job.responses(), job.validate
    steps = training.step_table(job.world.step_ends(responses))
    labels, costs = step_labels(settings, job, responses, steps)
    scorer = ProcessScorer(model, job.world, settings.aggregation)
    with job.keep(model):
        log = training.train_on_steps(
            model,
            responses,
            steps,
            labels,
            epochs=settings.epochs,
            lr=settings.lr,
            batch_responses=settings.batch_responses,
            weight_decay=settings.weight_decay,
            seed=job.seed,
            validate=lambda: validate(scorer.raw),
            progress=job.progress,
            compute=job.compute,
        )
    model.eval()
    history = {
        "train_loss": log.loss,
        "validation": log.validation,
        "responses": len(responses),
        "steps": int(steps.mask.sum()),
        "mean_label": float(labels[steps.mask].mean()),
        **costs,
    }
    return Trained(scorer, history)


def _network(settings: Settings, job: Job) -> ScalarHeadModel:
    """The untrained network on the device, or the one to train further."""
    if job.start is None:
        return reward_model.fresh(settings.backbone, job, layers=settings.layers)
    return reward_model.network(job.start).to(job.device)


def step_labels(
    settings: Settings, job: Job, responses: Responses, steps: Steps
) -> tuple[Tensor, dict[str, int]]:
    """Labels (R, S) float32 in [0, 1], and what they cost: rollouts and their tokens."""
    if settings.labels == "exact":
        labels = torch.zeros(steps.mask.shape)
        labels[steps.mask] = torch.tensor(
            [float(ok) for v in job.world.verdicts(responses) for ok in v.step_ok]
        )
        return labels, {}
    found = rollouts.step_values(
        job.policy(),
        job.world,
        responses,
        steps,
        n_rollouts=settings.rollouts,
        n_tokens=job.n_tokens,
        seed=derive_seed(job.seed, "step values"),
    )
    is_hard = settings.labels == "hard_rollouts"
    labels = (found.value > 0).float() if is_hard else found.value
    return labels, {"rollouts": found.rollouts, "rollout_tokens": found.tokens}


def aggregate(logits: Tensor, mask: Tensor, how: Aggregation) -> Tensor:
    """Score (R,) of responses from log-odds (R, S) of their steps, True in ``mask`` where there is one.

    With p = σ(logit): "min" is the least logit, "product" Σ log p, "mean" the mean of p, "sum" Σ p,
    "last" the last logit.
    """
    match how:
        case "min":
            return torch.where(mask, logits, torch.inf).amin(1)
        case "product":
            return torch.where(mask, F.logsigmoid(logits), 0).sum(1)
        case "mean":
            return torch.where(mask, logits.sigmoid(), 0).sum(1) / mask.sum(1)
        case "sum":
            return torch.where(mask, logits.sigmoid(), 0).sum(1)
    return logits.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]


@dataclass(frozen=True)
class ProcessScorer(Standardised):
    """A process reward model with the mean and std of its raw score under the initial policy.

    network : gives log-odds at every token; world : says where steps end.
    """

    network: ScalarHeadModel
    world: World
    aggregation: Aggregation
    mean: float = 0.0
    std: float = 1.0

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the network."""
        return checkpoints.n_params(self.network)

    @property
    def trained(self) -> ScalarHeadModel:
        """The network."""
        return self.network

    def step_logits(self, responses: Responses) -> tuple[Tensor, Tensor]:
        """Log-odds (R, S) that each step is right, and where there is one, (R, S)."""
        steps = training.step_table(self.world.step_ends(responses))
        return training.step_logits(self.network, responses, steps), steps.mask

    def raw(self, responses: Responses) -> Tensor:
        """Aggregated steps (R,) float32."""
        return aggregate(*self.step_logits(responses), self.aggregation)

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Weights, shape, aggregation and unit."""
        info = info | {"kind": "process", "aggregation": self.aggregation}
        unit = {"mean": self.mean, "std": self.std}
        reward_model.save_network(self.network, folder, info | unit)


def load(folder: Path, info: dict[str, Any], place: Place) -> ProcessScorer:
    """What `ProcessScorer.save` wrote."""
    network = reward_model.load_network(folder, info, place)
    return ProcessScorer(network, place.world, info["aggregation"], info["mean"], info["std"])
