"""Which prompts serve what: the disjoint splits, and draws from them."""

import torch

from overopt.base.datatypes import Prompts
from overopt.base.seeding import torch_generator
from overopt.worlds.world import World


def comparison_prompts(world: World, split: str, n: int, *, seeds: tuple[int, int]) -> Prompts:
    """The first ``n`` prompts of a split in the order of ``seeds``: root seed, data seed."""
    root_seed, data_seed = seeds
    everyone = world.prompts(split, len_split(world, split))
    if n > len(everyone):
        world.prompts(split, n)  # raises with the numbers
    generator = torch_generator(root_seed, "prompts", split, data_seed)
    return everyone.select(torch.randperm(len(everyone), generator=generator)[:n])


def len_split(world: World, split: str) -> int:
    """Number of prompts in a split."""
    start, stop = split_bounds(len(world.texts))[split]
    return stop - start


def eval_prompts(world: World, n: int, offset: int) -> Prompts:
    """``n`` prompts of the eval split, from number ``offset`` on."""
    return world.prompts("eval", offset + n).select(slice(offset, None))


SPLITS = ("gold", "train", "validation", "rl", "eval")


_SHARES = {"gold": 1600, "train": 2400, "validation": 400, "rl": 1200, "eval": 400}


def split_bounds(n_prompts: int) -> dict[str, tuple[int, int]]:
    """First and last-plus-one prompt of each split, in the proportions of the embedded world."""
    total, start, bounds = sum(_SHARES.values()), 0, {}
    for name, share in _SHARES.items():
        stop = start + share * n_prompts // total
        bounds[name] = (start, stop)
        start = stop
    return bounds
