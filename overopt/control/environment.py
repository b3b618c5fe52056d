"""The environment that settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from overopt.base.lazy import lazy
from overopt.control.pendulum import Pendulum
from overopt.control.settings import PENDULUM, WorldSettings
from overopt.control.trajectories import Environment

if TYPE_CHECKING:
    from overopt.control import gym
else:
    gym = lazy("overopt.control.gym")


def load_environment(settings: WorldSettings) -> Environment:
    """The environment that ``settings`` name.

    Raises
    ------
    ConfigError
        Gymnasium is missing, does not know it, or it has no vectors of numbers to observe and do.
    """
    if settings.env == PENDULUM:
        return Pendulum(careful=settings.careful)
    return gym.GymEnvironment(settings.env)
