"""What a step is worth by Monte Carlo: how often the policy, going on from it, comes to a right answer.

These are the labels of Math-Shepherd (Wang et al. 2024), which need no judge of steps, only one of
outcomes. A wrong step from which luck leads to the right answer has a value above 0, and a right step
from which the policy fails has one below 1: labels measure the policy as well as the step.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from overopt.base.datatypes import Prompts, Responses
from overopt.base.seeding import derive_seed
from overopt.nets.backbone import Backbone
from overopt.nets.sampling import sample
from overopt.rewards.training.steps import Steps
from overopt.worlds.world import World


class StepValues(NamedTuple):
    """Monte-Carlo values of steps. value (R, S) float32; rollouts, tokens: what they cost."""

    value: Tensor
    rollouts: int
    tokens: int


def step_values(
    policy: Backbone,
    world: World,
    responses: Responses,
    steps: Steps,
    *,
    n_rollouts: int,
    n_tokens: int,
    seed: int,
) -> StepValues:
    """Share of ``n_rollouts`` continuations behind each step (R, S) whose answer is right.

    The last step of a response is its answer, whose value is known: 1 if right. A continuation has the
    tokens that are left of ``n_tokens``; where none is left, the value is 0. 0 where there is no step.

    Prefixes of one length go through the policy together.
    """
    last = steps.mask.sum(1) - 1
    value = torch.zeros(steps.mask.shape)
    right = [v.right for v in world.verdicts(responses)]
    value[torch.arange(len(last)), last] = torch.tensor(right).float()
    is_inner = steps.mask.clone()
    is_inner[torch.arange(len(last)), last] = False
    done = rolled = 0
    for n_prefix in (steps.position[is_inner] + 1).unique().tolist():
        rows, columns = (is_inner & (steps.position + 1 == n_prefix)).nonzero().T
        if n_prefix >= n_tokens:
            continue
        found = roll_out(
            policy,
            responses.select(rows),
            n_prefix=n_prefix,
            n_tokens=n_tokens,
            copies=n_rollouts,
            seed=derive_seed(seed, "rollouts", n_prefix),
        )
        is_right = torch.tensor([v.right for v in world.verdicts(found)]).float()
        value[rows, columns] = is_right.view(-1, n_rollouts).mean(1)
        done += len(found)
        rolled += int(found.length.sum()) - n_prefix * len(found)
    return StepValues(value, done, rolled)


def roll_out(
    policy: Backbone, responses: Responses, *, n_prefix: int, n_tokens: int, copies: int, seed: int
) -> Responses:
    """Responses with the same first ``n_prefix`` tokens, each ``copies`` times, written on anew."""
    asked = responses.prompts
    front = Prompts(
        torch.cat([asked.ids, responses.ids[:, :n_prefix]], 1),
        torch.cat([asked.mask, responses.mask[:, :n_prefix]], 1),
        asked.prompt_id,
    )
    behind = sample(policy, front, n_tokens=n_tokens - n_prefix, seed=seed, copies=copies)
    kept = responses.ids[:, :n_prefix].repeat_interleave(copies, 0)
    return Responses(
        asked.repeat(copies),
        torch.cat([kept, behind.ids], 1),
        torch.cat([torch.ones_like(kept, dtype=torch.bool), behind.mask], 1),
        torch.cat([torch.zeros(kept.shape), behind.logprobs], 1),
        behind.ended,
    )
