"""Responses that gold has scored, and the labelled pairs among them."""

from dataclasses import dataclass

import torch

from overopt.base import files
from overopt.base.seeding import derive_seed
from overopt.engine.graph import StageContext
from overopt.nets.sampling import sample
from overopt.rewards.labels.pairs import LabelsConfig, label_pairs
from overopt.stages.common import initial_policy, load_responses, save_responses, scorer_of
from overopt.worlds.load import load_world
from overopt.worlds.splits import comparison_prompts
from overopt.worlds.world import WorldConfig

LABEL_ARRAYS = ("chosen", "rejected", "gold_margin", "flipped")


@dataclass(frozen=True, kw_only=True)
class ComparisonsStage:
    """Gold-scored responses to training and validation prompts; shared by all data sizes."""

    world: WorldConfig
    n_prompts: int
    n_validation_prompts: int
    copies: int
    data_seed: int
    root_seed: int


@dataclass(frozen=True, kw_only=True)
class LabelsStage:
    """Labelled pairs among the responses."""

    labels: LabelsConfig
    root_seed: int


def run_comparisons(ctx: StageContext) -> None:
    """Sample K responses to each training and validation prompt and score them with gold."""
    cfg: ComparisonsStage = ctx.config
    world = load_world(cfg.world)
    policy = initial_policy(ctx)
    gold = scorer_of(ctx, "gold", world)
    for split, n in (("train", cfg.n_prompts), ("validation", cfg.n_validation_prompts)):
        responses = sample(
            policy,
            comparison_prompts(world, split, n, seeds=(cfg.root_seed, cfg.data_seed)),
            n_tokens=cfg.world.max_response_tokens,
            seed=derive_seed(cfg.root_seed, "comparisons", split, cfg.data_seed),
            copies=cfg.copies,
        )
        save_responses(ctx.out / f"{split}.npz", responses, cfg.copies)
        files.save_arrays(ctx.out / f"{split}_gold.npz", {"gold": gold.score(responses).numpy()})


def run_labels(ctx: StageContext) -> None:
    """Turn gold scores into labelled pairs."""
    cfg: LabelsStage = ctx.config
    folder = ctx.inputs["comparisons"].path
    labels = cfg.labels
    for split, n_pairs, flip in (
        ("train", labels.n_pairs, labels.label_flip_rate),
        ("validation", labels.n_validation_prompts * labels.pairs_per_prompt, 0.0),
    ):
        pairs = label_pairs(
            load_responses(folder / f"{split}.npz"),
            torch.from_numpy(files.load_arrays(folder / f"{split}_gold.npz")["gold"]),
            copies=labels.responses_per_prompt,
            n_pairs=n_pairs,
            rule=labels.label_rule if split == "train" else "argmax",
            flip_rate=flip,
            seed=derive_seed(cfg.root_seed, "labels", split, labels.data_seed),
        )
        arrays = {k: getattr(pairs, k) for k in LABEL_ARRAYS}
        files.save_arrays(ctx.out / f"{split}.npz", {k: v.numpy() for k, v in arrays.items()})
