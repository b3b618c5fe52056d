"""The one argument of every mitigation, how mitigations chain, and the contract they keep."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from overopt.base.errors import ConfigError


@dataclass(frozen=True)
class RewardInputs:
    """What a mitigation sees of R responses; nothing in it comes from gold.

    Attributes
    ----------
    scores : Tensor
        (M, R) float32: the score of each member, mean 0 and standard deviation 1 under the initial
        policy.
    n_tokens : Tensor
        (R,) response tokens, end token included.
    ref_tokens : float
        Mean response tokens of the initial policy.
    ref_scores : Tensor or None
        (R,) score that shaping is relative to, for the same prompts; None outside shaping.
    """

    scores: Tensor
    n_tokens: Tensor
    ref_tokens: float
    ref_scores: Tensor | None = None


Reward = Callable[..., Tensor]
"""``reward(inputs, *, strength)`` -> (R,), higher is better."""


class Step(NamedTuple):
    """One mitigation with its strength."""

    reward: Reward
    strength: float


def chain(steps: Sequence[Step], inputs: RewardInputs) -> Tensor:
    """Reward (R,) of the last step; each step's reward is the only member that the next one sees."""
    for step in steps:
        reward = step.reward(inputs, strength=step.strength)
        inputs = replace(inputs, scores=reward[None])
    return inputs.scores[0]


def mean_score(inputs: RewardInputs) -> Tensor:
    """Mean over members, (R,).

    Members are sorted and the lowest is subtracted first: their order does not matter to the last
    bit, and members that agree give exactly their score.
    """
    ordered = inputs.scores.sort(0).values
    return ordered[0] + (ordered - ordered[0]).mean(0)


def check_contract(reward: Reward, *, strength: float, n_members: int, name: str) -> None:
    """Try a mitigation on a small table and raise unless it keeps the contract.

    The contract: a function of its arguments alone that returns one finite float for each response
    and leaves its inputs as they are.

    Raises
    ------
    ConfigError
        It raised, or returned something else; the message begins with ``name``.
    """
    n_responses = 7
    scores = torch.linspace(-3, 3, n_members * n_responses).sin().view(n_members, n_responses)
    inputs = RewardInputs(
        scores, torch.arange(1, n_responses + 1), 4.0, torch.linspace(-1, 1, n_responses)
    )
    before = scores.clone(), inputs.n_tokens.clone()
    try:
        first = reward(inputs, strength=strength)
        second = reward(inputs, strength=strength)
    except Exception as e:  # a user's code may raise anything; it is told apart from ours by name
        raise ConfigError(
            f"{name} raised {type(e).__name__}: {e}; it is called as reward(inputs, strength=...)"
            " with overopt.rewards.transforms.inputs.RewardInputs"
        ) from e
    shape = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
    if shape != (n_responses,):
        raise ConfigError(
            f"{name} returned {shape} for {n_responses} responses: return a tensor (R,), one reward"
            " for each response"
        )
    if not first.is_floating_point() or not bool(first.isfinite().all()):
        raise ConfigError(
            f"{name} returned {first.tolist()} for finite scores: return finite floats"
        )
    if not torch.equal(first, second):
        raise ConfigError(
            f"{name} gave two results for the same inputs: use no random numbers and keep no state"
        )
    if not torch.equal(before[0], scores) or not torch.equal(before[1], inputs.n_tokens):
        raise ConfigError(f"{name} changed its inputs in place: work on a copy")
