"""The stages between trained proxies and what is optimised: shared-trunk members, and the reward.

They exist only where `settings.RewardConfig` asks for more than the proxy itself. ``reward`` writes a
scorer with everything that scoring needs, and takes the proxy's place in best-of-n and PPO.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from overopt import store
from overopt.artefacts import (
    load_backbone,
    load_responses,
    load_scorer,
    load_transform,
    load_world,
    n_params,
    reward_steps,
    save_ensemble,
    save_scorer,
)
from overopt.datatypes import Responses, Scorer
from overopt.distributed import compute_of
from overopt.errors import CheckpointError
from overopt.graph import StageContext
from overopt.nets import ScalarHeadModel
from overopt.proxy.heads import heads_loss, prompt_counts
from overopt.proxy.normalize import pair_metrics, recalibration
from overopt.proxy.train import TrainingPairs, train_reward_model
from overopt.scorers import (
    MultiHeadScorer,
    RewardModelScorer,
    normalisation,
    normalised_ensemble,
    raw_scores,
)
from overopt.seeding import derive_seed, torch_generator
from overopt.settings import ProxyConfig, RewardConfig, WorldConfig
from overopt.stages import weights_kept
from overopt.world.hf import in_own_tokens


@dataclass(frozen=True, kw_only=True)
class HeadsStage:
    """An ensemble of k heads on one trunk, trained together."""

    world: WorldConfig
    proxy: ProxyConfig
    n_heads: int
    root_seed: int


@dataclass(frozen=True, kw_only=True)
class RewardStage:
    """The proxy score that is optimised; ``source``: checksum of the user's own file."""

    world: WorldConfig
    reward: RewardConfig
    root_seed: int
    source: str = ""


def run_heads(ctx: StageContext) -> None:
    """Train k heads on one trunk, each on its own bootstrap, and normalise each.

    An input ``start`` is the model to train further.
    """
    cfg: HeadsStage = ctx.config
    calibration, comparisons = ctx.inputs["calibration"].path, ctx.inputs["comparisons"].path
    seed = derive_seed(cfg.root_seed, "heads", cfg.proxy.rm_seed)
    labels = store.load_arrays(ctx.inputs["labels"].path / "train.npz")
    chosen = torch.from_numpy(labels["chosen"])
    world = load_world(cfg.world)
    if "start" in ctx.inputs:
        start = load_scorer(ctx.inputs["start"].path, calibration, world, ctx.runtime.device)
        assert isinstance(start, MultiHeadScorer)  # what this stage writes
        model = start.model
    else:
        model = ScalarHeadModel(
            load_backbone(cfg.proxy.backbone, world, layers=cfg.proxy.layers), cfg.n_heads
        )
        model.init_head(torch_generator(seed, "head"))
    pairs = TrainingPairs(
        in_own_tokens(model.backbone, load_responses(comparisons / "train.npz")),
        chosen,
        torch.from_numpy(labels["rejected"]),
        torch.ones(len(chosen)),
    )
    draws = [torch_generator(seed, "bootstrap", i) for i in range(cfg.n_heads)]
    counts = torch.stack([prompt_counts(pairs, generator=g) for g in draws], 1)
    model.to(ctx.runtime.device)
    with weights_kept(ctx, model):
        train_reward_model(
            model,
            pairs,
            epochs=cfg.proxy.epochs,
            lr=cfg.proxy.lr,
            batch_prompts=cfg.proxy.batch_prompts,
            weight_decay=cfg.proxy.weight_decay,
            seed=seed,
            validate=dict,
            progress=ctx.progress,
            compute=compute_of(ctx.runtime, cfg.proxy.precision),
            pair_loss=heads_loss(counts),
        )
        raw = raw_scores(model.eval(), load_responses(calibration / "responses.npz"))
        units = [normalisation(head) for head in raw.T]
    scorer = MultiHeadScorer(model, tuple(u.mean for u in units), tuple(u.std for u in units))
    save_scorer(ctx.out, scorer, {"kind": "reward_model"} | n_params(model))


