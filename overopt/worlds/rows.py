"""Rows of token ids of different lengths as tables."""

from collections.abc import Sequence

import torch
from torch import Tensor

from overopt.base.datatypes import Prompts


def padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Rows as a table of ids and its mask, both (R, L)."""
    width = max(map(len, rows))
    length = torch.tensor([len(r) for r in rows])[:, None]
    column = torch.arange(width)
    mask = column >= width - length if left else column < length
    ids = torch.full(mask.shape, pad)
    ids[mask] = torch.tensor([token for row in rows for token in row])
    return ids, mask


def as_prompts(rows: Sequence[Sequence[int]], *, pad: int, start: int) -> Prompts:
    """Rows of token ids as `Prompts`, left-padded with ``pad``, numbered from ``start``."""
    ids, mask = padded(rows, pad, left=True)
    return Prompts(ids, mask, torch.arange(start, start + len(rows)))
