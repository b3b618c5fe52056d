"""A human who compares segments of trajectories, and errs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from overopt.control.trajectories import Trajectories


class Comparisons(NamedTuple):
    """N pairs of segments of S steps with the human's answer.

    first, second : features (N, S, F) float32, zeros behind the end of a trajectory.
    first_mask, second_mask : (N, S) bool, steps that were made.
    first_is_better : (N,) float32, 1 or 0: what was answered.
    margin : (N,) float64, gold return of the first minus that of the second.
    """

    first: np.ndarray
    second: np.ndarray
    first_mask: np.ndarray
    second_mask: np.ndarray
    first_is_better: np.ndarray
    margin: np.ndarray

    def joined(self, other: Comparisons) -> Comparisons:
        """These, and the ``other`` ones behind them."""
        return Comparisons(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


def compare(
    shown: Trajectories, *, n_pairs: int, segment: int, flip_rate: float, rng: np.random.Generator
) -> Comparisons:
    """The human's answers on ``n_pairs`` pairs of random segments of the trajectories.

    The segment with the higher sum of rewards is named, with probability ``flip_rate`` the other one.
    Both are drawn alike: a trajectory, and a beginning in it.
    """
    features, mask = shown.features, shown.mask

    def draw() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row = rng.integers(0, len(shown.length), n_pairs)
        latest = np.maximum(shown.length[row] - segment, 0)
        at = rng.integers(0, latest + 1)[:, None] + np.arange(segment)
        row = row[:, None]
        return features[row, at], mask[row, at], shown.reward[row, at].sum(1)

    first, first_mask, gold_first = draw()
    second, second_mask, gold_second = draw()
    margin = gold_first - gold_second
    answer = (margin > 0) ^ (rng.random(n_pairs) < flip_rate)
    return Comparisons(first, second, first_mask, second_mask, answer.astype(np.float32), margin)
