"""The gold model: made by its kind, then fixed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from overopt.base.kinds import module_of
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed
from overopt.engine.graph import Stage, StageContext
from overopt.rewards.kind import AnyGold, Job, Scorer
from overopt.stages.common import (
    initial_policy,
    intent_of,
    load_responses,
    place_of,
    weights_kept,
)
from overopt.stages.proxy import own_format
from overopt.stages.settings import RunConfig
from overopt.worlds.load import load_world
from overopt.worlds.world import AnyWorld

if TYPE_CHECKING:
    from torch import Tensor

    from overopt.base.datatypes import Responses
    from overopt.nets import compute
    from overopt.rewards import scorer as scorers
else:
    compute, scorers = lazy("overopt.nets.compute"), lazy("overopt.rewards.scorer")


@dataclass(frozen=True, kw_only=True)
class GoldStage:
    """The gold model."""

    world: AnyWorld
    gold: AnyGold
    root_seed: int


def stage(run: RunConfig, calibration: Stage) -> Stage:
    """Gold of a run."""
    return Stage(
        name="gold",
        version=2,
        run=run_gold,
        gpu=True,
        label="gold",
        cost_s=6 + run.gold.cost_s(0),
        config=GoldStage(world=run.world, gold=run.gold, root_seed=run.root_seed),
        upstream={"calibration": calibration},
    )


def run_gold(ctx: StageContext) -> None:
    """Make gold, then fix its zero and unit on the calibration responses."""
    cfg: GoldStage = ctx.config
    world = load_world(cfg.world)
    base = load_responses(ctx.inputs["calibration"].path / "responses.npz")
    intent = intent_of(ctx, world)

    def by_intent(responses: Responses) -> Tensor:
        assert intent is not None  # checked before any work
        return intent.score(responses)

    job = Job(
        world=world,
        device=ctx.runtime.device,
        compute=compute.compute_of(ctx.runtime, getattr(cfg.gold, "precision", "fp32")),
        n_tokens=cfg.world.max_response_tokens,
        seed=derive_seed(cfg.root_seed, "gold"),
        base=base,
        progress=ctx.progress,
        policy=partial(initial_policy, ctx),
        intent=by_intent,
        keep=partial(weights_kept, ctx),
        place=place_of(ctx, world),
        world_settings=cfg.world,
    )
    trained = module_of(cfg.gold).train(cfg.gold, job)
    if trained.is_final:
        trained.scorer.save(ctx.out, {})
        return
    with weights_kept(ctx, getattr(trained.scorer, "model", None)):
        raw = trained.scorer.raw(base)
        unit = scorers.normalisation(raw)
    info = {
        "rubric_correlation": _correlation(raw, intent, base, unit.is_constant),
        "is_constant": unit.is_constant,
    }
    trained.scorer.with_unit(scorers.unit_of(unit)).save(
        ctx.out, own_format(cfg.gold, trained) | info
    )


def _correlation(
    raw: Tensor, intent: Scorer | None, base: Responses, is_constant: bool
) -> float | None:
    """Correlation of gold with the world's intent on the initial policy; None where there is none."""
    if intent is None:
        return None
    human: Any = intent.score(base)
    if is_constant or bool(human.max() == human.min()):
        return None
    return float(np.corrcoef(raw.numpy(), human.numpy())[0, 1])
