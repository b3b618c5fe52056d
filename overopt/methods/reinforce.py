"""REINFORCE against a proxy (Williams 1992): one response a prompt, and one baseline for all or none.

The plainest policy gradient: reward times the gradient of a response's whole log-probability. The
mean reward of the batch as a baseline lowers the variance; it contains a response's own reward, which
shrinks the expected gradient by the factor 1 − 1/batch and turns it no other way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

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
    label="REINFORCE",
    coord="reinforce_step",
    axis="REINFORCE step",
    form="rl",
    marker="v",
    treatments={"kl_coef": "kl_coef ", "step_kl": "step KL "},
)


@dataclass(frozen=True, kw_only=True)
class Settings(OnPolicy):
    """REINFORCE against the proxy. Batch, learning rate and KL penalty are those of `OnPolicy`.

    Attributes
    ----------
    baseline : "batch" or "none"
        What is subtracted from each reward: the mean of the batch, or nothing.
    """

    baseline: Literal["batch", "none"] = "batch"

    @property
    def treatment(self) -> str:
        """Shaping, penalty, and a missing baseline."""
        return on_policy.treatment(self, "no baseline" if self.baseline == "none" else "")


columns = on_policy.columns


def start(policy: Backbone, settings: Settings, problem: Problem) -> rollouts.PolicyState:
    """A fresh optimizer around the policy."""
    return rollouts.PolicyState(policy, rollouts.adam(policy, settings.lr))


def advantages(reward: Tensor, baseline: str) -> Tensor:
    """Reward (R,) minus its mean, or as it is."""
    return reward - reward.mean() if baseline == "batch" else reward


def how(settings: Settings) -> policy_gradient.How:
    """One response a prompt, against the baseline of the settings; no ratio."""
    return policy_gradient.How(
        name="REINFORCE",
        group=1,
        epochs=1,
        advantages=lambda reward: advantages(reward, settings.baseline),
        weights="sequence",
        clip=None,
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
