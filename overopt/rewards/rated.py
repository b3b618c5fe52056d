"""What reward models have in common that learn from ratings of several attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from overopt.base.config import require
from overopt.rewards.judged import Judged

Attribute = Literal["right", "valid", "listed", "formatted", "checks", "answers", "steps", "tokens"]


@dataclass(frozen=True, kw_only=True)
class Rated(Judged):
    """Attributes of responses that the judge rates, and the noise of raters.

    Backbone, training and seed are those of `Fitted`.

    Attributes
    ----------
    attributes : tuple of str
        Whether the answer is right, the steps are valid, the right answer is listed, there is an
        answer; numbers of redundant checks, answers, steps and tokens.
    noise : float
        Standard deviation of what raters add to each rating, in standard deviations of the ratings.
    batch_prompts : int
        Prompts a step.
    """

    attributes: tuple[Attribute, ...] = ("right", "valid", "checks", "tokens")
    noise: float = 0.0
    batch_prompts: int = 16

    def __post_init__(self) -> None:
        Judged.__post_init__(self)
        require(self.batch_prompts >= 1, "proxy.batch_prompts", self.batch_prompts, "at least 1")
        require(self.noise >= 0, "proxy.noise", self.noise, "must be at least 0")
        require(
            len(set(self.attributes)) == len(self.attributes) > 0,
            "proxy.attributes",
            self.attributes,
            "name at least one, each once",
        )
