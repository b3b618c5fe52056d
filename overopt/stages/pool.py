"""N responses of the initial policy to each evaluation prompt, scored by gold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from overopt.base import files
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed
from overopt.engine.graph import Stage, StageContext
from overopt.stages.common import (
    initial_policy,
    intent_of,
    policy_cost,
    save_responses,
    scorer_of,
    start_sources,
    truth_scores,
)
from overopt.stages.settings import RunConfig
from overopt.worlds.load import load_world
from overopt.worlds.world import AnyWorld

if TYPE_CHECKING:
    import torch

    from overopt.base import datatypes
    from overopt.nets import sampling
    from overopt.worlds import draws
else:
    torch, datatypes = lazy("torch"), lazy("overopt.base.datatypes")
    sampling, draws = lazy("overopt.nets.sampling"), lazy("overopt.worlds.draws")


@dataclass(frozen=True, kw_only=True)
class PoolStage:
    """N gold-scored responses to each of some evaluation prompts; shared by all proxies."""

    world: AnyWorld
    n_prompts: int
    pool_size: int
    root_seed: int
    eval_offset: int = 0
    start_sources: tuple[str, ...] = ()


def run_pool(ctx: StageContext) -> None:
    """Sample N responses to each evaluation prompt and score them with gold and the world's intent."""
    cfg: PoolStage = ctx.config
    world = load_world(cfg.world)
    policy = initial_policy(ctx)
    gold = scorer_of(ctx, "gold", world)
    intent = intent_of(ctx, world)
    prompts = draws.eval_prompts(world, cfg.n_prompts, cfg.eval_offset)
    parts = []
    for i in range(cfg.n_prompts):
        part = sampling.sample(
            policy,
            prompts.select(slice(i, i + 1)),
            n_tokens=cfg.world.max_response_tokens,
            seed=derive_seed(cfg.root_seed, "pool", cfg.eval_offset + i),
            copies=cfg.pool_size,
        )
        scores = truth_scores(gold, intent, part) | {"length": part.length}
        parts.append((part, scores))
        ctx.progress(i + 1, cfg.n_prompts)
    responses = datatypes.concat_responses([p for p, _ in parts])
    save_responses(ctx.out / "responses.npz", responses, cfg.pool_size)
    table = {k: torch.stack([s[k] for _, s in parts]).numpy() for k in parts[0][1]}
    files.save_arrays(ctx.out / "scores.npz", table)


def pool_folders(ctx: StageContext) -> list[Path]:
    """Folders of the pool: one, or those of its pieces in the order of their prompts."""
    return [ctx.inputs[r].path for r in sorted(ctx.inputs) if r == "pool" or r.startswith("pool_")]


PIECE_RESPONSES = 1 << 17
"""Most responses in one piece of a pool: about a minute of work and half a gigabyte in memory."""


def pool_stages(run: RunConfig, inputs: dict[str, Stage]) -> dict[str, Stage]:
    """The pool of a run by role: one stage, or pieces of whole prompts of at most PIECE_RESPONSES.

    Pieces are sampled side by side, are read one after the other, and a kill costs the pieces in
    flight. A prompt's responses do not depend on the piece it is in.
    """
    bon = run.bon
    assert bon is not None
    size = max(1, PIECE_RESPONSES // bon.pool_size)
    pieces: dict[str, Stage] = {}
    for start in range(0, bon.n_prompts, size):
        n_prompts = min(size, bon.n_prompts - start)
        part = "" if size >= bon.n_prompts else f" from prompt {start}"
        part += f" of {run.start_policy}" if run.start_policy else ""
        pieces[f"pool_{len(pieces):03d}"] = Stage(
            name="pool",
            version=2,
            run=run_pool,
            gpu=True,
            label=f"pool {n_prompts} x {bon.pool_size}{part}",
            cost_s=5 + n_prompts * bon.pool_size * 0.0075 * policy_cost(run.optimised_world),
            disk_mb=n_prompts * bon.pool_size * 5e-4,
            config=PoolStage(
                world=run.optimised_world,
                n_prompts=n_prompts,
                pool_size=bon.pool_size,
                root_seed=run.root_seed,
                eval_offset=bon.eval_offset + start,
                start_sources=start_sources(run),
            ),
            upstream=inputs,
        )
    return pieces if len(pieces) > 1 else {"pool": pieces["pool_000"]}
