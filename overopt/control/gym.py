"""Any Gymnasium environment with vectors of numbers for observations and actions."""

from __future__ import annotations

from typing import Any

import numpy as np

from overopt.base.errors import ConfigError
from overopt.control.trajectories import Trajectories

MAX_START = 2**31


class GymEnvironment:
    """One environment, run trajectory by trajectory.

    An initial state is the seed of a reset: the same seed gives the same state. Observations are
    divided by their largest value where the environment tells it, and left as they are elsewhere.
    Gold is the environment's own reward. A trajectory ends where the environment says so.
    """

    def __init__(self, name: str, render: bool = False) -> None:
        self._env = _made(name, render)
        actions, seen = self._env.action_space, self._env.observation_space
        for what, space in (("actions", actions), ("observations", seen)):
            if type(space).__name__ != "Box" or len(space.shape) != 1:
                raise ConfigError(
                    f"world.env = {name!r}: its {what} are {space}, and a Gaussian policy needs vectors"
                    " of numbers: use an environment whose spaces are Box(n), such as"
                    " MountainCarContinuous-v0"
                )
        if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
            raise ConfigError(
                f"world.env = {name!r}: its actions {actions} have no bounds to take a middle and a half"
                " range from: use another environment"
            )
        self.n_actions = actions.shape[0]
        self._middle = (actions.high + actions.low) / 2
        self._half = (actions.high - actions.low) / 2
        largest = np.maximum(np.abs(seen.low), np.abs(seen.high))
        self._scale = np.where(largest < 1e6, np.maximum(largest, 1e-6), 1.0)

    def starts(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Seeds (n, 1) int64 of resets."""
        return rng.integers(0, MAX_START, (n, 1))

    def roll_out(self, starts: np.ndarray, actions: np.ndarray) -> Trajectories:
        """Trajectories of actions (R, H, A) in half ranges, from resets with the seeds ``starts``."""
        n_rows, horizon, _ = actions.shape
        done = np.zeros(actions.shape, np.float32)
        seen = np.zeros((n_rows, horizon, len(self._scale)), np.float32)
        reward, length = np.zeros((n_rows, horizon)), np.full(n_rows, horizon)
        for row in range(n_rows):
            observed, _ = self._env.reset(seed=int(starts[row, 0]))
            for t in range(horizon):
                seen[row, t] = observed / self._scale
                done[row, t] = np.clip(actions[row, t], -1, 1)
                action = (self._middle + self._half * done[row, t]).astype(np.float32)
                observed, reward[row, t], ended, cut, _ = self._env.step(action)
                if ended or cut:
                    length[row] = t + 1
                    break
        return Trajectories(seen, done, reward, length)

    def frames(self, start: np.ndarray, actions: np.ndarray) -> list[np.ndarray]:
        """Pictures (h, w, 3) uint8 before each of the actions (H, A); needs ``render``."""
        self._env.reset(seed=int(start[0]))
        pictures = []
        for action in actions:
            pictures.append(np.asarray(self._env.render(), np.uint8))
            carried_out = self._middle + self._half * np.clip(action, -1, 1)
            _, _, ended, cut, _ = self._env.step(carried_out.astype(np.float32))
            if ended or cut:
                break
        return pictures


def pictures(name: str, start: np.ndarray, actions: np.ndarray, n: int) -> np.ndarray | None:
    """``n`` pictures (K, n, h, w, 3) uint8, evenly spaced, of each of K trajectories (K, H, A).

    None where the environment cannot be drawn: that needs packages of its own.
    """
    try:
        env = GymEnvironment(name, render=True)
        drawn = [env.frames(start, one) for one in actions]
    except Exception:  # whatever a missing screen or package raises: a picture is no result
        return None
    return np.stack(
        [np.stack([p[i] for i in np.linspace(0, len(p) - 1, n).round().astype(int)]) for p in drawn]
    )


def _made(name: str, render: bool) -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise ConfigError(
            f"world.env = {name!r}: needs the package gymnasium: install overopt[control], or use"
            " world.env=pendulum"
        ) from error
    try:
        return gymnasium.make(name, render_mode="rgb_array" if render else None)
    except Exception as error:  # its own errors, and those of what an environment is built on
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"world.env = {name!r}: Gymnasium cannot make it ({reason}): use the name of an installed"
            " environment, such as Pendulum-v1"
        ) from error
