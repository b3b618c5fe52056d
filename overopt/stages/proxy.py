"""The stage that makes a proxy by its kind, alone or several at once.

``run_proxy`` writes one artefact. ``run_proxies`` writes several, of proxies that are alike, from one
stacked training: with tiny models a step costs an accelerator what its launches cost, whatever the
number of models in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from overopt.base import files
from overopt.base.kinds import identity_of, module_of
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed, torch_generator
from overopt.engine.graph import Stage, StageContext
from overopt.rewards.kind import AnyProxy, Job, RewardSettings, Scorer, Trained
from overopt.stages.common import (
    initial_policy,
    intent_of,
    load_responses,
    place_of,
    scorer_of,
    weights_kept,
    world_of,
)
from overopt.stages.names import describe
from overopt.stages.settings import RewardConfig, RunConfig
from overopt.worlds.world import AnyWorld

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from overopt.base.datatypes import Responses
    from overopt.nets import compute
    from overopt.rewards import scorer as scorers
    from overopt.rewards.kinds import heads
    from overopt.rewards.training import calibration
    from overopt.rewards.training import pairs as training
    from overopt.worlds import codecs
else:
    torch, compute = lazy("torch"), lazy("overopt.nets.compute")
    scorers, heads = lazy("overopt.rewards.scorer"), lazy("overopt.rewards.kinds.heads")
    calibration = lazy("overopt.rewards.training.calibration")
    training, codecs = lazy("overopt.rewards.training.pairs"), lazy("overopt.worlds.codecs")


@dataclass(frozen=True, kw_only=True)
class ProxyStage:
    """A trained, normalised proxy; ``bootstrap``: number of the resample of its prompts, 0 for none."""

    world: AnyWorld
    proxy: AnyProxy
    root_seed: int
    bootstrap: int = 0


def stage(
    run: RunConfig, proxy: RewardSettings, bootstrap: int, inputs: dict[str, Stage], note: str
) -> Stage:
    """One member of a run's reward; ``note`` ends its label."""
    of_member = describe(replace(run, proxy=proxy, reward=RewardConfig()))
    drawn = f" bootstrap {bootstrap}" if bootstrap > 0 else ""
    return Stage(
        name="proxy",
        version=3 if bootstrap > 0 else 2,
        run=run_proxy,
        stacked=run_proxies,
        alike=proxy.alike(run.labels.n_pairs),
        gpu=True,
        label=f"proxy {of_member}{drawn}{note}",
        cost_s=proxy.cost_s(run.labels.n_pairs),
        config=ProxyStage(
            world=run.world, proxy=proxy, root_seed=run.root_seed, bootstrap=bootstrap
        ),
        upstream=inputs,
    )


def run_proxy(ctx: StageContext) -> None:
    """Make a proxy by its kind and normalise it on the calibration responses.

    An input ``start`` is the proxy to train further.
    """
    cfg: ProxyStage = ctx.config
    job = job_of(ctx, cfg.proxy, name="proxy", bootstrap=cfg.bootstrap)
    save_trained(ctx, job, module_of(cfg.proxy).train(cfg.proxy, job))


def run_proxies(contexts: Sequence[StageContext]) -> None:
    """What `run_proxy` does for each of ``contexts``, whose proxies are alike."""
    proxy: RewardSettings = contexts[0].config.proxy
    jobs = [
        job_of(ctx, ctx.config.proxy, name="proxy", bootstrap=ctx.config.bootstrap)
        for ctx in contexts
    ]
    made = module_of(proxy).train_stacked(proxy, jobs)
    for ctx, job, trained in zip(contexts, jobs, made, strict=True):
        save_trained(ctx, job, trained)


