"""A world of real checkpoints: prompts as text, and the tokenizer of any causal LM around them.

`TextCodec` is how one checkpoint wants text turned into tokens: chat template where its tokenizer
has one, begin token where its tokenizer puts one. `HFWorld` is the prompts with the policy's codec;
it has the methods of `overopt.world.stories.StoriesWorld`. `retokenize` carries responses over to
another checkpoint's codec, for scorers that do not share the policy's tokenizer: the one place
where text is decoded and encoded again, because ids of two tokenizers mean different pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from overopt.datatypes import Prompts, Responses
from overopt.errors import DataError
from overopt.world.stories import split_bounds

UNLIMITED_CONTEXT = 1 << 20  # of models whose positions have no table and no stated limit
MIN_PROMPTS = 30  # below it a split would have fewer than 2


class World(Protocol):
    """What stages and scorers ask of a world."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Every prompt."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The policy's tokenizer."""
        ...

    @property
    def is_chat(self) -> bool:
        """Whether a response is a turn of its own, not the prompt continued."""
        ...

    def prompts(self, split: str, n: int) -> Prompts:
        """The first ``n`` prompts of a split, left-padded."""
        ...

    def prompt_texts(self, responses: Responses) -> list[str]:
        """Text of the prompt of each response."""
        ...

    def response_texts(self, responses: Responses) -> list[str]:
        """Text of each response, without its end token."""
        ...


@dataclass(frozen=True)
class TextCodec:
    """How one checkpoint turns prompts into tokens.

    Attributes
    ----------
    tokenizer : fast tokenizer of transformers.
    bos : token ids put in front of text that no chat template dresses; often empty.
    pad, eos : token ids; ``eos`` is -1 where the tokenizer has none: no response ever ends.
    """

    tokenizer: Any
    bos: tuple[int, ...]
    pad: int
    eos: int

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self.tokenizer.chat_template)

    def dress(self, prompt: str) -> str:
        """The prompt as a user's turn, up to where the assistant's answer begins."""
        turns = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def encode(self, texts: Sequence[str], *, dressed: bool) -> list[list[int]]:
        """Token ids of texts; ``dressed`` ones hold their special tokens as text already."""
        found = self.tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        front = [] if dressed else list(self.bos)
        return [front + e.ids for e in found]

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts, dressed where there is a chat template."""
        if self.is_chat:
            return self.encode([self.dress(p) for p in prompts], dressed=True)
        return self.encode(prompts, dressed=False)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Text of rows of token ids, special tokens left out."""
        return self.tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=True)


@dataclass(frozen=True)
class HFWorld:
    """Prompts of every split as text, and the codec of the policy.

    ``max_prompt_tokens``: what the policy's context leaves for a prompt.

    Raises
    ------
    DataError
        Fewer than `MIN_PROMPTS` prompts.
    """

    texts: tuple[str, ...]
    codec: TextCodec
    max_prompt_tokens: int

    def __post_init__(self) -> None:
        if len(self.texts) < MIN_PROMPTS:
            raise DataError(
                f"world.prompts_file has {len(self.texts)} prompts: the five splits need at least "
                f"{MIN_PROMPTS}"
            )

    @property
    def tokenizer(self) -> Tokenizer:
        """The policy's tokenizer."""
        return self.codec.tokenizer.backend_tokenizer

    @property
    def is_chat(self) -> bool:
        """Whether a response is a turn of its own, not the prompt continued."""
        return self.codec.is_chat

    def prompts(self, split: str, n: int) -> Prompts:
        """The first ``n`` prompts of a split, left-padded, each with its id in the world.

        Raises
        ------
        DataError
            The split has fewer prompts, or one of them has no or too many tokens.
        """
        start, stop = split_bounds(len(self.texts))[split]
        if n > stop - start:
            raise DataError(
                f"{n} prompts of split {split!r} were asked for, it has {stop - start}: ask for fewer"
                " or give a longer prompts_file"
            )
        if n == 0:
            raise DataError(f"0 prompts of split {split!r} were asked for: ask for at least 1")
        rows = self.codec.encode_prompts(self.texts[start : start + n])
        for i, row in enumerate(rows):
            if not 0 < len(row) <= self.max_prompt_tokens:
                raise DataError(
                    f"prompt {start + i} has {len(row)} tokens, 1 to {self.max_prompt_tokens} fit "
                    f"beside world.max_response_tokens: change {self.texts[start + i][:60]!r}"
                )
        ids, mask = _pad(rows, self.codec.pad, left=True)
        return Prompts(ids, mask, torch.arange(start, start + n))

    def prompt_texts(self, responses: Responses) -> list[str]:
        """Text of the prompt of each response."""
        return [self.texts[i] for i in responses.prompts.prompt_id.tolist()]

    def response_texts(self, responses: Responses) -> list[str]:
        """Text of each response, without its end token.

        A continuation is what the text grows by: many tokenizers drop a space at the start of a
        row, and decoded alone the first word would lose it.
        """
        if self.is_chat:
            return self.codec.decode(_real(responses.ids, responses.mask))
        front = self.codec.decode(_real(responses.prompts.ids, responses.prompts.mask))
        whole = whole_texts(self.tokenizer, responses)
        return [w[len(f) :] for f, w in zip(front, whole, strict=True)]


