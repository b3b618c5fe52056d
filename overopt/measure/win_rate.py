"""Win rate against the initial policy, from gold scores alone: best-of-n pools and PPO evaluations.

A mean can rise on a few prompts; the win rate counts how often gold prefers the optimised response.
Both functions compare independent responses to the same prompt. The optimised policy and the
initial one are evaluated with the same random numbers, so that their mean scores differ with little
noise; a win rate of such coupled pairs would be another quantity (½ wherever the two responses
coincide), and they are left out. Numpy only.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from overopt.base.errors import DataError


def pool_win_share(gold_PN: ArrayLike) -> NDArray[np.float64]:
    """Share (P, N) of the other N − 1 responses to its prompt that each response beats, ties half.

    Parameters
    ----------
    gold_PN : (P, N) gold scores of a pool that the initial policy sampled, N at least 2.

    Raises
    ------
    DataError
        Fewer than two responses a prompt.

    Notes
    -----
    (mid-rank − 1)/(N − 1). As a value of `overopt.pools.best_of_n.best_of_n` it gives the win rate of
    best-of-n, exactly ½ at n = 1. The opponents include the n − 1 responses that the chosen one was
    compared with, and these lost by proxy: the estimate is off by
    (n−1)/(N−1) · (win rate over them − win rate), less than 1/(N−1) whatever the proxy. For a
    perfect proxy its mean is (nN−1)/((n+1)(N−1)), against n/(n+1).
    """
    gold = np.asarray(gold_PN, dtype=np.float64)
    if gold.ndim != 2 or gold.shape[1] < 2:
        raise DataError(f"gold_PN of shape {gold.shape}: a win rate needs two responses a prompt")
    return (rankdata(gold, axis=1) - 1) / (gold.shape[1] - 1)


def paired_win_rate(gold_PC: ArrayLike, start_PC: ArrayLike) -> NDArray[np.float64]:
    """Win rate (P,) of C responses to each prompt over C of the initial policy, ties half.

    Parameters
    ----------
    gold_PC, start_PC : (P, C) gold scores, C at least 2; column c of both was sampled with the same
        random numbers.

    Raises
    ------
    DataError
        Shapes that differ, or one response a prompt: its only opponent is the coupled one.

    Notes
    -----
    Mean over the C(C − 1) pairs of different columns, which are independent. The initial policy
    against itself: each pair occurs both ways round, so the result is ½ exactly.
    """
    gold, start = (np.asarray(x, dtype=np.float64) for x in (gold_PC, start_PC))
    if gold.ndim != 2 or gold.shape != start.shape or gold.shape[1] < 2:
        raise DataError(
            f"gold_PC of shape {gold.shape} and start_PC of shape {start.shape}: a win rate needs"
            " equal shapes and two responses a prompt"
        )
    copies = gold.shape[1]
    wins = (np.sign(gold[:, :, None] - start[:, None, :]) + 1) / 2
    off_diagonal = wins.sum((1, 2)) - np.trace(wins, axis1=1, axis2=2)
    return off_diagonal / (copies * (copies - 1))
