"""What a benchmark asks of a model, and what a model makes of it.

A benchmark turns its rows into questions: a dialogue, and responses to it. A model gives each response
a score, or, as a judge that reads all of them at once, picks one. Neither needs to know of the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Turn(NamedTuple):
    """One message: who says what. role is "system", "user" or "assistant"."""

    role: str
    content: str


Dialogue = tuple[Turn, ...]
"""The messages before the response."""


class Question(NamedTuple):
    """A dialogue and the responses that are to be told apart.

    steps : of each response, the steps that it consists of, for benchmarks that ask where it goes
        wrong; its text is then its steps, joined by ``joint``. Empty elsewhere.
    """

    dialogue: Dialogue
    responses: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...] = ()
    joint: str = "\n\n"

    @property
    def prompt(self) -> str:
        """The dialogue as one text: a single message as it stands, several with who says them."""
        if len(self.dialogue) == 1:
            return self.dialogue[0].content
        named = {"system": "", "user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
        return "".join(f"{named[turn.role]}{turn.content}" for turn in self.dialogue)


@dataclass(frozen=True)
class Outcome:
    """What a model made of Q questions.

    Attributes
    ----------
    scores : list of (R,) float64, or None
        A score for each response of each question; of a generative judge its ratings, -1 where it
        gave none.
    choices : list of int, or None
        For each question the number of the response that a judge picked, -1 where it picked none.
    places : list of int, or None
        Where that response stood among those that the judge saw, from 0, -1 where it picked none.
    first_errors : list of int, or None
        For each question the step at which its first response goes wrong, -1 for none, -2 where the
        model did not say.
    is_judge : bool
        Scores are a generative judge's ratings: -1 is no rating.
    cost : dict
        What it took: ``responses``, ``tokens``, ``cpu_s``, ``wall_s``.
    """

    scores: list[NDArray[np.float64]] | None = None
    choices: list[int] | None = None
    places: list[int] | None = None
    first_errors: list[int] | None = None
    is_judge: bool = False
    cost: dict[str, float] = field(default_factory=dict)
