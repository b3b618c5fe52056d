"""What a method of policy optimisation is: settings, a start, a step, a state that can be saved.

A method is one file in this folder (or a user's own). It defines

    Settings                                   what can be set; see `Schedule` for what all share
    SHOWN                                      how figures and records call it (`overopt.base.shown`)
    start(policy, settings, problem) -> state  before the first step
    step(state, settings, problem) -> dict     one step in place; returns what is logged
    state_tensors(state) -> dict               everything that changes, for a checkpoint
    load_state_tensors(state, tensors)         the same, put back in place

and, where it has record columns of its own, ``columns(settings) -> dict``. The loop around it
(`overopt.stages.optimise`) evaluates, checkpoints and resumes for all methods alike. A method never
sees gold: what it maximises comes to it as a scorer and a shape, and no file here may import one.

This file is read in order to plan, so it does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from overopt.base.config import check_types, require
from overopt.base.kinds import Kind

if TYPE_CHECKING:
    from torch import Tensor

    from overopt.base.datatypes import PreferenceSet, Prompts, Scorer
    from overopt.nets.backbone import Backbone
    from overopt.nets.compute import Compute

    Shape = Callable[[Tensor, Tensor, Tensor], Tensor]
    """Reward (R,) from score (R,), response tokens (R,) and the numbers (R,) of the prompts."""

Log = Sequence[dict[str, float]]
"""What the steps so far logged, one entry a step."""
Wish = Literal["go on", "evaluate", "stop"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What every method's settings have: its length, and when and on what it is evaluated.

    A kind's ``Settings`` inherit these, and have a property or setting ``seed`` besides.

    Attributes
    ----------
    steps : int
        Steps of the method.
    warmup_steps : int
        Steps over which learning rates rise linearly to their peak.
    eval_every, eval_early_every, eval_prompts, eval_copies : int
        Evaluation on fixed prompts with random numbers of its own: every ``eval_early_every`` steps
        during warm-up, every ``eval_every`` after it.
    eval_offset : int
        First prompt of the eval split that is used; keeps tuning and test prompts apart.
    shaping : "none", "clip", "par" or "log_sigmoid"
        Monotone function of the proxy score that is maximised instead of the score.
    shaping_scale : float
        Bound of ``clip`` in sd of the score; slope of the others per sd.
    precision : "fp32" or "bf16"
        Of matrix products in training and in rollouts; evaluation is float32.
    """

    steps: int = 50
    warmup_steps: int = 10
    eval_every: int = 5
    eval_early_every: int = 2
    eval_prompts: int = 96
    eval_copies: int = 2
    eval_offset: int = 0
    shaping: Literal["none", "clip", "par", "log_sigmoid"] = "none"
    shaping_scale: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("steps", "eval_every", "eval_early_every", "eval_copies"):
            require(getattr(self, name) >= 1, f"method.{name}", getattr(self, name), "at least 1")
        require(self.warmup_steps >= 0, "method.warmup_steps", self.warmup_steps, "at least 0")
        require(
            self.shaping_scale > 0 and (self.shaping != "none" or self.shaping_scale == 1),
            "method.shaping_scale",
            self.shaping_scale,
            "must be above 0, and needs method.shaping",
        )
        require(
            2 <= self.eval_prompts <= 400,
            "method.eval_prompts",
            self.eval_prompts,
            "2 to 400 (eval split)",
        )
        require(self.eval_offset >= 0, "method.eval_offset", self.eval_offset, "must be at least 0")

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Steps after which the policy is evaluated, 0 and the last included."""
        early = range(0, min(self.warmup_steps, self.steps) + 1, self.eval_early_every)
        late = (k for k in range(0, self.steps, self.eval_every) if k > self.warmup_steps)
        return tuple(sorted({*early, *late, self.steps}))

    def wish(self, log: Log) -> Wish:
        """What is to happen because of what the steps logged so far; ``log`` is not empty.

        "evaluate": an evaluation beside those of ``evaluation_steps``; "stop": the last one, here.
        """
        return "go on"

    def warmed(self, step: int) -> float:
        """Factor of a learning rate at ``step``: linear warm-up, linear decay to a tenth."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return warm * (1 - 0.9 * step / self.steps)

    @property
    def responses_per_step(self) -> int:
        """Responses that the proxy scores in one step."""
        return 0

    @property
    def prompts_per_step(self) -> int:
        """Prompts that one step draws; as many as responses unless a prompt gets several."""
        return self.responses_per_step

    @property
    def reads_comparisons(self) -> bool:
        """Whether the proxy's own comparisons are an input of the method's stage."""
        return False

    @property
    def sources(self) -> dict[str, str]:
        """Checkpoints that the method reads beside the policy, by the name of the setting."""
        return {}

    @property
    def cost_s(self) -> float:
        """Estimated CPU seconds of a run on the default policy."""
        return 5 + self.steps * self.responses_per_step * 0.025

    @property
    def version(self) -> int:
        """Of the method's stage: raised whenever the same settings give other results than before."""
        return 1

    @property
    def treatment(self) -> str:
        """What these settings do against overoptimization, in a few words; empty for nothing."""
        return shaping_name(self)

    def with_seed(self, seed: int) -> Schedule:
        """The same as another replicate."""
        return replace(self, seed=seed)  # type: ignore[call-arg]

    @property
    def title(self) -> str:
        """What sets a run of this method apart from others against the same proxy, for labels."""
        return f"seed {getattr(self, 'seed', 0)}"


def shaping_name(settings: Schedule) -> str:
    """The shape of the reward in a few words; empty for the score itself."""
    shape = settings.shaping
    return "" if shape == "none" else f"{shape} {settings.shaping_scale:g}"


NEEDS = ("SHOWN", "start", "step", "state_tensors", "load_state_tensors")
"""What a method's file defines beside ``Settings``."""
AnyMethod = Annotated[Schedule, Kind("overopt.methods", "", needs=NEEDS)]
"""A setting that holds the settings of one method."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a method is given to work on; the same for all steps of a run.

    Attributes
    ----------
    ref_policy : Backbone
        π_ref, frozen: the initial policy.
    proxy : Scorer
        Scores whole responses; it is never gold.
    prompts : Prompts
        Those of the rl split.
    n_tokens : int
        Longest response.
    seed : int
        Of this run; the random numbers of step k come from (seed, name, k).
    shape : callable or None
        What is maximised in place of the score.
    compute : Compute
        Devices, processes and precision.
    preferences : callable or None
        Gives the proxy's own comparisons, for methods whose settings say ``reads_comparisons``.
    """

    ref_policy: Backbone
    proxy: Scorer
    prompts: Prompts
    n_tokens: int
    seed: int
    compute: Compute
    shape: Shape | None = None
    preferences: Callable[[], PreferenceSet] | None = None


class State(Protocol):
    """Everything that changes during a run of a method."""

    policy: Backbone
    step: int
