"""The embedded world: openings of stories as prompts, a policy from the ladder, its tokenizer.

Prompts are split once and for all into disjoint sets for the training of gold, of proxies, for
validation, for policy optimisation and for evaluation. A user's own prompts file is split in the
same proportions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from overopt.base.config import require
from overopt.base.errors import DataError
from overopt.base.lazy import lazy
from overopt.worlds import prompts, rubric
from overopt.worlds.prompts import PromptSet
from overopt.worlds.rubric import Read, RubricConfig
from overopt.worlds.splits import split_bounds
from overopt.worlds.world import Tilt, World, WorldSettings, line_of, longest_row

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

    from overopt.base.datatypes import Responses
    from overopt.worlds import coherence, tokenizers
else:
    coherence, tokenizers = lazy("overopt.worlds.coherence"), lazy("overopt.worlds.tokenizers")

PAD, BOS, EOS = 0, 1, 1
MAX_PROMPT_TOKENS = 48


@dataclass(frozen=True, kw_only=True)
class Settings(WorldSettings):
    """The embedded world: openings of stories, and the ladder's policy.

    Attributes
    ----------
    rubric : RubricConfig
        What a reader of stories wants: the world's intent, and the teacher of a learned gold.
        ``world.rubric=extremal`` takes one of `overopt.worlds.rubric.PRESETS`.
    """

    rubric: RubricConfig = field(default_factory=RubricConfig)

    def __post_init__(self) -> None:
        WorldSettings.__post_init__(self)
        require(
            self.max_response_tokens <= 200,
            "world.max_response_tokens",
            self.max_response_tokens,
            "must be 2 to 200 (the context of the ladder's policy is 256 tokens)",
        )

    @property
    def has_intent(self) -> bool:
        """The rubric."""
        return True

    @property
    def sources(self) -> dict[str, str]:
        """The rubric's judge of coherence."""
        return self.rubric.sources

    @property
    def comparison_steps(self) -> tuple[int, ...]:
        """Numbers of prompts that comparisons are sampled for."""
        return (50, 250, 1000)


def load(settings: Settings) -> StoriesWorld:
    """Openings and tokenizer, read from the package or from the user's file."""
    tokenizer = tokenizers.load_tokenizer()
    if not settings.prompts_file:
        texts, more = prompts.load_openings(), prompts.load_train_openings()
        _, at = split_bounds(len(texts))["train"]
        texts = (*texts[:at], *more, *texts[at:])
        return StoriesWorld(texts, tokenizer, settings.rubric, n_more=len(more))

    def sizes(texts: Sequence[str]) -> list[int]:
        return [1 + len(e.ids) for e in tokenizer.encode_batch(list(texts))]

    def shorten(text: str, n: int) -> str:
        return prompts.without_first(text, n, tokenizer.encode(text).offsets)

    read = prompts.read_prompts(settings.prompts_file)
    read = prompts.fitted(read, sizes, MAX_PROMPT_TOKENS, settings.too_long, shorten)
    return StoriesWorld(read.texts, tokenizer, settings.rubric, read=read)


@dataclass(frozen=True)
class StoriesWorld(World):
    """Prompts of every split as text, how to turn tokens into text and back, and the rubric.

    ``n_more``: of the shipped prompts, those that only the train split has; 0 for a user's own.
    """

    texts: tuple[str, ...]
    tokenizer: Tokenizer
    cfg: RubricConfig = field(default_factory=RubricConfig)
    n_more: int = 0
    device: str = "cpu"
    read: PromptSet | None = None
    more: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out or cut."""
        return self.read.notes if self.read is not None else ()

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt; of the shipped ones, the bound."""
        return MAX_PROMPT_TOKENS if self.n_more else longest_row(self)

    def bounds(self, split: str) -> tuple[int, int]:
        """The shipped world has more prompts to train on, so that data seeds need not share any."""
        return split_bounds(len(self.texts) - self.n_more, more_train=self.n_more)[split]

    def rows(self, split: str, n: int) -> list[list[int]]:
        """Token ids of the first ``n`` prompts of a split, the begin token in front.

        Raises
        ------
        DataError
            The split has fewer prompts, or one of them is too long.
        """
        start, stop = self.bounds(split)
        if n > stop - start:
            raise DataError(
                f"{n} prompts of split {split!r} were asked for, it has {stop - start}: ask for fewer"
                " or give a longer prompts_file"
            )
        rows = [[BOS, *self.tokenizer.encode(t).ids] for t in self.texts[start : start + n]]
        for i, row in enumerate(rows):
            if len(row) > MAX_PROMPT_TOKENS:
                raise DataError(
                    f"{line_of(self.read or PromptSet(self.texts), start + i)} has {len(row)} tokens, at"
                    f" most {MAX_PROMPT_TOKENS} fit: shorten it, or set world.too_long to drop or"
                    " truncate"
                )
        return rows

    def response_texts(self, responses: Responses) -> list[str]:
        """Text of each response, without its end token."""
        rows = responses.ids.tolist()
        kept = [r[:n] for r, n in zip(rows, responses.length.tolist(), strict=True)]
        return self.tokenizer.decode_batch(kept, skip_special_tokens=True)

    def on(self, device: str) -> StoriesWorld:
        """The judge of coherence is asked on ``device``."""
        return replace(self, device=device)

    @property
    def tilts(self) -> tuple[Tilt, ...]:
        """Towards and away from what the rubric counts."""
        return rubric.TILTS

    def word_class(self, word: str) -> str | None:
        """joy, sorrow or quote."""
        return rubric.word_class(word)

    def calibrate(self, base: Responses) -> dict[str, Any]:
        """The rubric, standardised on responses of the initial policy."""
        return rubric.to_json(rubric.calibrate(self.cfg, *self._read(base)))

    def intent(self, spec: dict[str, Any], responses: Responses) -> np.ndarray:
        """Rubric scores (R,)."""
        return rubric.from_json(spec).score(*self._read(responses))

    def features(self, spec: dict[str, Any], responses: Responses) -> dict[str, np.ndarray]:
        """Each feature of the rubric (R,), in standard deviations of the initial policy."""
        z = rubric.from_json(spec).standardised(*self._read(responses))
        return dict(zip(rubric.FEATURES, z.T, strict=True))

    def _read(self, responses: Responses) -> Read:
        return coherence.read(self.cfg, responses, self, device=self.device)
