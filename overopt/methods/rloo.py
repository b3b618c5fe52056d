"""RLOO against a proxy (Kool et al. 2019, Ahmadian et al. 2024): leave one out as a baseline.

The reward of a response minus the mean reward of the other responses to its prompt, times the gradient
of its whole log-probability. The baseline does not depend on the response, so the expected gradient
is that of the expected reward: no bias, where GRPO's division by the sd has one.

What differs from common implementations: there is no ratio and no clip, since a response is used once.
With ``minibatches`` = 1 every gradient is exactly on-policy; with more, later ones are of a policy that
has moved by a few updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

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
    label="RLOO",
    coord="rloo_step",
    axis="RLOO step",
    form="rl",
    marker="D",
    treatments={"kl_coef": "kl_coef ", "step_kl": "step KL "},
)


@dataclass(frozen=True, kw_only=True)
class Settings(OnPolicy):
    """RLOO against the proxy. Batch, learning rate and KL penalty are those of `OnPolicy`.

    Attributes
    ----------
    group : int
        Responses to each prompt, which are each other's baseline.
    """

    group: int = 4

    def __post_init__(self) -> None:
        OnPolicy.__post_init__(self)
        on_policy.check_group(self)

    @property
    def prompts_per_step(self) -> int:
        """Groups of a step."""
        return self.batch // self.group


columns = on_policy.columns


def start(policy: Backbone, settings: Settings, problem: Problem) -> rollouts.PolicyState:
    """A fresh optimizer around the policy."""
    return rollouts.PolicyState(policy, rollouts.adam(policy, settings.lr))


def how(settings: Settings) -> policy_gradient.How:
    """Advantages against the others of a group; whole responses, no ratio."""
    return policy_gradient.How(
        name="RLOO",
        group=settings.group,
        epochs=1,
        advantages=partial(policy_gradient.leave_one_out, group=settings.group),
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
