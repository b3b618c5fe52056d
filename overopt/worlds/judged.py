"""What worlds with a judge of right and wrong have in common: their intent is the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from overopt.worlds.world import World

if TYPE_CHECKING:
    from overopt.base.datatypes import Responses


class JudgedWorld(World):
    """A world whose intent is the right answer.

    wants : "right", or "right_and_valid" for the right answer by right steps.
    """

    wants: str

    def calibrate(self, base: Responses) -> dict[str, Any]:
        """What is wanted, and its mean and standard deviation under the initial policy."""
        wanted = self._wanted(base)
        return {
            "wants": self.wants,
            "mean": float(wanted.mean()),
            "std": float(wanted.std()) or 1.0,
        }

    def intent(self, spec: dict[str, Any], responses: Responses) -> np.ndarray:
        """Scores (R,): two values, for what is wanted and what is not."""
        return (self._wanted(responses) - spec["mean"]) / spec["std"]

    def _wanted(self, responses: Responses) -> np.ndarray:
        is_strict = self.wants == "right_and_valid"
        found = self.verdicts(responses)
        return np.array([v.right and (v.valid or not is_strict) for v in found], dtype=np.float64)
