"""Best-of-n of one proxy: its scores of the pool, then the curve over n."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from overopt.base import files
from overopt.base.lazy import lazy
from overopt.engine.graph import Stage, StageContext
from overopt.pools.best_of_n import best_of_n, kl_bon, kl_bon_ties
from overopt.pools.tilt import exponential_tilt
from overopt.rewards.kind import Scorer
from overopt.stages.common import load_responses, scorer_of
from overopt.stages.names import describe_curve
from overopt.stages.points import correlation, moments, save_curve, stderr
from overopt.stages.pool import pool_folders
from overopt.stages.samples import pool_samples, save_samples
from overopt.stages.settings import BonConfig, RunConfig
from overopt.worlds.load import load_world
from overopt.worlds.world import AnyWorld

if TYPE_CHECKING:
    import torch

    from overopt.measure import kl, win_rate
else:
    torch, kl = lazy("torch"), lazy("overopt.measure.kl")
    win_rate = lazy("overopt.measure.win_rate")

TILT_BETAS = tuple(float(b) for b in np.geomspace(8.0, 0.05, 16))  # sd of the proxy


@dataclass(frozen=True, kw_only=True)
class ScoresStage:
    """One proxy's scores of the pool; ``precision``: of matrix products."""

    world: AnyWorld
    root_seed: int
    precision: Literal["fp32", "tf32"] = "fp32"


@dataclass(frozen=True, kw_only=True)
class BonStage:
    """Best-of-n curve of one proxy over the pool; ``bon``: without what does not concern it."""

    world: AnyWorld
    bon: BonConfig
    root_seed: int


def scores_stages(
    run: RunConfig, proxy: Stage, pools: dict[str, Stage], calibration: Stage
) -> dict[str, Stage]:
    """Scores of a run's pool by each model behind ``proxy``, by role; ensembles share them."""
    bon = run.bon
    assert bon is not None
    n_pool = bon.n_prompts * bon.pool_size
    members = [s for role, s in sorted(proxy.upstream.items()) if role.startswith("member_")]
    if not members or run.reward.combination.averages_weights:
        members = [proxy]  # it is one model, which scores for itself
    return {
        f"scores_{i:02d}": Stage(
            name="scores",
            version=1,
            run=run_scores,
            gpu=True,
            label=f"scores of {member.title} on pool {bon.n_prompts} x {bon.pool_size}",
            cost_s=3 + n_pool * 0.00025 * run.proxy.rate,
            disk_mb=n_pool * 4e-6,
            config=ScoresStage(world=run.world, root_seed=run.root_seed, precision=bon.precision),
            upstream={"calibration": calibration, "proxy": member} | pools,
        )
        for i, member in enumerate(members)
    }


def stage(run: RunConfig, proxy: Stage, pools: dict[str, Stage], calibration: Stage) -> Stage:
    """The best-of-n curve of a run."""
    bon = run.bon
    assert bon is not None
    return Stage(
        name="bon",
        version=3,
        run=run_bon,
        label=f"bon {describe_curve(run)}",
        cost_s=3,
        config=BonStage(
            world=run.world,
            bon=replace(bon, also=(), strength=BonConfig.strength),
            root_seed=run.root_seed,
        ),
        upstream={"calibration": calibration, "proxy": proxy}
        | pools
        | scores_stages(run, proxy, pools, calibration),
    )


def run_scores(ctx: StageContext) -> None:
    """Score the pool with one proxy; every ensemble that has it as a member reads the result."""
    cfg: ScoresStage = ctx.config
    proxy = scorer_of(ctx, "proxy", load_world(cfg.world))
    tables, pools = [], pool_folders(ctx)
    for done, folder in enumerate(pools):
        responses = load_responses(folder / "responses.npz")
        n_prompts = len(files.load_arrays(folder / "scores.npz", ("gold",))["gold"])
        # Prompt by prompt, as gold was scored: a proxy that is gold gets bit-identical scores.
        for i, rows in enumerate(torch.arange(len(responses)).chunk(n_prompts), start=1):
            part = responses.select(rows)
            with matmul_precision(cfg.precision):
                tables.append(proxy.member_scores(part))
            ctx.progress(done * n_prompts + i, len(pools) * n_prompts)
    files.save_arrays(ctx.out / "scores.npz", {"members": torch.stack(tables, 1).numpy()})


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Float32 matrix products in fp32, or in tf32 where the device has it, inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class ScoredPool(NamedTuple):
    """A pool with its proxy's scores (P, N), and columns (P, N) of which expected values are taken."""

    proxy: Scorer
    proxy_PN: np.ndarray
    columns: dict[str, np.ndarray]


