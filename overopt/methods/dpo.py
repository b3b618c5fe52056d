"""DPO and its kin (Rafailov et al. 2023): the policy is trained on comparisons, without a reward.

Offline, the comparisons are those that the proxy was trained on, in steps over the data: the policy is
then its own reward model, and overoptimizes all the same (Rafailov et al. 2024). Online, each step
samples fresh pairs from the policy, and the proxy says which is better. One call of `step`:

1. the step's pairs                            3. one optimizer step on the loss of the pairs
2. log-probs of the reference

What differs from common implementations: losses on sums and on means over tokens have names of their
own, a pass over the data is divided into steps that are evaluated like those of any method, and what
is chosen is all that is known of gold: neither margins nor flips are.
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

    from overopt.base import datatypes
    from overopt.base.datatypes import PreferenceSet, Responses, Sequences
    from overopt.methods import pair_losses, rollouts
    from overopt.nets import sampling
    from overopt.nets.backbone import Backbone
    from overopt.nets.compute import Compute
else:
    torch = lazy("torch")
    datatypes = lazy("overopt.base.datatypes")
    pair_losses, rollouts = lazy("overopt.methods.pair_losses"), lazy("overopt.methods.rollouts")
    sampling = lazy("overopt.nets.sampling")

SHOWN = Shown(
    label="DPO",
    coord="dpo_step",
    axis="DPO step",
    form="rl",
    marker="P",
    treatments={"kl_coef": "beta "},
)


@dataclass(frozen=True, kw_only=True)
class Settings(Schedule):
    """DPO and its kin on the proxy's comparisons.

    Attributes
    ----------
    loss : "dpo", "cdpo", "ipo_sum", "ipo_mean", "slic" or "simpo"
        See `overopt.methods.pair_losses.pair_loss` for formulas and sources.
    beta : float
        Strength of the pull back to π_ref: larger stays closer. τ of IPO.
    smoothing : float
        Share of labels that cdpo takes for wrong, in [0, 0.5).
    margin : float
        Margin γ of simpo.
    data : "offline" or "online"
        The comparisons that the proxy was trained on, or pairs sampled from the policy in each step,
        of which the proxy's favourite is chosen.
    batch : int
        Pairs a step.
    lr, grad_clip : float
        Peak Adam learning rate (eps 1e-5), decayed linearly to a tenth; gradient norm.
    seed : int
        Order of the pairs, or rollouts.
    """

    loss: Literal["dpo", "cdpo", "ipo_sum", "ipo_mean", "slic", "simpo"] = "dpo"
    beta: float = 0.1
    smoothing: float = 0.0
    margin: float = 0.0
    data: Literal["offline", "online"] = "offline"
    batch: int = 64
    lr: float = 3e-4
    grad_clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        require(self.batch >= 1, "method.batch", self.batch, "must be at least 1")
        for name in ("beta", "lr", "grad_clip"):
            require(getattr(self, name) > 0, f"method.{name}", getattr(self, name), "above 0")
        require(
            0 <= self.smoothing < 0.5 and (self.loss == "cdpo") == (self.smoothing > 0),
            "method.smoothing",
            self.smoothing,
            "must be above 0 and below 0.5 with method.loss=cdpo, and 0 with any other loss",
        )
        require(
            self.margin >= 0 and (self.loss == "simpo" or self.margin == 0),
            "method.margin",
            self.margin,
            "must be at least 0, and needs method.loss=simpo",
        )
        require(
            self.shaping == "none",
            "method.shaping",
            self.shaping,
            "has no effect on DPO: a monotone function of the score changes no comparison; use none",
        )

    @property
    def responses_per_step(self) -> int:
        """Responses that the proxy scores in one step."""
        return 2 * self.batch if self.data == "online" else 0

    @property
    def prompts_per_step(self) -> int:
        """Prompts that one step draws."""
        return self.batch if self.data == "online" else 0

    @property
    def reads_comparisons(self) -> bool:
        """Whether the proxy's own comparisons are an input."""
        return self.data == "offline"

    @property
    def cost_s(self) -> float:
        """Estimated CPU seconds of a run on the default policy."""
        return 5 + self.steps * self.batch * (0.04 if self.data == "online" else 0.025)

    @property
    def treatment(self) -> str:
        """The loss with its own settings, and online pairs; empty for DPO itself."""
        loss: str = "" if self.loss == "dpo" else self.loss
        extra = self.smoothing or self.margin
        if extra:
            loss = f"{loss} {extra:g}"
        return ", ".join(filter(None, [loss, "online" if self.data == "online" else ""]))

    @property
    def title(self) -> str:
        """Loss, data, strength and seed."""
        return f"{self.loss} {self.data} beta {self.beta} seed {self.seed}"


def columns(settings: Settings) -> dict[str, Any]:
    """Record columns of a run: β is the weight of the KL penalty that the losses stand for."""
    return {
        "method_seed": settings.seed,
        "method_lr": settings.lr,
        "kl_coef": settings.beta,
    }


# --- state ----------------------------------------------------------------------------------------


@dataclass
class DpoState:
    """Policy, optimizer and counters, and the comparisons, which do not change."""

    trained: rollouts.PolicyState
    pairs: PreferenceSet | None

    @property
    def policy(self) -> Backbone:
        """The policy."""
        return self.trained.policy

    @property
    def step(self) -> int:
        """Steps done."""
        return self.trained.step


