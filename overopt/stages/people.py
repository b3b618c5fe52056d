"""Preferences from people in the place of sampled responses: read, chosen, and scored by gold.

The artefact stands where that of `overopt.stages.comparisons` stands and holds the same files, and
besides the prompts, which are none of the world's, and the pairs as people chose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from overopt.base import files
from overopt.base.config import require
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed, torch_generator
from overopt.engine.graph import Stage, StageContext
from overopt.nets import sources
from overopt.rewards.labels import people
from overopt.stages.common import PROMPTS_FILE, save_responses, scorer_of
from overopt.stages.settings import RunConfig
from overopt.worlds.load import load_world
from overopt.worlds.prompts import turns_of
from overopt.worlds.world import AnyWorld, World, with_prompts

if TYPE_CHECKING:
    import torch

    from overopt.rewards.labels import encoded
    from overopt.rewards.labels.encoded import Encoded
else:
    torch, encoded = lazy("torch"), lazy("overopt.rewards.labels.encoded")


@dataclass(frozen=True, kw_only=True)
class PeopleStage:
    """Pairs of a file, in tokens and scored by gold; ``sha256``: of the file."""

    world: AnyWorld
    pairs_file: str
    sha256: str
    n_pairs: int
    n_validation_prompts: int
    data_seed: int
    root_seed: int


class Drawn(NamedTuple):
    """Training and validation pairs; no prompt is in both. ``notes``: what is to be said of them."""

    train: Encoded
    validation: Encoded
    notes: tuple[str, ...]


def stage(run: RunConfig, inputs: dict[str, Stage]) -> Stage:
    """The pairs of a run's file."""
    labels = run.labels
    return Stage(
        name="comparisons",
        version=1,
        run=run_people,
        gpu=True,
        label=f"pairs of people data seed {labels.data_seed} ({labels.n_pairs} pairs)",
        cost_s=5 + 0.005 * labels.n_pairs,
        config=settings_of(run),
        upstream={role: inputs[role] for role in ("calibration", "gold")},
    )


def settings_of(run: RunConfig) -> PeopleStage:
    """What the stage needs to know of a run."""
    labels = run.labels
    return PeopleStage(
        world=run.world,
        pairs_file=labels.pairs_file,
        sha256=sources.content_checksum(labels.pairs_file),
        n_pairs=labels.n_pairs,
        n_validation_prompts=labels.n_validation_prompts,
        data_seed=labels.data_seed,
        root_seed=run.root_seed,
    )


def draw(cfg: PeopleStage, world: World) -> Drawn:
    """Pairs for training and validation, of prompts in the order of the data seed.

    Raises
    ------
    ConfigError
        The file has too few pairs or prompts.
    DataError
        It cannot be read, or a pair is too long where that is refused.
    """
    where = f"pairs file {cfg.pairs_file!r}"
    read = people.read_pairs(cfg.pairs_file)
    encoder = encoded.PairEncoder(read, cfg.world, where)
    generator = torch_generator(cfg.root_seed, "pairs", cfg.data_seed)
    order = torch.randperm(len(read.prompts), generator=generator).tolist()
    held = encoder.draw(order, n_prompts=cfg.n_validation_prompts, n_pairs=None)
    held_prompts = {read.prompt[read.chosen[i]] for i in held}
    require(
        2 <= cfg.n_validation_prompts == len(held_prompts),
        "labels.n_validation_prompts",
        cfg.n_validation_prompts,
        f"must be 2 to {len(read.prompts) - 1}, fewer than the prompts of {where}",
    )
    rest = [prompt for prompt in order if prompt not in held_prompts]
    pairs = encoder.draw(rest, n_prompts=None, n_pairs=cfg.n_pairs)
    require(
        len(pairs) == cfg.n_pairs,
        "labels.n_pairs",
        cfg.n_pairs,
        f"{where} has {len(pairs)} that fit, beside those of {cfg.n_validation_prompts} validation"
        " prompts: use fewer",
    )
    notes = read.notes
    if encoder.left_out:
        notes += (
            f"world.too_long=drop: {len(encoder.left_out)} pairs of {where} are left out, whose prompt"
            " or response is too long",
        )
    validation = encoder.encoded(held, first_id=len(world.texts))
    train = encoder.encoded(pairs, first_id=len(world.texts) + len(validation.prompts))
    return Drawn(train, validation, notes)


def run_people(ctx: StageContext) -> None:
    """Encode the pairs, score their responses with gold, and write both."""
    cfg: PeopleStage = ctx.config
    world = load_world(cfg.world)
    drawn = draw(cfg, world)
    prompts = [*drawn.validation.prompts, *drawn.train.prompts]
    gold = scorer_of(ctx, "gold", with_prompts(world, prompts))
    for split in ("train", "validation"):
        part: Encoded = getattr(drawn, split)
        save_responses(ctx.out / f"{split}.npz", part.responses, 1)
        scores = gold.score(part.responses).numpy()
        files.save_arrays(ctx.out / f"{split}_gold.npz", {"gold": scores})
        pairs = {"chosen": part.chosen.numpy(), "rejected": part.rejected.numpy()}
        files.save_arrays(ctx.out / f"{split}_pairs.npz", pairs)
    files.save_json(ctx.out / PROMPTS_FILE, {"prompts": [turns_of(prompt) for prompt in prompts]})


def run_labels(ctx: StageContext) -> None:
    """Labels as people chose, with flips where they are asked for, and how far gold agrees."""
    labels, folder = ctx.config.labels, ctx.inputs["comparisons"].path
    agreement = {}
    for split, flip_rate in (("train", labels.label_flip_rate), ("validation", 0.0)):
        pairs = files.load_arrays(folder / f"{split}_pairs.npz")
        gold = files.load_arrays(folder / f"{split}_gold.npz")["gold"]
        chosen, rejected = pairs["chosen"], pairs["rejected"]
        margin = gold[chosen] - gold[rejected]
        seed = derive_seed(ctx.config.root_seed, "labels", split, labels.data_seed)
        coin = torch.rand(len(margin), generator=torch_generator(seed, "flips")).numpy()
        flipped = coin < flip_rate
        arrays = {
            "chosen": np.where(flipped, rejected, chosen),
            "rejected": np.where(flipped, chosen, rejected),
            "gold_margin": margin,
            "flipped": flipped,
        }
        files.save_arrays(ctx.out / f"{split}.npz", arrays)
        agreement[split] = agreement_with(margin)
    files.save_json(ctx.out / "agreement.json", agreement)


def agreement_with(margin: np.ndarray) -> dict[str, float]:
    """How far gold agrees with people, from its margins (C,) in their favour.

    ``share``: pairs that gold ranks as people do, ties counting half; ``stderr``: its standard error
    over pairs; ``pairs``: C.
    """
    right = np.where(margin == 0, 0.5, margin > 0)
    stderr = float(right.std(ddof=1) / np.sqrt(len(right))) if len(right) > 1 else 0.0
    return {"share": float(right.mean()), "stderr": stderr, "pairs": len(right)}
