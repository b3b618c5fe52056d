"""Draws of prompts: for comparisons in the order of a seed, for evaluation in their own."""

import torch
from torch import Tensor

from overopt.base.datatypes import Prompts
from overopt.base.seeding import torch_generator
from overopt.worlds.world import World

SEEDS_APART = 6  # data seeds whose prompts do not overlap while each takes at most 1/6 of a split


def window_start(data_seed: int) -> float:
    """Where a data seed begins in the order of a split, as a share of it.

    Seeds 0 to 5 begin a sixth apart, the next six halfway between them, and so on: the more seeds,
    the fewer prompts each may take before two of them meet.
    """
    block, rest = data_seed % SEEDS_APART, data_seed // SEEDS_APART
    start, width = block / SEEDS_APART, 1 / SEEDS_APART
    while rest:
        rest, bit = divmod(rest, 2)
        width /= 2
        start += bit * width
    return start


def comparison_prompts(world: World, split: str, n: int, *, seeds: tuple[int, int]) -> Prompts:
    """``n`` prompts of a split for ``seeds``: root seed, data seed.

    A root seed draws one order of the split. A data seed reads on from `window_start`, so that seeds
    share no prompt as long as each reads no further than to where the next begins.
    """
    available = world.n_prompts(split)
    everyone = world.prompts(split, max(n, available))  # raises where n is larger
    return everyone.select(drawn(available, n, split=split, seeds=seeds))


def drawn(available: int, n: int, *, split: str, seeds: tuple[int, int]) -> Tensor:
    """Numbers (n,) within their split of the prompts of `comparison_prompts`."""
    root_seed, data_seed = seeds
    order = torch.randperm(available, generator=torch_generator(root_seed, "prompts", split))
    return order.roll(-round(window_start(data_seed) * available))[:n]


def eval_prompts(world: World, n: int, offset: int) -> Prompts:
    """``n`` prompts of the eval split, from number ``offset`` on."""
    return world.prompts("eval", offset + n).select(slice(offset, None))