def whole_texts(tokenizer: Tokenizer, responses: Responses) -> list[str]:
    """Text of prompt and response decoded together, special tokens left out."""
    prompt = _real(responses.prompts.ids, responses.prompts.mask)
    answer = _real(responses.ids, responses.mask)
    rows = [p + r for p, r in zip(prompt, answer, strict=True)]
    return tokenizer.decode_batch(rows, skip_special_tokens=True)


@dataclass(frozen=True)
class TextReader:
    """Responses of ``world`` in the tokens of ``codec``, which belongs to checkpoint ``source``."""

    source: str
    world: World
    codec: TextCodec

    def __call__(self, responses: Responses) -> Responses:
        """`retokenize`."""
        return retokenize(self.world, self.codec, responses)


def in_own_tokens(backbone: Any, responses: Responses) -> Responses:
    """The responses in the tokens of ``backbone``: as they are, unless it has a `TextReader`."""
    return responses if backbone.reader is None else backbone.reader(responses)


def retokenize(world: World, codec: TextCodec, responses: Responses) -> Responses:
    """The same responses in the tokens of another codec; log-probabilities are 0.

    A response that ended gets the codec's end token, so that "ended" stays visible; prompt and
    response are encoded together, so that no piece is torn at the seam.
    """
    if codec.is_chat:
        front = [codec.dress(p) for p in world.prompt_texts(responses)]
    elif world.is_chat:
        front = [p + "\n" for p in world.prompt_texts(responses)]
    else:
        front = world.prompt_texts(responses)
    if codec.is_chat or world.is_chat:
        answers = world.response_texts(responses)
        whole = [f + a for f, a in zip(front, answers, strict=True)]
    else:
        whole = whole_texts(world.tokenizer, responses)
    front_ids = codec.encode(front, dressed=codec.is_chat)
    whole_ids = codec.encode(whole, dressed=codec.is_chat)
    prompts, answers_ids = [], []
    for f, w, ended in zip(front_ids, whole_ids, responses.ended.tolist(), strict=True):
        tokens = w + [codec.eos] if ended and codec.eos >= 0 else w
        seam = min(len(f), len(tokens) - 1)
        prompts.append(tokens[:seam])
        answers_ids.append(tokens[seam:])
    ids, mask = _pad(answers_ids, codec.pad, left=False)
    return Responses(
        Prompts(*_pad(prompts, codec.pad, left=True), responses.prompts.prompt_id),
        ids,
        mask,
        torch.zeros(ids.shape),
        responses.ended,
    )


def _real(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Rows of real token ids."""
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]


def _pad(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Rows as a table of ids and its mask, both (R, L)."""
    width = max(map(len, rows))
    length = torch.tensor([len(r) for r in rows])[:, None]
    column = torch.arange(width)
    mask = column >= width - length if left else column < length
    ids = torch.full(mask.shape, pad)
    ids[mask] = torch.tensor([token for row in rows for token in row])
    return ids, mask
