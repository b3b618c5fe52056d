"""What flows between stages: prompts, responses, preferences, and what scores them.

All token tables are torch tensors of int64; masks are bool with True = real token. Prompts are
left-padded (the sampler appends to them), responses right-padded (scoring reads them). A row's end
token, where it has one, is part of the response and of its mask.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """Token ids of prompts, left-padded.

    ids (P, L) int64; mask (P, L) bool; prompt_id (P,) int64, unique across all splits of a world.
    """

    ids: Tensor
    mask: Tensor
    prompt_id: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    def select(self, index: Tensor | slice) -> "Prompts":
        """The prompts at ``index``, in that order."""
        return Prompts(self.ids[index], self.mask[index], self.prompt_id[index])

    def repeat(self, n: int) -> "Prompts":
        """Each prompt ``n`` times in a row: (P·n) rows, copies adjacent."""
        return Prompts(*(t.repeat_interleave(n, 0) for t in (self.ids, self.mask, self.prompt_id)))


@dataclass(frozen=True)
class Responses:
    """Sampled responses with the prompts they answer.

    prompts: R rows; ids (R, T) int64, pad id behind the end; mask (R, T) bool; logprobs (R, T)
    float32: log π(token) in nats under the distribution sampled from, 0 where masked;
    ended (R,) bool: the end token was sampled (False: truncated at T tokens).
    """

    prompts: Prompts
    ids: Tensor
    mask: Tensor
    logprobs: Tensor
    ended: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def length(self) -> Tensor:
        """Response tokens including the end token, (R,) int64."""
        return self.mask.sum(1)

    def select(self, index: Tensor | slice) -> "Responses":
        """The responses at ``index``, in that order."""
        return Responses(
            self.prompts.select(index),
            self.ids[index],
            self.mask[index],
            self.logprobs[index],
            self.ended[index],
        )

    def sequences(self) -> "Sequences":
        """Prompt and response joined without padding between them, right-padded."""
        return join(self.prompts, self.ids, self.mask)


def concat_responses(parts: list[Responses]) -> Responses:
    """Stack tables of responses whose prompts and responses have the same widths."""
    prompts = Prompts(
        *(torch.cat([getattr(p.prompts, f) for p in parts]) for f in ("ids", "mask", "prompt_id"))
    )
    fields = ("ids", "mask", "logprobs", "ended")
    return Responses(prompts, *(torch.cat([getattr(p, f) for p in parts]) for f in fields))


class Sequences(NamedTuple):
    """Whole sequences, right-padded, ready for a causal model without a mask.

    ids (R, S) int64; length (R,) int64: real tokens of a row; n_prompt (R,) int64: how many of
    them are the prompt's.
    """

    ids: Tensor
    length: Tensor
    n_prompt: Tensor


def join(prompts: Prompts, response_ids: Tensor, response_mask: Tensor) -> Sequences:
    """Join left-padded prompts (R, L) and right-padded responses (R, T) into `Sequences`."""
    n_prompt, n_response = prompts.mask.sum(1), response_mask.sum(1)
    both = torch.cat([prompts.ids * prompts.mask, response_ids * response_mask], 1)
    left = prompts.ids.shape[1] - n_prompt
    column = torch.arange(both.shape[1], device=both.device) + left[:, None]
    length = n_prompt + n_response
    ids = both.gather(1, column.clamp_max(both.shape[1] - 1))
    ids = ids * (torch.arange(both.shape[1], device=both.device) < length[:, None])
    return Sequences(ids[:, : int(length.max())], length, n_prompt)


class SharedPrompts(NamedTuple):
    """`Sequences` with each distinct prompt once.

    prompt_ids (P, L) int64, right-padded; n_prompt (P,): tokens of each; prompt (R,) int64: the
    prompt of each response; ids (R, T) int64: responses, right-padded; length (R,): tokens of each.
    """

    prompt_ids: Tensor
    n_prompt: Tensor
    prompt: Tensor
    ids: Tensor
    length: Tensor


def shared_prompts(seq: Sequences) -> SharedPrompts | None:
    """The same sequences with equal prompts told apart from their responses.

    None where no two rows share a prompt, or where a prompt or a response has no tokens.
    """
    length = seq.length - seq.n_prompt
    if len(length) == 0 or int(length.min()) < 1 or int(seq.n_prompt.min()) < 1:
        return None
    column = torch.arange(seq.ids.shape[1], device=seq.ids.device)
    # -1 is no token: prompts of different lengths differ.
    ids = seq.ids[:, : int(seq.n_prompt.max())]
    ids = ids.masked_fill(column[: ids.shape[1]] >= seq.n_prompt[:, None], -1)
    distinct, prompt = ids.unique(dim=0, return_inverse=True)
    if len(distinct) == len(ids):
        return None
    own = column[: int(length.max())]
    at = (seq.n_prompt[:, None] + own).clamp_max(seq.ids.shape[1] - 1)
    responses = seq.ids.gather(1, at).masked_fill(own >= length[:, None], 0)
    return SharedPrompts(distinct.clamp_min(0), (distinct >= 0).sum(1), prompt, responses, length)


def length_sorted(length: Tensor, batch_tokens: int) -> Iterator[Tensor]:
    """Row indices in batches of similar length, each at most ``batch_tokens`` padded tokens.

    The order is by length, ties by row, so a batch's content depends on nothing random.
    """
    order = torch.argsort(length, stable=True)
    for start, stop in bounded_runs(length[order], batch_tokens):
        yield order[start:stop]


def bounded_runs(length: Tensor, batch_tokens: int) -> Iterator[tuple[int, int]]:
    """Start and stop of successive runs of rows, each at most ``batch_tokens`` padded tokens.

    length (R,) ascending, from 1. A run has one row at least, and as many as fit.
    """
    start = 0
    while start < len(length):
        # No row is shorter than the first, so no more than these can fit.
        most = max(1, batch_tokens // max(1, int(length[start])))
        ahead = length[start : start + most]
        fitting = torch.arange(1, len(ahead) + 1) * ahead <= batch_tokens
        stop = start + max(1, int(fitting.sum()))
        yield start, stop
        start = stop


@dataclass(frozen=True)
class PreferenceSet:
    """Comparisons of responses to one prompt, as K responses a prompt and pairs among them.

    responses: (P·K) rows, K adjacent rows a prompt. chosen, rejected (C,) int64: rows of the
    preferred and the other response of each pair, after flips. gold_margin (C,) float32: gold
    score of the truly better minus the other under the label rule, before flips (negative where a
    Bradley-Terry draw went against gold). flipped (C,) bool: the label was inverted by noise.
    prompt_id (C,) int64.
    """

    responses: Responses
    chosen: Tensor
    rejected: Tensor
    gold_margin: Tensor
    flipped: Tensor
    prompt_id: Tensor

    def __len__(self) -> int:
        return self.chosen.shape[0]


class Scorer(Protocol):
    """Anything that scores whole responses. A method is handed one; it is never gold."""

    def score(self, responses: Responses) -> Tensor:
        """Scores (R,) float32, higher is better; no gradient."""
        ...
