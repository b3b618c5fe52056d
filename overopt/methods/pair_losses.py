"""Losses on pairs of responses: what DPO and its kin minimise. Pure functions of log-probabilities.

h is log π/π_ref of a response, summed over its tokens; m = h(chosen) − h(rejected).
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PairLoss = Literal["dpo", "cdpo", "ipo_sum", "ipo_mean", "slic", "simpo"]


class PairLogprobs(NamedTuple):
    """Of C pairs: log-probabilities of whole responses and their lengths, (C,) each.

    ref_chosen, ref_rejected: under π_ref; chosen_length, rejected_length: tokens.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor


def pair_loss(
    pairs: PairLogprobs, kind: PairLoss, *, beta: float, smoothing: float, margin: float
) -> Tensor:
    """Loss (C,) of each pair.

    dpo       −log σ(βm)                                                   Rafailov et al. 2023
    cdpo      −(1−ε) log σ(βm) − ε log σ(−βm), ε = ``smoothing``           Mitchell 2023
    ipo_sum   (m − 1/(2β))²                                                Azar et al. 2023, eq. 17
    ipo_mean  the same with h averaged over a response's tokens            as TRL has it
    slic      max(0, 1 − βm)                                               Zhao et al. 2023
    simpo     −log σ(β·(mean log π of chosen − of rejected) − γ), γ = ``margin``, without π_ref
                                                                           Meng et al. 2024
    """
    m = margins(pairs, kind)
    match kind:
        case "dpo":
            return -F.logsigmoid(beta * m)
        case "cdpo":
            return -(1 - smoothing) * F.logsigmoid(beta * m) - smoothing * F.logsigmoid(-beta * m)
        case "ipo_sum" | "ipo_mean":
            return (m - 1 / (2 * beta)) ** 2
        case "slic":
            return torch.relu(1 - beta * m)
        case "simpo":
            return -F.logsigmoid(beta * m - margin)


def margins(pairs: PairLogprobs, kind: PairLoss) -> Tensor:
    """What a loss compares with 0 (C,): m, averaged over tokens in ipo_mean and simpo."""
    chosen, rejected = pairs.chosen, pairs.rejected
    if kind != "simpo":
        chosen, rejected = chosen - pairs.ref_chosen, rejected - pairs.ref_rejected
    if kind in ("ipo_mean", "simpo"):
        chosen, rejected = chosen / pairs.chosen_length, rejected / pairs.rejected_length
    return chosen - rejected
