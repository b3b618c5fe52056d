"""Whether a solution in plain text is right: its answer by a checker, its steps by their arithmetic.

No model and no code is run: an answer is found by its mark (``####``, ``\\boxed{}``, "the answer is"),
or is the last number, and a step holds if every equation in it does. Text that says the right thing
without numbers is not understood; a checker of one's own (`overopt.worlds.problems`) can do better.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_NUMBER = re.compile(rf"(?<![\w.])[-−]?\$?{_PLAIN}")
_MARK = re.compile(r"####|\\boxed\{|\banswer is\b", re.IGNORECASE)
_LINE = re.compile(r"####[ \t]*([^\n]*)")
_SIDE = rf"[-−(\s]{{0,8}}\$?{_PLAIN}[)\s]{{0,8}}"  # bounded, so that no text takes long
_EQUATION = re.compile(
    rf"(?<![\w.,/*×÷+])({_SIDE}(?:[-+*/x×÷−]{_SIDE})+)=\s*([-−]?\s*\$?{_PLAIN})(?![\w%])"
)
_OPERATIONS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LONGEST = 200  # characters of an equation's left side that are worked out


class Found(NamedTuple):
    """What a checker says. right : there is one answer, and it is right; listed : the right one is
    among those given; n : answers given that differ.
    """

    right: bool
    listed: bool
    n: int


Checker = Callable[[str, str, str], Found]
"""``checker(prompt, response, answer)``."""


def numeric(prompt: str, response: str, answer: str) -> Found:
    """Numbers that are marked as the answer, or the last number; equal to one in a million."""
    del prompt
    wanted = last_number(answer)
    assert wanted is not None  # the file was checked
    given = numbers_given(response)
    hits = [abs(x - wanted) <= Fraction(1, 10**6) * max(Fraction(1), abs(wanted)) for x in given]
    return Found(len(given) == 1 and all(hits), any(hits), len(given))


def exact(prompt: str, response: str, answer: str) -> Found:
    """What stands behind ``####``, or the whole response; case, spaces and a full stop are passed by."""
    del prompt
    given = texts_given(response)
    hits = [text == plain(answer) for text in given]
    return Found(len(given) == 1 and all(hits), any(hits), len(given))


def pattern(prompt: str, response: str, answer: str) -> Found:
    """The answer is a regular expression, which is to be found in the response."""
    del prompt
    is_right = re.search(answer, response) is not None
    return Found(is_right, is_right, int(bool(response.strip())))


CHECKERS: dict[str, Checker] = {"numeric": numeric, "exact": exact, "pattern": pattern}


def plain(text: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.split()).casefold().removesuffix(".")


def value(number: str) -> Fraction:
    """A number as `_NUMBER` finds it."""
    return Fraction(re.sub(r"[$,\s]", "", number).replace("−", "-"))


def last_number(text: str) -> Fraction | None:
    """The last number of a text, if it has one."""
    found = _NUMBER.findall(text)
    return value(found[-1]) if found else None


def numbers_given(response: str) -> list[Fraction]:
    """The first number behind each mark, each once; without a mark the last number of the text."""
    behind = [text.lstrip().partition("\n")[0] for text in _MARK.split(response)[1:]]
    marked = [value(found[0]) for text in behind if (found := _NUMBER.findall(text))]
    if marked:
        return list(dict.fromkeys(marked))
    last = last_number(response)
    return [] if last is None else [last]


def texts_given(response: str) -> list[str]:
    """What stands behind each ``####``, `plain`, each once; without a mark the whole response."""
    marked = [plain(text) for text in _LINE.findall(response)] or [plain(response)]
    return [text for text in dict.fromkeys(marked) if text]


def equations(text: str) -> Iterator[tuple[str, str]]:
    """Both sides of every ``expression = number`` in a text, the expression with an operation in it."""
    for found in _EQUATION.finditer(text):
        yield found[1], found[2]


def holds(left: str, right: str) -> bool:
    """Whether an equation is right; a number with decimals to half of its last digit."""
    try:
        worked = _worked_out(left)
    except (SyntaxError, ZeroDivisionError, RecursionError):
        return False
    decimals = len(right.partition(".")[2])
    return abs(worked - value(right)) <= (Fraction(1, 2 * 10**decimals) if decimals else 0)


def _worked_out(expression: str) -> Fraction:
    if len(expression) > _LONGEST:
        raise SyntaxError("too long")
    text = re.sub(r"[$,\s]", "", expression).translate(str.maketrans("x×÷−", "**/-"))
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)  # Python reads no leading zeros

    def of(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(ast.get_source_segment(text, node) or "")
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -of(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            return _OPERATIONS[type(node.op)](of(node.left), of(node.right))
        raise SyntaxError(f"{text!r} is no sum")

    return of(ast.parse(text, mode="eval").body)


def result(step: str) -> Fraction | None:
    """What a step comes to: the right side of its last equation, or its last number."""
    sides = [right for _, right in equations(step)]
    return value(sides[-1]) if sides else last_number(step)


def steps_hold(steps: Sequence[str]) -> list[bool]:
    """Of each step, whether every equation in it and in those before it is right."""
    so_far, found = True, []
    for step in steps:
        so_far = so_far and all(holds(left, right) for left, right in equations(step))
        found.append(so_far)
    return found


def none_is_missing(response: str, steps: Sequence[str]) -> bool:
    """Whether what each of the given steps comes to stands somewhere in the response."""
    said = {value(number) for number in _NUMBER.findall(response)}
    return all(x is None or x in said for x in map(result, steps))


def first_correction(steps: Sequence[str]) -> list[str]:
    """A sentence about the first wrong equation of a solution, or nothing."""
    for step in steps:
        for left, right in equations(step):
            if not holds(left, right):
                return [f"{left.strip()} is {_shown(left)}, not {right.strip()}."]
    return []


def _shown(expression: str) -> str:
    try:
        worked = _worked_out(expression)
    except (SyntaxError, ZeroDivisionError, RecursionError):
        return "no number"
    return str(worked) if worked.denominator == 1 else f"{float(worked):g}"
