"""The gold model: loaded or fitted, then fixed."""

from dataclasses import dataclass, replace

import numpy as np

from overopt.base.seeding import derive_seed, torch_generator
from overopt.engine.graph import StageContext
from overopt.nets import checkpoints
from overopt.nets.compute import compute_of
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.kinds.classifier import ClassifierScorer, load_classifier
from overopt.rewards.kinds.learned_gold import sample_tilted, soft_pairs
from overopt.rewards.kinds.reward_model import RewardModelScorer
from overopt.rewards.kinds.rubric import RubricScorer, load_rubric
from overopt.rewards.scorer import normalisation
from overopt.rewards.settings import GoldConfig
from overopt.rewards.training.pairs import load_backbone
from overopt.rewards.training.train import train_reward_model
from overopt.stages.common import initial_policy, load_responses, weights_kept
from overopt.worlds.codecs import in_own_tokens
from overopt.worlds.load import load_world
from overopt.worlds.world import World, WorldConfig


@dataclass(frozen=True, kw_only=True)
class GoldStage:
    """The gold model."""

    world: WorldConfig
    gold: GoldConfig
    root_seed: int


def run_gold(ctx: StageContext) -> None:
    """Load or fit gold, then fix its zero and unit on the calibration responses."""
    cfg: GoldStage = ctx.config
    calibration = ctx.inputs["calibration"].path
    world = load_world(cfg.world)
    base = load_responses(calibration / "responses.npz")
    rubric = RubricScorer(load_rubric(calibration), world)
    scorer: RewardModelScorer | ClassifierScorer
    match cfg.gold.kind:
        case "rubric":
            rubric.save(ctx.out, {})
            return
        case "pretrained":
            classifier, tokenizer = load_classifier(cfg.gold.source)
            classifier.to(ctx.runtime.device)
            scorer = ClassifierScorer(classifier, tokenizer, cfg.gold.source, world)
            raw = scorer.raw(base)
        case "frozen":
            model, _, _ = checkpoints.load_reward_model(cfg.gold.source)
            scorer = RewardModelScorer(model.to(ctx.runtime.device), 0.0, 1.0)
            raw = scorer.score(base)
        case "learned":
            scorer = RewardModelScorer(_fit_gold(cfg, world, rubric, ctx), 0.0, 1.0)
            raw = scorer.score(base)
    with weights_kept(ctx, scorer.model):
        unit = normalisation(raw)
    human = rubric.score(base)
    is_flat = unit.is_constant or bool(human.max() == human.min())
    info = {
        "rubric_correlation": None
        if is_flat
        else float(np.corrcoef(raw.numpy(), human.numpy())[0, 1]),
        "is_constant": unit.is_constant,
    }
    replace(scorer, mean=unit.mean, std=unit.std).save(ctx.out, info)


def _fit_gold(
    cfg: GoldStage, world: World, rubric: RubricScorer, ctx: StageContext
) -> ScalarHeadModel:
    gold, seed = cfg.gold, derive_seed(cfg.root_seed, "gold")
    responses = sample_tilted(
        initial_policy(ctx),
        world.prompts("gold", gold.n_prompts),
        world.tokenizer,
        copies=gold.copies,
        n_tokens=cfg.world.max_response_tokens,
        seed=seed,
    )
    model = ScalarHeadModel(load_backbone(gold.source, world, layers=gold.layers))
    model.init_head(torch_generator(seed, "head"))
    model.to(ctx.runtime.device)
    pairs = soft_pairs(
        in_own_tokens(model.backbone, responses),
        rubric.score(responses),
        copies=gold.copies,
        pairs_per_prompt=30,
        seed=seed,
    )
    with weights_kept(ctx, model):
        train_reward_model(
            model,
            pairs,
            epochs=gold.epochs,
            lr=gold.lr,
            batch_prompts=8,
            weight_decay=0.01,
            seed=seed,
            validate=dict,
            progress=ctx.progress,
            compute=compute_of(ctx.runtime, gold.precision),
        )
    return model.eval()
