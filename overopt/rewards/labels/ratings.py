"""Ratings of several attributes of a response, as raters give them who know the truth, with noise."""

import torch
from torch import Tensor

from overopt.base.datatypes import Responses
from overopt.base.errors import DataError
from overopt.base.seeding import torch_generator
from overopt.rewards.rated import Attribute
from overopt.worlds.world import World


def attribute_counts(
    world: World, responses: Responses, attributes: tuple[Attribute, ...]
) -> Tensor:
    """Each attribute (R, K) float32 of responses as the world's judge counts it."""
    verdicts = world.verdicts(responses)
    columns: dict[str, list[float]] = {
        "tokens": responses.length.tolist(),
        "checks": [v.n_checks for v in verdicts],
        "answers": [v.n_answers for v in verdicts],
        "steps": [len(v.step_ok) for v in verdicts],
    }
    for name in ("right", "valid", "listed", "formatted"):
        columns[name] = [float(getattr(v, name)) for v in verdicts]
    return torch.tensor([columns[name] for name in attributes], dtype=torch.float32).T


def ratings(
    world: World,
    responses: Responses,
    attributes: tuple[Attribute, ...],
    *,
    noise: float,
    seed: int,
) -> Tensor:
    """Ratings (R, K) float32 of the attributes, each with mean 0 and standard deviation 1, and noise.

    noise : standard deviation of what is added to each, from the stream "noise" of ``seed``.

    Raises
    ------
    DataError
        An attribute is the same for all responses.
    """
    table = attribute_counts(world, responses, attributes)
    std = table.std(0, correction=0)
    for name, spread in zip(attributes, std.tolist(), strict=True):
        if spread == 0:
            raise DataError(
                f"attribute {name!r} is the same for all {len(table)} responses: nothing can be"
                " learned about it; leave it out of proxy.attributes or take more labels.n_pairs"
            )
    added = torch.randn(table.shape, generator=torch_generator(seed, "noise"))
    return (table - table.mean(0)) / std + noise * added
