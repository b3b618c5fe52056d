"""A policy optimised against a proxy: the loop around any method, which evaluates and checkpoints."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from overopt.base import files
from overopt.base.config import to_dict
from overopt.base.errors import ConfigError, DivergenceError
from overopt.base.kinds import Kind, kind_of, module_of
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed
from overopt.engine.graph import Stage, StageContext
from overopt.methods.method import NEEDS, Problem, Schedule, State
from overopt.stages.common import (
    initial_policy,
    keep_diverged,
    load_responses,
    policy_cost,
    response_arrays,
    scorer_of,
    start_sources,
)
from overopt.stages.names import describe_curve
from overopt.stages.settings import RunConfig
from overopt.worlds.load import load_world
from overopt.worlds.world import AnyWorld

if TYPE_CHECKING:
    import torch

    from overopt.base import datatypes
    from overopt.base.datatypes import PreferenceSet, Prompts
    from overopt.measure import evaluate
    from overopt.methods import rollouts
    from overopt.methods.method import Shape
    from overopt.nets import checkpoints, compute, sampling
    from overopt.rewards.transforms import shaping
    from overopt.worlds import draws
else:
    torch, datatypes = lazy("torch"), lazy("overopt.base.datatypes")
    evaluate, rollouts = lazy("overopt.measure.evaluate"), lazy("overopt.methods.rollouts")
    checkpoints, compute = lazy("overopt.nets.checkpoints"), lazy("overopt.nets.compute")
    sampling, draws = lazy("overopt.nets.sampling"), lazy("overopt.worlds.draws")
    shaping = lazy("overopt.rewards.transforms.shaping")

CHECKPOINT_BYTES_PER_S = 1e8
"""A checkpoint of so many bytes is worth a second of work: larger ones are written less often."""

EVALUATION = "ppo-eval"
"""Names the random numbers of evaluations: the same for all methods, so that they can be compared pair
by pair. The name is from when there was one."""

NamedMethod = Annotated[Schedule, Kind("overopt.methods", "", under_its_name=True, needs=NEEDS)]
"""A method's settings in a stage's config, where they stand under the method's name."""


@dataclass(frozen=True, kw_only=True)
class MethodStage:
    """A method against one proxy, with evaluation responses along the way."""

    world: AnyWorld
    method: NamedMethod
    root_seed: int
    start_sources: tuple[str, ...] = ()


def stage(run: RunConfig, inputs: dict[str, Stage], *, note: str = "") -> Stage:
    """The method of a run against the proxy among ``inputs``; ``note`` ends its label."""
    method = run.method
    assert method is not None
    kind = kind_of(method)
    roles = ("calibration", "proxy", *(("comparisons", "labels") * method.reads_comparisons))
    return Stage(
        name=kind,
        version=method.version,
        run=run_method,
        gpu=True,
        label=f"{kind} {describe_curve(run)} {method.title}{note}",
        cost_s=method.cost_s * policy_cost(run.optimised_world),
        disk_mb=20,
        config=MethodStage(
            world=run.optimised_world,
            method=method,
            root_seed=run.root_seed,
            start_sources=start_sources(run),
        ),
        upstream={role: inputs[role] for role in roles},
    )


def run_method(ctx: StageContext) -> None:
    """Optimise the policy against the proxy; keep evaluation responses and KL along the way."""
    optimise(ctx, ctx.config.method.evaluation_steps)


