"""What several methods share around a step: which prompts, rollouts, optimizer states in files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from overopt.base.datatypes import Prompts, Responses, Scorer, Sequences
from overopt.base.errors import DivergenceError
from overopt.base.seeding import derive_seed, torch_generator
from overopt.methods.method import Problem
from overopt.methods.pace import Paced, next_rate
from overopt.nets.backbone import Backbone
from overopt.nets.compute import Compute, clear_gradients
from overopt.nets.sampling import (
    response_hidden,
    response_view,
    sample,
    score_logprobs,
    token_logprobs,
)


class Trained(NamedTuple):
    """A network, its optimizer, and the name under which both are saved."""

    name: str
    module: nn.Module
    optimizer: torch.optim.Adam


def adam(module: nn.Module, lr: float) -> torch.optim.Adam:
    """Adam as in Ziegler et al. 2019: eps 1e-5, no weight decay."""
    return torch.optim.Adam(module.parameters(), lr=lr, eps=1e-5, fused=True)


def saved(parts: Sequence[Trained]) -> dict[str, Tensor]:
    """Weights and Adam states as named tensors, not copied."""
    out = {}
    for name, module, opt in parts:
        for key, p in module.named_parameters():
            out[f"{name}.{key}"] = p.detach()
            for moment, x in opt.state.get(p, {}).items():
                out[f"{name}_adam.{moment}.{key}"] = x.detach()
    return out


def restore(parts: Sequence[Trained], tensors: dict[str, Tensor]) -> None:
    """Put back what `saved` gave, in place, whatever device it was saved from."""
    with torch.no_grad():
        for name, module, opt in parts:
            for key, p in module.named_parameters():
                p.copy_(tensors[f"{name}.{key}"])
                opt.state[p] = {
                    moment: tensors[f"{name}_adam.{moment}.{key}"].to(p.device, copy=True)
                    for moment in ("step", "exp_avg", "exp_avg_sq")
                    if f"{name}_adam.{moment}.{key}" in tensors
                }


def set_rates(parts: Sequence[Trained], rates: Sequence[float]) -> None:
    """Learning rate of each optimizer's next step."""
    for part, lr in zip(parts, rates, strict=True):
        for group in part.optimizer.param_groups:
            group["lr"] = lr


@dataclass
class PolicyState:
    """Everything that changes during a method that trains the policy alone.

    ``lr``: of the next step where it is adapted, 0 before the first. ``multiplier``: of the proxy.
    """

    policy: Backbone
    optimizer: torch.optim.Adam
    lr: float = 0.0
    multiplier: float = 1.0
    step: int = 0
    grad_steps: int = 0

    @property
    def parts(self) -> list[Trained]:
        """The policy with its optimizer."""
        return [Trained("policy", self.policy, self.optimizer)]


def policy_tensors(state: PolicyState) -> dict[str, Tensor]:
    """The state as named tensors, for a checkpoint."""
    counters = {"counters": torch.tensor([state.step, state.grad_steps])}
    return counters | saved_numbers(state) | saved(state.parts)


def load_policy_tensors(state: PolicyState, tensors: dict[str, Tensor]) -> None:
    """Restore what `policy_tensors` saved, in place, whatever device it was saved from."""
    state.step, state.grad_steps = (int(x) for x in tensors["counters"])
    restore_numbers(state, tensors)
    restore(state.parts, tensors)


# --- numbers that a run adapts --------------------------------------------------------------------

_ADAPTED = {"lr": 0.0, "adv_scale": 0.0, "multiplier": 1.0}
"""Numbers of a state that settings may let change, and what they are where none does."""


class Adapted(Protocol):
    """A state whose policy's learning rate may be adapted: ``lr``, 0 before the first step."""

    policy: Backbone
    step: int
    lr: float


def saved_numbers(state: object) -> dict[str, Tensor]:
    """The adapted numbers that ``state`` has as named tensors; those that did not change, left out."""
    numbers = {name: getattr(state, name, plain) for name, plain in _ADAPTED.items()}
    return {
        name: torch.tensor(x, dtype=torch.float64)
        for name, x in numbers.items()
        if x != _ADAPTED[name]
    }


def restore_numbers(state: object, tensors: dict[str, Tensor]) -> None:
    """Put back what `saved_numbers` gave."""
    for name, plain in _ADAPTED.items():
        if hasattr(state, name):
            setattr(state, name, float(tensors.get(name, plain)))


def rate(state: Adapted, settings: Paced) -> float:
    """The policy's learning rate in this step: the adapted one, or that of the schedule."""
    return state.lr if state.lr > 0 else settings.lr * settings.warmed(state.step)


def adapt_rate(
    state: Adapted, settings: Paced, responses: Responses, old_logp: Tensor, compute: Compute
) -> dict[str, float]:
    """Measure how far this step moved the policy and set the next one's rate; returns what is logged.

    responses: R rollouts; old_logp (R, T) their log-probabilities before the step, in nats. Measured
    is KL(π_old‖π_new) per response by k3, summed over its tokens. Does nothing without ``step_kl``.
    """
    if settings.step_kl == 0:
        return {}
    with torch.no_grad(), compute.autocast(state.policy.device):
        new_logp = shared(compute, partial(score_logprobs, state.policy), responses)
    log_ratio = new_logp[:, : old_logp.shape[1]] - old_logp.cpu()
    moved = float((log_ratio.expm1() - log_ratio).sum(1).mean())
    now = rate(state, settings)
    state.lr = next_rate(now, moved, target=settings.step_kl, peak=settings.lr)
    return {"lr": now, "step_kl_seq_nats": moved}


