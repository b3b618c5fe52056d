"""Text to tokens and back for any checkpoint, and responses carried over between tokenizers."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from overopt.base.datatypes import Prompts, Responses
from overopt.nets.sources import (
    auto_tokenizer,
    log,
    tokenizer_dir,
)
from overopt.worlds import rows
from overopt.worlds.prompts import Dialogue, turns_of, without_first
from overopt.worlds.world import World


class Piece(NamedTuple):
    """Part of a text; ``controls``: names of control tokens in it are these tokens, not text."""

    text: str
    controls: bool = False


def in_template(tokenizer: Any, turns: list[dict[str, str]], *, answer: bool) -> list[Piece]:
    """Turns in a chat template. Control tokens that somebody says stay text, the template's do not.

    ``answer``: put the beginning of the assistant's turn behind.
    """

    def rendered(dialogue: list[dict[str, str]]) -> str:
        options = {"tokenize": False, "add_generation_prompt": answer}
        return tokenizer.apply_chat_template(dialogue, **options)

    if not any(_names_control(tokenizer, turn["content"]) for turn in turns):
        return [Piece(rendered(turns), controls=True)]
    marks = [f"\ue000{i}\ue001" for i in range(len(turns))]  # characters that no text has
    around = rendered([{**turn, "content": m} for turn, m in zip(turns, marks, strict=True)])
    pieces = []
    for mark, turn in zip(marks, turns, strict=True):
        before, found, around = around.partition(mark)
        pieces += [Piece(before, controls=True), *([Piece(turn["content"])] if found else [])]
    return [*pieces, Piece(around, controls=True)]


def _names_control(tokenizer: Any, text: str) -> bool:
    pattern = _control_names(tokenizer)
    return pattern is not None and pattern.search(text) is not None


@lru_cache(maxsize=8)
def _control_names(tokenizer: Any) -> re.Pattern[str] | None:
    tokens = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    names = [re.escape(token.content) for token in tokens if token.special]
    return re.compile("|".join(names)) if names else None


def encode_pieces(tokenizer: Any, texts: Sequence[Sequence[Piece]]) -> list[list[int]]:
    """Token ids of texts, each of pieces; in one go wherever that means the same."""

    def ids(parts: Sequence[str], *, controls: bool) -> list[list[int]]:
        with contextlib.nullcontext() if controls else controls_as_text(tokenizer):
            backend = tokenizer.backend_tokenizer
            return [e.ids for e in backend.encode_batch(list(parts), add_special_tokens=False)]

    whole = ["".join(piece.text for piece in pieces) for pieces in texts]
    found = ids(whole, controls=True)
    for i, pieces in enumerate(texts):
        if any(not p.controls and _names_control(tokenizer, p.text) for p in pieces):
            rows = [ids([p.text], controls=p.controls)[0] for p in pieces if p.text]
            found[i] = [token for row in rows for token in row]
    return found


@contextlib.contextmanager
def controls_as_text(tokenizer: Any) -> Iterator[None]:
    """Inside the block names of control tokens in a text are encoded like any other text."""
    backend = tokenizer.backend_tokenizer
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        yield
    finally:
        backend.encode_special_tokens = before


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

    def dress(self, prompt: str) -> list[Piece]:
        """The prompt as turns, up to where the assistant's answer begins; plain without a template."""
        if not self.is_chat:
            return [Piece(prompt)]
        return in_template(self.tokenizer, turns_of(prompt), answer=True)

    def encode(self, texts: Sequence[Sequence[Piece]]) -> list[list[int]]:
        """Token ids of texts, the begin token in front where no template dresses them."""
        front = [] if self.is_chat else list(self.bos)
        return [front + ids for ids in encode_pieces(self.tokenizer, texts)]

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts, dressed where there is a chat template."""
        return self.encode([self.dress(p) for p in prompts])

    def shorten(self, prompt: str, n: int) -> str:
        """The prompt without its first ``n`` tokens; a dialogue loses those of its longest turn."""
        if isinstance(prompt, Dialogue):
            longest = max(range(len(prompt.turns)), key=lambda i: len(prompt.turns[i][1]))
            role, content = prompt.turns[longest]
            cut = (role, self.shorten(content, n))
            return Dialogue([*prompt.turns[:longest], cut, *prompt.turns[longest + 1 :]])
        places = self.tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).offsets
        return without_first(prompt, n, places)

    def continued(
        self, fronts: Sequence[Sequence[Piece]], answers: Sequence[str], *, end: bool = True
    ) -> list[tuple[list[int], list[int]]]:
        """Token ids of texts and of the answers that continue them as they stand.

        Both are encoded together, so that no piece is torn at the seam; where the tokenizer would merge
        the end of the one with the beginning of the other, the two stay apart. ``end``: the end token
        follows an answer, if there is one.
        """
        behind = [Piece(answer) for answer in answers]
        front = self.encode(fronts)
        whole = self.encode([[*f, piece] for f, piece in zip(fronts, behind, strict=True)])
        alone = encode_pieces(self.tokenizer, [[piece] for piece in behind])
        last = [self.eos] if end and self.eos >= 0 else []
        return [
            (f, (both[len(f) :] if both[: len(f)] == f else rest) + last)
            for f, both, rest in zip(front, whole, alone, strict=True)
        ]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Text of rows of token ids, special tokens left out."""
        return self.tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=True)


