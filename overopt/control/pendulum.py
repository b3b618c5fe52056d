"""The pendulum of Gymnasium (Pendulum-v1), for many trajectories at once.

A rod is to be held upright by a torque too weak to lift it in one go. With angle θ (0 upright), speed ω
and torque u in [−2, 2], a step of 0.05 s is

    reward  −(θ² + 0.1 ω² + 0.001 u²), θ in [−π, π)
    ω ← clip(ω + (3g/2l · sin θ + 3/(m l²) · u) · 0.05, ±8),   θ ← θ + ω · 0.05,   g = 10, m = l = 1

What differs: trajectories start hanging (θ within 0.6 of π, |ω| up to 0.5) and not anywhere, and the
human may mind speed beside (``careful``).
"""

from __future__ import annotations

import numpy as np

from overopt.control.trajectories import Trajectories

MAX_TORQUE, MAX_SPEED, DT = 2.0, 8.0, 0.05
CALM = 3.0
"""Speed in rad/s up to which a careful human minds nothing."""


class Pendulum:
    """See the module; ``careful``: price of (|ω| − 3)² above 3 rad/s, a step."""

    n_actions = 1

    def __init__(self, careful: float = 0.0) -> None:
        self.careful = careful

    def starts(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Hanging, nearly at rest: (n, 2) angle and speed."""
        angle = rng.uniform(np.pi - 0.6, np.pi + 0.6, n)
        return np.stack([angle, rng.uniform(-0.5, 0.5, n)], 1)

    def roll_out(self, starts: np.ndarray, actions: np.ndarray) -> Trajectories:
        """Trajectories (R, H) of actions (R, H, 1) in half ranges; observations cos θ, sin θ, ω/8."""
        angle, speed = np.array(starts, dtype=float).T
        torque = MAX_TORQUE * np.clip(actions[..., 0], -1, 1)
        n_rows, horizon = torque.shape
        seen = np.empty((n_rows, horizon, 3), np.float32)
        reward = np.empty((n_rows, horizon))
        for t in range(horizon):
            u = torque[:, t]
            seen[:, t] = np.stack([np.cos(angle), np.sin(angle), speed / MAX_SPEED], 1)
            off = (angle + np.pi) % (2 * np.pi) - np.pi
            reward[:, t] = -(off**2 + 0.1 * speed**2 + 0.001 * u**2)
            reward[:, t] -= self.careful * np.maximum(np.abs(speed) - CALM, 0) ** 2
            speed = np.clip(speed + (15 * np.sin(angle) + 3 * u) * DT, -MAX_SPEED, MAX_SPEED)
            angle = angle + speed * DT
        done = (torque / MAX_TORQUE)[..., None].astype(np.float32)
        return Trajectories(seen, done, reward, np.full(n_rows, horizon))
