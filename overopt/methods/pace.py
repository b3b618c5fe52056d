"""How fast a policy leaves where it started: settings that methods share which sample their own data.

A step of a policy gradient moves the policy by more or less KL, depending on the proxy's spread and on
Adam's memory. Two settings make √KL grow evenly: the learning rate can follow the KL of each step
(``step_kl``), and evaluations can come at equal distances of √KL (``eval_sqrt_kl``), up to one at
which the run ends (``stop_sqrt_kl``). Read in order to plan: no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from overopt.base.config import require
from overopt.methods.method import Log, Schedule, Wish

KL_LOGGED = "train_kl_seq_nats"
"""What a step logs: KL(π‖π_ref) per response of the policy that it began with, k1 on its rollouts."""
_LARGEST_CHANGE = 2.0  # factor between the learning rates of two steps
_LOWEST, _HIGHEST = 0.01, 10.0  # an adapted learning rate, in units of ``lr``


@dataclass(frozen=True, kw_only=True)
class Paced(Schedule):
    """Steps and evaluations by KL in place of learning rates and numbers of steps.

    Attributes
    ----------
    lr : float
        Peak Adam learning rate of the policy (eps 1e-5), decayed linearly to a tenth.
    step_kl : float
        KL(π_old‖π_new) per response, in nats, by which each step is to move the policy: its learning
        rate is adapted from step to step. It begins where the warm-up begins and stays between a
        hundredth and ten times ``lr``. 0: the rate of the schedule.
    eval_sqrt_kl : float
        Evaluations come whenever the rollouts' √KL from the initial policy passes the next multiple
        of it, in √nats, and at the start and the end; 0: every so many steps.
    stop_sqrt_kl : float
        The run ends once the rollouts' √KL from the initial policy reaches it; 0: after ``steps``.
    """

    lr: float = 8e-4
    step_kl: float = 0.0
    eval_sqrt_kl: float = 0.0
    stop_sqrt_kl: float = 0.0

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        require(self.lr > 0, "method.lr", self.lr, "above 0")
        for name in ("step_kl", "eval_sqrt_kl", "stop_sqrt_kl"):
            value = getattr(self, name)
            require(
                value >= 0 and math.isfinite(value),
                f"method.{name}",
                value,
                "must be at least 0; 0 leaves it out",
            )
        require(
            self.stop_sqrt_kl == 0 or self.stop_sqrt_kl >= self.eval_sqrt_kl,
            "method.stop_sqrt_kl",
            self.stop_sqrt_kl,
            f"must be at least method.eval_sqrt_kl = {self.eval_sqrt_kl}",
        )

    @property
    def measures_kl(self) -> bool:
        """Whether each step has to log `KL_LOGGED`, with or without a penalty."""
        return self.eval_sqrt_kl > 0 or self.stop_sqrt_kl > 0

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Steps after which the policy is evaluated, whatever its KL."""
        return (0, self.steps) if self.eval_sqrt_kl > 0 else super().evaluation_steps

    def wish(self, log: Log) -> Wish:
        """Whether the last logged step found √KL at its limit, or past a multiple that is new."""
        if 0 < self.stop_sqrt_kl <= sqrt_kl(log[-1]):
            return "stop"
        if self.eval_sqrt_kl == 0:
            return "go on"
        passed = [int(sqrt_kl(row) / self.eval_sqrt_kl) for row in log]
        return "evaluate" if passed[-1] > max(passed[:-1], default=0) else "go on"


def sqrt_kl(row: dict[str, float]) -> float:
    """√KL of the rollouts of a logged step, in √nats; an estimate below 0 counts as 0."""
    return math.sqrt(max(row[KL_LOGGED], 0.0))


def next_rate(rate: float, moved: float, *, target: float, peak: float) -> float:
    """Learning rate of the next step, after one with ``rate`` that moved the policy by ``moved`` nats.

    KL grows with the square of a small step, so the rate is multiplied by √(target/moved): at most
    doubled or halved, and kept between a hundredth and ten times ``peak``.
    """
    factor = math.sqrt(target / max(moved, 1e-12))
    rate *= min(max(factor, 1 / _LARGEST_CHANGE), _LARGEST_CHANGE)
    return min(max(rate, _LOWEST * peak), _HIGHEST * peak)