def start(policy: Backbone, settings: Settings, problem: Problem) -> DpoState:
    """A fresh optimizer around the policy, and the comparisons, if they are read.

    Raises
    ------
    DataError
        Offline without comparisons.
    """
    pairs = None
    if settings.reads_comparisons:
        pairs = problem.preferences() if problem.preferences else None
        if pairs is None or len(pairs) == 0:
            raise DataError(
                "method.data = 'offline': there are no comparisons; use method.data=online, or a"
                " proxy that is trained on some"
            )
    return DpoState(rollouts.PolicyState(policy, rollouts.adam(policy, settings.lr)), pairs)


def state_tensors(state: DpoState) -> dict[str, Tensor]:
    """The state as named tensors, for a checkpoint."""
    return rollouts.policy_tensors(state.trained)


def load_state_tensors(state: DpoState, tensors: dict[str, Tensor]) -> None:
    """Restore what `state_tensors` saved, in place, whatever device it was saved from."""
    rollouts.load_policy_tensors(state.trained, tensors)


# --- one step -------------------------------------------------------------------------------------


def step(state: DpoState, settings: Settings, problem: Problem) -> dict[str, float]:
    """One step in place; returns its diagnostics (see docs/metrics.md).

    Raises
    ------
    DivergenceError
        A loss or a score is not finite; names the step.
    MemoryLimitError
        A single pair does not fit the memory.
    """
    # 1. Chosen responses, then rejected ones.
    if state.pairs is None:
        responses, log = _fresh_pairs(state, settings, problem)
    else:
        n = len(state.pairs)
        at = pairs_of_step(n, batch=settings.batch, seed=problem.seed, step=state.step)
        rows = torch.cat([state.pairs.chosen[at], state.pairs.rejected[at]])
        responses = state.pairs.responses.select(rows)
        log = {"epoch": (state.step + 1) * settings.batch / n}
    # 2.
    ways, ref = problem.compute, torch.zeros(len(responses))
    if settings.loss != "simpo":
        with ways.autocast(state.policy.device):
            table = rollouts.shared(
                ways, partial(sampling.score_logprobs, problem.ref_policy), responses
            )
        ref = table.sum(1)
    # 3.
    loss = partial(
        _loss,
        policy=state.policy,
        seq=responses.sequences(),
        ref_logp=ref,
        settings=settings,
        ways=ways,
    )
    n_pairs = torch.arange(settings.batch)
    sums = rollouts.gradient(state.trained, n_pairs, loss, ways, name="DPO", lr=settings.lr)
    rate = settings.lr * settings.warmed(state.step)
    rollouts.descend(state.trained, lr=rate, grad_clip=settings.grad_clip)
    state.trained.step += 1
    names = ("loss", "pair_accuracy", "pair_margin", "chosen_logp_nats", "rejected_logp_nats")
    length = float(responses.length.float().mean())
    return dict(zip(names, sums, strict=True)) | {"train_response_tokens": length} | log


def pairs_of_step(n: int, *, batch: int, seed: int, step: int) -> Tensor:
    """Which of ``n`` pairs step ``step`` takes, (batch,) int64: one shuffled pass after another."""
    return rollouts.rows_of_step(n, batch=batch, seed=seed, step=step, stream="pairs")


def _fresh_pairs(
    state: DpoState, settings: Settings, problem: Problem
) -> tuple[Responses, dict[str, float]]:
    """Two responses to each prompt, the proxy's favourites first; and what is logged of them."""
    draw = rollouts.prompts_of_step(
        len(problem.prompts), batch=settings.batch, seed=problem.seed, step=state.step
    )
    both = rollouts.rollout(state.policy, problem, draw, step=state.step, copies=2)
    score = rollouts.shared(problem.compute, problem.proxy.score, both)
    rollouts.check_scores(score, name="DPO", step=state.step)
    best = score.view(-1, 2).argmax(1)
    first = 2 * torch.arange(settings.batch)
    rows = torch.cat([first + best, first + 1 - best])
    return both.select(rows), {"train_proxy_score": float(score.mean())}


def _loss(
    rows: Tensor,
    *,
    policy: Backbone,
    seq: Sequences,
    ref_logp: Tensor,
    settings: Settings,
    ways: Compute,
) -> Tensor:
    """Loss and statistics (5,) of some pairs, as parts of means over all pairs of the step."""
    n_pairs = len(seq.ids) // 2
    both = torch.cat([rows, rows + n_pairs])
    width = int(seq.length[both].max())
    part = datatypes.Sequences(seq.ids[both, :width], seq.length[both], seq.n_prompt[both])
    length = (part.length - part.n_prompt).float().to(policy.device)
    part = datatypes.Sequences(*(t.to(policy.device) for t in part))
    logp = rollouts.response_logprobs(policy, part, ways)
    ref = ref_logp[both].to(logp.device)
    pairs = pair_losses.PairLogprobs(*logp.chunk(2), *ref.chunk(2), *length.chunk(2))
    loss = pair_losses.pair_loss(
        pairs,
        settings.loss,
        beta=settings.beta,
        smoothing=settings.smoothing,
        margin=settings.margin,
    )
    m = pair_losses.margins(pairs, settings.loss).detach()
    parts = [
        loss,
        (m > 0).float(),
        settings.beta * m,
        pairs.chosen.detach(),
        pairs.rejected.detach(),
    ]
    return torch.stack([x.sum() / n_pairs for x in parts])