def scored_pool(ctx: StageContext) -> ScoredPool:
    """The pool among a stage's inputs, with the members' scores combined.

    Columns: gold, proxy and their moments, length, ended, win_rate; intent and member_std where there
    are any.
    """
    cfg = ctx.config
    proxy = scorer_of(ctx, "proxy", load_world(cfg.world))
    pieces = [
        files.load_arrays(folder / "scores.npz")
        | files.load_arrays(folder / "responses.npz", ("ended",))
        for folder in pool_folders(ctx)
    ]
    table = {k: np.concatenate([p[k] for p in pieces]) for k in pieces[0]}
    if "rubric" in table:  # of older artefacts
        table["intent"] = table.pop("rubric")
    shape = table["gold"].shape
    roles = sorted(role for role in ctx.inputs if role.startswith("scores_"))
    members_MPN = np.concatenate(
        [files.load_arrays(ctx.inputs[role].path / "scores.npz")["members"] for role in roles]
    )
    members_MR = torch.from_numpy(members_MPN.reshape(len(members_MPN), -1))
    combined_R = proxy.combine(members_MR, torch.from_numpy(table["length"].reshape(-1)))
    proxy_PN = combined_R.numpy().astype(float).reshape(shape)
    spread_PN = members_MPN.std(0) if proxy.n_members > 1 else None
    known = [k for k in ("gold", "intent", "length") if k in table]
    columns: dict[str, np.ndarray] = {k: table[k].astype(np.float64) for k in known}
    columns |= {"proxy": proxy_PN, "ended": table["ended"].astype(float).reshape(shape)}
    columns["win_rate"] = win_rate.pool_win_share(table["gold"])
    columns |= moments(proxy_PN, columns["gold"])
    if spread_PN is not None:
        columns["member_std"] = spread_PN.astype(float)
    return ScoredPool(proxy, proxy_PN, columns)


def run_bon(ctx: StageContext) -> None:
    """Estimate every best-of-n from the scores of the pool."""
    cfg: BonStage = ctx.config
    proxy, proxy_PN, columns = scored_pool(ctx)
    shape = proxy_PN.shape
    names = [k for k in ("gold", "intent", "length", "proxy", "win_rate") if k in columns]
    result = best_of_n(proxy_PN, columns, cfg.bon.ns)
    ties = kl_bon_ties(proxy_PN, cfg.bon.ns)
    bound = kl_bon(cfg.bon.ns)
    arrays: dict[str, np.ndarray] = {k: result[k].per_prompt for k in names}
    arrays["kl"] = np.repeat(np.asarray(bound)[:, None], shape[0], axis=1)
    rows = []
    for k, n in enumerate(cfg.bon.ns):
        rows.append(
            {
                "coord": "n",
                "value": int(n),
                "kl_seq_nats": float(bound[k]),
                "kl_seq_nats_stderr": None,
                "kl_estimator": "bon_bound",
                "kl_bon_ties": float(ties.mean[k]),
                "proxy_gold_correlation": correlation({c: x.mean[k] for c, x in result.items()}),
                "n_responses": int(np.prod(shape)),
                "ended_share": float(result["ended"].mean[k]),
                "member_disagreement": (
                    float(result["member_std"].mean[k]) if "member_std" in columns else None
                ),
                "missing_reason": "best-of-n: no policy, its KL is known by formula;"
                " member_disagreement: a single proxy has none"
                + ("" if "intent" in columns else "; intent_score: this world has no intent"),
            }
        )
    scores = {k: v for k, v in columns.items() if k in ("gold", "intent", "proxy")}
    world = load_world(cfg.world)
    save_samples(ctx.out, pool_samples(pool_folders(ctx), world, scores, cfg.bon.ns))
    save_curve(ctx.out, rows, arrays, [proxy.unit] * len(rows))
    files.save_json(ctx.out / "tilt.json", _tilt_rows(proxy_PN, columns["gold"]))


def _tilt_rows(proxy_PN: np.ndarray, gold_PN: np.ndarray) -> list[dict[str, Any]]:
    """The exponential tilt of the pool: gold gain at each β, with KL and effective sample size."""
    columns = {"gold": gold_PN, "proxy": proxy_PN}
    tilt = exponential_tilt(proxy_PN, columns, TILT_BETAS)
    rows = []
    for k, beta in enumerate(TILT_BETAS):
        gain = {n: tilt[n].per_prompt[k] - x.mean(1) for n, x in columns.items()}
        rows.append(
            {
                "beta": beta,
                "kl_seq_nats": float(tilt["gold"].kl_seq_nats[k]),
                "sqrt_kl": kl.sqrt_kl(float(tilt["gold"].kl_seq_nats[k])),
                "gold_gain": float(gain["gold"].mean()),
                "gold_gain_stderr": stderr(gain["gold"]),
                "proxy_gain": float(gain["proxy"].mean()),
                "ess_median": float(np.median(tilt["gold"].ess[k])),
                "reliable": bool(tilt["gold"].reliable[k]),
            }
        )
    return rows
