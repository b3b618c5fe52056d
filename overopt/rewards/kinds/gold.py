"""Gold as its own proxy: the perfect one, for tests of the pipe and as the upper bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from overopt.rewards.kind import Job, RewardSettings, Trained


@dataclass(frozen=True, kw_only=True)
class Settings(RewardSettings):
    """The gold model itself as the proxy; nothing can be set."""

    @property
    def serves(self) -> tuple[str, ...]:
        """A proxy only."""
        return ("proxy",)

    @property
    def needs_gold(self) -> bool:
        """It is nothing else."""
        return True

    @property
    def columns(self) -> dict[str, Any]:
        """Record columns."""
        return {"backbone": "gold", "rm_seed": 0, "length_control": 0.0, "proxy_lr": None}


def train(settings: Settings, job: Job) -> Trained:
    """Gold, with the zero and unit that it has."""
    assert job.gold is not None
    return Trained(job.gold(), is_final=True)
