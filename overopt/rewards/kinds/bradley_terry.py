"""The usual reward model: a scalar head on a language model, fitted to comparisons (Bradley-Terry)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from overopt.base.config import require
from overopt.base.lazy import lazy
from overopt.base.seeding import torch_generator
from overopt.rewards.fitted import Fitted
from overopt.rewards.kind import Job, Trained

if TYPE_CHECKING:
    from torch import Tensor

    from overopt.base.datatypes import Responses
    from overopt.nets import heads
    from overopt.nets.heads import ScalarHeadModel
    from overopt.rewards import scorer
    from overopt.rewards.kinds import length_control, reward_model
    from overopt.rewards.training import pairs, stacked
    from overopt.rewards.training import train as training
    from overopt.rewards.training.train import TrainingLog
else:
    heads, scorer = lazy("overopt.nets.heads"), lazy("overopt.rewards.scorer")
    length_control = lazy("overopt.rewards.kinds.length_control")
    reward_model = lazy("overopt.rewards.kinds.reward_model")
    pairs, stacked = (
        lazy("overopt.rewards.training.pairs"),
        lazy("overopt.rewards.training.stacked"),
    )
    training = lazy("overopt.rewards.training.train")

_RATES = {"0.05m": 1.0, "0.2m": 2.5, "0.8m": 6.0, "3m": 18.0, "6m": 36.0}


WRITES = ("reward_model",)


@dataclass(frozen=True, kw_only=True)
class Settings(Fitted):
    """A scalar head on a pretrained language model, fitted to the comparisons.

    Backbone, training and seed are those of `Fitted`.

    Attributes
    ----------
    batch_prompts : int
        Prompts a step.
    length_control : float
        λ_L of ODIN (Chen et al. 2024): a second head takes up what correlates with length and is
        dropped after training; 0 trains one head as usual.
    """

    batch_prompts: int = 4
    length_control: float = 0.0

    def __post_init__(self) -> None:
        Fitted.__post_init__(self)
        require(
            self.length_control >= 0,
            "proxy.length_control",
            self.length_control,
            "must be at least 0",
        )
        require(self.batch_prompts >= 1, "proxy.batch_prompts", self.batch_prompts, "at least 1")

    @property
    def title(self) -> str:
        """Size, and layers where not all are kept."""
        return self.size

    @property
    def columns(self) -> dict[str, Any]:
        """Record columns; ``[:k]`` behind the backbone where only its first k layers are used."""
        return {
            "backbone": self.backbone + (f"[:{self.layers}]" if self.layers else ""),
            "rm_seed": self.rm_seed,
            "length_control": self.length_control,
            "proxy_lr": self.lr,
        }

    @property
    def treatment(self) -> str:
        """Length control."""
        return f"ODIN {self.length_control:g}" if self.length_control > 0 else ""

    @property
    def rate(self) -> float:
        """CPU seconds to train on 2,000 pairs once, the measure of a proxy's cost."""
        return _RATES.get(self.backbone.removeprefix("ladder:"), 6.0)

    def cost_s(self, n_pairs: int) -> float:
        """Estimated CPU seconds of training."""
        return 4 + self.rate * self.epochs * n_pairs / 2000

    def alike(self, n_pairs: int) -> str:
        """Plain reward models on the ladder, in float32, that take the same steps."""
        is_plain = self.length_control == 0 and self.precision == "fp32"
        if not is_plain or not self.backbone.startswith("ladder:"):
            return ""
        steps = (self.epochs, self.lr, self.batch_prompts, self.weight_decay, n_pairs)
        return f"{self.backbone} {self.layers} {steps}"


def train(settings: Settings, job: Job) -> Trained:
    """Fit to the pairs; a job's ``start`` is trained further."""
    model = _fresh(settings, job)
    is_controlled = settings.length_control > 0

    def scored() -> ScalarHeadModel:
        return length_control.quality_model(model) if is_controlled else model

    assert job.pairs is not None
    labelled = job.pairs(model)
    with job.keep(model):
        log = training.train_reward_model(
            model,
            labelled,
            epochs=settings.epochs,
            lr=settings.lr,
            batch_prompts=settings.batch_prompts,
            weight_decay=settings.weight_decay,
            seed=job.seed,
            validate=_validation(job, scored),
            progress=job.progress,
            compute=job.compute,
            pair_loss=(
                length_control.length_controlled_loss(settings.length_control)
                if is_controlled
                else training.preference_loss
            ),
        )
    return _trained(scored(), log)


def train_stacked(settings: Settings, jobs: Sequence[Job]) -> list[Trained]:
    """What `train` does for each job, in one stacked training; the proxies are alike."""
    models = [_fresh(settings, job) for job in jobs]
    job_of = {id(model): job for model, job in zip(models, jobs, strict=True)}
    labelled = [job.pairs(model) for model, job in zip(models, jobs, strict=True) if job.pairs]
    logs = stacked.train_reward_models_stacked(
        models,
        labelled,
        epochs=settings.epochs,
        lr=settings.lr,
        batch_prompts=settings.batch_prompts,
        weight_decay=settings.weight_decay,
        seeds=[job.seed for job in jobs],
        validate=lambda model: _validation(job_of[id(model)], lambda: model)(),
        progress=jobs[0].progress,
    )
    return [_trained(model, log) for model, log in zip(models, logs, strict=True)]


def _fresh(settings: Settings, job: Job) -> ScalarHeadModel:
    """The untrained model on the device, or the one to train further."""
    if job.start is not None:
        return reward_model.network(job.start).to(job.device)
    backbone = pairs.load_backbone(settings.backbone, job.world, layers=settings.layers)
    head = torch_generator(job.seed, "head")
    if settings.length_control > 0:
        return length_control.two_headed(backbone, generator=head).to(job.device)
    model = heads.ScalarHeadModel(backbone)
    model.init_head(head)
    return model.to(job.device)


def _validation(job: Job, scored: Callable[[], ScalarHeadModel]) -> Callable[[], dict[str, float]]:
    """Accuracy and loss on the held-out pairs, as training asks for them."""

    def raw(responses: Responses) -> Tensor:
        return scorer.raw_scores(scored(), responses)

    assert job.validate is not None
    validate = job.validate
    return lambda: validate(raw)


def _trained(model: ScalarHeadModel, log: TrainingLog) -> Trained:
    history = {
        "train_loss": log.loss,
        "validation": log.validation,
        "pairs_seen": log.pairs_seen,
    }
    return Trained(reward_model.RewardModelScorer(model.eval(), 0.0, 1.0), history)
