"""A reward model as a filter of data: the score of each example, for whoever keeps the best of them.

Any model that `overopt eval` scores can filter: a classifier, a policy, a judge with ratings, or the
artefact of a store.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from overopt.base.errors import ConfigError, DataError
from overopt.base.kinds import module_of
from overopt.evals.model import ModelSettings
from overopt.evals.question import Question, Turn
from overopt.evals.run import configure


def settings_of(source: str, overrides: Sequence[str]) -> ModelSettings:
    """The settings of a reward model that filters; ``overrides`` such as ``kind=policy``.

    Raises
    ------
    ConfigError, CheckpointError
        The source is none, or a setting is wrong; nothing was loaded.
    """
    return configure("pairs", source, [f"model.{o}" for o in overrides]).model


def score_examples(
    settings: ModelSettings, examples: Sequence[tuple[str, str]], *, device: str = "cpu"
) -> NDArray[np.float64]:
    """Scores (R,) of prompts with a response each.

    Raises
    ------
    ConfigError
        The model picks among responses and scores none.
    DataError
        A score is not finite; names the example.
    """
    model = module_of(settings).load(settings, device)
    asked = [Question((Turn("user", prompt),), (response,)) for prompt, response in examples]
    scores = model.answer(asked).outcome.scores
    if scores is None:
        raise ConfigError(
            f"--reward {settings.title!r}: picks a response and scores none: give a template with"
            " {prompt} and {response}"
        )
    found = np.array([of[0] for of in scores])
    for i in np.flatnonzero(~np.isfinite(found))[:1]:
        raise DataError(
            f"example {i + 1}: its score by {settings.title!r} is {found[i]}: remove it, or use another"
            " reward model"
        )
    return found
