"""Choosing one response of a pool by its proxy score: what all selectors share.

A selector is one file in `overopt.pools.selectors`, found by its name. It defines

    SHOWN                                    how figures and records call it (`overopt.base.shown`)
    DRAWS                                    whether its coordinate is a number of draws, or the whole
                                             pool is weighed
    coordinates(grid) -> (K,) int            what its points are called in records; the first is the
                                             initial policy, which picks at random
    READS_ANSWERS                            True where it reads what responses answer, else left out
    weights(pool, grid) -> iterator          for each prompt (K, N): the probability that each of its
                                             responses is picked

Everything else follows from the weights: the expected value of anything, and the exact KL of the
choice from a draw at random, Σ w log(N w). Both are of the pool as it is: responses are drawn from it
with replacement. Where few responses carry the weight, the pool says little about the policy that it
was sampled from; `ess` tells how many do.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from overopt.base.errors import ConfigError
from overopt.pools.table import Floats

BETAS = tuple(float(b) for b in np.geomspace(8.0, 0.05, 16))
"""Strengths of selectors that trade score against a divergence: score per nat, largest first."""
_FOLDER = "overopt.pools.selectors"


class ScoredPool(NamedTuple):
    """Scores (P, N) of N responses to each prompt.

    Gold is there for `hedged` alone, which reads that of other prompts than the one it chooses for.
    ``answers``, for selectors that ``READS_ANSWERS``: which responses to a prompt give the same one,
    by number, −1 for those that give none.
    """

    proxy: Floats
    gold: Floats
    answers: NDArray[np.int_] | None = None


class Grid(NamedTuple):
    """Where selectors are evaluated.

    ns : numbers of samples, for those that draw them.
    strength : λ of soft best-of-n, per unit of score.
    """

    ns: tuple[int, ...]
    strength: float


def names() -> tuple[str, ...]:
    """The selectors, sorted: the files of their folder."""
    folder = importlib.import_module(_FOLDER)
    return tuple(sorted(info.name for info in pkgutil.iter_modules(folder.__path__)))


def selector(name: str) -> ModuleType:
    """The file of a selector.

    Raises
    ------
    ConfigError
        There is none of that name.
    """
    if name not in names():
        raise ConfigError(
            f"bon.also = {name!r}: is no selector of the pool: use {', '.join(names())}"
        )
    return importlib.import_module(f"{_FOLDER}.{name}")


def reads_answers(name: str) -> bool:
    """Whether a selector reads what responses answer."""
    return getattr(selector(name), "READS_ANSWERS", False)


def by_quantile(scores: Floats, cdf: Callable[[Floats], Floats]) -> Floats:
    """Weights (K, N) of a choice that depends on the rank of a response among all.

    scores (N,); cdf: (M,) quantiles -> (K, M) probability that the choice is at most at that quantile.
    Equal scores share their weight.
    """
    _, block, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mass = np.diff(cdf(counts.cumsum() / len(scores)), prepend=0.0, axis=1)
    return (mass / counts)[:, block]


def best_of(scores: Floats, ns: Sequence[float]) -> Floats:
    """Weights (K, N) of the best of n draws, for each of ns (K,), which need not be whole."""
    return by_quantile(scores, lambda u: u ** np.asarray(ns, dtype=float)[:, None])


def kl_nats(weights: Floats) -> Floats:
    """KL (K,) of choices with ``weights`` (K, N) from a draw at random, in nats."""
    size = weights.shape[1]
    ratio = weights * size
    return np.where(ratio > 0, weights * np.log(np.where(ratio > 0, ratio, 1.0)), 0.0).sum(axis=1)


def ess(weights: Floats) -> Floats:
    """Effective number (K,) of responses behind ``weights`` (K, N): 1/Σ w²."""
    return 1 / (weights**2).sum(axis=1)
