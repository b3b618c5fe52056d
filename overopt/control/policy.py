"""An open-loop Gaussian policy whose KL is exact, and its improvement by the cross-entropy method.

The policy of an initial state is a Gaussian over whole action sequences, independent by step and
coordinate, in units of the initial policy's standard deviation: that one is N(0, 1), and

    KL(π ‖ π₀) = Σ ½ (σ² + μ² − 1 − ln σ²)

over steps and coordinates. Actions are clipped by the environment only afterwards, so what is carried
out differs by at most as much.

It sees actions and scores: neither environment nor gold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Policy(NamedTuple):
    """Means and standard deviations (P, H, A) of the actions from each of P initial states."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def initial(cls, n_starts: int, horizon: int, n_actions: int) -> Policy:
        """N(0, 1) everywhere."""
        shape = n_starts, horizon, n_actions
        return cls(np.zeros(shape), np.ones(shape))

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """``n`` action sequences from each state, (P, n, H, A)."""
        n_starts, *step = self.mean.shape
        noise = rng.standard_normal((n_starts, n, *step))
        return self.mean[:, None] + self.std[:, None] * noise

    def kl(self) -> np.ndarray:
        """Exact KL (P,) in nats of the trajectory's actions from the initial policy."""
        terms = self.std**2 + self.mean**2 - 1 - 2 * np.log(self.std)
        return 0.5 * terms.sum((1, 2))

    def improved(
        self,
        actions: np.ndarray,
        scores: np.ndarray,
        *,
        n_elite: int,
        rate: float,
        least_std: float,
    ) -> Policy:
        """The cross-entropy method's next policy (Rubinstein & Kroese 2004).

        Mean and standard deviation move by ``rate`` towards those of the ``n_elite`` sequences of
        ``actions`` (P, n, H, A) with the highest ``scores`` (P, n), the latter no lower than
        ``least_std``.
        """
        best = np.argsort(-scores, axis=1, kind="stable")[:, :n_elite, None, None]
        elite = np.take_along_axis(actions, best, 1)
        std = np.maximum(elite.std(1), least_std)
        return Policy(
            self.mean + rate * (elite.mean(1) - self.mean), self.std + rate * (std - self.std)
        )
