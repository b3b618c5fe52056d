"""Gold's scores of a policy's evaluation responses, and the curve of its optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from overopt.base.files import load_arrays, load_json
from overopt.base.lazy import lazy
from overopt.base.shown import Shown, from_json
from overopt.engine.graph import Stage, StageContext
from overopt.rewards.kind import Scorer
from overopt.stages.common import intent_of, load_responses, scorer_of, truth_scores
from overopt.stages.names import describe_curve
from overopt.stages.optimise import method_role
from overopt.stages.points import (
    member_spread,
    pearson,
    save_curve,
    stderr,
    within_std,
)
from overopt.stages.samples import sample_rows, save_samples
from overopt.stages.settings import RunConfig
from overopt.worlds.load import load_world
from overopt.worlds.world import AnyWorld, World

if TYPE_CHECKING:
    from overopt.measure import evaluate, win_rate
else:
    evaluate, win_rate = lazy("overopt.measure.evaluate"), lazy("overopt.measure.win_rate")

TRAINING = ("entropy_token_nats", "update_kl_token_nats", "clip_fraction")
"""What a method may log of the step behind a point, and records keep."""


@dataclass(frozen=True, kw_only=True)
class JudgeStage:
    """Gold's and the intent's scores of a method's evaluation responses."""

    world: AnyWorld
    root_seed: int


def stage(run: RunConfig, method: Stage, inputs: dict[str, Stage]) -> Stage:
    """The curve of a run's method, from its artefact, gold, the proxy and earlier rounds."""
    settings = run.method
    assert settings is not None
    return Stage(
        name=f"{method.name}_gold",
        version=2,
        run=run_judge,
        gpu=True,
        label=f"{method.name} gold {describe_curve(run)} {settings.title}",
        cost_s=5 + 2 * len(settings.evaluation_steps),
        config=JudgeStage(world=run.world, root_seed=run.root_seed),
        upstream=inputs | {method.name: method},
    )


class _Round(NamedTuple):
    """One round's proxy and method, the scores of the very first responses by that proxy."""

    proxy: Scorer
    folder: Path
    start: np.ndarray


def run_judge(ctx: StageContext) -> None:
    """Score a method's evaluation responses with gold and the intent, and write its curve.

    A policy that was carried on through rounds has inputs ``proxy_01``, ``METHOD_01``, … before the
    last round's; each point belongs to the round that trained up to it, and is measured with that
    round's proxy.

    1. The rounds, and gold and intent, which are the same for all.
    2. For each evaluation: scores by prompt, responses to show, and the row of its record.
    3. The responses and the curve.
    """
    cfg: JudgeStage = ctx.config
    # 1.
    world = load_world(cfg.world)
    rounds = _rounds(ctx, world)
    gold, intent = scorer_of(ctx, "gold", world), intent_of(ctx, world)
    shown = _shown(rounds[-1].folder, method_role(ctx.inputs))
    log = load_json(rounds[-1].folder / "log.json")
    evaluations = [
        (i, file) for i, r in enumerate(rounds) for file in sorted(r.folder.glob("eval-*.npz"))
    ]
    rows: list[dict[str, Any]] = []
    columns: dict[str, list[np.ndarray]] = {}
    samples: list[dict[str, Any]] = []
    gold_start = None
    # 2.
    for done, (i, file) in enumerate(evaluations, start=1):
        step = int(file.stem.removeprefix("eval-"))
        responses, table = load_responses(file), load_arrays(file)
        n_prompts = len(table["prompt_ids"])
        per_R = {k: v.numpy() for k, v in truth_scores(gold, intent, responses).items()}
        per_R |= {"proxy": table["proxy"], "kl": table["exact"], "k1": table["k1"]}
        per_R["length"] = responses.length.numpy()
        samples += sample_rows(world, responses, per_R, step)
        if len(rounds) > 1:
            per_R["proxy_start"] = rounds[i].start
        means = {k: v.reshape(n_prompts, -1).astype(float).mean(1) for k, v in per_R.items()}
        gold_PC = per_R["gold"].reshape(n_prompts, -1)
        gold_start = gold_PC if gold_start is None else gold_start
        if gold_PC.shape[1] > 1:
            means["win_rate"] = win_rate.paired_win_rate(gold_PC, gold_start)
        for name, values in means.items():
            columns.setdefault(name, []).append(values)
        spread = member_spread(rounds[i].proxy, responses)
        stats = log[step - 1] if step > 0 else {}
        rows.append(
            {
                "coord": shown.coord,
                "value": step,
                **_kl_columns(means, table),
                "n_responses": len(responses),
                "ended_share": float(responses.ended.float().mean()),
                "distinct_share": evaluate.distinct_share(responses),
                "proxy_gold_correlation": pearson(table["proxy"], per_R["gold"]),
                "proxy_std": _proxy_std(table["proxy"].reshape(n_prompts, -1)),
                "member_disagreement": None if spread is None else float(spread.mean()),
                **({"round": i + 1} if len(rounds) > 1 else {}),
                **{k: stats.get(k) for k in TRAINING},
                "missing_reason": _missing(shown, has_intent=intent is not None),
            }
        )
        ctx.progress(done, len(evaluations))
    # 3.
    save_samples(ctx.out, samples)
    of_rows = [rounds[i].proxy.unit for i, _ in evaluations]
    save_curve(ctx.out, rows, {k: np.stack(v) for k, v in columns.items()}, of_rows)


def _rounds(ctx: StageContext, world: World) -> list[_Round]:
    """The rounds of a run, the last one's at the end."""
    role = method_role(ctx.inputs)
    earlier = sorted(r.removeprefix(role) for r in ctx.inputs if r.startswith(f"{role}_"))
    rounds: list[_Round] = []
    for part in [*earlier, ""]:
        proxy = scorer_of(ctx, f"proxy{part}", world)
        folder = ctx.inputs[f"{role}{part}"].path
        first = sorted((rounds[0].folder if rounds else folder).glob("eval-*.npz"))[0]
        start = (
            proxy.score(load_responses(first)).numpy() if rounds else load_arrays(first)["proxy"]
        )
        rounds.append(_Round(proxy, folder, start))
    return rounds


def _shown(folder: Path, method: str) -> Shown:
    """How the method shows itself; older artefacts do not say."""
    file = folder / "shown.json"
    return from_json(load_json(file)) if file.is_file() else Shown.unknown(method)


def _kl_columns(means: dict[str, np.ndarray], table: dict[str, np.ndarray]) -> dict[str, Any]:
    """KL of a point by every estimator, from means by prompt and values by response."""
    return {
        "kl_seq_nats": float(means["kl"].mean()),
        "kl_seq_nats_stderr": stderr(means["kl"]),
        "kl_estimator": "exact",
        "kl_k1": float(means["k1"].mean()),
        "kl_k1_stderr": stderr(means["k1"]),
        "kl_k2": float(table["k2"].mean()),
        "kl_k3": float(table["k3"].mean()),
    }


def _proxy_std(proxy_PC: np.ndarray) -> float | None:
    """Spread of proxy scores within prompts; None with one response a prompt."""
    return within_std(proxy_PC) if proxy_PC.shape[1] > 1 else None


def _missing(shown: Shown, *, has_intent: bool) -> str:
    """Why nulls of a method's rows are null."""
    reason = (
        f"{shown.label}: no best-of-n KL; step 0 has no update; member_disagreement: a single proxy"
        " has none; proxy_std, win_rate: need two responses a prompt"
    )
    return reason if has_intent else f"{reason}; intent_score: this world has no intent"