def load_codec(source: str) -> TextCodec:
    """How ``source`` turns text into tokens.

    A tokenizer without a pad token pads with its end token: lengths are carried by masks, so the id
    behind them matters to nothing. One without an end token gives responses that never end.
    """
    tokenizer = auto_tokenizer(source, tokenizer_dir(source))
    eos = tokenizer.eos_token_id
    if eos is None:
        _say_endless(source)
        eos = -1
    pad = next((t for t in (tokenizer.pad_token_id, eos) if t is not None and t >= 0), 0)
    bos = tokenizer.bos_token_id
    # The ladder's tokenizer places no special tokens, its models expect one.
    begins = source.startswith("ladder:") or tokenizer("a").input_ids[:1] == [bos]
    return TextCodec(tokenizer, (bos,) if bos is not None and begins else (), pad, eos)


@lru_cache(maxsize=64)
def _say_endless(source: str) -> None:
    """Warn of a tokenizer without an end token, once."""
    log.warning(
        "checkpoint %r has no end token: its responses never end, all are truncated", source
    )


def whole_texts(tokenizer: Tokenizer, responses: Responses) -> list[str]:
    """Text of prompt and response decoded together, special tokens left out."""
    prompt = real(responses.prompts.ids, responses.prompts.mask)
    answer = real(responses.ids, responses.mask)
    rows = [p + r for p, r in zip(prompt, answer, strict=True)]
    return tokenizer.decode_batch(rows, skip_special_tokens=True)


def continuations(world: World, responses: Responses) -> list[str]:
    """Texts of responses as they continue their prompts, with the space that may stand between."""
    prompts = world.prompt_texts(responses)
    whole = whole_texts(world.tokenizer, responses)
    if all(w.startswith(p) for w, p in zip(whole, prompts, strict=True)):
        return [w[len(p) :] for w, p in zip(whole, prompts, strict=True)]
    return world.response_texts(responses)


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
    front = [codec.dress(p) for p in world.prompt_texts(responses)]
    if codec.is_chat or world.is_chat:
        if not codec.is_chat:
            front = [[*f, Piece("\n")] for f in front]
        answers = world.response_texts(responses)
        whole = [[*f, Piece(a)] for f, a in zip(front, answers, strict=True)]
    else:
        whole = [[Piece(text)] for text in whole_texts(world.tokenizer, responses)]
    tokens = tokens_of(codec, front, whole, responses.ended.tolist())
    return as_responses(
        [prompt for prompt, _ in tokens],
        [answer for _, answer in tokens],
        pad=codec.pad,
        prompt_id=responses.prompts.prompt_id,
        ended=responses.ended,
    )


def tokens_of(
    codec: TextCodec,
    front: Sequence[Sequence[Piece]],
    whole: Sequence[Sequence[Piece]],
    ended: Sequence[bool],
) -> list[tuple[list[int], list[int]]]:
    """Prompt and response tokens of texts ``whole`` that begin with ``front``; ended ones end."""
    found = []
    for f, w, has_ended in zip(codec.encode(front), codec.encode(whole), ended, strict=True):
        tokens = w + [codec.eos] if has_ended and codec.eos >= 0 else w
        seam = min(len(f), len(tokens) - 1)
        found.append((tokens[:seam], tokens[seam:]))
    return found


def as_responses(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    pad: int,
    prompt_id: Tensor,
    ended: Tensor,
) -> Responses:
    """Rows of tokens as `Responses`; log-probabilities are 0."""
    ids, mask = rows.padded(answers, pad, left=False)
    return Responses(
        Prompts(*rows.padded(prompts, pad, left=True), prompt_id),
        ids,
        mask,
        torch.zeros(ids.shape),
        ended,
    )


def real(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Rows of real token ids."""
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
