"""GRPO against a proxy (Shao et al. 2024): a response is judged by the others to its prompt.

No value model: the advantage of all tokens of a response is its reward minus the mean of its group,
divided by the group's standard deviation. One call of `step` is one rollout batch; its numbered parts
are those of `overopt.methods.policy_gradient.step`.

What differs from common implementations is what is optional in all of them. The division by the sd
can be left out (Liu et al. 2025: it weighs prompts by how little their responses differ, and the
expected gradient is then no longer that of the expected score). Three ways to weigh tokens have names
of their own, and the penalty can be the exact KL.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from overopt.base.config import require
from overopt.base.lazy import lazy
from overopt.base.shown import Shown
from overopt.methods import on_policy
from overopt.methods.method import Problem
from overopt.methods.on_policy import OnPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from overopt.methods import policy_gradient, rollouts
    from overopt.nets.backbone import Backbone
else:
    policy_gradient = lazy("overopt.methods.policy_gradient")
    rollouts = lazy("overopt.methods.rollouts")

SHOWN = Shown(
    label="GRPO",
    coord="grpo_step",
    axis="GRPO step",
    form="rl",
    marker="^",
    treatments={"kl_coef": "kl_coef ", "step_kl": "step KL "},
)


@dataclass(frozen=True, kw_only=True)
class Settings(OnPolicy):
    """GRPO against the proxy. Batch, learning rate and KL penalty are those of `OnPolicy`.

    Attributes
    ----------
    group : int
        Responses to each prompt, which are compared with each other.
    epochs : int
        Passes over a batch.
    sd : bool
        Whether advantages are divided by the group's standard deviation (ddof 1, plus 1e-4).
    length : "grpo", "bnpo" or "dr_grpo"
        How tokens are weighed: the mean over each response, then over responses; the mean over all
        tokens of the optimizer step; or the sum over tokens divided by the longest length allowed.
    clip : float
        Ratio clip.
    """

    group: int = 8
    epochs: int = 1
    sd: bool = True
    length: Literal["grpo", "bnpo", "dr_grpo"] = "grpo"
    clip: float = 0.2

    def __post_init__(self) -> None:
        OnPolicy.__post_init__(self)
        on_policy.check_group(self)
        require(
            self.proxy_target == 0 or not self.sd or self.kl_in.endswith("_reward"),
            "method.proxy_target",
            self.proxy_target,
            "needs method.sd=false or a penalty in the reward: division by the sd would undo the"
            " multiplier",
        )
        require(self.epochs >= 1, "method.epochs", self.epochs, "must be at least 1")
        require(self.clip > 0, "method.clip", self.clip, "must be above 0")

    @property
    def prompts_per_step(self) -> int:
        """Groups of a step."""
        return self.batch // self.group

    @property
    def cost_s(self) -> float:
        """Estimated CPU seconds of a run on the default policy."""
        return 5 + self.steps * self.batch * (0.01 + 0.01 * self.epochs)

    @property
    def treatment(self) -> str:
        """Shaping, penalty, and what is not as in the first description."""
        length = "" if self.length == Settings.length else self.length
        return on_policy.treatment(self, "" if self.sd else "no sd", length)


columns = on_policy.columns


def start(policy: Backbone, settings: Settings, problem: Problem) -> rollouts.PolicyState:
    """A fresh optimizer around the policy."""
    return rollouts.PolicyState(policy, rollouts.adam(policy, settings.lr))


def how(settings: Settings) -> policy_gradient.How:
    """Advantages within groups, clipped ratios, tokens weighed as the settings say."""
    advantages = partial(
        policy_gradient.group_advantages, group=settings.group, divide_by_sd=settings.sd
    )
    return policy_gradient.How(
        name="GRPO",
        group=settings.group,
        epochs=settings.epochs,
        advantages=advantages,
        weights=settings.length,
        clip=settings.clip,
    )


def step(state: rollouts.PolicyState, settings: Settings, problem: Problem) -> dict[str, float]:
    """One step in place; returns its diagnostics (see docs/metrics.md).

    Raises
    ------
    DivergenceError
        A loss is not finite; names the step.
    MemoryLimitError
        A single response does not fit the memory.
    """
    return policy_gradient.step(state, settings, problem, how(settings))


def state_tensors(state: rollouts.PolicyState) -> dict[str, Tensor]:
    """The state as named tensors, for a checkpoint."""
    return rollouts.policy_tensors(state)


def load_state_tensors(state: rollouts.PolicyState, tensors: dict[str, Tensor]) -> None:
    """Restore what `state_tensors` saved, in place, whatever device it was saved from."""
    rollouts.load_policy_tensors(state, tensors)
