"""A policy optimised against a proxy: the loop that evaluates, checkpoints and resumes."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overopt.base import files
from overopt.base.config import to_dict
from overopt.base.datatypes import Prompts
from overopt.base.errors import DivergenceError
from overopt.base.seeding import derive_seed
from overopt.engine.graph import Stage, StageContext
from overopt.measure.evaluate import measure_kl
from overopt.methods import ppo as ppo_method
from overopt.methods.ppo import PpoConfig
from overopt.nets import checkpoints
from overopt.nets.checkpoints import backbone_state
from overopt.nets.compute import compute_of
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.transforms.shaping import LOG_SIGMOID_QUANTILE, shape_of
from overopt.stages.common import (
    initial_policy,
    keep_diverged,
    load_responses,
    response_arrays,
    scorer_of,
)
from overopt.stages.names import describe
from overopt.stages.settings import RunConfig
from overopt.worlds.load import load_world
from overopt.worlds.splits import eval_prompts, len_split
from overopt.worlds.world import WorldConfig

CHECKPOINT_BYTES_PER_S = 1e8
"""A checkpoint of so many bytes is worth a second of work: larger ones are written less often."""


@dataclass(frozen=True, kw_only=True)
class PpoStage:
    """PPO against one proxy, with evaluation responses along the way."""

    world: WorldConfig
    ppo: PpoConfig
    root_seed: int


def run_ppo(ctx: StageContext) -> None:
    """Optimise the policy against the proxy; keep evaluation responses and KL along the way."""
    optimise(ctx, ctx.config.ppo.evaluation_steps)


def optimise(ctx: StageContext, evaluation_steps: tuple[int, ...]) -> ppo_method.PpoState:
    """PPO up to the last of ``evaluation_steps``, written as an artefact; returns its state.

    From the initial policy, or from where the input ``start`` ended, everything but the proxy
    carried on. The schedule is that of all ``ppo.steps``. Checkpoints are written at evaluations,
    ``runtime.checkpoint_s`` apart or less where they are small.
    """
    cfg = ctx.config
    world, ppo, last = load_world(cfg.world), cfg.ppo, evaluation_steps[-1]
    proxy = scorer_of(ctx, "proxy", world)
    ref_policy = initial_policy(ctx)
    value = ScalarHeadModel(checkpoints.load_trunk(ppo.value_backbone)).to(ctx.runtime.device)
    state = ppo_method.new_state(initial_policy(ctx), value, ppo)
    prompts = world.prompts("rl", len_split(world, "rl"))
    held = eval_prompts(world, ppo.eval_prompts, ppo.eval_offset)
    seed = derive_seed(cfg.root_seed, "ppo", ppo.ppo_seed)
    shape = _shape(ctx, ref_policy, proxy, prompts, seed)
    compute = compute_of(ctx.runtime, ppo.precision)
    log: list[dict[str, float]] = []
    saved = ctx.checkpoint / "state.safetensors"
    _discard_foreign_checkpoint(ctx)
    if saved.exists():
        ppo_method.load_state_tensors(state, files.load_tensors(saved))
        log = files.load_json(ctx.checkpoint / f"log-{state.step}.json")
    elif "start" in ctx.inputs:
        start = ctx.inputs["start"].path
        ppo_method.load_state_tensors(state, files.load_tensors(start / "state.safetensors"))
        log = files.load_json(start / "log.json")
    for file in ctx.checkpoint.glob("eval-*.npz"):
        if int(file.stem.removeprefix("eval-")) > state.step:
            file.unlink()  # of steps that are done again, on a GPU not to the last bit
    weights = [*state.policy.parameters(), *state.value.parameters()]
    n_bytes = 3 * sum(p.nbytes for p in weights)  # with Adam's two moments
    pause_s = min(ctx.runtime.checkpoint_s, n_bytes / CHECKPOINT_BYTES_PER_S)
    saved_at = time.monotonic()
    while True:
        k = state.step
        if k in evaluation_steps:
            file = ctx.checkpoint / f"eval-{k:05d}.npz"
            if not file.exists():
                _evaluate(file, state.policy, ref_policy, proxy, held, cfg)
        if k >= last:
            break
        try:
            log.append(
                ppo_method.ppo_step(
                    state,
                    ref_policy,
                    proxy,
                    prompts,
                    ppo,
                    n_tokens=cfg.world.max_response_tokens,
                    seed=seed,
                    shape=shape,
                    compute=compute,
                )
            )
        except DivergenceError as e:
            raise keep_diverged(e, ctx, ppo_method.state_tensors(state)) from e
        ctx.progress(state.step, last)
        if state.step in evaluation_steps and time.monotonic() - saved_at >= pause_s:
            # The log is written before the state that refers to it, so that a kill between the
            # two leaves the older, consistent pair in force.
            files.save_json(ctx.checkpoint / f"log-{state.step}.json", log)
            files.save_tensors(saved, ppo_method.state_tensors(state))
            saved_at = time.monotonic()
    for k in evaluation_steps:
        name = f"eval-{k:05d}.npz"
        (ctx.out / name).write_bytes((ctx.checkpoint / name).read_bytes())
    files.save_json(ctx.out / "log.json", log)
    files.save_tensors(ctx.out / "policy.safetensors", backbone_state(state.policy))
    return state


def _shape(
    ctx: StageContext, ref_policy: Any, proxy: Any, prompts: Prompts, seed: int
) -> ppo_method.Shape | None:
    """What is maximised in place of the score; None for the score itself."""
    cfg: PpoStage = ctx.config
    ref_scores = None
    match cfg.ppo.shaping:
        case "none":
            return None
        case "par":
            ref_scores = ppo_method.reference_scores(
                ref_policy,
                proxy,
                prompts,
                cfg.ppo,
                n_tokens=cfg.world.max_response_tokens,
                seed=seed,
            )
        case "log_sigmoid":
            base = load_responses(ctx.inputs["calibration"].path / "responses.npz")
            quantile = proxy.score(base).quantile(LOG_SIGMOID_QUANTILE)
            ref_scores = quantile.expand(len(prompts))
    return shape_of(cfg.ppo.shaping, strength=cfg.ppo.shaping_scale, ref_scores=ref_scores)


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
    file: Path, policy: Any, ref_policy: Any, proxy: Any, prompts: Prompts, cfg: PpoStage
) -> None:
    # Other prompts get other random numbers: tuning and test share none.
    offset = [cfg.ppo.eval_offset] if cfg.ppo.eval_offset else []
    responses = ppo_method.evaluate_policy(
        policy,
        prompts,
        copies=cfg.ppo.eval_copies,
        n_tokens=cfg.world.max_response_tokens,
        seed=derive_seed(cfg.root_seed, "ppo-eval", *offset),
    )
    kl = measure_kl(policy, ref_policy, responses)
    table = {k: v.numpy() for k, v in kl._asdict().items()}
    table["proxy"] = proxy.score(responses).numpy()
    files.save_arrays(file, response_arrays(responses, cfg.ppo.eval_copies) | table)


def ppo_stage(run: RunConfig, inputs: dict[str, Stage], *, note: str = "") -> Stage:
    """PPO of a run against the proxy among ``inputs``; ``note`` ends its label."""
    ppo = run.ppo
    assert ppo is not None
    return Stage(
        name="ppo",
        version=3 if ppo.precision == "bf16" else 2,
        run=run_ppo,
        gpu=True,
        label=f"ppo {describe(run)} kl {ppo.kl_coef} seed {ppo.ppo_seed}{note}",
        cost_s=5 + ppo.steps * ppo.batch * 0.025 * ppo.ppo_epochs,
        disk_mb=20,
        config=PpoStage(world=run.world, ppo=ppo, root_seed=run.root_seed),
        upstream=inputs,
    )