def optimise(ctx: StageContext, evaluation_steps: tuple[int, ...]) -> State:
    """The method up to the last of ``evaluation_steps``, written as an artefact; returns its state.

    From the initial policy, or from where the input ``start`` ended, everything but the proxy
    carried on. The schedule is that of all ``method.steps``.

    1. Start, or take up the state of the checkpoint or of the input ``start``.
    2. Where an evaluation is due: checkpoint, ``runtime.checkpoint_s`` apart or less where they are
       small, and evaluate. Stop behind the last step, or where the settings want it.
    3. One step; a state that diverged is kept for inspection. Checkpoint where the process is asked
       to leave.
    4. Write evaluations, log and policy.
    """
    cfg = ctx.config
    method, settings, last = module_of(cfg.method), cfg.method, evaluation_steps[-1]
    problem, held = _problem(ctx)
    # 1.
    state = method.start(initial_policy(ctx), settings, problem)
    log, n_before = _resumed(ctx, method, state), _steps_before(ctx)
    pause_s, saved_at = _pause_s(ctx, method.state_tensors(state)), time.monotonic()
    while True:
        # 2.
        has_stepped = len(log) > n_before
        wish = settings.wish(log) if has_stepped else "go on"
        if wish != "go on" or state.step in evaluation_steps:
            if has_stepped and time.monotonic() - saved_at >= pause_s:
                _save(ctx, state.step, log, method.state_tensors(state))
                saved_at = time.monotonic()
            file = ctx.checkpoint / f"eval-{state.step:05d}.npz"
            if not file.exists():
                _evaluate(file, state.policy, problem, held, ctx)
        if wish == "stop" or state.step >= last:
            break
        # 3.
        before = state.step
        try:
            log.append(method.step(state, settings, problem))
        except DivergenceError as e:
            raise keep_diverged(e, ctx, method.state_tensors(state)) from e
        if state.step != before + 1:
            raise ConfigError(
                f"method.kind = {kind_of(settings)!r}: its step() took state.step from {before} to"
                f" {state.step}; it must add 1"
            )
        ctx.progress(state.step, last)
        if ctx.leaving():
            _save(ctx, state.step, log, method.state_tensors(state))
            ctx.progress(state.step, last)  # which ends the stage here
    # 4.
    for file in sorted(ctx.checkpoint.glob("eval-*.npz")):
        (ctx.out / file.name).write_bytes(file.read_bytes())
    files.save_json(ctx.out / "log.json", log)
    files.save_json(ctx.out / "shown.json", method.SHOWN._asdict())
    files.save_tensors(ctx.out / "policy.safetensors", checkpoints.backbone_state(state.policy))
    return state


def _save(
    ctx: StageContext, step: int, log: list[dict[str, float]], tensors: dict[str, torch.Tensor]
) -> None:
    """Write a checkpoint: the log before the state that refers to it.

    A kill between the two leaves the older, consistent pair in force.
    """
    files.save_json(ctx.checkpoint / f"log-{step}.json", log)
    files.save_tensors(ctx.checkpoint / "state.safetensors", tensors)


def _problem(ctx: StageContext) -> tuple[Problem, Prompts]:
    """What the method works on, and the prompts that it is evaluated on."""
    cfg = ctx.config
    settings, world = cfg.method, load_world(cfg.world)
    problem = Problem(
        ref_policy=initial_policy(ctx),
        proxy=scorer_of(ctx, "proxy", world),
        prompts=world.prompts("rl", world.n_prompts("rl")),
        n_tokens=cfg.world.max_response_tokens,
        seed=derive_seed(cfg.root_seed, kind_of(settings), settings.seed),
        compute=compute.compute_of(ctx.runtime, settings.precision),
        preferences=lambda: _preferences(ctx),
    )
    held = draws.eval_prompts(world, settings.eval_prompts, settings.eval_offset)
    return replace(problem, shape=_shape(ctx, problem)), held


def _shape(ctx: StageContext, problem: Problem) -> Shape | None:
    """What is maximised in place of the score; None for the score itself."""
    settings = ctx.config.method
    ref_scores = None
    match settings.shaping:
        case "none":
            return None
        case "par":
            ref_scores = rollouts.reference_scores(
                problem.ref_policy,
                problem.proxy,
                problem.prompts,
                batch=settings.prompts_per_step,
                steps=settings.steps,
                n_tokens=problem.n_tokens,
                seed=problem.seed,
            )
        case "log_sigmoid":
            base = load_responses(ctx.inputs["calibration"].path / "responses.npz")
            quantile = problem.proxy.score(base).quantile(shaping.LOG_SIGMOID_QUANTILE)
            ref_scores = quantile.expand(len(problem.prompts))
    return shaping.shape_of(
        settings.shaping, strength=settings.shaping_scale, ref_scores=ref_scores
    )


