"""Responses of the initial policy that fix zero and unit of every score."""

from dataclasses import dataclass

from overopt.base import files
from overopt.base.seeding import derive_seed
from overopt.engine.graph import StageContext
from overopt.nets.sampling import sample
from overopt.rewards.kinds.rubric import calibrate
from overopt.rewards.settings import RubricConfig
from overopt.stages.common import initial_policy, save_responses
from overopt.worlds.load import load_world
from overopt.worlds.world import WorldConfig

CALIBRATION_PROMPTS, CALIBRATION_COPIES = 256, 4


@dataclass(frozen=True, kw_only=True)
class CalibrationStage:
    """Responses of the initial policy that define zero and unit of every score.

    ``sources``: checksums of the user's own prompts and checkpoints. Every other stage is downstream
    of this one, so a file that changes under the same path makes everything new.
    """

    world: WorldConfig
    rubric: RubricConfig
    root_seed: int
    sources: tuple[str, ...] = ()


def run_calibration(ctx: StageContext) -> None:
    """Sample the initial policy on validation prompts and standardise the rubric there."""
    cfg: CalibrationStage = ctx.config
    world = load_world(cfg.world)
    n = min(CALIBRATION_PROMPTS, len(world.texts) // 15)
    responses = sample(
        initial_policy(ctx),
        world.prompts("validation", n),
        n_tokens=cfg.world.max_response_tokens,
        seed=derive_seed(cfg.root_seed, "calibration"),
        copies=CALIBRATION_COPIES,
    )
    rubric = calibrate(
        cfg.rubric,
        world.prompt_texts(responses),
        world.response_texts(responses),
        responses.ended.tolist(),
    )
    save_responses(ctx.out / "responses.npz", responses, CALIBRATION_COPIES)
    files.save_json(
        ctx.out / "rubric.json",
        {
            "cfg": vars(rubric.cfg),
            "feature_mean": list(rubric.feature_mean),
            "feature_std": list(rubric.feature_std),
            "score_mean": rubric.score_mean,
            "score_std": rubric.score_std,
            "constant_features": list(rubric.constant_features),
        },
    )
