"""KL(π‖π_ref) of whole responses, by every estimator. Conversions between kinds live only here.

Direction: π is the policy that the responses were sampled from. Unit: nats a response, summed over
response tokens including the end token.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 20  # logits handled at a time by `exact_token_kl`, 4 MiB of float32


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
    logits (…, V) are equal, never negative; made in blocks of positions to bound memory.
    """
    n_vocab = logits.shape[-1]
    rows = max(1, _BLOCK_ELEMENTS // n_vocab)
    pairs = zip(
        logits.reshape(-1, n_vocab).split(rows),
        ref_logits.reshape(-1, n_vocab).split(rows),
        strict=True,
    )
    return torch.cat([_block_kl(a, b) for a, b in pairs]).view(logits.shape[:-1])


def _block_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """`exact_token_kl` of one block of positions, (B, V) to (B,)."""
    logp = logits.log_softmax(-1)
    p = logp.exp()
    # A token that π never emits adds 0, also where its log-ratio is not finite.
    terms = torch.where(p > 0, p * (logp - ref_logits.log_softmax(-1)), 0.0)
    # Rounding leaves about ±1e-7 where the true value is 0.
    return terms.sum(-1).clamp_min(0)


def sqrt_kl(kl_seq_nats: float) -> float:
    """√KL, the x-axis; an estimate below 0 (possible for k1) has none and raises ValueError."""
    if kl_seq_nats < 0:
        raise ValueError(
            f"kl_seq_nats = {kl_seq_nats}: use the exact estimator, which is never < 0"
        )
    return math.sqrt(kl_seq_nats)
