"""Comparisons as a training set: token ids, who was chosen, batches of whole prompts."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from overopt.base.datatypes import Responses, Sequences
from overopt.base.seeding import torch_generator
from overopt.nets import checkpoints
from overopt.nets.backbone import Backbone
from overopt.worlds import codecs, tokenizers
from overopt.worlds.codecs import TextReader
from overopt.worlds.world import World


def load_backbone(source: str, world: World, *, layers: int = 0) -> Backbone:
    """What a scorer's head is put on; reads text where the source has another tokenizer."""
    backbone = checkpoints.load_trunk(source, layers=layers)
    if not tokenizers.shares_vocabulary(source, world.tokenizer):
        backbone.reader = TextReader(source, world, codecs.load_codec(source))
    return backbone


@dataclass(frozen=True)
class TrainingPairs:
    """Pairs by row of ``responses``; ``target`` (C,) = P(first preferred), 1 for a hard label."""

    responses: Responses
    first: Tensor
    second: Tensor
    target: Tensor


class PairBatch(NamedTuple):
    """The pairs of one optimizer step.

    seq: the R distinct responses with their prompts, shortest first; first, second (C,) int64: rows
    of ``seq``; target (C,) float32; pairs (C,) int64: which of the training pairs they are.
    """

    seq: Sequences
    first: Tensor
    second: Tensor
    target: Tensor
    pairs: Tensor


class PairBatches:
    """The optimizer steps of one training run: all pairs of ``batch_prompts`` prompts in each."""

    def __init__(self, pairs: TrainingPairs, *, batch_prompts: int, seed: int) -> None:
        self.pairs, self.batch_prompts, self.seed = pairs, batch_prompts, seed
        self.sequences = pairs.responses.sequences()
        prompt = pairs.responses.prompts.prompt_id[pairs.first]
        order = torch.argsort(prompt, stable=True)
        self.groups = order.split(prompt.unique(return_counts=True)[1].tolist())
        self.steps = math.ceil(len(self.groups) / batch_prompts)

    def all(self, epochs: int) -> Iterator[PairBatch]:
        """The steps of all epochs."""
        for epoch in range(epochs):
            yield from self.epoch(epoch)

    def epoch(self, epoch: int) -> Iterator[PairBatch]:
        """The steps of one epoch, prompts in an order of its own."""
        order = torch.randperm(
            len(self.groups), generator=torch_generator(self.seed, "order", epoch)
        )
        for prompts in order.split(self.batch_prompts):
            yield self._batch(torch.cat([self.groups[i] for i in prompts.tolist()]))

    def _batch(self, pairs: Tensor) -> PairBatch:
        both = torch.stack([self.pairs.first[pairs], self.pairs.second[pairs]])
        rows, where = torch.unique(both, return_inverse=True)
        length = self.sequences.length[rows]
        order = torch.argsort(length, stable=True)
        rows, length = rows[order], length[order]
        seq = Sequences(
            self.sequences.ids[rows, : int(length[-1])], length, self.sequences.n_prompt[rows]
        )
        first, second = torch.argsort(order)[where]
        return PairBatch(seq, first, second, self.pairs.target[pairs], pairs)