def run_reward(ctx: StageContext) -> None:
    """Combine members (by score or by weight), and normalise the result on the initial policy."""
    cfg: RewardStage = ctx.config
    calibration, comparisons = ctx.inputs["calibration"].path, ctx.inputs["comparisons"].path
    world = load_world(cfg.world)
    base = load_responses(calibration / "responses.npz")
    folders = [ctx.inputs[role].path for role in sorted(ctx.inputs) if role.startswith("member_")]
    parts: Sequence[Scorer] = [
        load_scorer(folder, calibration, world, ctx.runtime.device) for folder in folders
    ]
    if cfg.reward.combine == "weight_average":
        parts = [average_weights(parts, base)]
    transform = Path(cfg.reward.transform) if cfg.reward.transform else None
    steps = reward_steps(cfg.reward, load_transform(transform) if transform else None)
    scorer = normalised_ensemble(parts, steps, base)
    sizes = store.load_json(folders[0] / "scorer.json")
    info = {name: sizes[name] for name in ("n_params", "n_params_total")}
    save_ensemble(ctx.out, scorer, cfg.reward, transform=transform, info=info)
    held_pairs = store.load_arrays(ctx.inputs["labels"].path / "validation.npz")
    logits = scorer.score(load_responses(comparisons / "validation.npz")).numpy() * scorer.std
    margin = logits[held_pairs["chosen"]] - logits[held_pairs["rejected"]]
    soft = recalibration(margin, held_pairs["gold_margin"])
    store.save_json(ctx.out / "training.json", pair_metrics(margin) | {"recalibration": soft})


def average_weights(members: Sequence[Scorer], base: Responses) -> RewardModelScorer:
    """One model with the mean of the members' weights (WARM, Ramé et al. 2024), normalised anew.

    ``base``: responses of the initial policy. Members should share their head's initialisation
    (``members_by = bootstrap``): heads that start apart may average to less than either.

    Raises
    ------
    CheckpointError
        A member is no reward model, or of another shape than the first.
    """
    models = []
    for i, member in enumerate(members):
        if not isinstance(member, RewardModelScorer):
            raise CheckpointError(
                f"member {i} is a {type(member).__name__}, whose weights cannot be averaged: use"
                " another reward.combine"
            )
        models.append(member.model)
        shape, first = models[-1].backbone.cfg, models[0].backbone.cfg
        if shape != first:
            raise CheckpointError(
                f"member {i} has shape {shape}, member 0 has {first}: only weights of one shape can"
                " be averaged; use another reward.combine"
            )
    states = [model.state_dict() for model in models]
    mean_state = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(first_value.dtype)
        for name, first_value in states[0].items()
    }
    model = copy.deepcopy(models[0])
    model.load_state_dict(mean_state)
    unit = normalisation(raw_scores(model.eval(), base))
    return RewardModelScorer(model, unit.mean, unit.std)


def member_proxies(proxy: ProxyConfig, reward: RewardConfig) -> list[tuple[ProxyConfig, int]]:
    """Config of each separately trained member, and its bootstrap replicate (0: all pairs once).

    Replicate s of an ensemble of M seeds has the proxies of ``rm_seed`` s·M to s·M + M − 1: two
    replicates share no member, and the first is made of the single proxies 0 to M − 1.
    """
    m = reward.members
    match reward.members_by:
        case "seed" if m > 1:
            first = proxy.rm_seed * m
            return [(replace(proxy, rm_seed=first + i), 0) for i in range(m)]
        case "bootstrap":
            return [(proxy, i + 1) for i in range(m)]
        case "pretraining":
            return [(replace(proxy, backbone=b), 0) for b in (proxy.backbone, *reward.backbones)]
    return [(proxy, 0)]
