"""Responses of the initial policy that fix zero and unit of every score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from overopt.base import files
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed
from overopt.engine.graph import Stage, StageContext
from overopt.stages.common import initial_policy, policy_cost, save_responses
from overopt.stages.settings import RunConfig
from overopt.worlds.load import load_world
from overopt.worlds.world import AnyWorld

if TYPE_CHECKING:
    from overopt.nets import sampling
else:
    sampling = lazy("overopt.nets.sampling")

CALIBRATION_PROMPTS, CALIBRATION_COPIES = 256, 4


@dataclass(frozen=True, kw_only=True)
class Moved:
    """An empty group of settings: what stood here is part of another group now.

    Identities keep its place, so that what was computed before stays valid.
    """


@dataclass(frozen=True, kw_only=True)
class CalibrationStage:
    """Responses of the initial policy that define zero and unit of every score.

    ``sources``: checksums of the user's own prompts and checkpoints. Every other stage is downstream
    of this one, so a file that changes under the same path makes everything new.
    """

    world: AnyWorld
    rubric: Moved  # to the world
    root_seed: int
    sources: tuple[str, ...] = ()


def stage(run: RunConfig, sources: tuple[str, ...]) -> Stage:
    """The calibration of a run's world."""
    return Stage(
        name="calibration",
        version=3,
        run=run_calibration,
        gpu=True,
        label="calibration",
        cost_s=6 * policy_cost(run.world),
        config=CalibrationStage(
            world=run.world, rubric=Moved(), root_seed=run.root_seed, sources=sources
        ),
    )


def run_calibration(ctx: StageContext) -> None:
    """Sample the initial policy on validation prompts, and standardise the world's intent there."""
    cfg: CalibrationStage = ctx.config
    world = load_world(cfg.world).on(ctx.runtime.device)
    n = min(CALIBRATION_PROMPTS, len(world.texts) // 15)
    responses = sampling.sample(
        initial_policy(ctx),
        world.prompts("validation", n),
        n_tokens=cfg.world.max_response_tokens,
        seed=derive_seed(cfg.root_seed, "calibration"),
        copies=CALIBRATION_COPIES,
    )
    save_responses(ctx.out / "responses.npz", responses, CALIBRATION_COPIES)
    spec = world.calibrate(responses)
    if spec is not None:
        files.save_json(ctx.out / "intent.json", spec)
