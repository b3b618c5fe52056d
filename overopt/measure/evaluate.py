"""Measuring a policy: KL by every estimator on its own responses, lengths, diversity.

Scores of gold and rubric are added afterwards, outside any method; see `overopt.stages.judge`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from overopt.base.datatypes import Responses
from overopt.measure.kl import exact_token_kl, sequence_kl
from overopt.nets.backbone import Backbone
from overopt.nets.compute import tokens_at_once
from overopt.nets.sampling import response_hidden, response_view, sequence_batches, token_logprobs


class KLTable(NamedTuple):
    """KL(π‖π_ref) per response (R,) in nats: exact (full vocabulary), k1, k2, k3."""

    exact: Tensor
    k1: Tensor
    k2: Tensor
    k3: Tensor


@torch.no_grad()
def measure_kl(
    policy: Backbone, ref_policy: Backbone, responses: Responses, *, batch_tokens: int | None = None
) -> KLTable:
    """KL of ``policy`` to ``ref_policy`` on responses sampled from ``policy``.

    Both log-probabilities come from the same code on the same batch, so that equal weights give
    exactly 0. ``batch_tokens``: padded tokens of one call; None: what suits the device.
    """
    if batch_tokens is None:
        # Both models' logits are held at once, with their softmaxes.
        batch_tokens = tokens_at_once(policy.device, 4096, n_logits=2 * policy.cfg.vocab_size)
    out = torch.zeros(4, len(responses), dtype=torch.float64)
    for rows, seq in sequence_batches(responses, batch_tokens, policy.device):
        view = response_view(seq)
        logits = policy.logits(response_hidden(policy, seq, view))
        ref = ref_policy.logits(response_hidden(ref_policy, seq, view))
        log_ratio = token_logprobs(logits, view.tokens) - token_logprobs(ref, view.tokens)
        sampled = sequence_kl(log_ratio, view.mask)
        exact = (exact_token_kl(logits, ref) * view.mask).double().sum(1)
        out[:, rows] = torch.stack([exact, sampled.k1, sampled.k2, sampled.k3]).double().cpu()
    return KLTable(*out)


def distinct_share(responses: Responses) -> float:
    """Share of responses that differ from every other one, prompt included: 1 = all different."""
    rows = torch.cat([responses.prompts.prompt_id[:, None], responses.ids * responses.mask], 1)
    return len(torch.unique(rows, dim=0)) / len(rows)
