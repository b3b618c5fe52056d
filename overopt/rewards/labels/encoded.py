"""Preferences from people in the policy's tokens: as many pairs as are asked for, of those that fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from overopt.base.datatypes import Responses
from overopt.base.errors import DataError
from overopt.nets import sources
from overopt.rewards.labels.people import Preferences
from overopt.worlds.codecs import Piece, TextCodec, as_responses, load_codec, tokens_of
from overopt.worlds.prompts import Dialogue
from overopt.worlds.world import WorldSettings

_AT_ONCE = 256  # prompts that are encoded together


class Encoded(NamedTuple):
    """Pairs in tokens.

    Attributes
    ----------
    prompts : tuple of str
        Each prompt that is answered.
    responses : Responses
        R rows; ``prompt_id`` is the number of the prompt in ``prompts`` behind ``first_id``.
    chosen, rejected : Tensor
        (C,) int64, rows of the preferred and the other response.
    """

    prompts: tuple[str, ...]
    responses: Responses
    chosen: Tensor
    rejected: Tensor


class _Row(NamedTuple):
    """A response in tokens; ``text``: of its prompt, perhaps shortened; ``ended``: not cut."""

    text: str
    prompt: list[int]
    answer: list[int]
    ended: bool


class PairEncoder:
    """Encodes preferences for a world's policy, pair by pair as they are asked for.

    Parameters
    ----------
    preferences : the pairs.
    world : settings of the world: its policy, longest response, and what becomes of what is too long.
    where : the pairs file, for messages.
    """

    def __init__(self, preferences: Preferences, world: WorldSettings, where: str) -> None:
        self.preferences, self.world, self.where = preferences, world, where
        self.codec: TextCodec = load_codec(world.policy)
        context = sources.context_tokens(world.policy) or sources.UNLIMITED_CONTEXT
        self.most = context - world.max_response_tokens
        self.left_out: set[int] = set()
        self.pairs_of: list[list[int]] = [[] for _ in preferences.prompts]
        for i, row in enumerate(preferences.chosen):
            self.pairs_of[preferences.prompt[row]].append(i)
        self._rows: dict[int, _Row] = {}

    def draw(
        self, order: Iterable[int], *, n_prompts: int | None, n_pairs: int | None
    ) -> list[int]:
        """The first pairs that fit, of prompts in the order given, until there are enough of either.

        All pairs of a prompt come together; the last prompt's may be cut by ``n_pairs``.
        """
        taken: list[int] = []
        prompts, todo = 0, list(order)
        for start in range(0, len(todo), _AT_ONCE):
            some = todo[start : start + _AT_ONCE]
            self._encode(row for p in some for i in self.pairs_of[p] for row in self._both(i))
            for prompt in some:
                if prompts == n_prompts or (n_pairs is not None and len(taken) >= n_pairs):
                    return taken[:n_pairs]
                fitting = [i for i in self.pairs_of[prompt] if self._fits(i)]
                self.left_out |= set(self.pairs_of[prompt]) - set(fitting)
                taken += fitting
                prompts += bool(fitting)
        return taken[:n_pairs]

    def encoded(self, pairs: Sequence[int], *, first_id: int) -> Encoded:
        """Pairs that were drawn, in tokens; prompts are numbered from ``first_id``."""
        rows = sorted({row for i in pairs for row in self._both(i)})
        at = {row: k for k, row in enumerate(rows)}
        found = [self._rows[row] for row in rows]
        number: dict[str, int] = {}
        ids = [first_id + number.setdefault(row.text, len(number)) for row in found]
        responses = as_responses(
            [row.prompt for row in found],
            [row.answer for row in found],
            pad=self.codec.pad,
            prompt_id=torch.tensor(ids),
            ended=torch.tensor([row.ended for row in found]),
        )
        chosen, rejected = (
            torch.tensor([at[side[i]] for i in pairs])
            for side in (self.preferences.chosen, self.preferences.rejected)
        )
        return Encoded(tuple(number), responses, chosen, rejected)

    def _both(self, pair: int) -> tuple[int, int]:
        return self.preferences.chosen[pair], self.preferences.rejected[pair]

    def _fits(self, pair: int) -> bool:
        rows = [self._rows[row] for row in self._both(pair)]
        most = self.world.max_response_tokens
        return all(len(r.prompt) <= self.most and len(r.answer) <= most for r in rows)

    def _encode(self, wanted: Iterable[int]) -> None:
        rows = sorted(set(wanted) - self._rows.keys())
        prefs, most = self.preferences, self.world.max_response_tokens
        texts = {row: prefs.prompts[prefs.prompt[row]] for row in rows}
        for row, new in zip(rows, self._tokens(rows, texts), strict=True):
            self._rows[row] = new
        over = [row for row in rows if not self._row_fits(self._rows[row])]
        if not over or self.world.too_long == "drop":
            return
        if self.world.too_long == "refuse":
            one = self._rows[over[0]]
            raise DataError(
                f"{self.where}, line {prefs.lines[over[0]]}: the prompt has {len(one.prompt)} tokens and"
                f" the response {len(one.answer)}, {self.most} and {most} (world.max_response_tokens)"
                " fit: set world.too_long to drop or truncate"
            )
        for row in over:
            while len(self._rows[row].prompt) > self.most and texts[row]:
                excess = len(self._rows[row].prompt) - self.most
                texts[row] = self.codec.shorten(texts[row], excess)
                (self._rows[row],) = self._tokens([row], texts)
            one = self._rows[row]
            if len(one.answer) > most:
                self._rows[row] = one._replace(answer=one.answer[:most], ended=False)

    def _row_fits(self, row: _Row) -> bool:
        return len(row.prompt) <= self.most and len(row.answer) <= self.world.max_response_tokens

    def _tokens(self, rows: Sequence[int], texts: dict[int, str]) -> list[_Row]:
        front = [self.codec.dress(texts[row]) for row in rows]
        answers = [self.preferences.responses[row] for row in rows]
        if not self.codec.is_chat:
            answers = [continued(texts[r], a) for r, a in zip(rows, answers, strict=True)]
        whole = [[*f, Piece(a)] for f, a in zip(front, answers, strict=True)]
        ends = self.codec.eos >= 0
        tokens = tokens_of(self.codec, front, whole, [ends] * len(rows))
        return [
            _Row(texts[row], prompt, answer, ends)
            for row, (prompt, answer) in zip(rows, tokens, strict=True)
        ]


def continued(prompt: str, answer: str) -> str:
    """A response as it stands behind its prompt where no template does: they do not run together."""
    if prompt[-1:].isspace() or answer[:1].isspace() or not answer:
        return answer
    return (" " if isinstance(prompt, Dialogue) else "\n") + answer
