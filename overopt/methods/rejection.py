"""Rejection sampling (Llama 2: Touvron et al. 2023; RAFT: Dong et al. 2023): best-of-n, learned.

A step is a round: n responses to each prompt, of which the proxy's favourite is kept; the policy is
fine-tuned on the winners. One round is best-of-n distillation (``method.steps=1``). Ideally a round
turns the policy into its own best-of-n; then k rounds are best-of-n^k, at a cost of k·n responses, and
the KL from the start is at most log n^k − (n^k − 1)/n^k.

1. sample n responses to each prompt                 3. add earlier winners, reference samples
2. keep the best by the proxy's score                4. fine-tune on all of them

What differs from common implementations: rounds are steps like those of any method, with evaluation
and a checkpoint behind each, and the mixture with samples of the reference is an option.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from overopt.base.config import require
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed, torch_generator
from overopt.base.shown import Shown
from overopt.methods.method import Problem, Schedule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from overopt.base import datatypes
    from overopt.base.datatypes import Responses, Sequences
    from overopt.methods import rollouts
    from overopt.nets import sampling
    from overopt.nets.backbone import Backbone
else:
    torch, datatypes = lazy("torch"), lazy("overopt.base.datatypes")
    rollouts, sampling = lazy("overopt.methods.rollouts"), lazy("overopt.nets.sampling")

SHOWN = Shown(
    label="rejection sampling",
    coord="rejection_round",
    axis="round of rejection sampling",
    form="rl",
    marker="X",
)


@dataclass(frozen=True, kw_only=True)
class Settings(Schedule):
    """Rounds of best-of-n and fine-tuning on the winners. ``steps`` counts rounds.

    Attributes
    ----------
    steps, warmup_steps, eval_every, eval_early_every : int
        As for every method, in rounds; one round is best-of-n distillation.
    batch : int
        Responses a round.
    n : int
        Responses to each prompt, of which one wins.
    keep : "round" or "all"
        Train on the winners of this round, or of all rounds so far.
    reference_share : float
        Share of fresh samples of π_ref, to the same prompts, among the examples of a round, in
        [0, 1): the SFT mixture, where π_ref is the supervised policy.
    epochs, examples : int
        Passes over the examples of a round, and examples an optimizer step.
    lr, grad_clip : float
        Adam learning rate (eps 1e-5) of the first round, decayed linearly to a tenth over the rounds;
        gradient norm.
    seed : int
        Rollouts and order.
    """

    steps: int = 8
    warmup_steps: int = 0
    eval_every: int = 1
    eval_early_every: int = 1
    batch: int = 1024
    n: int = 8
    keep: Literal["round", "all"] = "round"
    reference_share: float = 0.0
    epochs: int = 2
    examples: int = 16
    lr: float = 3e-4
    grad_clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        require(self.n >= 2, "method.n", self.n, "must be at least 2: the best of 1 is no choice")
        for name in ("batch", "epochs", "examples"):
            require(getattr(self, name) >= 1, f"method.{name}", getattr(self, name), "at least 1")
        for name in ("lr", "grad_clip"):
            require(getattr(self, name) > 0, f"method.{name}", getattr(self, name), "above 0")
        require(
            self.batch % self.n == 0,
            "method.batch",
            self.batch,
            f"a multiple of method.n = {self.n}, the responses to one prompt",
        )
        require(
            0 <= self.reference_share < 1,
            "method.reference_share",
            self.reference_share,
            "must be in [0, 1): some winners are needed",
        )
        require(
            self.shaping == "none",
            "method.shaping",
            self.shaping,
            "has no effect on rejection sampling: a monotone function of the score changes no winner;"
            " use none",
        )

    @property
    def responses_per_step(self) -> int:
        """Responses that the proxy scores in one round."""
        return self.batch

    @property
    def prompts_per_step(self) -> int:
        """Prompts of a round."""
        return self.batch // self.n

    @property
    def cost_s(self) -> float:
        """Estimated CPU seconds of a run on the default policy."""
        examples = self.batch / self.n * self.epochs / (1 - self.reference_share)
        if self.keep == "all":
            examples *= (self.steps + 1) / 2
        return 5 + self.steps * (0.012 * self.batch + 0.01 * examples)

    @property
    def treatment(self) -> str:
        """What is not the default."""
        parts = [
            "" if self.n == Settings.n else f"n {self.n}",
            "all winners" if self.keep == "all" else "",
            f"{self.reference_share:.0%} reference" if self.reference_share > 0 else "",
        ]
        return ", ".join(filter(None, parts))

    @property
    def title(self) -> str:
        """n and seed."""
        return f"n {self.n} seed {self.seed}"


def columns(settings: Settings) -> dict[str, Any]:
    """Record columns of a run."""
    return {"method_seed": settings.seed, "method_lr": settings.lr}


# --- state ----------------------------------------------------------------------------------------


@dataclass
class RejectionState:
    """Policy, optimizer and counters, and the winners of earlier rounds where they are kept.

    winners: prompt (N,) number among the prompts, ids (N, T), length (N,) tokens.
    """

    trained: rollouts.PolicyState
    winners: dict[str, Tensor] = field(default_factory=dict)

    @property
    def policy(self) -> Backbone:
        """The policy."""
        return self.trained.policy

    @property
    def step(self) -> int:
        """Rounds done."""
        return self.trained.step


def start(policy: Backbone, settings: Settings, problem: Problem) -> RejectionState:
    """A fresh optimizer around the policy, and no winners."""
    return RejectionState(rollouts.PolicyState(policy, rollouts.adam(policy, settings.lr)))


def state_tensors(state: RejectionState) -> dict[str, Tensor]:
    """The state as named tensors, for a checkpoint."""
    kept = {f"winners.{name}": x for name, x in state.winners.items()}
    return rollouts.policy_tensors(state.trained) | kept


def load_state_tensors(state: RejectionState, tensors: dict[str, Tensor]) -> None:
    """Restore what `state_tensors` saved, in place, whatever device it was saved from."""
    rollouts.load_policy_tensors(state.trained, tensors)
    names = [name for name in tensors if name.startswith("winners.")]
    state.winners = {name.removeprefix("winners."): tensors[name].clone() for name in names}


# --- one round ------------------------------------------------------------------------------------


def kl_bound(n: int, rounds: int) -> float:
    """log n^k − (n^k − 1)/n^k in nats: the KL of k rounds of best-of-n that are learned exactly."""
    return rounds * math.log(n) - (1 - float(n) ** -rounds)


def step(state: RejectionState, settings: Settings, problem: Problem) -> dict[str, float]:
    """One round in place; returns its diagnostics (see docs/metrics.md).

    Raises
    ------
    DivergenceError
        A score or a loss is not finite; names the round.
    MemoryLimitError
        A single response does not fit the memory.
    """
    # 1.
    draw = rollouts.prompts_of_step(
        len(problem.prompts),
        batch=settings.prompts_per_step,
        seed=problem.seed,
        step=state.step,
    )
    responses = rollouts.rollout(state.policy, problem, draw, step=state.step, copies=settings.n)
    score = rollouts.shared(problem.compute, problem.proxy.score, responses)
    rollouts.check_scores(score, name="rejection sampling", step=state.step)
    # 2.
    best = winners(score, settings.n)
    won = responses.select(best)
    # 3.
    examples = _examples(state, won, draw, settings, problem)
    # 4.
    losses = _fine_tune(state, examples.sequences(), settings, problem)
    state.trained.step += 1
    return {
        "train_proxy_score": float(score.mean()),
        "winner_proxy_score": float(score[best].mean()),
        "train_response_tokens": float(responses.length.float().mean()),
        "winner_tokens": float(won.length.float().mean()),
        "examples": float(len(examples)),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "kl_bound_seq_nats": kl_bound(settings.n, state.step),
    }


def winners(score: Tensor, n: int) -> Tensor:
    """Row of the best of each n adjacent scores (R,) -> (R/n,); the first among equals."""
    groups = score.view(-1, n)
    return groups.argmax(1) + n * torch.arange(len(groups))


def _examples(
    state: RejectionState, won: Responses, draw: Tensor, settings: Settings, problem: Problem
) -> Responses:
    """Winners of this round or of all, which are then kept, and samples of the reference."""
    everything = [won]
    if settings.keep == "all":
        mine = {"prompt": draw, "ids": won.ids, "length": won.length}
        if state.winners:
            everything.append(_earlier(state.winners, problem))
            mine = {name: torch.cat([state.winners[name], x]) for name, x in mine.items()}
        state.winners = mine
    share = settings.reference_share
    n_fresh = round(share / (1 - share) * sum(map(len, everything)))
    if n_fresh > 0:
        prompts = torch.arange(n_fresh) % len(draw)
        everything.append(
            sampling.sample(
                problem.ref_policy,
                problem.prompts.select(draw[prompts]),
                n_tokens=problem.n_tokens,
                seed=derive_seed(problem.seed, "mixture", state.step),
                compute=problem.compute,
                precision=problem.compute.precision,
            )
        )
    return datatypes.concat_responses(everything)


def _earlier(kept: dict[str, Tensor], problem: Problem) -> Responses:
    """Kept winners as responses again, without their log-probabilities."""
    mask = torch.arange(kept["ids"].shape[1]) < kept["length"][:, None]
    nothing = torch.zeros(kept["ids"].shape)
    prompts = problem.prompts.select(kept["prompt"])
    return datatypes.Responses(prompts, kept["ids"], mask, nothing, mask.all(1))


def _fine_tune(
    state: RejectionState, seq: Sequences, settings: Settings, problem: Problem
) -> list[float]:
    """Optimizer steps on the examples, every token weighed the same; their losses in nats a token."""
    losses: list[float] = []
    n_parts = max(1, round(len(seq.ids) / settings.examples))
    rate = settings.lr * settings.warmed(state.step)
    for epoch in range(settings.epochs):
        generator = torch_generator(problem.seed, "order", state.step, epoch)
        for rows in torch.randperm(len(seq.ids), generator=generator).tensor_split(n_parts):
            loss = partial(
                rollouts.mean_nats,
                policy=state.policy,
                seq=seq,
                compute=problem.compute,
                n_tokens=int((seq.length - seq.n_prompt)[rows].sum()),
            )
            sums = rollouts.gradient(
                state.trained,
                rows,
                loss,
                problem.compute,
                name="rejection sampling",
                lr=settings.lr,
            )
            rollouts.descend(state.trained, lr=rate, grad_clip=settings.grad_clip)
            losses.append(sums[0])
    return losses
