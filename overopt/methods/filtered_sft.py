"""Supervised fine-tuning on filtered data: the reward model as a filter of what is learned.

The proxy scores the responses of its own comparisons once, the top q % are kept, and the policy is
fine-tuned on them, a batch a step. Nothing is sampled: this is rejection sampling on a fixed data set.
With q = 100 nothing is filtered, the proxy has no say, and what is left is plain SFT.

1. score all responses, keep the best q % of all, or of each prompt     2. fine-tune on them
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from overopt.base.config import require
from overopt.base.errors import DataError
from overopt.base.lazy import lazy
from overopt.base.shown import Shown
from overopt.methods.method import Problem, Schedule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from overopt.base.datatypes import Responses, Sequences
    from overopt.methods import rollouts
    from overopt.nets.backbone import Backbone
else:
    torch, rollouts = lazy("torch"), lazy("overopt.methods.rollouts")

SHOWN = Shown(
    label="filtered SFT",
    coord="filtered_sft_step",
    axis="step of filtered SFT",
    form="rl",
    marker="h",
)


@dataclass(frozen=True, kw_only=True)
class Settings(Schedule):
    """Fine-tuning on the responses that the proxy likes best; a step is an optimizer step.

    Attributes
    ----------
    batch : int
        Responses an optimizer step.
    keep : float
        q, the percentage of the responses that is kept, above 0 and at most 100; 100: plain SFT.
    keep_of : "all" or "prompt"
        The best q % of all responses together, or of those to each prompt.
    lr, grad_clip : float
        Peak Adam learning rate (eps 1e-5), warmed up and decayed linearly to a tenth; gradient norm.
    seed : int
        Order of the responses.
    """

    batch: int = 32
    keep: float = 25.0
    keep_of: Literal["all", "prompt"] = "all"
    lr: float = 3e-4
    grad_clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        require(self.batch >= 1, "method.batch", self.batch, "must be at least 1")
        require(
            0 < self.keep <= 100,
            "method.keep",
            self.keep,
            "is a percentage: must be above 0 and at most 100 (100: plain SFT)",
        )
        for name in ("lr", "grad_clip"):
            require(getattr(self, name) > 0, f"method.{name}", getattr(self, name), "above 0")
        require(
            self.shaping == "none",
            "method.shaping",
            self.shaping,
            "has no effect on filtered SFT: a monotone function of the score keeps the same responses;"
            " use none",
        )

    @property
    def reads_comparisons(self) -> bool:
        """Their responses are the data."""
        return True

    @property
    def cost_s(self) -> float:
        """Estimated CPU seconds of a run on the default policy."""
        return 10 + self.steps * self.batch * 0.01

    @property
    def treatment(self) -> str:
        """What is kept, where that is not the default."""
        of = " of each prompt" if self.keep_of == "prompt" else ""
        return "" if self.keep == Settings.keep and not of else f"top {self.keep:g} %{of}"

    @property
    def title(self) -> str:
        """What is kept, and seed."""
        return f"keep {self.keep:g} % of {self.keep_of} seed {self.seed}"


def columns(settings: Settings) -> dict[str, Any]:
    """Record columns of a run."""
    return {"method_seed": settings.seed, "method_lr": settings.lr}


# --- state ----------------------------------------------------------------------------------------


@dataclass
class FilteredState:
    """Policy, optimizer and counters; and what is learned, which follows from the problem.

    kept : rows (N,) of ``data`` that passed the filter.
    """

    trained: rollouts.PolicyState
    data: Sequences
    kept: Tensor

    @property
    def policy(self) -> Backbone:
        """The policy."""
        return self.trained.policy

    @property
    def step(self) -> int:
        """Steps done."""
        return self.trained.step


def start(policy: Backbone, settings: Settings, problem: Problem) -> FilteredState:
    """A fresh optimizer around the policy, and the responses of the comparisons, filtered.

    Raises
    ------
    DataError
        There are no comparisons.
    DivergenceError
        A score is not finite.
    """
    pairs = problem.preferences() if problem.preferences else None
    if pairs is None or len(pairs) == 0:
        raise DataError(
            "method.kind = 'filtered_sft': there are no comparisons whose responses could be kept; use"
            " a proxy that is trained on some, or method.kind=rejection"
        )
    # Each response once, in their order: those that some pair is between.
    responses = pairs.responses.select(torch.cat([pairs.chosen, pairs.rejected]).unique())
    kept = torch.arange(len(responses))
    if settings.keep < 100:
        score = rollouts.shared(problem.compute, problem.proxy.score, responses)
        rollouts.check_scores(score, name="filtered SFT", step=0)
        kept = top(score, settings.keep, _groups(responses, settings.keep_of))
    trained = rollouts.PolicyState(policy, rollouts.adam(policy, settings.lr))
    return FilteredState(trained, responses.sequences(), kept)


def _groups(responses: Responses, keep_of: str) -> Tensor:
    """What each response competes with: (R,) numbers of prompts, or one for all."""
    prompt = responses.prompts.prompt_id
    return prompt if keep_of == "prompt" else torch.zeros_like(prompt)


def top(score: Tensor, percent: float, group: Tensor) -> Tensor:
    """Rows of the highest ``percent`` of the scores (R,) of each group (R,), in ascending order.

    Of G scores ⌈percent/100 · G⌉ are kept; of equal ones at the edge those that come first.
    """
    kept = []
    for name in group.unique():
        rows = (group == name).nonzero()[:, 0]
        n = -int(-percent * len(rows) // 100)
        order = torch.argsort(score[rows], descending=True, stable=True)
        kept.append(rows[order[:n]])
    return torch.cat(kept).sort().values


def state_tensors(state: FilteredState) -> dict[str, Tensor]:
    """The state as named tensors, for a checkpoint."""
    return rollouts.policy_tensors(state.trained)


def load_state_tensors(state: FilteredState, tensors: dict[str, Tensor]) -> None:
    """Restore what `state_tensors` saved, in place, whatever device it was saved from."""
    rollouts.load_policy_tensors(state.trained, tensors)


# --- one step -------------------------------------------------------------------------------------


def step(state: FilteredState, settings: Settings, problem: Problem) -> dict[str, float]:
    """One step in place; returns its diagnostics (see docs/metrics.md).

    Raises
    ------
    DivergenceError
        A loss is not finite; names the step.
    MemoryLimitError
        A single response does not fit the memory.
    """
    at = rollouts.rows_of_step(
        len(state.kept), batch=settings.batch, seed=problem.seed, step=state.step, stream="order"
    )
    rows, data = state.kept[at], state.data
    length = (data.length - data.n_prompt)[rows]
    loss = partial(
        rollouts.mean_nats,
        policy=state.policy,
        seq=data,
        compute=problem.compute,
        n_tokens=int(length.sum()),
    )
    nats, *_ = rollouts.gradient(
        state.trained, rows, loss, problem.compute, name="filtered SFT", lr=settings.lr
    )
    rollouts.descend(
        state.trained, lr=settings.lr * settings.warmed(state.step), grad_clip=settings.grad_clip
    )
    state.trained.step += 1
    return {
        "loss": nats,
        "train_response_tokens": float(length.float().mean()),
        "kept": float(len(state.kept)),
        "epoch": state.step * settings.batch / len(state.kept),
    }
