"""Scores of responses that share their prompts, each prompt computed once.

The two sides of a pair, or the four of a question, begin with the same tokens: the dialogue and what
the template puts around it. A straightforward loop computes them for each, and pads short texts to the
longest of a batch in the order of the file.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.scorer import head_outputs
from overopt.worlds.rows import as_responses

# Tokens of questions whose beginnings are one table. Many, so that behind them responses of like length
# go through the network together; not all, because a table keeps keys and values of every layer.
_TOKENS = 1 << 15


@torch.no_grad()
def shared_scores(
    model: ScalarHeadModel, ids: Sequence[list[int]], groups: Sequence[Sequence[int]]
) -> Tensor:
    """Head outputs (R, k) float32 at the last token of each row of token ids.

    ``groups``: numbers of rows, each row in one; rows of a group begin alike. On a CPU a compact
    `Llama` computes that beginning once for all of them.
    """
    out = torch.zeros(len(ids), model.head.out_features)
    common = [shared_beginning([ids[i] for i in rows]) for rows in groups]
    for batch in batches(common, [sum(len(ids[i]) for i in rows) for rows in groups]):
        rows = [i for b in batch for i in groups[b]]
        n_prompt = [common[b] for b in batch for _ in groups[b]]
        split = [(ids[i][:n], ids[i][n:]) for i, n in zip(rows, n_prompt, strict=True)]
        out[rows] = head_outputs(model, as_responses(split), by_length=True).view(len(rows), -1)
    return out


def batches(beginning: Sequence[int], n_tokens: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of groups of rows that are scored as one table: a bounded number of tokens at a time.

    ``beginning``: tokens with which all rows of a group begin; groups of like length stand together,
    because their beginnings go through a network as one padded table. ``n_tokens``: of all its rows.
    """
    order = sorted(range(len(beginning)), key=lambda g: (beginning[g], g))
    batch: list[int] = []
    total = 0
    for g in order:
        batch.append(g)
        total += n_tokens[g]
        if total >= _TOKENS:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def shared_beginning(rows: Sequence[list[int]]) -> int:
    """How many tokens the rows begin with alike; at least one of each is left over."""
    first, most = rows[0], min(map(len, rows)) - 1
    return next((t for t in range(most) if any(row[t] != first[t] for row in rows[1:])), most)
