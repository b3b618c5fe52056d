"""Whether a solution in plain text is right: its answer by a checker, its steps by their arithmetic.

No model and no code is run: an answer is found by its mark (``####``, ``\\boxed{}``, "the answer is"),
or is the last number, and a step holds if every equation in it does. Text that says the right thing
without numbers is not understood; a checker of one's own (`overopt.worlds.problems`) can do better.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

_N = r"(?:\d{1,3}(?:,\d{3})+|\d{1,15})(?:\.\d{1,15})?|\.\d{1,15}"
_NUMBER = re.compile(
    rf"(?<![\w.])[-−]?\$?(?:\\[dt]?frac\{{({_N})\}}\{{({_N})\}}"
    rf"|({_N})(?:[eE]([-+]?\d{{1,2}}))?(?:/({_N}))?)(?!\w)"
)
_MARK = re.compile(r"####|\\boxed\{|\banswer is\b", re.IGNORECASE)
_LINE = re.compile(r"####[ \t]*([^\n]*)")
_TOKEN = re.compile(
    rf"\$?({_N})(?![\d.]*\d)|([-+*/×÷−()])|((?<=\d)x(?=\d)|(?<=\s)x(?=\s))|(\s+)|(.)", re.DOTALL
)
_ANNOTATION = re.compile(r"<<[^<>]*>>")  # of a calculator, as in GSM8K
_MOST_TOKENS = 40  # of one side of an equation; what is longer is not read


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
    (wanted,) = numbers(answer)  # the file was checked
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


def numbers(text: str) -> list[Fraction]:
    """The numbers of a text in their order: 1,800.5, $18, .5, 1e-5, 3/4 and \\frac{3}{4} are one each.

    One of more than 15 digits is passed by, and so is a division by 0.
    """
    found = []
    for match in _NUMBER.finditer(text):
        over, under, whole, exponent, part = match.groups()
        top = _value(over or whole) * Fraction(10) ** int(exponent or 0)
        bottom = _value(under or part or "1")
        if bottom:
            is_negative = match[0][0] in "-−"
            found.append(-top / bottom if is_negative else top / bottom)
    return found


def _value(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def numbers_given(response: str) -> list[Fraction]:
    """The number behind each mark, each once; without a mark the last number of the text.

    Behind a mark it is the first of the line, or the first behind the line's last ``=``.
    """
    behind = [text.lstrip().partition("\n")[0] for text in _MARK.split(response)[1:]]
    marked = [found[0] for text in behind if (found := numbers(text.rpartition("=")[2]))]
    return list(dict.fromkeys(marked)) or numbers(response)[-1:]


def texts_given(response: str) -> list[str]:
    """What stands behind each ``####``, `plain`, each once; without a mark the whole response."""
    marked = [plain(text) for text in _LINE.findall(response)] or [plain(response)]
    return [text for text in dict.fromkeys(marked) if text]


# --- equations ------------------------------------------------------------------------------------


class Equation(NamedTuple):
    """``left = right`` as it stands in a text, and whether it is right; ``value``: of the left side."""

    left: str
    right: str
    value: Fraction | None
    holds: bool


def equations(text: str) -> Iterator[Equation]:
    """Every ``expression = expression`` of a text whose left side has an operation in it.

    Numbers, + − * / and brackets are read, a side of `_MOST_TOKENS` at most. Where a letter, a power or
    a percentage takes part, nothing is said. A number with decimals is right to half of its last
    digit. In a chain ``3 * 2 = 6 + 1 = 7`` a side may equal the first number of the next.
    """
    for line in _ANNOTATION.sub("", text).splitlines():
        sides = line.split("=")
        for i, (before, after) in enumerate(zip(sides, sides[1:], strict=False)):
            left, right = _left_of(before), _right_of(after)
            if left is None or right is None:
                continue
            try:
                worked = _worked_out(left)
            except ZeroDivisionError:
                yield Equation(_said(left), _said(right), None, False)
                continue
            is_chain = i + 2 < len(sides) and len(right) > 1
            yield Equation(_said(left), _said(right), worked, _equals(worked, right, is_chain))


def _equals(worked: Fraction, right: list[str], is_chain: bool) -> bool:
    if len(right) == 1 or (is_chain and right[0] not in "-("):
        decimals = len(right[0].partition(".")[2])
        slack = Fraction(1, 2 * 10**decimals) if decimals else Fraction(0)
        if abs(worked - _value(right[0])) <= slack:
            return True
    try:
        return worked == _worked_out(right)
    except ZeroDivisionError:
        return False


def _tokens(text: str) -> list[str]:
    """Numbers and operators of a text; a space is "", anything else "?"."""
    found = []
    for match in _TOKEN.finditer(text):
        number, sign, times, space, _ = match.groups()
        sign = {"×": "*", "÷": "/", "−": "-"}.get(sign, sign)
        found.append(number or sign or ("*" if times else "" if space else "?"))
    return found


_ENDS_A_SENTENCE = frozenset(".,:;!\"'’”)]}>")


