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

from overopt import store
from overopt.artefacts import load_backbone, load_responses, load_world, n_params, save_scorer
from overopt.datatypes import Responses
from overopt.distributed import compute_of
from overopt.gold.pretrained import ClassifierScorer
from overopt.graph import StageContext
from overopt.nets import ScalarHeadModel
from overopt.proxy import length_control
from overopt.proxy.heads import resample_prompts
from overopt.proxy.normalize import pair_metrics, recalibration
from overopt.proxy.stacked import train_reward_models_stacked
from overopt.proxy.train import TrainingLog, TrainingPairs, preference_loss, train_reward_model
from overopt.scorers import RewardModelScorer, normalisation, raw_scores
from overopt.seeding import derive_seed, torch_generator
from overopt.settings import ProxyConfig
from overopt.stages import ProxyStage, scorer_of, weights_kept
from overopt.world.hf import World, in_own_tokens


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
            store.load_arrays(ctx.inputs["labels"].path / "validation.npz"),
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
        model = scorer_of(ctx, "start", world).model
    else:
        backbone = load_backbone(cfg.proxy.backbone, world, layers=cfg.proxy.layers)
        if controlled:
            model = length_control.two_headed(backbone, generator=head)
        else:
            model = ScalarHeadModel(backbone)
            model.init_head(head)
    model.to(ctx.runtime.device)
    labels = store.load_arrays(ctx.inputs["labels"].path / "train.npz")
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
    gold = scorer_of(ctx, "gold", load_world(ctx.config.world))
    if isinstance(gold, RewardModelScorer):
        _save_scored(ctx, gold, held, {})
        return
    margin = held.margin(gold.score(held.responses).numpy())
    is_classifier = isinstance(gold, ClassifierScorer)
    size = n_params(gold.model) if is_classifier else {"n_params": 0, "n_params_total": 0}
    save_scorer(ctx.out, gold if is_classifier else None, {"kind": "rubric"} | size)
    store.save_json(ctx.out / "training.json", pair_metrics(margin) | {"recalibration": 1.0})


def _save_scored(
    ctx: StageContext, scorer: RewardModelScorer, held: _HeldOut, history: dict[str, Any]
) -> None:
    margin = held.margin(raw_scores(scorer.model, held.responses).numpy())
    save_scorer(ctx.out, scorer, {"kind": "reward_model"} | n_params(scorer.model))
    soft = recalibration(margin, held.pairs["gold_margin"])
    store.save_json(
        ctx.out / "training.json", pair_metrics(margin) | {"recalibration": soft} | history
    )
