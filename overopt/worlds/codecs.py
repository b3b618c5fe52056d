"""Text to tokens and back for any checkpoint, and responses carried over between tokenizers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
from overopt.worlds.world import World


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


def load_codec(source: str) -> TextCodec:
    """How ``source`` turns text into tokens.

    A tokenizer without a pad token pads with its end token: lengths are carried by masks, so the id
    behind them matters to nothing. One without an end token gives responses that never end.
    """
    tokenizer = auto_tokenizer(source, tokenizer_dir(source))
    eos = tokenizer.eos_token_id
    if eos is None:
        log.warning(
            "checkpoint %r has no end token: its responses never end, all are truncated", source
        )
        eos = -1
    pad = next((t for t in (tokenizer.pad_token_id, eos) if t is not None and t >= 0), 0)
    bos = tokenizer.bos_token_id
    # The ladder's tokenizer places no special tokens, its models expect one.
    begins = source.startswith("ladder:") or tokenizer("a").input_ids[:1] == [bos]
    return TextCodec(tokenizer, (bos,) if bos is not None and begins else (), pad, eos)


def whole_texts(tokenizer: Tokenizer, responses: Responses) -> list[str]:
    """Text of prompt and response decoded together, special tokens left out."""
    prompt = real(responses.prompts.ids, responses.prompts.mask)
    answer = real(responses.ids, responses.mask)
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
    ids, mask = rows.padded(answers_ids, codec.pad, left=False)
    return Responses(
        Prompts(*rows.padded(prompts, codec.pad, left=True), responses.prompts.prompt_id),
        ids,
        mask,
        torch.zeros(ids.shape),
        responses.ended,
    )


def real(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Rows of real token ids."""
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
