"""Synthetic preferences: gold scores of K responses a prompt become labelled pairs.

Ties in gold carry no information about which is better: a coin decides them, and it is recorded in
``gold_margin`` = 0. A response and its copy are a tie whatever a batched scorer's rounding says.
Nothing is dropped, so the number of pairs is what was asked for.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from overopt.base.config import check_types, require
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
) -> PreferenceSet:
    """Label all K(K−1)/2 pairs of each prompt's K responses, the first ``n_pairs`` of them.

    Parameters
    ----------
    responses : P·K rows, K adjacent rows a prompt.
    gold : (R,) scores; their difference is the margin, in standard deviations of gold.
    copies : K.
    rule : "argmax" (the better wins) or "bradley_terry" (wins with probability σ(margin)).
    flip_rate : probability that a label is inverted afterwards.
    seed : streams "labels" and "flips" are derived from it, so that flips do not move labels.

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


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """Synthetic preferences.

    Attributes
    ----------
    n_pairs : int
        Unique comparisons to train on.
    responses_per_prompt : int
        K responses of a prompt, giving K(K−1)/2 comparisons.
    label_rule : "argmax" or "bradley_terry"
        The better by gold is chosen always, or with probability σ(gold margin).
    label_flip_rate : float
        Probability in [0, 0.5) that a label is inverted after the rule.
    n_validation_prompts : int
        Prompts, disjoint from training, whose comparisons validate the proxy.
    data_seed : int
        Which prompts and flips; one value per independent data replicate.
    """

    n_pairs: int = 6000
    responses_per_prompt: int = 4
    label_rule: Literal["argmax", "bradley_terry"] = "argmax"
    label_flip_rate: float = 0.0
    n_validation_prompts: int = 150
    data_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.n_pairs >= 1, "labels.n_pairs", self.n_pairs, "must be at least 1")
        require(
            self.responses_per_prompt >= 2,
            "labels.responses_per_prompt",
            self.responses_per_prompt,
            "must be at least 2: a comparison needs two responses",
        )
        require(
            0 <= self.label_flip_rate < 0.5,
            "labels.label_flip_rate",
            self.label_flip_rate,
            "must be in [0, 0.5): at 0.5 labels carry nothing, above it gold is inverted",
        )

    @property
    def pairs_per_prompt(self) -> int:
        """Comparisons that one prompt gives."""
        return self.responses_per_prompt * (self.responses_per_prompt - 1) // 2

    @property
    def n_prompts(self) -> int:
        """Training prompts needed for ``n_pairs``."""
        return -(-self.n_pairs // self.pairs_per_prompt)
