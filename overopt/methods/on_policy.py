"""Settings that methods share which sample responses, weigh them by reward and follow the gradient.

GRPO, RLOO and REINFORCE differ in what an advantage is and in how tokens are weighed; what they
sample, how a step is divided, and where a KL penalty goes, is the same and stands here. The code that
carries it out is `overopt.methods.policy_gradient`. Read in order to plan: no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from overopt.base.config import require
from overopt.methods.method import shaping_name
from overopt.methods.targets import Targeted, constraint_name

KlIn = Literal["k3_loss", "weighted_k3_loss", "exact_loss", "k1_reward", "chi2_reward"]


@dataclass(frozen=True, kw_only=True)
class OnPolicy(Targeted):
    """What a method of policy gradients without a value model can be set to.

    Attributes
    ----------
    batch, minibatches : int
        Responses a step, and optimizer steps that share them.
    grad_clip : float
        Largest gradient norm.
    kl_coef : float
        Weight of the penalty for leaving π_ref, in score per nat; 0 for none.
    kl_in : "k3_loss", "weighted_k3_loss", "exact_loss", "k1_reward" or "chi2_reward"
        What is penalised, and where. In the loss, per token: k3 of the sampled token, whose gradient
        is that of KL(π_ref‖π); k3 times π/π_old, whose gradient is that of KL(π‖π_ref) (DeepSeek-V3.2);
        or KL(π‖π_ref) over the whole vocabulary. In the reward, per response:
        log π/π_ref, whose expected gradient is that of KL(π‖π_ref), or 2π/π_ref, that of χ²(π‖π_ref)
        (Laidlaw et al. 2024).
    max_update_kl_token_nats : float
        A step ends early once the k3 estimate of KL(π_old‖π_new) per token exceeds it.
    seed : int
        Rollouts and their order.
    """

    batch: int = 128
    minibatches: int = 4
    grad_clip: float = 1.0
    kl_coef: float = 0.0
    kl_in: KlIn = "k3_loss"
    max_update_kl_token_nats: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        Targeted.__post_init__(self)
        for name in ("batch", "minibatches"):
            require(getattr(self, name) >= 1, f"method.{name}", getattr(self, name), "at least 1")
        for name in ("grad_clip", "max_update_kl_token_nats"):
            require(getattr(self, name) > 0, f"method.{name}", getattr(self, name), "above 0")
        require(
            self.batch % self.minibatches == 0,
            "method.batch",
            self.batch,
            f"a multiple of method.minibatches = {self.minibatches}",
        )
        require(self.kl_coef >= 0, "method.kl_coef", self.kl_coef, "must be at least 0")
        require(
            self.kl_coef > 0 or self.kl_in == "k3_loss",
            "method.kl_in",
            self.kl_in,
            "has no effect on method.kl_coef = 0: set method.kl_coef above 0",
        )

    @property
    def responses_per_step(self) -> int:
        """Responses that the proxy scores in one step."""
        return self.batch

    @property
    def cost_s(self) -> float:
        """Estimated CPU seconds of a run on the default policy."""
        return 5 + self.steps * self.batch * 0.02

    @property
    def treatment(self) -> str:
        """Shaping, and a penalty that is not the plain one."""
        return treatment(self)

    @property
    def title(self) -> str:
        """KL penalty and seed."""
        return f"kl {self.kl_coef} seed {self.seed}"


def treatment(settings: OnPolicy, *more: str) -> str:
    """Shaping, constraint, a penalty other than k3 in the loss, and ``more``; without empty ones."""
    penalty = "" if settings.kl_in == "k3_loss" else " in ".join(settings.kl_in.rsplit("_", 1))
    parts = [shaping_name(settings), constraint_name(settings), penalty, *more]
    return ", ".join(filter(None, parts))


def check_group(settings: Any) -> None:
    """Raise ConfigError unless ``batch`` is made of whole groups of at least 2."""
    require(
        settings.group >= 2,
        "method.group",
        settings.group,
        "must be at least 2: a response is compared with others to its prompt",
    )
    require(
        settings.batch % settings.group == 0,
        "method.batch",
        settings.batch,
        f"a multiple of method.group = {settings.group}, the responses to one prompt",
    )


def columns(settings: OnPolicy) -> dict[str, Any]:
    """Record columns of a run of such a method."""
    shapes = settings.shaping != "none"
    return {
        "shaping": settings.shaping,
        "shaping_scale": settings.shaping_scale if shapes else None,
        "method_seed": settings.seed,
        "method_lr": settings.lr,
        "kl_coef": settings.kl_coef,
        "step_kl": settings.step_kl,
    }
