"""Rows of token ids of different lengths as tables."""

from collections.abc import Sequence

import torch
from torch import Tensor

from overopt.base.datatypes import Prompts, Responses


def padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Rows as a table of ids and its mask, both (R, L)."""
    width = max(map(len, rows))
    length = torch.tensor([len(r) for r in rows])[:, None]
    column = torch.arange(width)
    mask = column >= width - length if left else column < length
    ids = torch.full(mask.shape, pad)
    ids[mask] = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
    return ids, mask


def as_prompts(rows: Sequence[Sequence[int]], *, pad: int, start: int) -> Prompts:
    """Rows of token ids as `Prompts`, left-padded with ``pad``, numbered from ``start``."""
    ids, mask = padded(rows, pad, left=True)
    return Prompts(ids, mask, torch.arange(start, start + len(rows)))


def as_responses(
    prompts_and_answers: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad: int = 0,
    eos: int = -1,
) -> Responses:
    """Prompts and answers as token ids, R rows, their prompts numbered from 0.

    ``eos``: the end token, by which an answer is known to have ended; -1: none has.
    """
    prompts, answers = zip(*prompts_and_answers, strict=True)
    ids, mask = padded(answers, pad, left=False)
    return Responses(
        as_prompts(prompts, pad=pad, start=0),
        ids,
        mask,
        torch.zeros(ids.shape),
        torch.tensor([list(row[-1:]) == [eos] for row in answers]),
    )
