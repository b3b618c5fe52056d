"""Word problems of several steps: how they are drawn, written, solved by a crowd, and judged.

    Sue has 3 eggs . gets 4 more . then has 3 times . a friend has 5 . shared by 4 left over ?
    3 + 4 = 7 ; 7 * 3 = 21 ; 21 % 4 = 1 ; # 1

A problem is a plan: a first number and operations that are applied one after the other. States stay
within 0 to 49, so that each number is one token. The judge reads words, compares each step with the
plan, and uses no model. Everything here is plain Python: a list of words in, a verdict out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from overopt.base.seeding import derive_seed
from overopt.worlds.world import Verdict

T = TypeVar("T")

TOP = 49  # the largest number there is
NAMES = ("Tom", "Lily", "Ben", "Sue", "Max", "Mia")
THINGS = ("pens", "cups", "eggs", "nuts", "toys")
OTHERS = "has gets more . loses then times a friend shared by left over ? in all + - * % = ; #"
VOCABULARY = ("<unk>", "<s>", *map(str, range(TOP + 1)), *NAMES, *THINGS, *OTHERS.split())
"""Words by their token id: 0 stands behind the end of a response, 1 begins a text and ends it."""

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "%": lambda a, b: a % b,
}
_PHRASES = {"+": "gets {} more .", "-": "loses {} .", "*": "then has {} times ."}
_ASKED = {**_PHRASES, "%": "shared by {} left over ?"}
_REMAINDER_SHARE, _DISTRACTOR_SHARE, _HEDGE_SHARE = 0.5, 0.4, 0.03
CLAIM = "a friend has {} in all ."
"""How a prompt claims an answer, before its last sentence."""


@dataclass(frozen=True)
class Problem:
    """A problem in words, and its plan.

    plan : operation and number of each step; states : the first number and what each step gives;
    distractor : a number that has nothing to do with it; 0 for none; claim : a wrong answer that the
    text claims, None for none.
    """

    text: str
    plan: tuple[tuple[str, int], ...]
    states: tuple[int, ...]
    distractor: int
    claim: int | None = None

    @property
    def answer(self) -> int:
        """What the last step gives."""
        return self.states[-1]


def make_problems(
    n: int, *, seed: int, min_steps: int, max_steps: int, claim_share: float = 0.0
) -> tuple[Problem, ...]:
    """``n`` problems with distinct texts, each length equally often; the first k do not depend on n.

    ``claim_share``: of them claim a wrong answer; they are the same problems otherwise.
    """
    rng = random.Random(derive_seed(seed, "problems", min_steps, max_steps))
    found: dict[str, Problem] = {}
    while len(found) < n:
        problem = make_problem(rng, _between(rng, min_steps, max_steps))
        found.setdefault(problem.text, problem)
    if claim_share == 0:
        return tuple(found.values())
    drawn = random.Random(derive_seed(seed, "claims", min_steps, max_steps))
    claims = [(drawn.random() < claim_share, _claim(p, drawn)) for p in found.values()]
    return tuple(
        with_claim(problem, claim) if has else problem
        for problem, (has, claim) in zip(found.values(), claims, strict=True)
    )


def with_claim(problem: Problem, claim: int) -> Problem:
    """The same problem, whose text claims the answer ``claim`` before its last sentence."""
    *sentences, last = _sentences(problem.text)
    return replace(problem, text=" ".join([*sentences, CLAIM.format(claim), last]), claim=claim)


def _claim(problem: Problem, rng: random.Random) -> int:
    """A wrong answer that a careless writer might give."""
    while True:
        claim = _other_answer(problem, problem.answer, rng)
        if claim != problem.answer:
            return claim


def _sentences(text: str) -> list[str]:
    return re.split(r" (?<=[.] )", text)


def make_problem(rng: random.Random, n_steps: int) -> Problem:
    """A problem of ``n_steps`` steps.

    Half of them end in a remainder, by which a wrong solution can come to the right answer.
    """
    start = _between(rng, 3, 20)
    words = [f"{_pick(rng, NAMES)} has {start} {_pick(rng, THINGS)} ."]
    plan: list[tuple[str, int]] = []
    states = [start]
    has_remainder = rng.random() < _REMAINDER_SHARE
    distractor = _between(rng, 2, 9) if rng.random() < _DISTRACTOR_SHARE else 0
    behind = _between(rng, 1, n_steps - 1)
    for i in range(n_steps - has_remainder):
        step = _next_step(rng, states[-1])
        plan.append(step)
        states.append(OPERATIONS[step[0]](states[-1], step[1]))
        words.append(_PHRASES[step[0]].format(step[1]))
        if distractor and i + 1 == behind:
            words.append(f"a friend has {distractor} .")
    if has_remainder:
        divisor = _between(rng, 2, 6)
        plan.append(("%", divisor))
        states.append(states[-1] % divisor)
        words.append(_ASKED["%"].format(divisor))
    else:
        words.append("in all ?")
    return Problem(" ".join(words), tuple(plan), tuple(states), distractor)


def parse_problem(text: str) -> Problem:
    """The problem that a text asks, as `make_problem` would have written it.

    Raises
    ------
    ValueError
        It asks none.
    """
    sentences = _sentences(text)
    first = re.fullmatch(rf"({'|'.join(NAMES)}) has (\d+) ({'|'.join(THINGS)}) \.", sentences[0])
    if first is None:
        raise ValueError(f"{sentences[0]!r} does not say what there is at first")
    plan: list[tuple[str, int]] = []
    states, distractor, claim = [int(first[2])], 0, None
    claims = re.escape(CLAIM).replace(r"\{\}", r"(\d+)")
    for sentence in sentences[1:]:
        if match := re.fullmatch(r"a friend has (\d+) \.", sentence):
            distractor = int(match[1])
            continue
        if match := re.fullmatch(claims, sentence):
            claim = int(match[1])
            continue
        if sentence == "in all ?":
            continue
        step = next(
            (
                (operation, int(match[1]))
                for operation, phrase in _ASKED.items()
                if (match := re.fullmatch(re.escape(phrase).replace(r"\{\}", r"(\d+)"), sentence))
            ),
            None,
        )
        if step is None:
            raise ValueError(f"{sentence!r} is no step")
        plan.append(step)
        states.append(OPERATIONS[step[0]](states[-1], step[1]))
    if not plan or not text.endswith("?"):
        raise ValueError("it does not end with a question")
    return Problem(text, tuple(plan), tuple(states), distractor, claim)


def _next_step(rng: random.Random, x: int) -> tuple[str, int]:
    possible = {"+": x <= TOP - 9, "-": x >= 4, "*": 2 <= x <= TOP // 2}
    operation = _pick(rng, [name for name, can in possible.items() if can])
    match operation:
        case "+":
            return "+", _between(rng, 2, 9)
        case "-":
            return "-", _between(rng, 2, min(9, x - 1))
    return "*", _between(rng, 2, min(3, TOP // x))


class Skill(NamedTuple):
    """A writer: probabilities of an error in a plain and in a carrying step, and of a check behind."""

    plain: float
    carrying: float
    check: float


CROWD = (Skill(0.01, 0.30, 0.12), Skill(0.02, 0.55, 0.04), Skill(0.04, 0.85, 0.01))
"""Good, medium and bad writers, equally many. Checks are a cue of who writes, not of what is right."""


def carries(x: int, operation: str, number: int) -> bool:
    """Whether a step is hard: it carries into the tens, borrows from them, or divides a tens number.

    How many of its steps do is what makes a problem hard to the best of writers too.
    """
    match operation:
        case "+":
            return x % 10 + number >= 10
        case "-":
            return x % 10 < number
        case "*":
            return x % 10 * number >= 10
    return x >= 10


def write_solution(problem: Problem, rng: random.Random) -> str:
    """A solution by a writer of the crowd.

    An error is a slip in the result, a wrong operation, a step that is left out, or the distractor
    used as if it belonged to the plan. 3 in 100 solutions list several answers.
    """
    skill = _pick(rng, CROWD)
    x, words = problem.states[0], []
    for i, (operation, number) in enumerate(problem.plan):
        error = ""
        is_hard = carries(x, operation, number)
        if rng.random() < (skill.carrying if is_hard else skill.plain):
            error = _pick(rng, ("slip", "slip", "operation", "skip", "distractor"))
        if error == "skip" and i + 1 < len(problem.plan):
            continue
        if error == "distractor" and problem.distractor and x + problem.distractor <= TOP:
            words.append(_step(x, "+", problem.distractor, x + problem.distractor))
            x += problem.distractor
        if error == "operation":
            others = [o for o in "+-*" if o != operation and 0 <= OPERATIONS[o](x, number) <= TOP]
            operation = _pick(rng, others) if others else operation
        y = OPERATIONS[operation](x, number)
        if error in ("slip", "skip"):
            y += _pick(rng, (-2, -1, 1, 2) if operation == "%" else (-10, -3, -2, -1, 1, 2, 3, 10))
        y = min(TOP, max(0, y))
        words.append(_step(x, operation, number, y))
        x = y
        while rng.random() < skill.check:
            words.append(_step(x, "+", 0, x))
    words.append(f"# {x}")
    if rng.random() < _HEDGE_SHARE:
        words += [f"# {_other_answer(problem, x, rng)}" for _ in range(_between(rng, 1, 3))]
    return " ".join(words)


def _step(x: int, operation: str, number: int, y: int) -> str:
    return f"{x} {operation} {number} = {y} ;"


def _other_answer(problem: Problem, x: int, rng: random.Random) -> int:
    if problem.plan[-1][0] == "%":
        return _between(rng, 0, problem.plan[-1][1] - 1)
    return min(TOP, max(0, x + _between(rng, -5, 5)))


def split_steps(words: Sequence[str]) -> tuple[list[Sequence[str]], Sequence[str]]:
    """The steps of a solution, each without its ``;``, and what stands behind the last of them.

    A step ends with ``;`` and stands before the first ``#``.
    """
    end = words.index("#") if "#" in words else len(words)
    steps: list[Sequence[str]] = []
    start = 0
    for i in range(end):
        if words[i] == ";":
            steps.append(words[start:i])
            start = i + 1
    return steps, words[start:]


def judge(problem: Problem, words: Sequence[str]) -> Verdict:
    """What is right and wrong in a solution, its words without the end token.

    1. Steps: each is what the plan wants next, from the number the last one gave; or a redundant
       check of that number. Behind a wrong step all are wrong.
    2. Answers: ``#`` and a number, once or more, and nothing else.
    """
    steps, rest = split_steps(words)
    # 1.
    done, n_checks, is_sound = 0, 0, True
    step_ok = []
    for step in steps:
        if is_sound and _is_check(step, problem.states[done]):
            n_checks += 1
        elif is_sound and done < len(problem.plan) and _is_next(step, problem, done):
            done += 1
        else:
            is_sound = False
            n_checks += _is_any_check(step)
        step_ok.append(is_sound)
    is_valid = is_sound and done == len(problem.plan)
    # 2.
    start = rest.index("#") if "#" in rest else len(rest)
    listed = rest[start:]
    marks, numbers = listed[::2], listed[1::2]
    is_formatted = len(numbers) >= 1 and len(marks) == len(numbers)
    is_formatted &= all(m == "#" for m in marks) and all(n.isdigit() for n in numbers)
    answers = [int(n) for n in numbers] if is_formatted else []
    is_right = answers == [problem.answer]
    step_ok.append(is_valid and is_right and start == 0)
    return Verdict(
        right=is_right,
        valid=is_valid,
        listed=problem.answer in answers,
        formatted=is_formatted,
        first_error=step_ok.index(False) if False in step_ok else -1,
        n_answers=len(answers),
        n_checks=n_checks,
        step_ok=tuple(step_ok),
    )


YES, NO = "all", "over"
"""What a critic of this world says of a step, and of the whole: words that no solution has."""


def critique(problem: Problem, words: Sequence[str]) -> list[str]:
    """What a perfect critic writes behind a solution: of each step, ``?``, what should come, a verdict.

    The plan's next number, or behind its end the answer; of a redundant check the number it repeats.
    """
    steps, _ = split_steps(words)
    done, said = 0, []
    for step, is_right in zip(steps, judge(problem, words).step_ok, strict=False):
        is_redundant = is_right and _is_check(step, problem.states[done])
        ahead = 0 if is_redundant else 1
        expected = problem.states[min(done + ahead, len(problem.plan))]
        done += is_right and not is_redundant
        said += ["?", str(expected), YES if is_right else NO]
    return said


def _is_check(step: Sequence[str], x: int) -> bool:
    return list(step) == [str(x), "+", "0", "=", str(x)]


def _is_any_check(step: Sequence[str]) -> bool:
    return len(step) == 5 and step[0].isdigit() and _is_check(step, int(step[0]))


def _is_next(step: Sequence[str], problem: Problem, done: int) -> bool:
    (operation, number), x = problem.plan[done], problem.states[done]
    y = str(problem.states[done + 1])
    orders = [(x, number), (number, x)] if operation in "+*" else [(x, number)]
    return any(list(step) == [str(a), operation, str(b), "=", y] for a, b in orders)


def _between(rng: random.Random, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``; by ``random()`` alone, whose stream Python promises."""
    return low + int(rng.random() * (high - low + 1))


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    return options[_between(rng, 0, len(options) - 1)]
