"""Supervision of outcomes, of steps, by rules and by judges: what becomes of each when it is optimised.

The world of sums, where a judge knows whether a solution is right, and which step is wrong. Nine proxies
see the same 2,000 responses (3,000 pairs between them): verifiers of outcomes, each response for itself
or within a problem; process models with the judge's labels (lowest step, or sum over steps) and with
Math-Shepherd's (four soft rollouts a step, product); a language model that judges, with and without a
critique; and two rules without any noise, strict and lenient. Each is optimised against by best-of-n to
n = 128 and by GRPO; an outcome verifier and the lowest step also guide beam search. Five seeds, each a
replicate of everything; problems of the pool and of evaluations are shared.

Predictions, written before any of these runs, from one seed of a smaller trial; gains of gold in its
standard deviations under the initial policy (one is about 0.46 of the share of right answers), means
over seeds with intervals of 95 % over them:

1. GRPO against the strict rule: gold gains at least 0.8 and ends within 0.1 of its peak in every seed.
2. GRPO against the lenient rule turns over: peak at least 0.3, end below −0.3, in every seed.
3. GRPO against the sum over steps: responses grow to at least 1.5 times their length and gold ends below
   −0.2, in at least four seeds.
4. GRPO against every other trained proxy ends below its peak by at least 0.2.
5. Outcome verifier, pointwise: the probability that a right response scores above a wrong one is larger
   over all problems than within one by at least 0.04; with the loss within a problem by less than 0.04.
6. Best-of-n: against every trained proxy but the sum gold at n = 128 is below gold at n = 4.
7. Critique: the judge that writes one first ranks no better within a problem than the one that does not
   (difference below 0.03, or negative).
8. Exact labels of steps rank better within a problem than rollouts do, by 0.01 or more.
9. Beam search with either guide is lower at 64 candidates than best-of-n at n = 64.

Cost: about an hour of CPU time. In two minutes, to see that it works:

    overopt run experiments/exp009_supervision.py --part 1/45 labels.n_pairs=120 bon.n_prompts=4 \\
        bon.pool_size=16 bon.ns=1,4,16 method.steps=2 method.batch=16 method.eval_prompts=4 \\
        --results results/exp009_smoke

In full, and then the table:

    overopt run experiments/exp009_supervision.py --results experiments/results/exp009_supervision
    python experiments/exp009_supervision.py experiments/results/exp009_supervision runs
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from overopt.base import files
from overopt.engine.store import Store
from overopt.fits.linear import half_width
from overopt.methods import grpo
from overopt.records.curves import load_curves
from overopt.reports.text import markdown_table
from overopt.rewards.kinds import judge, outcome, process, rubric, rule
from overopt.rewards.settings import LabelsConfig
from overopt.stages.settings import BonConfig, Experiment, RunConfig, SearchConfig
from overopt.study.chain import curve_stages
from overopt.worlds import sums

SEEDS = (0, 1, 2, 3, 4)
N_PAIRS = 3000
NS = (1, 2, 4, 8, 16, 32, 64, 128)


def proxies(seed: int) -> dict[str, Any]:
    """Every kind by the name that the table has for it; rules have no seed."""
    return {
        "outcome": outcome.Settings(rm_seed=seed),
        "outcome, within a problem": outcome.Settings(rm_seed=seed, loss="within_prompt"),
        "process, lowest step": process.Settings(rm_seed=seed, aggregation="min"),
        "process, sum": process.Settings(rm_seed=seed, aggregation="sum"),
        "process, rollouts": process.Settings(rm_seed=seed, labels="soft_rollouts"),
        "judge": judge.Settings(rm_seed=seed),
        "judge, critique": judge.Settings(rm_seed=seed, critique=True),
        "rule, strict": rule.Settings(rule="strict"),
        "rule, lenient": rule.Settings(rule="lenient"),
    }


SEARCHED = ("outcome", "process, lowest step")


def build() -> Experiment:
    """Seeds × kinds."""
    base = RunConfig(
        world=sums.Settings(),
        gold=rubric.Settings(),
        bon=BonConfig(n_prompts=48, pool_size=256, ns=NS),
    )
    runs = []
    for seed in SEEDS:
        method = grpo.Settings(
            steps=40, batch=128, lr=2e-3, eval_every=5, eval_prompts=64, eval_copies=2, seed=seed
        )
        for name, kind in proxies(seed).items():
            search = SearchConfig(candidates=(1, 4, 16, 64)) if name in SEARCHED else base.search
            runs.append(
                replace(
                    base,
                    labels=LabelsConfig(n_pairs=N_PAIRS, data_seed=seed),
                    proxy=kind,
                    method=method,
                    search=search,
                )
            )
    return Experiment(
        name="exp009_supervision", runs=tuple(runs), description="kinds of supervision"
    )


# --- what came of it ------------------------------------------------------------------------------


def ranks(gold_PN: np.ndarray, proxy_PN: np.ndarray) -> dict[str, float]:
    """Probability that a right response scores above a wrong one; ties count half."""

    def above(score: np.ndarray, right: np.ndarray) -> float:
        good, bad = score[right], np.sort(score[~right])
        if len(good) == 0 or len(bad) == 0:
            return np.nan
        wins = np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")
        return float(wins.mean() / (2 * len(bad)))

    right = gold_PN > gold_PN.mean()  # gold has two values
    within = [above(s, r) for s, r in zip(proxy_PN, right, strict=True)]
    return {"all": above(proxy_PN.ravel(), right.ravel()), "within": float(np.nanmean(within))}


def table(results: str, store: str) -> str:
    """Means over seeds with half widths of 95 % intervals, a row a kind."""
    curves = {c.meta["run_id"]: c for c in load_curves(results)}
    place = Store(Path(store))
    found: dict[str, list[dict[str, float]]] = {}
    for i, run in enumerate(build().runs):
        ends = {stage.fingerprint: stage for stage in curve_stages(run)}
        name = list(proxies(0))[i % len(proxies(0))]
        row: dict[str, float] = {}
        for run_id, stage in ends.items():
            curve = curves[run_id]
            gold = curve.gain("gold").mean(1)
            if curve.is_bon:
                at = dict(zip(curve["value"].tolist(), gold, strict=True))
                row |= {f"best of {n}": at[n] for n in (4, 64, 128)}
                folders = {
                    r: place.open(s.name, s.fingerprint).path for r, s in stage.upstream.items()
                }
                pools = [folders[r] for r in sorted(folders) if r.startswith("pool")]
                of_gold = [files.load_arrays(f / "scores.npz", ("gold",))["gold"] for f in pools]
                scored = files.load_arrays(folders["scores_00"] / "scores.npz", ("members",))
                both = ranks(np.concatenate(of_gold), scored["members"][0])
                row |= {"ranks, all": both["all"], "ranks, within": both["within"]}
            elif curve.meta["method"] == "search":
                row["search, 64"] = float(gold[-1])
            else:
                length = curve["response_tokens"]
                row |= {"GRPO peak": float(gold.max()), "GRPO end": float(gold[-1])}
                row |= {
                    "√KL": float(curve["sqrt_kl"][-1]),
                    "length ×": float(length[-1] / length[0]),
                }
        found.setdefault(name, []).append(row)
    columns = [
        "ranks, all",
        "ranks, within",
        "best of 4",
        "best of 64",
        "best of 128",
        "search, 64",
    ]
    columns += ["GRPO peak", "GRPO end", "√KL", "length ×"]
    rows = [
        [name, *(_mean([row[c] for row in of if c in row]) for c in columns)]
        for name, of in found.items()
    ]
    return "\n".join(markdown_table(["proxy", *columns], rows))


def _mean(values: Sequence[float]) -> str:
    """Mean over seeds, and the half width of its interval."""
    x = np.array(values)
    if len(x) < 2:
        return "".join(f"{v:.2f}" for v in x)
    half = float(half_width(x))
    return f"{x.mean():.2f} ± {half:.2f}"


if __name__ == "__main__":
    print(table(*sys.argv[1:]))
