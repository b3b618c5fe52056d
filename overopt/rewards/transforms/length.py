"""Length penalties: what a response pays for its tokens, relative to the initial policy.

Singhal et al. 2023 find most of PPO's reward gain in length; these are the simplest answer. Both
are linear in the score, so that ensembles and length penalties compose.
"""

from torch import Tensor

from overopt.rewards.transforms.inputs import RewardInputs, mean_score


def linear(inputs: RewardInputs, *, strength: float) -> Tensor:
    """Score − strength·(tokens − mean tokens of the initial policy), (R,).

    ``strength`` >= 0, in sd of the score per token. Longer pays, shorter is paid.
    """
    return mean_score(inputs) - strength * (inputs.n_tokens - inputs.ref_tokens)


def hinge(inputs: RewardInputs, *, strength: float, budget: float = 1.0) -> Tensor:
    """Score − strength·max(0, tokens − budget), (R,).

    ``strength`` >= 0, in sd of the score per token; ``budget`` > 0 in mean responses of the initial
    policy (1: what it writes on average is free).
    """
    over = (inputs.n_tokens - budget * inputs.ref_tokens).clamp_min(0.0)
    return mean_score(inputs) - strength * over
