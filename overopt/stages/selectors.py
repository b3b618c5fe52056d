"""Other ways than best-of-n to choose from its pool: a curve for each selector that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from overopt.base import files
from overopt.engine.graph import Stage, StageContext
from overopt.pools import selection
from overopt.stages import best_of_n
from overopt.stages.common import load_responses
from overopt.stages.points import correlation, save_curve, stderr
from overopt.stages.pool import pool_folders
from overopt.stages.settings import BonConfig, RunConfig
from overopt.worlds.load import load_world
from overopt.worlds.world import AnyWorld

MIN_ESS, RELIABLE_SHARE = 20.0, 0.95
"""Points are kept as long as so many responses carry the weight for this share of the prompts."""


@dataclass(frozen=True, kw_only=True)
class SelectorStage:
    """The curve of one selector over the pool."""

    world: AnyWorld
    bon: BonConfig
    selector: str
    root_seed: int


def stages(run: RunConfig, bon_stage: Stage) -> list[Stage]:
    """A curve for each of ``bon.also``, from the inputs of the curve of best-of-n."""
    assert run.bon is not None
    bon = replace(run.bon, also=())
    return [
        Stage(
            name=name,
            version=1,
            run=run_selector,
            label=f"{name}{bon_stage.label.removeprefix('bon')}",
            cost_s=5,
            config=SelectorStage(world=run.world, bon=bon, selector=name, root_seed=run.root_seed),
            upstream=bon_stage.upstream,
        )
        for name in run.bon.also
    ]


class _Curve(NamedTuple):
    """Means by prompt (K, P) of each column, KL in nats and effective sample size, K points."""

    columns: dict[str, np.ndarray]
    kl: np.ndarray
    ess: np.ndarray


def run_selector(ctx: StageContext) -> None:
    """Weigh the pool by the selector; write its curve as far as the pool supports it."""
    cfg: SelectorStage = ctx.config
    pool = best_of_n.scored_pool(ctx)
    module = selection.selector(cfg.selector)
    grid = selection.Grid(cfg.bon.ns, cfg.bon.strength)
    answers = _answers(ctx) if selection.reads_answers(cfg.selector) else None
    scores = selection.ScoredPool(pool.proxy_PN, pool.columns["gold"], answers)
    curve = _expected(module.weights(scores, grid), pool.columns, ctx)
    supported = (curve.ess >= MIN_ESS).mean(axis=1) >= RELIABLE_SHARE
    kept = 1 if not supported[0] else int(np.argmin([*supported, False]))
    missing = (
        f"{module.SHOWN.label}: no policy and no samples of one; member_disagreement: a single proxy"
        " has none"
    )
    rows = [
        {
            "coord": module.SHOWN.coord,
            "value": value,
            "kl_seq_nats": float(curve.kl[k].mean()),
            "kl_seq_nats_stderr": stderr(curve.kl[k]),
            "kl_estimator": "sampled" if answers is not None else "exact",
            "proxy_gold_correlation": correlation({c: x[k] for c, x in curve.columns.items()}),
            "n_responses": int(pool.proxy_PN.size),
            "ended_share": float(curve.columns["ended"][k].mean()),
            "member_disagreement": (
                float(curve.columns["member_std"][k].mean())
                if "member_std" in curve.columns
                else None
            ),
            "missing_reason": missing
            + ("" if "intent" in pool.columns else "; intent_score: this world has no intent"),
        }
        for k, value in enumerate(module.coordinates(grid)[:kept])
    ]
    arrays = {k: x[:kept] for k, x in (curve.columns | {"kl": curve.kl}).items()}
    save_curve(ctx.out, rows, arrays, [pool.proxy.unit] * kept)
    files.save_json(ctx.out / "shown.json", module.SHOWN._asdict())


def _answers(ctx: StageContext) -> np.ndarray:
    """Of the pool (P, N), which responses to a prompt give the same answer; −1: none."""
    world, found = load_world(ctx.config.world), []
    for folder in pool_folders(ctx):
        given = world.answers(load_responses(folder / "responses.npz"))
        n_prompts = len(files.load_arrays(folder / "scores.npz", ("gold",))["gold"])
        for texts in np.array(given, dtype=object).reshape(n_prompts, -1):
            number = {text: i for i, text in enumerate(dict.fromkeys(t for t in texts if t))}
            found.append([number.get(text, -1) for text in texts])
    return np.array(found)


def _expected(
    weights: Iterator[np.ndarray], columns: dict[str, np.ndarray], ctx: StageContext
) -> _Curve:
    """Expected values, KL and effective sample size of each point and prompt."""
    n_prompts = len(columns["gold"])
    means: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    kl, ess = [], []
    for prompt, weight_KN in enumerate(weights):
        for name, column in columns.items():
            means[name].append(weight_KN @ column[prompt])
        kl.append(selection.kl_nats(weight_KN))
        ess.append(selection.ess(weight_KN))
        ctx.progress(prompt + 1, n_prompts)
    stacked = {name: np.stack(values, axis=1) for name, values in means.items()}
    return _Curve(stacked, np.maximum(np.stack(kl, axis=1), 0.0), np.stack(ess, axis=1))
