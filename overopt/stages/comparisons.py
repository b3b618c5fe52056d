"""Responses that gold has scored, and the labelled pairs among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from overopt.base import files
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed
from overopt.engine.graph import Stage, StageContext
from overopt.rewards.settings import LabelsConfig
from overopt.stages import people
from overopt.stages.common import (
    initial_policy,
    load_responses,
    policy_cost,
    save_responses,
    scorer_of,
)
from overopt.stages.settings import RunConfig
from overopt.worlds.load import load_world
from overopt.worlds.world import AnyWorld, WorldSettings

if TYPE_CHECKING:
    import torch

    from overopt.base.datatypes import Responses
    from overopt.nets import sampling
    from overopt.rewards.labels import pairs as labelling
    from overopt.worlds import draws
else:
    torch, sampling = lazy("torch"), lazy("overopt.nets.sampling")
    labelling, draws = lazy("overopt.rewards.labels.pairs"), lazy("overopt.worlds.draws")

LABEL_ARRAYS = ("chosen", "rejected", "gold_margin", "flipped")


@dataclass(frozen=True, kw_only=True)
class ComparisonsStage:
    """Gold-scored responses to training and validation prompts; shared by all data sizes."""

    world: AnyWorld
    n_prompts: int
    n_validation_prompts: int
    copies: int
    data_seed: int
    root_seed: int


@dataclass(frozen=True, kw_only=True)
class LabelsStage:
    """Labelled pairs among the responses; ``world``: where a cue of it is planted, else none."""

    labels: LabelsConfig
    root_seed: int
    world: AnyWorld | None = None


def comparisons_stage(run: RunConfig, inputs: dict[str, Stage]) -> Stage:
    """Responses of a run's comparisons. Data sizes share them: they are sampled for the next of a
    few numbers of prompts, and a small world has fewer.
    """
    if run.labels.pairs_file:
        return people.stage(run, inputs)
    labels = run.labels_per_round
    available = load_world(run.world).n_prompts("train")
    steps = run.world.comparison_steps
    n_prompts = min(next((n for n in steps if n >= labels.n_prompts), available), available)
    return Stage(
        name="comparisons",
        version=2,
        run=run_comparisons,
        gpu=True,
        label=f"comparisons data seed {labels.data_seed} ({n_prompts} prompts)",
        cost_s=0.03 * n_prompts * policy_cost(run.world) + 5,
        config=ComparisonsStage(
            world=run.world,
            n_prompts=n_prompts,
            n_validation_prompts=labels.n_validation_prompts,
            copies=labels.responses_per_prompt,
            data_seed=labels.data_seed,
            root_seed=run.root_seed,
        ),
        upstream={role: inputs[role] for role in ("calibration", "gold")},
    )


def labels_stage(run: RunConfig, comparisons: Stage) -> Stage:
    """Labelled pairs of a run, of its first round."""
    labels = run.labels_per_round
    return Stage(
        name="labels",
        version=1,
        run=run_labels,
        label=f"labels {labels.n_pairs} pairs flip {labels.label_flip_rate} data {labels.data_seed}"
        + (f" {labels.rule_name}" if labels.cue else ""),
        cost_s=1,
        config=LabelsStage(
            labels=labels, root_seed=run.root_seed, world=run.world if labels.cue else None
        ),
        upstream={"comparisons": comparisons},
    )


def run_comparisons(ctx: StageContext) -> None:
    """Sample K responses to each training and validation prompt and score them with gold."""
    cfg: ComparisonsStage = ctx.config
    world = load_world(cfg.world)
    policy = initial_policy(ctx)
    gold = scorer_of(ctx, "gold", world)
    for split, n in (("train", cfg.n_prompts), ("validation", cfg.n_validation_prompts)):
        responses = sampling.sample(
            policy,
            draws.comparison_prompts(world, split, n, seeds=(cfg.root_seed, cfg.data_seed)),
            n_tokens=cfg.world.max_response_tokens,
            seed=derive_seed(cfg.root_seed, "comparisons", split, cfg.data_seed),
            copies=cfg.copies,
        )
        save_responses(ctx.out / f"{split}.npz", responses, cfg.copies)
        files.save_arrays(ctx.out / f"{split}_gold.npz", {"gold": gold.score(responses).numpy()})


def run_labels(ctx: StageContext) -> None:
    """Turn gold scores into labelled pairs, or label as people chose."""
    cfg: LabelsStage = ctx.config
    if cfg.labels.pairs_file:
        people.run_labels(ctx)
        return
    folder = ctx.inputs["comparisons"].path
    labels = cfg.labels
    for split, n_pairs, flip in (
        ("train", labels.n_pairs, labels.label_flip_rate),
        ("validation", labels.n_validation_prompts * labels.pairs_per_prompt, 0.0),
    ):
        responses = load_responses(folder / f"{split}.npz")
        is_planted = cfg.world is not None and split == "train"
        pairs = labelling.label_pairs(
            responses,
            torch.from_numpy(files.load_arrays(folder / f"{split}_gold.npz")["gold"]),
            copies=labels.responses_per_prompt,
            n_pairs=n_pairs,
            rule=labels.label_rule if split == "train" else "argmax",
            flip_rate=flip,
            seed=derive_seed(cfg.root_seed, "labels", split, labels.data_seed),
            cue=cue_of(cfg.world, labels, responses) if is_planted else None,
            cue_share=labels.cue_share,
        )
        arrays = {k: getattr(pairs, k) for k in LABEL_ARRAYS}
        files.save_arrays(ctx.out / f"{split}.npz", {k: v.numpy() for k, v in arrays.items()})


def cue_of(
    settings: WorldSettings | None, labels: LabelsConfig, responses: Responses
) -> torch.Tensor | None:
    """How much of the planted cue each response has, (R,) float64; None where none is planted."""
    if settings is None or not labels.cue:
        return None
    world, cue = load_world(settings), settings.cues[labels.cue]
    texts = zip(world.prompt_texts(responses), world.response_texts(responses), strict=True)
    return torch.tensor([cue.count(prompt, text) for prompt, text in texts], dtype=torch.float64)
