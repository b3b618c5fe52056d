"""What a benchmark scores: a reward model of any make, by what it makes of questions.

A kind of model is one file in ``models/`` (or a user's own) that defines

    Settings                        what can be set; inherit `ModelSettings`
    load(settings, device) -> Model the model, ready to answer

This file is read before anything is computed, so it does not import torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from overopt.base.errors import ConfigError
from overopt.base.kinds import Kind, kind_of
from overopt.evals.benchmark import BenchmarkSettings
from overopt.evals.question import Outcome, Question


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What all kinds of models have.

    Attributes
    ----------
    source : str
        The checkpoint or artefact.
    name : str
        What results call the model; empty: its source.
    threshold : float
        For benchmarks that ask where a solution goes wrong: a step is held for wrong where the score,
        which is a log-odds for most models, is below.
    """

    source: str = ""
    name: str = ""
    threshold: float = 0.0

    @property
    def title(self) -> str:
        """What results call the model."""
        return self.name or self.source


AnyModel = Annotated[ModelSettings, Kind("overopt.evals.models", "classifier", needs=("load",))]
"""A setting that holds the settings of one kind of model."""


class Answers(NamedTuple):
    """An outcome without its cost, and the tokens read or written for it."""

    outcome: Outcome
    n_tokens: int


class Model(Protocol):
    """A model that answers questions."""

    @property
    def sizes(self) -> dict[str, int]:
        """``n_params`` and ``n_params_total``."""
        ...

    def answer(self, questions: Sequence[Question]) -> Answers:
        """Scores of all responses, or a choice among those of each question."""
        ...

    def first_errors(self, questions: Sequence[Question], threshold: float) -> Answers:
        """The first wrong step of the one response of each question, -1 for none.

        As long as a model has no way of its own, each beginning of a solution is scored, up to the end
        of a step: the first whose score is below the threshold ends with the wrong step.
        """
        beginnings = [
            q._replace(
                responses=tuple(q.joint.join(q.steps[0][: k + 1]) for k in range(len(q.steps[0]))),
                steps=(),
            )
            for q in questions
        ]
        found = self.answer(beginnings)
        if found.outcome.scores is None:
            raise ConfigError(
                "this judge picks a response and cannot say where one goes wrong: give a template with"
                " {problem} and {tagged_response}"
            )
        errors = [first_below(scores, threshold) for scores in found.outcome.scores]
        return Answers(Outcome(first_errors=errors), found.n_tokens)


def first_below(scores: NDArray[np.float64], threshold: float) -> int:
    """The first score that is not at least ``threshold``, -1 for none. What is no number is below."""
    is_below = ~(scores >= threshold)
    return int(is_below.argmax()) if is_below.any() else -1


def ask(
    model: Model, settings: ModelSettings, benchmark: BenchmarkSettings, questions: list[Question]
) -> Outcome:
    """What ``model`` makes of the questions, and what it took."""
    start, start_cpu = time.perf_counter(), time.process_time()
    if benchmark.asks_for_steps:
        found = model.first_errors(questions, settings.threshold)
    else:
        found = model.answer(questions)
    if benchmark.needs_scores and found.outcome.scores is None:
        raise ConfigError(
            "this benchmark needs a score of each response, and the judge picks one: give a template"
            " with {prompt} and {response}"
        )
    cost = {
        "responses": float(sum(len(q.responses) for q in questions)),
        "tokens": float(found.n_tokens),
        "cpu_s": time.process_time() - start_cpu,
        "wall_s": time.perf_counter() - start,
    }
    return replace(found.outcome, cost=cost)


def per_thousand(cost: dict[str, float]) -> dict[str, float]:
    """What 1,000 responses take: tokens, CPU seconds, seconds."""
    n = cost["responses"]
    return {
        name: 1000 * cost[name] / n if n else math.nan for name in ("tokens", "cpu_s", "wall_s")
    }


def grouped(values: Any, questions: Sequence[Question]) -> list[NDArray[np.float64]]:
    """Scores of all responses in a row, (R,), as one array for each question."""
    ends = np.cumsum([len(q.responses) for q in questions])[:-1]
    return np.split(np.asarray(values, dtype=np.float64), ends)


def flat(questions: Sequence[Question], make: Callable[[Question, str], Any]) -> list[Any]:
    """``make(question, response)`` of every response of every question, in order."""
    return [make(q, response) for q in questions for response in q.responses]


def describe(settings: ModelSettings) -> str:
    """Kind and source, for results."""
    return f"{kind_of(settings)} {settings.source}"
