"""The world's own intent as a scorer: what is wanted, exactly, with no model in between."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overopt.base import files
from overopt.base.errors import StoreError
from overopt.base.lazy import lazy
from overopt.rewards.kind import Job, Place, RewardSettings, Scorer, Trained, Unit
from overopt.worlds.world import World

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from overopt.base.datatypes import Responses
else:
    torch = lazy("torch")


@dataclass(frozen=True, kw_only=True)
class Settings(RewardSettings):
    """The world's own intent, such as the rubric of stories; nothing can be set."""

    @property
    def needs_intent(self) -> bool:
        """It is nothing else."""
        return True


@dataclass(frozen=True)
class RubricScorer(Scorer):
    """A world's intent behind the interface of scorers. ``spec``: what the world calibrated."""

    spec: dict[str, Any]
    world: World

    @property
    def unit(self) -> Unit:
        """An intent is standardised as it is."""
        return Unit(0.0, 1.0)

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Nothing but its name: the intent is the calibration's."""
        files.save_json(folder / "scorer.json", info | {"kind": "rubric"})

    def score(self, responses: Responses) -> Tensor:
        """Scores (R,) float32: mean 0, standard deviation 1 under the initial policy."""
        return torch.as_tensor(self.world.intent(self.spec, responses)).float()


def calibrated(calibration: Path) -> dict[str, Any] | None:
    """What the world knows of the initial policy, from a calibration artefact; None: no intent."""
    for name in ("intent.json", "rubric.json"):  # the second: of older artefacts
        if (calibration / name).is_file():
            return files.load_json(calibration / name)
    return None


def load(folder: Path, info: dict[str, Any], place: Place) -> RubricScorer:
    """The intent of the place's world."""
    spec = calibrated(place.calibration)
    if spec is None:
        raise StoreError(f"{place.calibration}: has no intent, and {folder} scores by it")
    return RubricScorer(spec, place.world.on(place.device))


def train(settings: Settings, job: Job) -> Trained:
    """The scorer itself."""
    return Trained(load(Path(), {}, job.place), is_final=True)