def _preferences(ctx: StageContext) -> PreferenceSet:
    """The comparisons that the proxy was trained on: which was chosen, not by how much gold says."""
    labels = files.load_arrays(ctx.inputs["labels"].path / "train.npz")
    responses = load_responses(ctx.inputs["comparisons"].path / "train.npz")
    columns = {k: torch.from_numpy(labels[k]) for k in ("chosen", "rejected")}
    return datatypes.PreferenceSet(
        responses=responses,
        **columns,
        gold_margin=torch.full((len(labels["chosen"]),), torch.nan),
        flipped=torch.zeros(len(labels["chosen"]), dtype=torch.bool),
        prompt_id=responses.prompts.prompt_id[columns["chosen"]],
    )


def _resumed(ctx: StageContext, method: ModuleType, state: State) -> list[dict[str, float]]:
    """Put back the state of the checkpoint or of the input ``start``, if any; returns its log."""
    saved = ctx.checkpoint / "state.safetensors"
    log: list[dict[str, float]] = []
    _discard_foreign_checkpoint(ctx)
    if saved.exists():
        method.load_state_tensors(state, files.load_tensors(saved))
        log = files.load_json(ctx.checkpoint / f"log-{state.step}.json")
    elif "start" in ctx.inputs:
        start = ctx.inputs["start"].path
        method.load_state_tensors(state, files.load_tensors(start / "state.safetensors"))
        log = files.load_json(start / "log.json")
    for file in ctx.checkpoint.glob("eval-*.npz"):
        if int(file.stem.removeprefix("eval-")) > state.step:
            file.unlink()  # of steps that are done again, on a GPU not to the last bit
    return log


def _steps_before(ctx: StageContext) -> int:
    """Steps that were done before this stage: those of the input ``start``."""
    return (
        len(files.load_json(ctx.inputs["start"].path / "log.json")) if "start" in ctx.inputs else 0
    )


def _pause_s(ctx: StageContext, tensors: dict[str, torch.Tensor]) -> float:
    """Seconds between checkpoints: fewer than asked for where they are small.

    Optimizers that have not stepped yet will add two moments to each weight.
    """
    n_bytes = 3 * sum(x.nbytes for name, x in tensors.items() if "_adam." not in name)
    return min(ctx.runtime.checkpoint_s, n_bytes / CHECKPOINT_BYTES_PER_S)


def _discard_foreign_checkpoint(ctx: StageContext) -> None:
    """Start afresh where the checkpoint was written under another full configuration.

    A fingerprint leaves defaults out; a default that was edited without raising the stage's version
    must not splice two schedules into one curve.
    """
    marker, mine = ctx.checkpoint / "config.json", to_dict(ctx.config)
    if marker.exists() and files.load_json(marker) == mine:
        return
    for file in ctx.checkpoint.iterdir():
        file.unlink()
    files.save_json(marker, mine)


def _evaluate(
    file: Path, policy: Any, problem: Problem, prompts: Prompts, ctx: StageContext
) -> None:
    """Responses to the evaluation prompts with random numbers of their own, KL and proxy score."""
    cfg, settings = ctx.config, ctx.config.method
    # Other prompts get other random numbers: tuning and test share none.
    offset = [settings.eval_offset] if settings.eval_offset else []
    responses = sampling.sample(
        policy,
        prompts,
        n_tokens=problem.n_tokens,
        seed=derive_seed(cfg.root_seed, EVALUATION, *offset),
        copies=settings.eval_copies,
    )
    kl = evaluate.measure_kl(policy, problem.ref_policy, responses)
    table = {k: v.numpy() for k, v in kl._asdict().items()}
    table["proxy"] = problem.proxy.score(responses).numpy()
    files.save_arrays(file, response_arrays(responses, settings.eval_copies) | table)


def method_role(inputs: Any) -> str:
    """The role of a method's artefact among a stage's inputs: the method's name."""
    others = ("calibration", "gold", "proxy")
    return next(r for r in sorted(inputs) if r not in others and not re.search(r"_\d\d$", r))
