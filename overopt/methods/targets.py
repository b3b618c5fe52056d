"""Weights that follow a target while a policy is trained: of the KL penalty, and of the proxy.

Constrained optimisation (after Moskovitz et al. 2023): the policy stays as close as it can to where it
started, under the constraint that the proxy's mean score is a given *proxy point*. With a Lagrange
multiplier μ for the constraint the reward is μ·proxy − β·KL, and μ itself goes down the gradient of
the dual: up while the proxy is below its point, down above it, and below 0 where it has to be pushed
back. The optimum is the tilt π_ref·exp(μ·proxy/β) whose mean proxy score is the point.

Moskovitz et al. constrain several component rewards at once, and squash their multipliers by a tanh;
here there is one proxy, and μ is cut to [−1, 1]. Read in order to plan: no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from overopt.base.config import require
from overopt.methods.pace import Paced


@dataclass(frozen=True, kw_only=True)
class Targeted(Paced):
    """A proxy point as a constraint.

    Attributes
    ----------
    proxy_target, proxy_gain : float
        Mean proxy score at which to stay, in sd of the initial policy; needs a KL penalty, and 0 is
        without the constraint. Step of the multiplier per sd that the rollouts miss it by.
    """

    proxy_target: float = 0.0
    proxy_gain: float = 0.03

    def __post_init__(self) -> None:
        Paced.__post_init__(self)
        target, gain = self.proxy_target, self.proxy_gain
        require(target >= 0, "method.proxy_target", target, "must be at least 0; 0 leaves it out")
        require(
            target == 0 or getattr(self, "kl_coef", 0.0) > 0,
            "method.proxy_target",
            target,
            "needs method.kl_coef above 0: the penalty is what holds the policy at its target",
        )
        require(
            gain > 0 and (target > 0 or gain == Targeted.proxy_gain),
            "method.proxy_gain",
            gain,
            "must be above 0, and needs method.proxy_target",
        )


def constraint_name(settings: Targeted) -> str:
    """The constraint in a few words; empty without one."""
    return f"proxy target {settings.proxy_target:g}" if settings.proxy_target > 0 else ""


def next_multiplier(multiplier: float, score: float, settings: Targeted) -> float:
    """μ after a step whose rollouts had the mean proxy ``score``: μ + gain·(target − score).

    Cut to [−1, 1]; always 1 without a target.
    """
    if settings.proxy_target == 0:
        return 1.0
    moved = multiplier + settings.proxy_gain * (settings.proxy_target - score)
    return min(max(moved, -1.0), 1.0)


def adapted_kl_coef(kl_coef: float, kl_seq_nats: float, *, target: float, gain: float) -> float:
    """Next weight of the KL penalty: β·(1 + K_β·clip((KL − target)/target, −0.2, 0.2)).

    Ziegler et al. 2019, sec. 2.2, with KL(π‖π_ref) per response in nats. Implementations that speak
    of a horizon (in responses) have K_β = batch / horizon.
    """
    error = (kl_seq_nats - target) / target
    return kl_coef * (1 + gain * min(max(error, -0.2), 0.2))
