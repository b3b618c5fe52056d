"""Gold lost by stopping at one point rather than at the best: regret against an oracle.

The oracle is chosen on one half of the prompts and valued on the other, because the largest of
several noisy means overstates what stopping there is worth.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from overopt.base.errors import DataError
from overopt.fits.forms import Array
from overopt.fits.replicates import crossed_mean
from overopt.records.curves import Curve


def halves(n_prompts: int) -> tuple[Array, Array]:
    """Two halves of the prompts, as masks (P,): even and odd columns."""
    even = np.arange(n_prompts) % 2 == 0
    return even, ~even


def oracle(gain_KP: ArrayLike) -> int:
    """Index of the point of highest mean gold: the stop of someone who sees gold.

    Its mean on the same prompts is biased upwards, by the largest of K noises.
    """
    return int(np.asarray(gain_KP).mean(1).argmax())


class Regret(NamedTuple):
    """Gold lost by stopping where a rule stops, in sd of gold.

    The two estimates bracket the truth on average: an oracle that errs is worth too little, one
    that is valued on its own luck too much.
    """

    estimate: float
    """Mean over curves and prompts, against the oracle chosen on the other half of the prompts; may
    be negative."""
    stderr: float
    """Its standard error over prompts and curves; nan with too few of either."""
    dof: float
    """Degrees of freedom of ``stderr``."""
    in_sample: float
    """The same against the oracle chosen on the prompts it is valued on: never negative for one
    stop a curve."""


def regret(
    curves: Sequence[Curve],
    stops: Sequence[int | tuple[int, int]],
) -> Regret:
    """Mean regret of given stops against the oracle, with its standard error.

    Parameters
    ----------
    curves : S curves with the same P prompts, in the same order.
    stops : index of the point for each curve; or a pair of them, used on the even and on the odd
        prompts, where the stop came from a threshold tuned on the other half.

    Raises
    ------
    DataError
        Curves with different numbers of prompts, or fewer than four.

    Notes
    -----
    Prompt p of curve s contributes g_s[o, p] − g_s[k, p], k the stop and o the oracle of the half
    of the prompts without p. The mean and its standard error are those of a two-way layout,
    `overopt.fits.replicates.crossed_mean`: prompts are common to all curves, curves of one data seed
    are nested in it, a method's seeds against one proxy are averaged first. That is what a paired
    bootstrap over prompts and seeds estimates, without its own noise and without its shortfall at
    few seeds. Stops and oracle are held fixed.
    """
    sizes = {c.gain("gold").shape[1] for c in curves}
    if len(sizes) != 1 or min(sizes) < 4:
        raise DataError(
            f"curves have {sorted(sizes)} prompts: regret needs the same prompts in all, at least 4"
        )
    parts = halves(sizes.pop())
    lost, optimistic = [], []
    for curve, at in zip(curves, stops, strict=True):
        gain = curve.gain("gold")
        both = at if isinstance(at, tuple) else (at, at)
        row = np.empty(gain.shape[1])
        best = 0.0
        for mine, other, k in zip(parts, parts[::-1], both, strict=True):
            row[mine] = gain[oracle(gain[:, other])][mine] - gain[k][mine]
            best += gain[oracle(gain)][mine].sum() - gain[k][mine].sum()
        lost.append(row)
        optimistic.append(best / gain.shape[1])
    by_proxy: dict[Hashable, list[Array]] = {}
    for curve, row in zip(curves, lost, strict=True):
        by_proxy.setdefault(proxy_of(curve), []).append(row)
    values = np.stack([np.mean(rows, axis=0) for rows in by_proxy.values()])
    data_seeds = list({proxy_of(c): c.meta["data_seed"] for c in curves}.values())
    mean = crossed_mean(values[:, :, None], data_seeds)
    return Regret(
        estimate=float(mean.estimate[0]),
        stderr=float(np.sqrt(mean.covar[0, 0])),
        dof=mean.dof(np.ones(1)),
        in_sample=float(np.mean(optimistic)),
    )


_PROXY = ("backbone", "n_pairs", "label_rule", "label_flip_rate", "data_seed", "rm_seed", "rounds",
          "start_policy", "proxy_lr")  # fmt: skip
_REWARD = ("length_control", "reward_members", "members_by", "reward_combine", "reward_strength")
_PRICE = ("length_penalty", "length_coef", "length_budget")


def proxy_of(curve: Curve) -> Hashable:
    """What tells one reward that was optimised from another: its proxies and what is made of them.

    A column that older records lack reads as None.
    """
    return tuple(curve.meta.get(name) for name in (*_PROXY, *_REWARD, *_PRICE))
