"""Estimates of a value model for each token of responses."""

import torch
from torch import Tensor

from overopt.base.datatypes import Responses, Sequences
from overopt.nets.compute import tokens_at_once
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.sampling import response_hidden, response_view, sequence_batches

_FORWARD_TOKENS = 8192  # padded tokens of one forward pass without gradient


def token_values(model: ScalarHeadModel, seq: Sequences) -> Tensor:
    """Value estimates (R, T) at the state before each response token; differentiable."""
    view = response_view(seq)
    return model.head(response_hidden(model.backbone, seq, view))[..., 0] * view.mask


def rollout_values(model: ScalarHeadModel, responses: Responses) -> Tensor:
    """Value estimates (R, T) before each response token, 0 where masked; no gradient."""
    out = torch.zeros(responses.ids.shape)
    device = model.head.weight.device
    at_once = tokens_at_once(device, _FORWARD_TOKENS)
    for rows, seq in sequence_batches(responses, at_once, device):
        values = token_values(model, seq).float().cpu()
        out[rows, : values.shape[1]] = values
    return out
