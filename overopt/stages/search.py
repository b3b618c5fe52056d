"""Search over steps guided by one proxy: responses at each number of candidates, then their curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from overopt.base import files
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed
from overopt.base.shown import Shown
from overopt.engine.graph import Stage, StageContext
from overopt.rewards.kind import Scorer
from overopt.stages.common import (
    initial_policy,
    intent_of,
    load_responses,
    policy_cost,
    save_responses,
    scorer_of,
    start_sources,
    truth_scores,
)
from overopt.stages.names import describe_curve
from overopt.stages.points import member_spread, pearson, save_curve
from overopt.stages.samples import sample_rows, save_samples
from overopt.stages.settings import RunConfig, SearchConfig
from overopt.worlds.load import load_world
from overopt.worlds.world import AnyWorld, World

if TYPE_CHECKING:
    import torch

    from overopt.base.datatypes import Responses
    from overopt.methods import search
    from overopt.worlds import rows
else:
    torch, search = lazy("torch"), lazy("overopt.methods.search")
    rows = lazy("overopt.worlds.rows")

SEARCH = "search"
"""Name of the curve's stage, and of the method in records."""

SHOWN = Shown(
    label="beam search",
    coord="candidates",
    axis="candidates a step",
    form="bon",
    marker="D",
    treatments={"search_expansions": "expansions", "search_lookahead": "lookahead"},
    moves_policy=False,
)


@dataclass(frozen=True, kw_only=True)
class SearchStage:
    """Search with one proxy, or the curve of what it found."""

    world: AnyWorld
    search: SearchConfig
    root_seed: int
    start_sources: tuple[str, ...] = ()


def stages(run: RunConfig, inputs: dict[str, Stage]) -> list[Stage]:
    """The curve of a run's search, from ``calibration``, ``gold`` and ``proxy``, if there is one."""
    if not run.search.candidates:
        return []
    config = SearchStage(
        world=run.optimised_world,
        search=run.search,
        root_seed=run.root_seed,
        start_sources=start_sources(run),
    )
    widest = sum(run.search.candidates) * run.search.n_prompts * (1 + run.search.lookahead)
    found = Stage(
        name="searched",
        version=1,
        run=run_search,
        gpu=True,
        label=f"search {describe_curve(run)} {run.search.title}",
        cost_s=5 + 0.0016 * widest * run.proxy.rate * policy_cost(run.optimised_world),
        config=config,
        upstream={role: inputs[role] for role in ("calibration", "proxy")},
    )
    judged = Stage(
        name=SEARCH,
        version=1,
        run=run_curve,
        label=f"search gold {describe_curve(run)} {run.search.title}",
        cost_s=5,
        config=config,
        upstream=inputs | {"searched": found},
    )
    return [judged]


def run_search(ctx: StageContext) -> None:
    """Search with each number of candidates; keep the responses, and what they took."""
    cfg: SearchStage = ctx.config
    world, policy = load_world(cfg.world), initial_policy(ctx)
    proxy = scorer_of(ctx, "proxy", world)
    asked = world.rows("eval", cfg.search.n_prompts)
    reader = reader_of(world, proxy, asked, policy.cfg.eos_token_id)
    took: dict[str, dict[str, list[int]]] = {}
    for done, n in enumerate(cfg.search.candidates, start=1):
        found = search.beam_search(
            policy,
            asked,
            reader,
            **cfg.search.shape(n),
            n_tokens=cfg.world.max_response_tokens,
            lookahead=cfg.search.lookahead if n > 1 else 0,
            seed=derive_seed(cfg.root_seed, "search", n),
        )
        responses = reader.responses(range(len(asked)), found.rows)
        save_responses(ctx.out / f"found-{n:05d}.npz", responses, 1)
        took[str(n)] = {"steps": found.steps, "tokens": found.tokens, "scored": found.scored}
        ctx.progress(done, len(cfg.search.candidates))
    files.save_json(ctx.out / "took.json", took)


def reader_of(
    world: World, proxy: Scorer, asked: Sequence[Sequence[int]], end: int
) -> search.Reader:
    """How a search in ``world`` reads responses to the first prompts of the eval split, ``asked``."""
    start, _ = world.bounds("eval")

    def responses(problems: Sequence[int], answers: Sequence[Sequence[int]]) -> Responses:
        pairs = [(asked[i], answer) for i, answer in zip(problems, answers, strict=True)]
        made = rows.as_responses(pairs, pad=world.pad, eos=end)
        made.prompts.prompt_id.copy_(torch.tensor(list(problems)) + start)
        return made

    return search.Reader(
        prompts=lambda table: rows.as_prompts(table, pad=world.pad, start=0),
        responses=responses,
        step_ends=world.step_ends,
        score=proxy.score,
        end=end,
    )


def run_curve(ctx: StageContext) -> None:
    """Score what was found with gold, the intent and the proxy, and write the curve."""
    cfg: SearchStage = ctx.config
    world, folder = load_world(cfg.world), ctx.inputs["searched"].path
    proxy, gold, intent = (
        scorer_of(ctx, "proxy", world),
        scorer_of(ctx, "gold", world),
        intent_of(ctx, world),
    )
    took = files.load_json(folder / "took.json")
    points: list[dict[str, Any]] = []
    columns: dict[str, list[np.ndarray]] = {}
    samples: list[dict[str, Any]] = []
    for done, n in enumerate(cfg.search.candidates, start=1):
        found = load_responses(folder / f"found-{n:05d}.npz")
        per_P = {k: v.numpy() for k, v in truth_scores(gold, intent, found).items()}
        per_P |= {"proxy": proxy.score(found).numpy(), "length": found.length.numpy()}
        steps = took[str(n)]["steps"]
        per_P["kl"] = np.array([search.kl_bound(s, **cfg.search.shape(n)) for s in steps])
        samples += sample_rows(world, found, per_P, n)
        spread = member_spread(proxy, found)
        for name, values in per_P.items():
            columns.setdefault(name, []).append(values.astype(np.float64))
        points.append(
            {
                "coord": SHOWN.coord,
                "value": n,
                "search_expansions": cfg.search.expansions,
                "search_lookahead": cfg.search.lookahead,
                "kl_seq_nats": float(per_P["kl"].mean()),
                "kl_seq_nats_stderr": None,
                "kl_estimator": "search_bound",
                "proxy_gold_correlation": pearson(per_P["proxy"], per_P["gold"]),
                "n_responses": len(found),
                "ended_share": float(found.ended.float().mean()),
                "member_disagreement": None if spread is None else float(spread.mean()),
                "drawn_tokens": float(np.mean(took[str(n)]["tokens"])),
                "rm_calls": int(np.sum(took[str(n)]["scored"])),
                "missing_reason": "search: no policy, its KL is bounded by formula;"
                " member_disagreement: a single proxy has none"
                + ("" if intent is not None else "; intent_score: this world has no intent"),
            }
        )
        ctx.progress(done, len(cfg.search.candidates))
    save_samples(ctx.out, samples)
    stacked = {k: np.stack(v) for k, v in columns.items()}
    save_curve(ctx.out, points, stacked, [proxy.unit] * len(points))
