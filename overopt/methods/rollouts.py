"""What several methods share around a step: which prompts, rollouts, optimizer states in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from overopt.base.datatypes import Prompts, Responses, Scorer
from overopt.base.seeding import derive_seed, torch_generator
from overopt.methods.method import Problem
from overopt.nets.compute import Compute
from overopt.nets.llama import Llama
from overopt.nets.sampling import sample


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


def prompts_of_step(n_prompts: int, *, batch: int, seed: int, step: int) -> Tensor:
    """Which prompts step ``step`` rolls out, (batch,) int64 with repetitions."""
    return torch.randint(n_prompts, (batch,), generator=torch_generator(seed, "prompts", step))


def rollout(
    policy: Llama, problem: Problem, draw: Tensor, *, step: int, copies: int = 1
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
    ref_policy: Llama,
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
