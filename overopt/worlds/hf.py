"""A world of real checkpoints: prompts as text, and the tokenizer of any causal LM around them.

Instructions or a user's own prompts, with the policy's `overopt.worlds.codecs.TextCodec`. Nobody knows
what is wanted of a response here: a published reward model is gold, and there is no intent behind it;
but the rubric of stories can be taken as one, which is how a gold is learned without any other data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from overopt.base.config import require
from overopt.base.errors import DataError
from overopt.base.lazy import lazy
from overopt.nets import sources
from overopt.worlds import prompts, rubric
from overopt.worlds.prompts import PromptSet
from overopt.worlds.rubric import Read, RubricConfig
from overopt.worlds.world import PLAIN_TILTS, Tilt, World, WorldSettings, line_of, own_file

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

    from overopt.base.datatypes import Responses
    from overopt.worlds import codecs, coherence
    from overopt.worlds.codecs import TextCodec
else:
    codecs, coherence = lazy("overopt.worlds.codecs"), lazy("overopt.worlds.coherence")

MIN_PROMPTS = 30  # below it a split would have fewer than 2


@dataclass(frozen=True, kw_only=True)
class Settings(WorldSettings):
    """Any causal language model with its own tokenizer, and instructions as prompts.

    Attributes
    ----------
    intent : "none" or "rubric"
        What stands for human intent: nothing, or the rubric of stories.
    rubric : RubricConfig
        For ``intent=rubric``: its weights. By default features with sweet spots and no coherence:
        the shipped judge knows simple stories only.
    """

    intent: Literal["none", "rubric"] = "none"
    rubric: RubricConfig = rubric.PRESETS["extremal"]

    @property
    def sources(self) -> dict[str, str]:
        """The rubric's judge of coherence, where the rubric is taken as intent."""
        return self.rubric.sources if self.has_intent else {}

    @property
    def has_intent(self) -> bool:
        """Whether the rubric is taken as intent."""
        return self.intent == "rubric"

    @property
    def prompt_files(self) -> tuple[Path, ...]:
        """The user's file, or the shipped instructions."""
        own = own_file(self)
        return own or (() if self.prompts_file else (prompts.instructions_file(),))


def load(settings: Settings) -> HFWorld:
    """Prompts, and the codec of the policy.

    Raises
    ------
    ConfigError
        A response may be as long as the policy's context.
    """
    most = room_for_prompts(settings)
    read = (
        prompts.read_prompts(settings.prompts_file)
        if settings.prompts_file
        else prompts.PromptSet(tuple(prompts.load_instructions()))
    )
    read = fitted_prompts(settings, read)
    intent = settings.rubric if settings.has_intent else None
    return HFWorld(read.texts, settings.policy, most, intent, read)


def room_for_prompts(settings: WorldSettings) -> int:
    """Tokens that the policy's context leaves for a prompt.

    Raises
    ------
    ConfigError
        None.
    """
    context = sources.context_tokens(settings.policy) or sources.UNLIMITED_CONTEXT
    require(
        settings.max_response_tokens < context,
        "world.max_response_tokens",
        settings.max_response_tokens,
        f"must be below {context}, the context of {settings.policy!r}, to leave room for a prompt",
    )
    return context - settings.max_response_tokens


def fitted_prompts(settings: WorldSettings, read: PromptSet) -> PromptSet:
    """Prompts that fit the policy's context, as ``world.too_long`` says."""
    if settings.too_long == "refuse":
        return read
    codec = codecs.load_codec(settings.policy)

    def sizes(texts: Sequence[str]) -> list[int]:
        return [len(row) for row in codec.encode_prompts(texts)]

    return prompts.fitted(read, sizes, room_for_prompts(settings), settings.too_long, codec.shorten)


@dataclass(frozen=True)
class HFWorld(World):
    """Prompts of every split as text, and the codec of the policy, loaded when it is first used.

    ``policy``: its checkpoint; ``max_prompt_tokens``: what its context leaves for a prompt; ``read``:
    where the prompts stand.

    Raises
    ------
    DataError
        Fewer than `MIN_PROMPTS` prompts.
    """

    texts: tuple[str, ...]
    policy: str
    max_prompt_tokens: int
    rubric: RubricConfig | None = None
    read: PromptSet | None = None
    device: str = "cpu"
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.texts) < MIN_PROMPTS:
            raise DataError(
                f"world.prompts_file has {len(self.texts)} prompts: the five splits need at least "
                f"{MIN_PROMPTS}"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out or cut."""
        return self.read.notes if self.read is not None else ()

    @cached_property
    def codec(self) -> TextCodec:
        """How the policy turns text into tokens."""
        return codecs.load_codec(self.policy)

    @cached_property
    def tokenizer(self) -> Tokenizer:  # type: ignore[override]
        """The policy's."""
        return self.codec.tokenizer.backend_tokenizer

    @property
    def is_chat(self) -> bool:
        """Whether a response is a turn of its own, not the prompt continued."""
        return self.codec.is_chat

    @property
    def pad(self) -> int:
        """The codec's pad token."""
        return self.codec.pad

    def rows(self, split: str, n: int) -> list[list[int]]:
        """Token ids of the first ``n`` prompts of a split, dressed as the codec dresses them.

        Raises
        ------
        DataError
            The split has fewer prompts, or one of them has no or too many tokens.
        """
        start, stop = self.bounds(split)
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
                    f"{line_of(self.read or PromptSet(self.texts), start + i)} has {len(row)} tokens, 1"
                    f" to {self.max_prompt_tokens} fit beside world.max_response_tokens: change it, or"
                    " set world.too_long to drop or truncate"
                )
        return rows

    def response_texts(self, responses: Responses) -> list[str]:
        """Text of each response, without its end token.

        A continuation is what the text grows by: many tokenizers drop a space at the start of a
        row, and decoded alone the first word would lose it.
        """
        if self.is_chat:
            return self.codec.decode(codecs.real(responses.ids, responses.mask))
        front = self.codec.decode(codecs.real(responses.prompts.ids, responses.prompts.mask))
        whole = codecs.whole_texts(self.tokenizer, responses)
        return [w[len(f) :] for f, w in zip(front, whole, strict=True)]

    def on(self, device: str) -> HFWorld:
        """The judge of coherence is asked on ``device``."""
        return replace(self, device=device)

    @property
    def tilts(self) -> tuple[Tilt, ...]:
        """Those of the rubric, where there is one."""
        return PLAIN_TILTS if self.rubric is None else rubric.TILTS

    def word_class(self, word: str) -> str | None:
        """joy, sorrow or quote, where there is a rubric."""
        return None if self.rubric is None else rubric.word_class(word)

    def calibrate(self, base: Responses) -> dict[str, Any] | None:
        """The rubric, standardised on responses of the initial policy."""
        if self.rubric is None:
            return None
        return rubric.to_json(rubric.calibrate(self.rubric, *self._read(self.rubric, base)))

    def intent(self, spec: dict[str, Any], responses: Responses) -> np.ndarray:
        """Rubric scores (R,)."""
        assert self.rubric is not None  # there is a spec
        return rubric.from_json(spec).score(*self._read(self.rubric, responses))

    def _read(self, cfg: RubricConfig, responses: Responses) -> Read:
        return coherence.read(cfg, responses, self, device=self.device)
