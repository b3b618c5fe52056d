"""Gold's scores of a policy's evaluation responses, and the curve of its optimisation."""

from dataclasses import dataclass

import numpy as np

from overopt.base.files import load_arrays, load_json
from overopt.engine.graph import StageContext
from overopt.measure.evaluate import distinct_share
from overopt.measure.win_rate import paired_win_rate
from overopt.records.schema import CURVE_ARRAYS
from overopt.rewards.kinds.rubric import RubricScorer, load_rubric
from overopt.stages.common import load_responses, scorer_of
from overopt.stages.points import member_spread, save_curve, stderr, within_std
from overopt.worlds.load import load_world
from overopt.worlds.world import WorldConfig


@dataclass(frozen=True, kw_only=True)
class PpoGoldStage:
    """Gold and rubric scores of PPO's evaluation responses."""

    world: WorldConfig
    root_seed: int


def run_ppo_gold(ctx: StageContext) -> None:
    """Score PPO's evaluation responses with gold and rubric, and write its curve.

    A policy that was carried on through rounds has inputs ``proxy_01``, ``ppo_01``, … before the
    last round's; each point belongs to the round that trained up to it, and is measured with that
    round's proxy.
    """
    cfg: PpoGoldStage = ctx.config
    world = load_world(cfg.world)
    earlier = sorted(role.removeprefix("ppo") for role in ctx.inputs if role.startswith("ppo_"))
    parts = [*earlier, ""]
    proxies = [scorer_of(ctx, f"proxy{part}", world) for part in parts]
    folders = [ctx.inputs[f"ppo{part}"].path for part in parts]
    gold = scorer_of(ctx, "gold", world)
    rubric = RubricScorer(load_rubric(ctx.inputs["calibration"].path), world)
    log = load_json(folders[-1] / "log.json")
    rows, columns = [], {name: [] for name in (*CURVE_ARRAYS, "proxy_start", "win_rate")}  # type: ignore[var-annotated]
    gold_start = None
    files = [(i, file) for i, f in enumerate(folders) for file in sorted(f.glob("eval-*.npz"))]
    first, score_first = files[0][1], load_arrays(files[0][1])["proxy"]
    starts = [score_first, *(proxy.score(load_responses(first)).numpy() for proxy in proxies[1:])]
    for done, (i, file) in enumerate(files, start=1):
        proxy, step = proxies[i], int(file.stem.removeprefix("eval-"))
        responses, a = load_responses(file), load_arrays(file)
        n_prompts = len(a["prompt_ids"])
        per = {
            "gold": gold.score(responses).numpy(),
            "rubric": rubric.score(responses).numpy(),
            "proxy": a["proxy"],
            "kl": a["exact"],
            "length": responses.length.numpy(),
            "k1": a["k1"],
        }
        means = {k: v.reshape(n_prompts, -1).astype(float).mean(1) for k, v in per.items()}
        for name in CURVE_ARRAYS:
            columns[name].append(means[name])
        if earlier:
            start_PC = starts[i].reshape(n_prompts, -1)
            columns["proxy_start"].append(start_PC.astype(float).mean(1))
        gold_PC = per["gold"].reshape(n_prompts, -1)
        gold_start = gold_PC if gold_start is None else gold_start
        has_spread = gold_PC.shape[1] > 1
        if has_spread:
            columns["win_rate"].append(paired_win_rate(gold_PC, gold_start))
        member_std = member_spread(proxy, responses)
        stats = log[step - 1] if step > 0 else {}
        rows.append(
            {
                "coord": "ppo_step",
                "value": step,
                "kl_seq_nats": float(means["kl"].mean()),
                "kl_seq_nats_stderr": stderr(means["kl"]),
                "kl_estimator": "exact",
                "kl_k1": float(means["k1"].mean()),
                "kl_k1_stderr": stderr(means["k1"]),
                "kl_k2": float(a["k2"].mean()),
                "kl_k3": float(a["k3"].mean()),
                "n_responses": len(responses),
                "ended_share": float(responses.ended.float().mean()),
                "distinct_share": distinct_share(responses),
                "proxy_std": within_std(a["proxy"].reshape(n_prompts, -1)) if has_spread else None,
                "member_disagreement": None if member_std is None else float(member_std.mean()),
                **({"round": i + 1} if earlier else {}),
                **{
                    k: stats.get(k)
                    for k in ("entropy_token_nats", "update_kl_token_nats", "clip_fraction")
                },
                "missing_reason": "PPO: no best-of-n KL; step 0 has no update; member_disagreement:"
                " a single proxy has none; proxy_std, win_rate: need two responses a prompt",
            }
        )
        ctx.progress(done, len(files))
    of_rows = [proxies[i] for i, _ in files]
    save_curve(ctx.out, rows, {k: np.stack(v) for k, v in columns.items() if v}, of_rows)
