"""Reward shaping for PPO: monotone functions of the proxy score that bound what can be gained.

A strictly monotone function changes no ranking, so best-of-n would be the same with and without;
PPO is not, because shaping changes how much a step towards a higher score is worth.
"""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from overopt.rewards.transforms.inputs import Reward, RewardInputs, mean_score

LOG_SIGMOID_QUANTILE = 0.85
"""Quantile of the initial policy's scores that `log_sigmoid` is centred at."""


def clip(inputs: RewardInputs, *, strength: float) -> Tensor:
    """Score clipped to [−strength, strength], (R,); ``strength`` > 0 in sd of the score."""
    return mean_score(inputs).clamp(-strength, strength)


def par(inputs: RewardInputs, *, strength: float) -> Tensor:
    """σ(strength·(score − reference score)), (R,), in (0, 1): preference as reward (PAR).

    ``strength`` > 0 per sd of the score. The reference is the score of one response of the initial
    policy to the same prompt (Fu et al. 2025, who find one enough).
    """
    return (strength * (mean_score(inputs) - _reference(inputs))).sigmoid()


def log_sigmoid(inputs: RewardInputs, *, strength: float) -> Tensor:
    """log σ(strength·(score − reference score)), (R,), below 0: linear when low, flat when high.

    ``strength`` > 0 per sd of the score. The reference is the 85 % quantile of the initial policy's
    scores, here over all prompts at once ("LSC" among the baselines of Fu et al. 2025).
    """
    return F.logsigmoid(strength * (mean_score(inputs) - _reference(inputs)))


def _reference(inputs: RewardInputs) -> Tensor:
    if inputs.ref_scores is None:
        raise ValueError("ref_scores is None: this shaping is relative to a reference score")
    return inputs.ref_scores


SHAPINGS: Mapping[str, Reward] = {"clip": clip, "par": par, "log_sigmoid": log_sigmoid}


def shape_of(
    name: str, *, strength: float, ref_scores: Tensor | None = None
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Shaping ``name`` as a function of score (R,), response tokens (R,) and prompt numbers (R,).

    ``ref_scores`` (P,): the score that the shaping is relative to, for each prompt.
    """

    def shape(score: Tensor, n_tokens: Tensor, prompt: Tensor) -> Tensor:
        reference = None if ref_scores is None else ref_scores[prompt]
        return SHAPINGS[name](
            RewardInputs(score[None], n_tokens, 0.0, reference), strength=strength
        )

    return shape
