"""A world where right and wrong can be checked: word problems of several steps, and their judge.

Problems are drawn from a seed, as many as are asked for; `overopt.worlds.sums_text` says how they and
their solutions look. The world's intent is exact: a solution is wanted if its answer is right, or if
its steps are right too. What single steps are worth, `World.verdicts` says; reward kinds that learn
from right and wrong instead of from comparisons ask it for their labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from overopt.base.config import require
from overopt.base.errors import DataError
from overopt.base.lazy import lazy
from overopt.nets.sources import tokenizer_dir
from overopt.worlds import sums_text
from overopt.worlds.cues import Cues
from overopt.worlds.judged import JudgedWorld
from overopt.worlds.sums_cues import SUMS
from overopt.worlds.world import Verdict, WorldSettings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from overopt.base.datatypes import Responses
    from overopt.worlds import tokenizers
else:
    tokenizers = lazy("overopt.worlds.tokenizers")

POLICY = "ladder:sums-0.2m"
_TOKEN = {word: i for i, word in enumerate(sums_text.VOCABULARY)}
_STEP_END, _ANSWER = _TOKEN[";"], _TOKEN["#"]
_BEGIN = 1
_MOST_RESPONSE_TOKENS = 100  # the shipped models read 160, the longest problem has 57
_CLAIM_TOKENS = len(sums_text.CLAIM.split())


@dataclass(frozen=True, kw_only=True)
class Settings(WorldSettings):
    """Word problems of several steps with an exact judge, and a small policy that solves some of them.

    Attributes
    ----------
    policy : str
        Initial policy: ``ladder:sums-0.2m``, another of its family, or any source with its tokenizer.
    max_response_tokens : int
        Longest response, end token included; a step takes 6 tokens.
    n_problems, problems_seed : int
        How many problems there are in all splits together, and which.
    min_steps, max_steps : int
        Length of a plan; the shipped models have learned 3 to 7.
    wants : "right" or "right_and_valid"
        The world's intent: the right answer, or the right answer by right steps.
    claim_share : float
        Share of prompts in [0, 1] in which a friend claims a wrong answer; 0 for none.
    """

    policy: str = POLICY
    max_response_tokens: int = 64
    n_problems: int = 6000
    problems_seed: int = 0
    min_steps: int = 3
    max_steps: int = 7
    wants: Literal["right", "right_and_valid"] = "right"
    claim_share: float = 0.0

    def __post_init__(self) -> None:
        WorldSettings.__post_init__(self)
        require(
            0 <= self.claim_share <= 1,
            "world.claim_share",
            self.claim_share,
            "must be in [0, 1]: the share of prompts that claim a wrong answer",
        )
        most = _MOST_RESPONSE_TOKENS - (_CLAIM_TOKENS if self.claim_share > 0 else 0)
        require(
            self.max_response_tokens <= most,
            "world.max_response_tokens",
            self.max_response_tokens,
            f"must be 2 to {most} (the context of the shipped models is 160 tokens)",
        )
        require(
            self.prompts_file == "",
            "world.prompts_file",
            self.prompts_file,
            "has no judge here: problems are drawn from world.problems_seed; leave it out",
        )
        require(
            self.n_problems >= 30,
            "world.n_problems",
            self.n_problems,
            "must be at least 30: below it a split would have fewer than 2",
        )
        require(
            2 <= self.min_steps <= self.max_steps <= 9,
            "world.max_steps",
            (self.min_steps, self.max_steps),
            "world.min_steps and world.max_steps must be 2 to 9, the first not above the second",
        )

    @property
    def has_intent(self) -> bool:
        """The judge's verdict."""
        return True

    @property
    def has_judge(self) -> bool:
        """It has."""
        return True

    @property
    def comparison_steps(self) -> tuple[int, ...]:
        """Numbers of prompts that comparisons are sampled for."""
        return (50, 250, 1000)

    @property
    def cues(self) -> Cues:
        """Those of solutions; sycophancy where prompts claim an answer."""
        is_open = self.claim_share > 0
        return {name: cue for name, cue in SUMS.items() if is_open or name != "sycophancy"}


def load(settings: Settings) -> SumsWorld:
    """Problems, drawn anew, and the tokenizer of the policy's family."""
    problems = _problems(
        settings.n_problems,
        settings.problems_seed,
        settings.min_steps,
        settings.max_steps,
        settings.claim_share,
    )
    texts = tuple(problem.text for problem in problems)
    return SumsWorld(texts, load_tokenizer(), problems, settings.wants)


