"""Draws of prompts: for comparisons in the order of a seed, for evaluation in their own."""

import torch

from overopt.base.datatypes import Prompts
from overopt.base.seeding import torch_generator
from overopt.worlds.world import World


def comparison_prompts(world: World, split: str, n: int, *, seeds: tuple[int, int]) -> Prompts:
    """The first ``n`` prompts of a split in the order of ``seeds``: root seed, data seed."""
    root_seed, data_seed = seeds
    everyone = world.prompts(split, world.n_prompts(split))
    if n > len(everyone):
        world.prompts(split, n)  # raises with the numbers
    generator = torch_generator(root_seed, "prompts", split, data_seed)
    return everyone.select(torch.randperm(len(everyone), generator=generator)[:n])


def eval_prompts(world: World, n: int, offset: int) -> Prompts:
    """``n`` prompts of the eval split, from number ``offset`` on."""
    return world.prompts("eval", offset + n).select(slice(offset, None))