def gradient(
    state: PolicyState,
    rows: Tensor,
    loss: Callable[[Tensor], Tensor],
    compute: Compute,
    *,
    name: str,
    lr: float,
) -> list[float]:
    """Gradients of a loss summed over ``rows``; returns its sum and those of its statistics.

    ``loss``, ``rows``: as `Compute.accumulate` takes them. ``name``, ``lr``: for messages.

    Raises
    ------
    DivergenceError
        The loss is not finite; names the step.
    """
    sums = compute.accumulate(rows, list(state.policy.parameters()), loss).tolist()
    if not math.isfinite(sums[0]):
        raise DivergenceError(
            f"{name} loss is {sums[0]} at step {state.step}: lower method.lr = {lr}, unless the"
            " proxy's scores are not finite"
        )
    return sums


def descend(state: PolicyState, *, lr: float, grad_clip: float) -> None:
    """One optimizer step along the gradients of `gradient`, which are forgotten."""
    set_rates(state.parts, [lr])
    torch.nn.utils.clip_grad_norm_(state.policy.parameters(), grad_clip)
    state.optimizer.step()
    state.grad_steps += 1
    clear_gradients(state.policy.parameters())


def token_nats(policy: Backbone, seq: Sequences, compute: Compute) -> tuple[Tensor, Tensor]:
    """log π (N,) of all response tokens of ``seq``, in nats, and the row (N,) that each is of.

    Real tokens only, as one list: most of the work is the vocabulary. Differentiable.
    """
    view = response_view(seq)
    with compute.autocast(seq.ids.device):
        logits = policy.logits(response_hidden(policy, seq, view)[view.mask])
    logp = token_logprobs(logits.float(), view.tokens[view.mask])
    return logp, view.mask.nonzero()[:, 0]


def mean_nats(
    rows: Tensor, *, policy: Backbone, seq: Sequences, compute: Compute, n_tokens: int
) -> Tensor:
    """−log π a token (1,) of some rows, in nats, as part of the mean over ``n_tokens`` tokens."""
    width = int(seq.length[rows].max())
    part = (seq.ids[rows, :width], seq.length[rows], seq.n_prompt[rows])
    logp, _ = token_nats(policy, Sequences(*(t.to(policy.device) for t in part)), compute)
    return -logp.sum()[None] / n_tokens


def response_logprobs(policy: Backbone, seq: Sequences, compute: Compute) -> Tensor:
    """log π (R,) of whole responses, in nats; differentiable."""
    logp, row = token_nats(policy, seq, compute)
    return torch.zeros(len(seq.ids), device=logp.device).index_add(0, row, logp)


def check_scores(score: Tensor, *, name: str, step: int) -> None:
    """Raise DivergenceError unless all scores (R,) are finite: ranks of nan mean nothing."""
    n_bad = int((~score.isfinite()).sum())
    if n_bad > 0:
        raise DivergenceError(
            f"{name}: {n_bad} of {len(score)} proxy scores are not finite at step {step}: the proxy"
            " has diverged; train it with a lower proxy.lr"
        )


def prompts_of_step(n_prompts: int, *, batch: int, seed: int, step: int) -> Tensor:
    """Which prompts step ``step`` rolls out, (batch,) int64 with repetitions."""
    return torch.randint(n_prompts, (batch,), generator=torch_generator(seed, "prompts", step))


def rows_of_step(n: int, *, batch: int, seed: int, step: int, stream: str) -> Tensor:
    """Which of ``n`` rows step ``step`` takes, (batch,) int64: one shuffled pass after another.

    ``stream``: names the random numbers.
    """
    first = step * batch
    epochs = range(first // n, (first + batch - 1) // n + 1)
    order = torch.cat(
        [torch.randperm(n, generator=torch_generator(seed, stream, epoch)) for epoch in epochs]
    )
    return order[first - epochs[0] * n :][:batch]


def rollout(
    policy: Backbone, problem: Problem, draw: Tensor, *, step: int, copies: int = 1
) -> Responses:
    """``copies`` responses of the policy to each prompt of ``draw`` (B,), (B·copies) rows."""
    return sample(
        policy,
        problem.prompts.select(draw),
        n_tokens=problem.n_tokens,
        seed=derive_seed(problem.seed, "rollout", step),
        copies=copies,
        compute=problem.compute,
        precision=problem.compute.precision,
    )


def shared(compute: Compute, table: Callable[[Responses], Tensor], responses: Responses) -> Tensor:
    """``table(responses)`` (R, …), each process computing its share of the rows."""
    if compute.n_ranks == 1:
        return table(responses)
    mine = compute.share(torch.arange(len(responses)))
    return compute.gather(table(responses.select(mine)), mine, len(responses))


def shaped(problem: Problem, score: Tensor, n_tokens: Tensor, draw: Tensor) -> Tensor:
    """What is maximised (R,): the score, or its shape."""
    return score if problem.shape is None else problem.shape(score, n_tokens, draw)


@torch.no_grad()
def reference_scores(
    ref_policy: Backbone,
    proxy: Scorer,
    prompts: Prompts,
    *,
    batch: int,
    steps: int,
    n_tokens: int,
    seed: int,
) -> Tensor:
    """Proxy score (P,) of one response of the reference policy to each prompt this run rolls out.

    nan for prompts that no step draws. The cost is one more response for each prompt drawn, once.
    """
    draws = [prompts_of_step(len(prompts), batch=batch, seed=seed, step=k) for k in range(steps)]
    drawn = torch.cat(draws).unique()
    responses = sample(
        ref_policy, prompts.select(drawn), n_tokens=n_tokens, seed=derive_seed(seed, "reference")
    )
    scores = torch.full((len(prompts),), torch.nan)
    scores[drawn] = proxy.score(responses).float()
    return scores