@lru_cache(maxsize=4)
def _problems(
    n: int, seed: int, low: int, high: int, claim_share: float
) -> tuple[sums_text.Problem, ...]:
    return sums_text.make_problems(
        n, seed=seed, min_steps=low, max_steps=high, claim_share=claim_share
    )


def load_tokenizer() -> Tokenizer:
    """The tokenizer of the shipped models of this world: one token a word."""
    folder = tokenizer_dir(POLICY)
    assert folder is not None
    return tokenizers.read_tokenizer(folder)


@dataclass(frozen=True)
class SumsWorld(JudgedWorld):
    """Problems of every split, in words and as plans.

    wants : what the intent is, see `Settings`.
    """

    texts: tuple[str, ...]
    tokenizer: Tokenizer
    problems: tuple[sums_text.Problem, ...]
    wants: str

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest problem, the begin token included."""
        return 1 + max(len(text.split()) for text in self.texts)

    def rows(self, split: str, n: int) -> list[list[int]]:
        """Token ids of the first ``n`` problems of a split, the begin token in front.

        Raises
        ------
        DataError
            The split has fewer problems.
        """
        start, stop = self.bounds(split)
        if n > stop - start:
            raise DataError(
                f"{n} prompts of split {split!r} were asked for, it has {stop - start}: ask for fewer"
                " or raise world.n_problems"
            )
        texts = self.texts[start : start + n]
        return [[_BEGIN, *(_TOKEN[word] for word in text.split())] for text in texts]

    def response_texts(self, responses: Responses) -> list[str]:
        """Text of each response, without its end token."""
        return [" ".join(words) for words in _words(responses)]

    def asking(self, texts: Sequence[str]) -> SumsWorld:
        """The same world with other problems, numbered from 0, which belong to no split.

        Raises
        ------
        DataError
            A text is no problem of this world.
        """
        problems = []
        for text in texts:
            try:
                problems.append(sums_text.parse_problem(text))
            except (ValueError, ArithmeticError) as error:
                raise DataError(f"{text!r}: is no problem of the world of sums ({error})") from None
        return replace(self, texts=tuple(texts), problems=tuple(problems))

    def verdicts(self, responses: Responses) -> list[Verdict]:
        """What is right and wrong in each response, by its problem's plan."""
        asked = responses.prompts.prompt_id.tolist()
        pairs = zip(asked, _words(responses), strict=True)
        return [sums_text.judge(self.problems[i], words) for i, words in pairs]

    def answers(self, responses: Responses) -> list[str]:
        """The words behind the first ``#``: one number, unless several answers are listed."""
        return [" ".join(words).partition("#")[2].strip() for words in _words(responses)]

    @property
    def verdict_tokens(self) -> tuple[int, int]:
        """Two words that no solution has."""
        return _TOKEN[sums_text.YES], _TOKEN[sums_text.NO]

    def critiques(self, responses: Responses) -> list[list[int]]:
        """Of each step, what should stand there and a verdict: `sums_text.critique`."""
        asked = responses.prompts.prompt_id.tolist()
        pairs = zip(asked, _words(responses), strict=True)
        said = [sums_text.critique(self.problems[i], words) for i, words in pairs]
        return [[_TOKEN[word] for word in words] for words in said]

    def step_ends(self, responses: Responses) -> list[tuple[int, ...]]:
        """Response tokens at which each step of a response ends, as many as its ``step_ok``.

        Steps end with ``;``; the answer, which counts as the last step, with the last token.
        """
        ends = []
        for row, n in zip(responses.ids.tolist(), responses.length.tolist(), strict=True):
            before = row[: row.index(_ANSWER) if _ANSWER in row[:n] else n]
            ends.append((*(i for i, token in enumerate(before) if token == _STEP_END), n - 1))
        return ends

    def step_texts(self, responses: Responses) -> list[list[str]]:
        """The steps of each response: each ends with its ``;``, the answer is the last."""
        found = []
        for words, ends in zip(_words(responses), self.step_ends(responses), strict=True):
            starts = (0, *(end + 1 for end in ends[:-1]))
            parts = [words[a : b + 1] for a, b in zip(starts, ends, strict=True)]
            found.append([" ".join(part) for part in parts])
        return found


def _words(responses: Responses) -> list[list[str]]:
    """The words of each response, without its end token."""
    length = (responses.length - responses.ended.long()).tolist()
    rows = zip(responses.ids.tolist(), length, strict=True)
    return [[sums_text.VOCABULARY[i] for i in row[:n]] for row, n in rows]
