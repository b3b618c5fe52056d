"""What every environment gives: whole trajectories of many action sequences at once."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Trajectories(NamedTuple):
    """R trajectories of at most H steps, zeros behind the end of one.

    observations : (R, H, O) float32, of the order of 1, before the action of the step.
    actions : (R, H, A) float32 in [−1, 1], as they were carried out.
    reward : (R, H) float64, the human's: gold.
    length : (R,) int64, steps until the trajectory ended.
    """

    observations: np.ndarray
    actions: np.ndarray
    reward: np.ndarray
    length: np.ndarray

    @property
    def features(self) -> np.ndarray:
        """What a reward model reads of each step, (R, H, O + A) float32."""
        return np.concatenate([self.observations, self.actions], 2)

    @property
    def mask(self) -> np.ndarray:
        """(R, H) bool: the steps that were made."""
        return np.arange(self.reward.shape[1]) < self.length[:, None]

    @property
    def gold(self) -> np.ndarray:
        """Return (R,) by the human's reward."""
        return self.reward.sum(1)


class Environment(Protocol):
    """An environment; actions are in half ranges around the middle of what it allows."""

    n_actions: int

    def starts(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """``n`` initial states (n, …), in a form of the environment's own."""
        ...

    def roll_out(self, starts: np.ndarray, actions: np.ndarray) -> Trajectories:
        """Trajectories of action sequences (R, H, A) from ``starts`` (R, …); actions are clipped."""
        ...