def _left_of(text: str) -> list[str] | None:
    """The expression with which a text ends, if it has an operation and stands for itself."""
    text = text[-8 * _MOST_TOKENS :]
    tokens = _tokens(text)
    start = len(tokens)
    while start > 0 and tokens[start - 1] != "?":
        start -= 1
    kept = [t for t in tokens[start:] if t]
    touched = start > 0 and start < len(tokens) and tokens[start] != ""
    if touched and text[: _width(text, start)][-1] not in _ENDS_A_SENTENCE | {"("}:
        return None
    cut = _behind_open_brackets(kept)
    if cut and cut[0] in ("+", "*", "/") or (cut[:1] == ["-"] and start > 0 and cut == kept):
        return None  # what stands before takes part
    if cut[:1] == ["-"] and tokens[start : start + 2] == ["-", ""] and len(cut) > 3:
        cut = cut[1:]  # the mark of a list
    has_operation = any(t in "+-*/" for t in cut[1:])
    return cut if has_operation and _is_expression(cut) else None


def _width(text: str, n: int) -> int:
    """Characters of the first ``n`` tokens."""
    matches = list(_TOKEN.finditer(text))
    return matches[n].start() if n < len(matches) else len(text)


def _behind_open_brackets(tokens: list[str]) -> list[str]:
    """What follows the last bracket that does not match, and the last pair of numbers side by side."""
    begin, depth = 0, 0
    for i in range(len(tokens) - 1, -1, -1):
        depth += (tokens[i] == ")") - (tokens[i] == "(")
        is_side_by_side = (
            i + 1 < len(tokens) and _is_number(tokens[i]) and _is_number(tokens[i + 1])
        )
        if depth < 0 or is_side_by_side:
            begin = i + 1
            break
    return tokens[begin:]


def _right_of(text: str) -> list[str] | None:
    """The expression with which a text begins, if it stands for itself."""
    text = text[: 8 * _MOST_TOKENS]
    tokens = _tokens(text)
    kept: list[str] = []
    depth, end = 0, len(tokens)
    for i, token in enumerate(tokens):
        depth += (token == "(") - (token == ")")
        is_side_by_side = _is_number(token) and bool(kept) and _is_number(kept[-1])
        if token == "?" or depth < 0 or is_side_by_side:
            end = i
            break
        kept += [token] if token else []
    while kept and kept[-1] in "+-*/(":
        kept.pop()
    is_touched = end < len(tokens) and end > 0 and tokens[end] == "?" and tokens[end - 1] != ""
    if is_touched and text[_width(text, end)] not in _ENDS_A_SENTENCE:
        return None
    return kept if kept and _is_expression(kept) else None


def _is_number(token: str) -> bool:
    return token[:1].isdigit() or token[:1] == "."


def _is_expression(tokens: list[str]) -> bool:
    """Whether numbers and operators take turns, and brackets match."""
    if len(tokens) > _MOST_TOKENS:
        return False
    wants_number, depth = True, 0
    for token in tokens:
        if wants_number and token == "-":
            continue
        if wants_number:
            if token == "(":
                depth += 1
            elif _is_number(token):
                wants_number = False
            else:
                return False
        elif token == ")":
            depth -= 1
            if depth < 0:
                return False
        elif token in ("+", "-", "*", "/"):
            wants_number = True
        else:
            return False
    return not wants_number and depth == 0


def _worked_out(tokens: Sequence[str]) -> Fraction:
    """The value of an expression; raises ZeroDivisionError."""
    left = list(tokens)

    def total() -> Fraction:
        found = product()
        while left and left[0] in "+-":
            found = found + product() if left.pop(0) == "+" else found - product()
        return found

    def product() -> Fraction:
        found = single()
        while left and left[0] in ("*", "/"):
            found = found * single() if left.pop(0) == "*" else found / single()
        return found

    def single() -> Fraction:
        token = left.pop(0)
        if token == "-":
            return -single()
        if token != "(":
            return _value(token)
        found = total()
        left.pop(0)
        return found

    return total()


def _said(tokens: Sequence[str]) -> str:
    return " ".join(tokens).replace("( ", "(").replace(" )", ")")


def result(step: str) -> Fraction | None:
    """What a step comes to: the number behind its last ``=``, or its last number."""
    behind = numbers(step.rpartition("=")[2]) if "=" in step else []
    found = behind[:1] or numbers(step)[-1:]
    return found[0] if found else None


def steps_hold(steps: Sequence[str]) -> list[bool]:
    """Of each step, whether every equation in it and in those before it is right."""
    so_far, found = True, []
    for step in steps:
        so_far = so_far and all(equation.holds for equation in equations(step))
        found.append(so_far)
    return found


def none_is_missing(response: str, steps: Sequence[str]) -> bool:
    """Whether what each of the given steps comes to stands somewhere in the response."""
    said = set(numbers(response))
    return all(x is None or x in said for x in map(result, steps))


def first_correction(steps: Sequence[str]) -> list[str]:
    """A sentence about the first wrong equation of a solution, or nothing."""
    for step in steps:
        for equation in equations(step):
            if not equation.holds:
                return [f"{equation.left} is {_shown(equation.value)}, not {equation.right}."]
    return []


def _shown(worked: Fraction | None) -> str:
    if worked is None:
        return "no number"
    return str(worked) if worked.denominator == 1 else f"{float(worked):g}"
