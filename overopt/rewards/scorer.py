"""Scorers: what turns whole responses into numbers. Gold, proxies and the rubric share one shape.

A reward model reads the hidden state of the last real token of prompt plus response, the end token
included where there is one; the same convention everywhere. Scores are normalised to mean 0 and
standard deviation 1 under the initial policy.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from overopt.base.datatypes import Responses
from overopt.base.errors import DivergenceError
from overopt.nets.compute import fit_memory, tokens_at_once
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.sampling import continuations, sequence_batches
from overopt.rewards.kind import Unit
from overopt.worlds.codecs import in_own_tokens

# Padded tokens of one call. On a CPU few, so that what one layer writes is in the cache of the next.
_BATCH_TOKENS, _BATCH_TOKENS_CPU = 8192, 2048


def raw_scores(
    model: ScalarHeadModel, responses: Responses, *, batch_tokens: int | None = None
) -> Tensor:
    """Head output (R,) at the last real token of each response, before normalisation.

    (R, k) of a model with k > 1 heads. A model of another tokenizer reads the responses' text.
    ``batch_tokens``: padded tokens of one call; None: what suits the device.
    """
    return head_outputs(model, in_own_tokens(model.backbone, responses), batch_tokens=batch_tokens)


@torch.no_grad()
def head_outputs(
    model: ScalarHeadModel,
    responses: Responses,
    *,
    batch_tokens: int | None = None,
    by_length: bool = False,
) -> Tensor:
    """What `raw_scores` gives, of responses that are in the model's own tokens.

    ``by_length``: as for `overopt.nets.sampling.continuations`.
    """
    n_heads = model.head.out_features
    out = torch.zeros(len(responses), n_heads).squeeze(-1)
    device = model.head.weight.device
    if batch_tokens is None:
        elsewhere = _BATCH_TOKENS_CPU if device.type == "cpu" else _BATCH_TOKENS
        batch_tokens = tokens_at_once(device, elsewhere)

    def fill(batch_tokens: int) -> None:
        parts = continuations(model.backbone, responses, batch_tokens, by_length=by_length)
        if parts is not None:
            for part in parts:
                scores = model.at_last_token(part.ids, part.length, part.before)
                out[part.rows] = scores.float()
            return
        done = [
            (rows, model.at_last_token(seq.ids, seq.length).float())
            for rows, seq in sequence_batches(responses, batch_tokens, device)
        ]
        # Fetched together: a GPU does not wait between batches.
        if done:
            rows, scores = (torch.cat(column) for column in zip(*done, strict=True))
            out[rows] = scores.cpu()

    fit_memory(fill, batch_tokens, "padded tokens")
    return out


class Normalisation(NamedTuple):
    """Zero and unit of a score; ``is_constant``: it had no spread, and the unit is 1."""

    mean: float
    std: float
    is_constant: bool


def normalisation(scores: Tensor) -> Normalisation:
    """Mean and standard deviation of scores (R,) under the initial policy, safe to divide by.

    Raises
    ------
    DivergenceError
        A score is not finite.
    """
    n_bad = int((~torch.isfinite(scores)).sum())
    if n_bad > 0:
        raise DivergenceError(
            f"{n_bad} of {scores.numel()} scores under the initial policy are not finite: the reward"
            " model diverged after its last loss; lower its learning rate (proxy.lr or gold.lr)"
        )
    mean, std = mean_std(scores)
    is_constant = bool(scores.max() == scores.min())
    return Normalisation(mean, 1.0 if is_constant else std, is_constant)


def mean_std(scores: Tensor | Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation (ddof 0) of scores under the initial policy."""
    x = torch.as_tensor(scores, dtype=torch.float64)
    return float(x.mean()), float(x.std(correction=0))


def unit_of(normal: Normalisation) -> Unit:
    """Zero and unit, without the flag."""
    return Unit(normal.mean, normal.std)
