"""The reward that a policy trained by DPO stands for: β log π/π_ref (Rafailov et al. 2023).

The policy is fitted to the comparisons like a reward model, and then used as one. Its score is a sum
over tokens, so it is known at every token. Without a reference it is the policy's own log-probability,
which prefers short responses unless it is divided by their length (RewardBench scores both).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

from overopt.base import files
from overopt.base.config import check_types, require
from overopt.base.lazy import lazy
from overopt.rewards.kind import Job, Place, RewardSettings, Standardised, Trained

if TYPE_CHECKING:
    from torch import Tensor

    from overopt.base.datatypes import Responses
    from overopt.nets import checkpoints, sampling
    from overopt.nets.backbone import Backbone
    from overopt.rewards.kinds import reward_model
    from overopt.rewards.training import dpo
else:
    checkpoints, sampling = lazy("overopt.nets.checkpoints"), lazy("overopt.nets.sampling")
    reward_model = lazy("overopt.rewards.kinds.reward_model")
    dpo = lazy("overopt.rewards.training.dpo")

Read = Literal["log_ratio", "log_prob", "mean_log_prob"]


@dataclass(frozen=True, kw_only=True)
class Settings(RewardSettings):
    """The world's policy, fitted to the comparisons by DPO; its log-ratio is the score.

    Attributes
    ----------
    score : "log_ratio", "log_prob" or "mean_log_prob"
        Σ log π/π_ref of a response; without a reference Σ log π, or its mean over tokens.
    beta : float
        β of DPO: small values let the policy move further for the same comparisons.
    epochs, lr, batch_prompts : int, float, int
        Passes over the pairs, peak AdamW learning rate (linear decay), prompts a step.
    precision : "fp32" or "bf16"
        Of matrix products in training.
    rm_seed : int
        Data order.
    """

    score: Read = "log_ratio"
    beta: float = 0.1
    epochs: int = 1
    lr: float = 3e-4
    batch_prompts: int = 4
    precision: Literal["fp32", "bf16"] = "fp32"
    rm_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.beta > 0, "proxy.beta", self.beta, "must be positive")
        require(self.epochs >= 1, "proxy.epochs", self.epochs, "must be at least 1")
        require(self.lr > 0, "proxy.lr", self.lr, "must be positive")
        require(self.batch_prompts >= 1, "proxy.batch_prompts", self.batch_prompts, "at least 1")

    @property
    def serves(self) -> tuple[str, ...]:
        """A proxy: it is fitted to labels."""
        return ("proxy",)

    @property
    def seed(self) -> int:
        """Data order."""
        return self.rm_seed

    @property
    def title(self) -> str:
        """Kind, β, and how it is read where not by the log-ratio."""
        read = "" if self.score == "log_ratio" else f" {self.score.replace('_', ' ')}"
        return f"implicit {self.beta:g}{read}"

    @property
    def columns(self) -> dict[str, Any]:
        """Record columns."""
        return {"backbone": self.title, "rm_seed": self.rm_seed, "proxy_lr": self.lr}

    def cost_s(self, n_pairs: int) -> float:
        """Estimated CPU seconds of training on the default policy."""
        return 4 + 0.015 * self.epochs * n_pairs


def train(settings: Settings, job: Job) -> Trained:
    """Fit a copy of the initial policy to the pairs; a job's start goes on."""
    reference = job.policy()
    start = None if job.start is None else job.start.trained
    policy = job.policy() if start is None else cast("Backbone", start)
    scorer = ImplicitScorer(policy, reference, settings.score)
    assert job.pairs is not None and job.validate is not None
    validate = job.validate
    for parameter in reference.parameters():
        parameter.requires_grad_(False)
    with job.keep(policy):
        log = dpo.train_dpo(
            policy,
            reference,
            job.pairs(SimpleNamespace(backbone=policy)),
            beta=settings.beta,
            epochs=settings.epochs,
            lr=settings.lr,
            batch_prompts=settings.batch_prompts,
            seed=job.seed,
            validate=lambda: validate(scorer.raw),
            progress=job.progress,
            compute=job.compute,
        )
    history = {
        "train_loss": log.loss,
        "validation": log.validation,
        "pairs_seen": log.pairs_seen,
    }
    return Trained(scorer, history)


@dataclass(frozen=True)
class ImplicitScorer(Standardised):
    """A policy as a reward model, with the mean and std of its raw score under the initial policy.

    reference : what the policy started from; used by ``read`` = "log_ratio" alone.
    """

    policy: Backbone
    reference: Backbone
    read: Read
    mean: float = 0.0
    std: float = 1.0

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the policy."""
        return checkpoints.n_params(self.policy)

    @property
    def trained(self) -> Backbone:
        """The policy."""
        return self.policy

    def raw(self, responses: Responses) -> Tensor:
        """Σ log π/π_ref (R,) in nats, or what is read instead."""
        found = sampling.score_logprobs(self.policy, responses).sum(1)
        if self.read == "log_ratio":
            return found - sampling.score_logprobs(self.reference, responses).sum(1)
        return found / responses.length if self.read == "mean_log_prob" else found

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Weights of both, shape and unit."""
        state: dict[str, Tensor] = {}
        for name, network in (("policy", self.policy), ("reference", self.reference)):
            weights = checkpoints.backbone_state(network)
            state |= {f"{name}.{key}": weight for key, weight in weights.items()}
        files.save_tensors(folder / "model.safetensors", state)
        info = info | {"kind": "implicit", "read": self.read}
        info = info | {"mean": self.mean, "std": self.std} | reward_model.shape_of(self.policy)
        files.save_json(folder / "scorer.json", info)


def load(folder: Path, info: dict[str, Any], place: Place) -> ImplicitScorer:
    """What `ImplicitScorer.save` wrote."""
    state = files.load_tensors(folder / "model.safetensors")
    policy, reference = (
        reward_model.backbone_of(
            info,
            {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)},
            folder / "scorer.json",
        )
        .to(place.device)
        .eval()
        for name in ("policy.", "reference.")
    )
    return ImplicitScorer(policy, reference, info["read"], info["mean"], info["std"])
