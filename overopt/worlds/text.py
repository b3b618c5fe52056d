"""A world of real checkpoints: prompts as text, and the tokenizer of any causal LM around them.

`TextCodec` is how one checkpoint wants text turned into tokens: chat template where its tokenizer
has one, begin token where its tokenizer puts one. `HFWorld` is the prompts with the policy's codec;
it has the methods of `overopt.world.stories.StoriesWorld`. `retokenize` carries responses over to
another checkpoint's codec, for scorers that do not share the policy's tokenizer: the one place
where text is decoded and encoded again, because ids of two tokenizers mean different pieces.
"""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from overopt.base.datatypes import Prompts, Responses
from overopt.base.errors import DataError
from overopt.worlds.codecs import TextCodec, pad, real, whole_texts
from overopt.worlds.splits import split_bounds

MIN_PROMPTS = 30  # below it a split would have fewer than 2


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
        ids, mask = pad(rows, self.codec.pad, left=True)
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
            return self.codec.decode(real(responses.ids, responses.mask))
        front = self.codec.decode(real(responses.prompts.ids, responses.prompts.mask))
        whole = whole_texts(self.tokenizer, responses)
        return [w[len(f) :] for f, w in zip(front, whole, strict=True)]
