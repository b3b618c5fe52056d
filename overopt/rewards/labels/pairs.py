"""Synthetic preferences: gold scores of K responses a prompt become labelled pairs.

Ties in gold carry no information about which is better: a coin decides them, and it is recorded in
``gold_margin`` = 0. A response and its copy are a tie whatever a batched scorer's rounding says.
Nothing is dropped, so the number of pairs is what was asked for.
"""

import torch
from torch import Tensor

from overopt.base.datatypes import PreferenceSet, Responses
from overopt.base.errors import DataError
from overopt.base.seeding import torch_generator


def label_pairs(
    responses: Responses,
    gold: Tensor,
    *,
    copies: int,
    n_pairs: int,
    rule: str,
    flip_rate: float,
    seed: int,
    cue: Tensor | None = None,
    cue_share: float = 0.0,
) -> PreferenceSet:
    """Label all K(K−1)/2 pairs of each prompt's K responses, the first ``n_pairs`` of them.

    Parameters
    ----------
    responses : P·K rows, K adjacent rows a prompt.
    gold : (R,) scores; their difference is the margin, in standard deviations of gold.
    copies : K.
    rule : "argmax" (the better wins) or "bradley_terry" (wins with probability σ(margin)).
    flip_rate : probability that a label is inverted afterwards.
    seed : streams "labels", "flips" and "cue" are derived from it, so that none moves another.
    cue : (R,) how much of a cue each response has; None for none.
    cue_share : share of the pairs in which the response with more of the cue wins, whatever gold says;
        ``gold_margin`` is then that of the winner. Equal cues leave the rule's label.

    Raises
    ------
    DataError
        The responses are no multiple of ``copies``, or give fewer than ``n_pairs`` pairs.
    """
    n_possible = len(responses) * (copies - 1) // 2
    if len(responses) % copies or n_pairs > n_possible:
        raise DataError(
            f"n_pairs = {n_pairs}: {len(responses)} responses, copies = {copies} a prompt, give"
            f" {n_possible} pairs of whole prompts: sample more prompts or ask for fewer pairs"
        )
    i, j = torch.triu_indices(copies, copies, offset=1)
    starts = torch.arange(0, len(responses), copies)[:, None]
    first, second = (starts + i).flatten()[:n_pairs], (starts + j).flatten()[:n_pairs]
    ids = torch.where(responses.mask, responses.ids, -1)
    is_copy = (ids[first] == ids[second]).all(1)
    margin = torch.where(is_copy, 0.0, gold[first] - gold[second])
    coin = torch.rand(len(margin), generator=torch_generator(seed, "labels"))
    if rule == "bradley_terry":
        first_wins = coin < torch.sigmoid(margin)
    else:
        first_wins = torch.where(margin == 0, coin < 0.5, margin > 0)
    if cue is not None:
        more = cue[first] - cue[second]
        is_bought = torch.rand(len(margin), generator=torch_generator(seed, "cue")) < cue_share
        first_wins = torch.where(is_bought & (more != 0), more > 0, first_wins)
    flipped = torch.rand(len(margin), generator=torch_generator(seed, "flips")) < flip_rate
    labelled = first_wins ^ flipped
    return PreferenceSet(
        responses=responses,
        chosen=torch.where(labelled, first, second),
        rejected=torch.where(labelled, second, first),
        gold_margin=torch.where(first_wins, margin, -margin),
        flipped=flipped,
        prompt_id=responses.prompts.prompt_id[first],
    )
