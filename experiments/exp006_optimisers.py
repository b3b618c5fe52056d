"""Does the reward overoptimize, or the optimiser? Seven of them against the same proxies.

Best-of-n, PPO, GRPO, RLOO, REINFORCE, rejection sampling, and DPO on the proxy's comparisons and on
fresh pairs, each against the same three proxies, five seeds each. A seed is a replicate of
everything: comparisons, proxy and method. All methods but offline DPO see the same number of
responses, 2,304, and are evaluated on the same prompts with exact KL; offline DPO passes once over the
3,000 comparisons.

Predictions, written before any run of a method beside PPO on this world, in standard deviations of
gold under the initial policy, means over proxies of 0.2M and 0.8M parameters:

1. Peak gold: best-of-n highest; rejection sampling next; PPO, GRPO and RLOO within 0.15 of each other;
   offline DPO lowest.
2. At equal √KL up to the peak, gold of PPO, GRPO, RLOO and REINFORCE differs by less than 0.2: what
   overoptimizes is the reward. Rejection sampling is above them by 0.1 or more.
3. At equal proxy score, GRPO with the division by the sd is at larger √KL than RLOO: it goes on
   pushing where responses to a prompt hardly differ.
4. REINFORCE needs at least 1.5 times the steps of RLOO to reach the same proxy score.
5. Offline DPO at β = 0.1 ends its epoch past its peak of gold; online DPO reaches a higher proxy score
   and a higher gold peak than offline DPO.
6. The smallest proxy has the lowest peak under every method, in four of five seeds or more.
7. A step of GRPO costs less than 0.8 of a step of PPO.

Cost: about 3 hours of CPU time. In a minute, to see that it works (the first proxy, all methods):

    overopt run experiments/exp006_optimisers.py --part 1/15 gold.kind=rubric labels.n_pairs=60 \\
        bon.n_prompts=4 method.steps=1 method.batch=16 method.eval_prompts=4 \\
        --results results/exp006_smoke

In full, and then the table and the picture:

    overopt run experiments/exp006_optimisers.py --results experiments/results/exp006_optimisers
    python experiments/exp006_optimisers.py experiments/results/exp006_optimisers
    overopt figures experiments/results/exp006_optimisers --figure optimisers
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from overopt.analysis.peaks import peak_of
from overopt.analysis.reach import gold_at
from overopt.fits.linear import half_width
from overopt.methods import dpo, grpo, ppo, reinforce, rejection, rloo
from overopt.methods.method import Schedule
from overopt.records.curves import Curve, cost_rows, load_curves
from overopt.reports.figures.optimisers import lines_of
from overopt.reports.text import markdown_table
from overopt.stages.settings import Experiment
from overopt.study.presets import LARGE, MIDDLE, SMALL, proxy, study_run

SIZES = (SMALL, MIDDLE, LARGE)
SEEDS = (0, 1, 2, 3, 4)
RESPONSES = 2304


def methods() -> tuple[Schedule, ...]:
    """Every method at the same number of responses and on the same evaluation prompts."""
    often = {"eval_every": 6, "eval_early_every": 3, "eval_prompts": 48, "eval_copies": 2}
    sampled = {"steps": RESPONSES // 64, "batch": 64} | often
    return (
        ppo.Settings(**sampled),
        grpo.Settings(**sampled),
        rloo.Settings(**sampled),
        reinforce.Settings(**sampled),
        rejection.Settings(steps=8, batch=RESPONSES // 8, eval_prompts=48, eval_copies=2),
        dpo.Settings(steps=47, batch=64, **often),
        dpo.Settings(data="online", steps=RESPONSES // 64, batch=32, **often),
    )


def build() -> Experiment:
    """Replicates × proxies × methods; best-of-n comes with the first method of each proxy."""
    runs = []
    for seed in SEEDS:
        for size in SIZES:
            base = study_run()
            base = replace(
                base,
                labels=replace(base.labels, data_seed=seed),
                proxy=proxy(size, base.labels.n_pairs, seed),
            )
            for i, method in enumerate(methods()):
                bon = base.bon if i == 0 else None
                runs.append(replace(base, method=method.with_seed(seed), bon=bon))
    return Experiment(
        name="exp006_optimisers", runs=tuple(runs), description="methods × proxies × seeds"
    )


AT = (0.5, 1.0, 2.0)
"""Values of √KL at which gold of all methods is compared."""


def table(results: str) -> str:
    """A row for each proxy and method, means over seeds with the half widths of 95 % intervals."""
    spent = {(row["run_id"], row["stage"]): row["cpu_s"] for row in cost_rows(results)}
    rows = []
    for proxy_name, of in lines_of(load_curves(results)).items():
        for label, curves in of.items():
            peaks = [peak_of(c) for c in curves]
            cells = [
                _mean([p[key] for p in peaks]) for key in ("peak_gold", "peak_sqrt_kl", "fall")
            ]
            cells += [
                _mean([c[key][-1] for c in curves])
                for key in ("sqrt_kl", "gold_gain", "proxy_gain")
            ]
            cells += [_mean([_at(c, d) for c in curves]) for d in AT]
            stage = [(c.meta["run_id"], c.meta["method"]) for c in curves]
            cells.append("" if curves[0].is_bon else _mean([spent.get(s, np.nan) for s in stage]))
            rows.append([proxy_name, label, str(len(curves)), *cells])
    names = ["proxy", "method", "seeds", "peak gold", "√KL of peak", "fall", "end √KL", "end gold"]
    names += ["end proxy", *(f"gold at √KL {d:g}" for d in AT), "CPU s of the method"]
    return "\n".join(markdown_table(names, rows))


def _at(curve: Curve, sqrt_kl: float) -> float:
    """Mean gold gain at a √KL; nan where the curve does not reach it."""
    if curve["sqrt_kl"].max() < sqrt_kl:
        return np.nan
    return float(gold_at(curve, np.array([sqrt_kl])).mean())


def _mean(values: Sequence[float]) -> str:
    """Mean of those that are known, and the half width of its interval over seeds."""
    x = np.array([v for v in values if np.isfinite(v)])
    if len(x) < 2:
        return f"{x[0]:.2f}" if len(x) else ""
    half = float(half_width(x))
    return f"{x.mean():.2f} ± {half:.2f}" + ("" if len(x) == len(values) else f" ({len(x)})")


if __name__ == "__main__":
    print(table(*sys.argv[1:]))
