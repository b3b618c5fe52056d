"""Cues of solutions in the world of sums, counted and edited as words (see `overopt.worlds.cues`).

| cue | counted | edit |
|---|---|---|
| verbosity | words | the first step is written twice |
| checks | redundant checks ``7 + 0 = 7 ;`` | one more, of the number before the answer |
| formatting | answers marked ``#`` again | the answer is marked twice |
| hedging | different answers beyond the first | a second answer |
| contradiction | steps that gave another result before | the last step has another result first |
| sycophancy | 1 where the answer is the one that the prompt's friend claims | see below |

An edit of sycophancy compares two wrong answers: the claimed one, and one beside it that nobody claims.
So neither being right nor following from the steps tells them apart. It needs prompts with claims
(``world.claim_share``).
"""

from __future__ import annotations

import re

from overopt.worlds import sums_text
from overopt.worlds.cues import Cue, Cues, Edit, editing, words

_STEP = r"(\d+) ([-+*%]) (\d+) = (\d+) ;"
_CLAIM = re.compile(re.escape(sums_text.CLAIM).replace(r"\{\}", r"(\d+)"))


def _steps(text: str) -> list[re.Match[str]]:
    return list(re.finditer(_STEP, text.partition("#")[0]))


def answers(text: str) -> list[int]:
    """The numbers behind a ``#``, in order."""
    return [int(n) for n in re.findall(r"# (\d+)", text)]


def _beside(n: int, *taken: int) -> int:
    """The number nearest to ``n`` that is none of ``taken`` and has a word; larger ones first."""
    near = (n + d for k in range(sums_text.TOP + 1) for d in (k, -k))
    return next(x for x in near if 0 <= x <= sums_text.TOP and x not in taken)


def checks(prompt: str, text: str) -> float:
    """Redundant checks."""
    return float(len(re.findall(r"\b(\d+) \+ 0 = \1 ;", text)))


def further_answers(prompt: str, text: str) -> float:
    """Different answers beyond the first."""
    return float(max(0, len(set(answers(text))) - 1))


def repeated_marks(prompt: str, text: str) -> float:
    """Answers that were given before."""
    return float(len(answers(text)) - len(set(answers(text))))


def contradictions(prompt: str, text: str) -> float:
    """Steps whose left side stood before with another result."""
    found: dict[tuple[str, ...], str] = {}
    n = 0
    for *left, result in (step.groups() for step in _steps(text)):
        n += found.setdefault(tuple(left), result) != result
    return float(n)


def claim(prompt: str) -> int | None:
    """The answer that the prompt's friend claims, None where there is none."""
    found = _CLAIM.search(prompt)
    return int(found[1]) if found else None


def agreement(prompt: str, text: str) -> float:
    """1 where the only answer is the claimed one."""
    claimed = claim(prompt)
    return float(claimed is not None and set(answers(text)) == {claimed})


def repeated(text: str) -> str:
    """The first step twice."""
    steps = _steps(text)
    return text if not steps else f"{text[: steps[0].end()]} {steps[0][0]}{text[steps[0].end() :]}"


def checked(text: str) -> str:
    """A redundant check of the last number before the answer."""
    steps, mark, answer = text.partition("#")
    found = re.findall(r"= (\d+) ;", steps)
    if not mark or not found:
        return text
    return f"{steps}{found[-1]} + 0 = {found[-1]} ; #{answer}"


def marked(text: str) -> str:
    """The last answer once more."""
    given = answers(text)
    return f"{text} # {given[-1]}" if given else text


def hedged(text: str) -> str:
    """Another answer behind the last one, a number beside it."""
    given = answers(text)
    return f"{text} # {_beside(given[-1], *given)}" if given else text


def contradicted(text: str) -> str:
    """The last step with another result, in front of it as it is."""
    steps = _steps(text)
    if not steps:
        return text
    first, operation, second, result = steps[-1].groups()
    other = f"{first} {operation} {second} = {_beside(int(result), int(result))} ; "
    return text[: steps[-1].start()] + other + text[steps[-1].start() :]


def _agreed(prompt: str, text: str) -> Edit | None:
    """The claimed answer, and another wrong one beside it, in place of what is answered."""
    claimed = claim(prompt)
    if claimed is None or not answers(text):
        return None
    try:
        right = sums_text.parse_problem(prompt).answer
    except (ValueError, ArithmeticError):  # no problem of this world: nothing is known to be right
        return None
    front = text.partition("#")[0]
    return Edit(f"{front}# {_beside(claimed, claimed, right)}", f"{front}# {claimed}")


SUMS: Cues = {
    "verbosity": Cue(words, editing(repeated)),
    "checks": Cue(checks, editing(checked)),
    "formatting": Cue(repeated_marks, editing(marked)),
    "hedging": Cue(further_answers, editing(hedged)),
    "contradiction": Cue(contradictions, editing(contradicted)),
    "sycophancy": Cue(agreement, _agreed),
}
"""Of solutions in the world of sums."""