@dataclass(frozen=True)
class HeldOut:
    """Responses to held-out prompts and the pairs among them that gold has ranked."""

    responses: Responses
    pairs: dict[str, NDArray[Any]]

    @staticmethod
    def of(ctx: StageContext) -> HeldOut:
        """Those of a stage's inputs."""
        return HeldOut(
            load_responses(ctx.inputs["comparisons"].path / "validation.npz"),
            files.load_arrays(ctx.inputs["labels"].path / "validation.npz"),
        )

    def metrics(self, raw: Callable[[Responses], Tensor]) -> dict[str, float]:
        """Accuracy and loss of scores of all responses on the pairs."""
        return calibration.pair_metrics(self.margin(raw(self.responses).numpy()))

    def margin(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Score of the chosen minus the rejected response of each pair, from scores of all."""
        return raw[self.pairs["chosen"]] - raw[self.pairs["rejected"]]


def job_of(ctx: StageContext, proxy: Any, *, name: str, bootstrap: int = 0) -> Job:
    """What a proxy's kind may use; ``name``: of its random streams."""
    cfg = ctx.config
    world = world_of(ctx)
    seed = derive_seed(cfg.root_seed, name, proxy.seed or 0)
    intent = intent_of(ctx, world)

    def by_intent(responses: Responses) -> Tensor:
        assert intent is not None  # checked before any work
        return intent.score(responses)

    def labelled(model: Any) -> training.TrainingPairs:
        labels = files.load_arrays(ctx.inputs["labels"].path / "train.npz")
        responses = load_responses(ctx.inputs["comparisons"].path / "train.npz")
        chosen = torch.from_numpy(labels["chosen"])
        found = training.TrainingPairs(
            codecs.in_own_tokens(model.backbone, responses),
            chosen,
            torch.from_numpy(labels["rejected"]),
            torch.ones(len(chosen)),
        )
        if bootstrap == 0:
            return found
        draw = torch_generator(seed, "bootstrap", bootstrap)
        return heads.resample_prompts(found, generator=draw)

    def compared() -> Responses:
        labels = files.load_arrays(ctx.inputs["labels"].path / "train.npz")
        responses = load_responses(ctx.inputs["comparisons"].path / "train.npz")
        both = torch.cat([torch.from_numpy(labels[name]) for name in ("chosen", "rejected")])
        rows = both.unique()
        if bootstrap == 0:
            return responses.select(rows)
        draw = torch_generator(seed, "bootstrap", bootstrap)
        prompt = responses.prompts.prompt_id[rows]
        return responses.select(rows.repeat_interleave(heads.draw_counts(prompt, generator=draw)))

    return Job(
        world=world,
        device=ctx.runtime.device,
        compute=compute.compute_of(ctx.runtime, getattr(proxy, "precision", "fp32")),
        n_tokens=cfg.world.max_response_tokens,
        seed=seed,
        base=load_responses(ctx.inputs["calibration"].path / "responses.npz"),
        progress=ctx.progress,
        policy=partial(initial_policy, ctx),
        intent=by_intent,
        keep=partial(weights_kept, ctx),
        place=place_of(ctx, world),
        world_settings=cfg.world,
        pairs=labelled,
        responses=compared,
        validate=HeldOut.of(ctx).metrics,
        gold=partial(scorer_of, ctx, "gold", world),
        start=scorer_of(ctx, "start", world) if "start" in ctx.inputs else None,
    )


def save_trained(ctx: StageContext, job: Job, trained: Trained) -> None:
    """Fix a proxy's zero and unit, measure it on held-out pairs, and write it."""
    scorer, history = trained.scorer, trained.history
    if not trained.is_final:
        with weights_kept(ctx, getattr(scorer, "model", None)):
            unit = scorers.normalisation(scorer.raw(job.base))
        scorer = scorer.with_unit(scorers.unit_of(unit))
        history = history | {"is_constant": unit.is_constant}
    scorer.save(ctx.out, own_format(ctx.config.proxy, trained) | scorer.sizes)
    measured = measures(scorer, HeldOut.of(ctx))
    files.save_json(ctx.out / "training.json", measured | history)


def own_format(settings: RewardSettings, trained: Trained) -> dict[str, str]:
    """The entry "kind" of ``scorer.json``, where the kind loads itself what it has made."""
    has_own = hasattr(module_of(settings), "load") and not trained.is_final
    return {"kind": identity_of(settings)} if has_own else {}


def measures(scorer: Scorer, held: HeldOut) -> dict[str, float]:
    """`calibration_of` a scorer on held-out pairs."""
    margin = held.margin(scorer.raw(held.responses).numpy())
    return calibration_of(margin, held.pairs["gold_margin"])


def calibration_of(margin: NDArray[Any], gold_margin: NDArray[Any]) -> dict[str, float]:
    """Accuracy and loss of margins (C,), and the factors that bring them to gold's unit."""
    return calibration.pair_metrics(margin) | {
        "recalibration": calibration.recalibration(margin, gold_margin),
        "gold_slope": calibration.gold_slope(margin, gold_margin),
    }
