"""The stage of an ensemble on one trunk: k heads, trained together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from overopt.base.lazy import lazy
from overopt.base.seeding import torch_generator
from overopt.engine.graph import Stage, StageContext
from overopt.rewards.kinds import bradley_terry
from overopt.stages.common import weights_kept
from overopt.stages.names import describe
from overopt.stages.proxy import job_of
from overopt.stages.settings import RunConfig
from overopt.worlds.world import AnyWorld

if TYPE_CHECKING:
    import torch

    from overopt.rewards import scorer as scorers
    from overopt.rewards.kinds import heads, reward_model
    from overopt.rewards.training import pairs as training
    from overopt.rewards.training import train
else:
    torch, scorers = lazy("torch"), lazy("overopt.rewards.scorer")
    heads, reward_model = (
        lazy("overopt.rewards.kinds.heads"),
        lazy("overopt.rewards.kinds.reward_model"),
    )
    training, train = lazy("overopt.rewards.training.pairs"), lazy("overopt.rewards.training.train")


@dataclass(frozen=True, kw_only=True)
class HeadsStage:
    """An ensemble of k heads on one trunk, trained together."""

    world: AnyWorld
    proxy: bradley_terry.Settings
    n_heads: int
    root_seed: int


def stage(run: RunConfig, inputs: dict[str, Stage], note: str) -> Stage:
    """The heads of a run; ``note`` ends the label."""
    assert isinstance(run.proxy, bradley_terry.Settings)  # checked by the settings of a run
    return Stage(
        name="heads",
        version=1,
        run=run_heads,
        gpu=True,
        label=f"{run.reward.members} heads {describe(run)}{note}",
        cost_s=run.proxy.cost_s(run.labels.n_pairs),
        config=HeadsStage(
            world=run.world, proxy=run.proxy, n_heads=run.reward.members, root_seed=run.root_seed
        ),
        upstream=inputs,
    )


def run_heads(ctx: StageContext) -> None:
    """Train k heads on one trunk, each on its own bootstrap, and normalise each.

    An input ``start`` is the model to train further.
    """
    cfg: HeadsStage = ctx.config
    proxy, job = cfg.proxy, job_of(ctx, cfg.proxy, name="heads")
    if job.start is not None:
        model = reward_model.network(job.start)
    else:
        backbone = training.load_backbone(proxy.backbone, job.world, layers=proxy.layers)
        model = reward_model.ScalarHeadModel(backbone, cfg.n_heads)
        model.init_head(torch_generator(job.seed, "head"))
    assert job.pairs is not None
    labelled = job.pairs(model)
    draws = [torch_generator(job.seed, "bootstrap", i) for i in range(cfg.n_heads)]
    counts = torch.stack([heads.prompt_counts(labelled, generator=g) for g in draws], 1)
    model.to(ctx.runtime.device)
    with weights_kept(ctx, model):
        train.train_reward_model(
            model,
            labelled,
            epochs=proxy.epochs,
            lr=proxy.lr,
            batch_prompts=proxy.batch_prompts,
            weight_decay=proxy.weight_decay,
            seed=job.seed,
            validate=dict,
            progress=ctx.progress,
            compute=job.compute,
            pair_loss=heads.heads_loss(counts),
        )
        raw = scorers.raw_scores(model.eval(), job.base)
        units = [scorers.normalisation(head) for head in raw.T]
    scorer = reward_model.MultiHeadScorer(
        model, tuple(u.mean for u in units), tuple(u.std for u in units)
    )
    scorer.save(ctx.out, scorer.sizes)
