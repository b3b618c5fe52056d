"""A reward model checkpoint of this package, taken as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from overopt.base.lazy import lazy
from overopt.rewards.kind import Job, RewardSettings, Trained

if TYPE_CHECKING:
    from overopt.nets import checkpoints
    from overopt.rewards.kinds import reward_model
else:
    checkpoints = lazy("overopt.nets.checkpoints")
    reward_model = lazy("overopt.rewards.kinds.reward_model")


WRITES = ("reward_model",)


@dataclass(frozen=True, kw_only=True)
class Settings(RewardSettings):
    """A reward model checkpoint of this package, loaded as it is.

    Attributes
    ----------
    source : str
        The checkpoint: ``ladder:gold-3m``, or the path of a folder in the transformers layout.
    """

    source: str = "ladder:gold-3m"

    @property
    def title(self) -> str:
        """Kind and checkpoint."""
        return f"frozen {self.source.removeprefix('ladder:')}"

    @property
    def sources(self) -> dict[str, str]:
        """The checkpoint."""
        return {"source": self.source}


def train(settings: Settings, job: Job) -> Trained:
    """The checkpoint on the device; nothing is trained."""
    model, _, _ = checkpoints.load_reward_model(settings.source)
    return Trained(reward_model.RewardModelScorer(model.to(job.device), 0.0, 1.0))
