"""The stage that trains a proxy, alone or several at once.

``run_proxy`` writes one artefact. ``run_proxies`` writes several, of plain reward models of one shape,
from one stacked training (`overopt.proxy.stacked`): with tiny models a step costs an accelerator what
its launches cost, whatever the number of models in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from overopt.base import files
from overopt.base.datatypes import Responses
from overopt.base.seeding import derive_seed, torch_generator
from overopt.engine.graph import StageContext
from overopt.nets.compute import compute_of
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.kinds import length_control
from overopt.rewards.kinds.heads import heads_loss, prompt_counts, resample_prompts
from overopt.rewards.kinds.reward_model import MultiHeadScorer, RewardModelScorer, network
from overopt.rewards.scorer import Scorer, normalisation, raw_scores
from overopt.rewards.settings import ProxyConfig
from overopt.rewards.training.calibration import pair_metrics, recalibration
from overopt.rewards.training.pairs import TrainingPairs, load_backbone
from overopt.rewards.training.stacked import train_reward_models_stacked
from overopt.rewards.training.train import TrainingLog, preference_loss, train_reward_model
from overopt.stages.common import load_responses, scorer_of, weights_kept
from overopt.worlds.codecs import in_own_tokens
from overopt.worlds.load import load_world
from overopt.worlds.world import World, WorldConfig


@dataclass(frozen=True, kw_only=True)
class ProxyStage:
    """A trained, normalised proxy; ``bootstrap``: number of the resample of its prompts, 0 for none."""

    world: WorldConfig
    proxy: ProxyConfig
    root_seed: int
    bootstrap: int = 0


def run_proxy(ctx: StageContext) -> None:
    """Train a proxy on the labels and normalise it on the calibration responses.

    An input ``start`` is the proxy to train further.
    """
    cfg: ProxyStage = ctx.config
    held = _HeldOut.of(ctx)
    if cfg.proxy.kind == "gold":
        _save_gold(ctx, held)
        return
    job = _job(ctx, held)
    controlled = cfg.proxy.length_control > 0
    with weights_kept(ctx, job.model):
        log = train_reward_model(
            job.model,
            job.pairs,
            epochs=cfg.proxy.epochs,
            lr=cfg.proxy.lr,
            batch_prompts=cfg.proxy.batch_prompts,
            weight_decay=cfg.proxy.weight_decay,
            seed=job.seed,
            validate=job.validate,
            progress=ctx.progress,
            compute=compute_of(ctx.runtime, cfg.proxy.precision),
            pair_loss=(
                length_control.length_controlled_loss(cfg.proxy.length_control)
                if controlled
                else preference_loss
            ),
        )
    _save(ctx, job, log)


def run_proxies(contexts: Sequence[StageContext]) -> None:
    """What `run_proxy` does for each of ``contexts``, whose proxies are `stacks_with` each other."""
    jobs = [_job(ctx, _HeldOut.of(ctx)) for ctx in contexts]
    job_of = {id(job.model): job for job in jobs}
    proxy: ProxyConfig = contexts[0].config.proxy
    logs = train_reward_models_stacked(
        [job.model for job in jobs],
        [job.pairs for job in jobs],
        epochs=proxy.epochs,
        lr=proxy.lr,
        batch_prompts=proxy.batch_prompts,
        weight_decay=proxy.weight_decay,
        seeds=[job.seed for job in jobs],
        validate=lambda model: job_of[id(model)].validate(),
        progress=contexts[0].progress,
    )
    for ctx, job, log in zip(contexts, jobs, logs, strict=True):
        _save(ctx, job, log)


def stacks_with(proxy: ProxyConfig, n_pairs: int) -> str:
    """What proxies must share to be trained by `run_proxies`; empty: this one is trained alone.

    Plain reward models on the ladder, in float32, that take the same steps.
    """
    plain = proxy.kind == "learned" and proxy.length_control == 0 and proxy.precision == "fp32"
    if not plain or not proxy.backbone.startswith("ladder:"):
        return ""
    steps = (proxy.epochs, proxy.lr, proxy.batch_prompts, proxy.weight_decay, n_pairs)
    return f"{proxy.backbone} {proxy.layers} {steps}"


@dataclass(frozen=True)
class _HeldOut:
    """Responses to held-out prompts and the pairs among them that gold has ranked."""

    responses: Responses
    pairs: dict[str, NDArray[Any]]

    @staticmethod
    def of(ctx: StageContext) -> "_HeldOut":
        return _HeldOut(
            load_responses(ctx.inputs["comparisons"].path / "validation.npz"),
            files.load_arrays(ctx.inputs["labels"].path / "validation.npz"),
        )

    def margin(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Score of the chosen minus the rejected response of each pair, from scores of all."""
        return raw[self.pairs["chosen"]] - raw[self.pairs["rejected"]]


