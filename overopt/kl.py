"""KL(π‖π_ref) of whole responses, by every estimator. Conversions between kinds live only here.

Direction: π is the policy that the responses were sampled from. Unit: nats a response, summed over
response tokens including the end token.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class KLSamples(NamedTuple):
    """Per-response estimates (R,) in nats; mean over responses estimates KL(π‖π_ref).

    With ℓ = log π − log π_ref per token and L = Σ_t ℓ_t: k1 = L (unbiased), k2 = L²/2 (biased),
    k3 = e^{−L} − 1 + L (unbiased, never negative, heavy-tailed far from π_ref); Schulman 2020,
    "Approximating KL divergence".
    """

    k1: Tensor
    k2: Tensor
    k3: Tensor


def sequence_kl(log_ratio: Tensor, mask: Tensor) -> KLSamples:
    """k1, k2, k3 of each response from log_ratio (R, T) = log π − log π_ref on sampled tokens."""
    total = (log_ratio * mask).double().sum(1)
    return KLSamples(total, total**2 / 2, torch.expm1(-total) + total)


def exact_token_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(π(·|s)‖π_ref(·|s)) in nats over the full vocabulary at each position, shape (…).

    Summed over the tokens of responses sampled from π this is the Rao-Blackwellised estimator of
    the sequence KL: unbiased like k1, with the token draw integrated out. Exactly 0 where the two
    logits (…, V) are equal.
    """
    logp, logq = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum(-1)


def sqrt_kl(kl_seq_nats: float) -> float:
    """√KL, the x-axis; an estimate below 0 (possible for k1) has none and raises ValueError."""
    if kl_seq_nats < 0:
        raise ValueError(f"kl_seq_nats = {kl_seq_nats}: use the exact estimator, which is never < 0")
    return math.sqrt(kl_seq_nats)
