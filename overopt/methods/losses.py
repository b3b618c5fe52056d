"""Pure tensor functions of reward-model and policy training: no state, no files, no randomness.

Every reduction takes a ``response_mask`` with True = real token. Losses are sums over tokens
divided by a token count that the caller gives for the whole batch, so that splitting a batch into
micro-batches and adding the parts changes nothing.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` over True entries of ``mask``; 0 where there is none."""
    return (x * mask).sum() / mask.sum().clamp_min(1)


def spread(x: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation of ``x`` over the mask, of biased variance plus 1e-8."""
    return (masked_mean((x - masked_mean(x, mask)) ** 2, mask) + 1e-8).sqrt()


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """``x`` scaled to unit standard deviation over the mask; also to mean 0 if ``shift_mean``.

    Biased variance, as in Ziegler et al. 2019. Masked entries return 0.
    """
    mean = masked_mean(x, mask)
    white = (x - mean) / spread(x, mask)
    if not shift_mean:
        white = white + mean
    return white * mask


def rewards_from_scores(
    score: Tensor, log_ratio: Tensor, mask: Tensor, *, kl_coef: float
) -> Tensor:
    """Per-token rewards (R, T): −kl_coef·log(π/π_ref) at each token, plus the score at the last.

    score (R,); log_ratio (R, T) = log π − log π_ref of the sampled tokens; mask (R, T). Summed over
    a response the rewards are score − kl_coef·Σ log_ratio (Ziegler et al. 2019, eq. 2).
    """
    rewards = -kl_coef * log_ratio * mask
    last = (mask.sum(1) - 1)[:, None]
    return rewards.scatter_add(1, last, score[:, None].to(rewards.dtype))


class Advantages(NamedTuple):
    """Advantages and returns, each (R, T), 0 where masked."""

    advantages: Tensor
    returns: Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Advantages:
    """Generalised advantage estimates (Schulman et al. 2016) over right-padded responses.

    rewards, values, mask (R, T). A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V_{t+1} − V_t, and V = 0
    behind the last real token.
    """
    values = values * mask
    rewards = rewards * mask
    following = F.pad(values[:, 1:], (0, 1))
    delta = rewards + gamma * following - values
    advantages = torch.zeros_like(delta)
    running = torch.zeros_like(delta[:, 0])
    for t in range(delta.shape[1] - 1, -1, -1):
        running = (delta[:, t] + gamma * lam * running) * mask[:, t]
        advantages[:, t] = running
    return Advantages(advantages, (advantages + values) * mask)


class PolicyLoss(NamedTuple):
    """Clipped policy loss with its diagnostics (all scalars; the last two carry no gradient)."""

    loss: Tensor
    clip_fraction: Tensor
    update_kl_token_nats: Tensor


def clipped_policy_loss(
    logp_new: Tensor,
    logp_old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    n_tokens: int,
) -> PolicyLoss:
    """Clipped surrogate of PPO (Schulman et al. 2017, eq. 7), Σ over tokens / ``n_tokens``.

    All tensors (R, T). ``update_kl_token_nats`` is KL(π_old‖π_new) per token by the k3 estimator on
    tokens sampled from π_old; like ``clip_fraction`` it is a share of ``n_tokens``.
    """
    log_ratio = (logp_new - logp_old) * mask
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    with torch.no_grad():
        clipped = (((ratio - 1).abs() > clip) & mask).sum() / n_tokens
        update_kl = ((log_ratio.expm1() - log_ratio) * mask).sum() / n_tokens
    return PolicyLoss(-(surrogate * mask).sum() / n_tokens, clipped, update_kl)


def clipped_value_loss(
    values: Tensor, values_old: Tensor, returns: Tensor, mask: Tensor, *, clip: float, n_tokens: int
) -> Tensor:
    """Half the clipped squared value error, Σ over tokens / ``n_tokens``; tensors (R, T).

    The larger of the plain error and that of a prediction kept within ``clip`` of the old one, in
    units of the normalised score (Ziegler et al. 2019).
    """
    near = values_old + (values - values_old).clamp(-clip, clip)
    worst = torch.maximum((values - returns) ** 2, (near - returns) ** 2)
    return 0.5 * (worst * mask).sum() / n_tokens


class Surrogate(NamedTuple):
    """What is maximised per token, and its diagnostics; the last two carry no gradient."""

    value: Tensor
    clipped: Tensor
    update_kl_nats: Tensor


def surrogate(
    logp: Tensor, logp_old: Tensor, advantage: Tensor, *, clip: float | None
) -> Surrogate:
    """Advantage times clipped ratio (PPO, eq. 7), or times log π where ``clip`` is None; per token.

    All (…). Where π is the policy sampled from, both have the same gradient, A·∇log π. ``clipped``:
    whether the ratio is outside 1 ± clip. ``update_kl_nats``: k3 of KL(π_old‖π) at a token.
    """
    log_ratio = logp - logp_old
    with torch.no_grad():
        update_kl = log_ratio.expm1() - log_ratio
    if clip is None:
        return Surrogate(advantage * logp, torch.zeros_like(update_kl), update_kl)
    ratio = log_ratio.exp()
    value = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return Surrogate(value, ((ratio - 1).abs() > clip).to(logp.dtype), update_kl)


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """π_ref/π − 1 − log π_ref/π at sampled tokens (…), in nats: unbiased for KL(π‖π_ref), never < 0.

    Differentiated with the samples held fixed, as a loss, its expected gradient is that of
    KL(π_ref‖π).
    """
    log_ratio = ref_logp - logp
    return log_ratio.expm1() - log_ratio


def vocabulary_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(π‖π_ref) in nats over the whole vocabulary (…, V) -> (…); differentiable in ``logits``."""
    logp = logits.log_softmax(-1)
    return (logp.exp() * (logp - ref_logits.log_softmax(-1))).sum(-1)