@dataclass(frozen=True)
class _Job:
    """A proxy about to be trained; ``scored``: the model whose scores count, once it is."""

    model: ScalarHeadModel
    scored: Callable[[], ScalarHeadModel]
    pairs: TrainingPairs
    seed: int
    held: _HeldOut

    def validate(self) -> dict[str, float]:
        """Accuracy and loss on the held-out pairs."""
        return pair_metrics(
            self.held.margin(raw_scores(self.scored(), self.held.responses).numpy())
        )


def _job(ctx: StageContext, held: _HeldOut) -> _Job:
    """The untrained proxy of a stage on the device, or the one of ``start``, and its pairs."""
    cfg: ProxyStage = ctx.config
    world: World = load_world(cfg.world)
    seed = derive_seed(cfg.root_seed, "proxy", cfg.proxy.rm_seed)
    head = torch_generator(seed, "head")
    controlled = cfg.proxy.length_control > 0
    if "start" in ctx.inputs:
        model = network(scorer_of(ctx, "start", world))
    else:
        backbone = load_backbone(cfg.proxy.backbone, world, layers=cfg.proxy.layers)
        if controlled:
            model = length_control.two_headed(backbone, generator=head)
        else:
            model = ScalarHeadModel(backbone)
            model.init_head(head)
    model.to(ctx.runtime.device)
    labels = files.load_arrays(ctx.inputs["labels"].path / "train.npz")
    chosen = torch.from_numpy(labels["chosen"])
    responses = load_responses(ctx.inputs["comparisons"].path / "train.npz")
    pairs = TrainingPairs(
        in_own_tokens(model.backbone, responses),
        chosen,
        torch.from_numpy(labels["rejected"]),
        torch.ones(len(chosen)),
    )
    if cfg.bootstrap > 0:
        draw = torch_generator(seed, "bootstrap", cfg.bootstrap)
        pairs = resample_prompts(pairs, generator=draw)

    def scored() -> ScalarHeadModel:
        return length_control.quality_model(model) if controlled else model

    return _Job(model, scored, pairs, seed, held)


def _save(ctx: StageContext, job: _Job, log: TrainingLog) -> None:
    """Normalise a trained proxy and write it."""
    model = job.scored().eval()
    with weights_kept(ctx, model):
        unit = normalisation(
            raw_scores(model, load_responses(ctx.inputs["calibration"].path / "responses.npz"))
        )
    history = {
        "train_loss": log.loss,
        "validation": log.validation,
        "pairs_seen": log.pairs_seen,
        "is_constant": unit.is_constant,
    }
    _save_scored(ctx, RewardModelScorer(model, unit.mean, unit.std), job.held, history)


def _save_gold(ctx: StageContext, held: _HeldOut) -> None:
    """Gold as its own proxy."""
    _save_scored(ctx, scorer_of(ctx, "gold", load_world(ctx.config.world)), held, {})


def _save_scored(
    ctx: StageContext, scorer: Scorer, held: _HeldOut, history: dict[str, Any]
) -> None:
    margin = held.margin(scorer.raw(held.responses).numpy())
    scorer.save(ctx.out, scorer.sizes)
    soft = recalibration(margin, held.pairs["gold_margin"])
    files.save_json(
        ctx.out / "training.json", pair_metrics(margin) | {"recalibration": soft} | history
    )


@dataclass(frozen=True, kw_only=True)
class HeadsStage:
    """An ensemble of k heads on one trunk, trained together."""

    world: WorldConfig
    proxy: ProxyConfig
    n_heads: int
    root_seed: int


def run_heads(ctx: StageContext) -> None:
    """Train k heads on one trunk, each on its own bootstrap, and normalise each.

    An input ``start`` is the model to train further.
    """
    cfg: HeadsStage = ctx.config
    calibration, comparisons = ctx.inputs["calibration"].path, ctx.inputs["comparisons"].path
    seed = derive_seed(cfg.root_seed, "heads", cfg.proxy.rm_seed)
    labels = files.load_arrays(ctx.inputs["labels"].path / "train.npz")
    chosen = torch.from_numpy(labels["chosen"])
    world = load_world(cfg.world)
    if "start" in ctx.inputs:
        model = network(scorer_of(ctx, "start", world))
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
    scorer.save(ctx.out, scorer.sizes)
