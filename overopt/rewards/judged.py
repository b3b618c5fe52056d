"""What reward models have in common that learn from the verdicts of the world's judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from overopt.base.config import require
from overopt.rewards.fitted import Fitted


@dataclass(frozen=True, kw_only=True)
class Judged(Fitted):
    """Heads on a backbone, fitted to what the judge says of the comparisons' responses.

    Backbone, training and seed are those of `Fitted`.
    """

    backbone: str = "ladder:sums-0.2m"
    lr: float = 1e-3

    @property
    def needs_judge(self) -> bool:
        """The labels."""
        return True

    @property
    def reads_comparisons(self) -> bool:
        """It learns from the judge, not from gold."""
        return False


@dataclass(frozen=True, kw_only=True)
class Verifying(Judged):
    """Heads that say of single responses whether something holds.

    Backbone, training and seed are those of `Fitted`.

    Attributes
    ----------
    loss : "pointwise" or "within_prompt"
        Cross-entropy of each response; or Bradley-Terry on all pairs of a right and a wrong response
        to the same prompt.
    flip_rate : float
        Probability in [0, 0.5) that a response's label is inverted.
    batch_prompts : int
        Prompts a step.
    """

    loss: Literal["pointwise", "within_prompt"] = "pointwise"
    flip_rate: float = 0.0
    batch_prompts: int = 16

    def __post_init__(self) -> None:
        Judged.__post_init__(self)
        require(self.batch_prompts >= 1, "proxy.batch_prompts", self.batch_prompts, "at least 1")
        require(
            0 <= self.flip_rate < 0.5,
            "proxy.flip_rate",
            self.flip_rate,
            "must be in [0, 0.5): at 0.5 labels carry nothing, above it they are inverted",
        )

    @property
    def treated(self) -> str:
        """Size, loss and flips, for titles."""
        within = " within prompt" if self.loss == "within_prompt" else ""
        return self.size + within + (f" flips {self.flip_rate:g}" if self.flip_rate else "")
