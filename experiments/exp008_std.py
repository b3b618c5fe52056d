"""Does dividing by a vanishing spread drive the drift after the proxy has saturated?

GRPO divides the advantage of a response by the standard deviation of its group, PPO divides advantages
by that of the batch. When all responses score alike the divisor vanishes and noise has full-size
gradients. On the earlier world the proxy's spread within a prompt fell from 0.9 to 0.03 under PPO, and
half of all KL was spent after 90 % of the proxy's gain. Here each method runs with its division and
with a fixed scale instead, everything else the same: GRPO with and without `method.sd`, PPO with
`method.adv_scale` batch and fixed. RLOO, which never divides, is the third yardstick. A seed is a
replicate of everything: comparisons, proxy and method.

Evaluations come at every half unit of √KL, so that the curves can be compared at equal √KL. The *late
share* of a run is the share of its final √KL that it gains after its proxy score has reached 90 % of
its final gain.

Predictions, written before any run of GRPO without division or of PPO with a fixed scale on this world:

1. Late share: GRPO with division above GRPO without by at least 0.15 (mean over seeds), PPO with the
   batch's scale above PPO with the fixed one by at least 0.1; RLOO within 0.1 of GRPO without.
2. √KL at the end of the same number of steps is larger with division, for both methods, in at least
   four of five seeds: by 20 % or more for GRPO, by 10 % or more for PPO.
3. Gold at equal √KL differs by less than 0.2 between the two scales of a method up to where both have
   been: the division changes how far a run goes, not the way.
4. So gold at the end is lower with division, in at least four of five seeds of GRPO.
5. Adam remembers the size of gradients for a thousand steps, so a fixed scale slows a run within its
   150 steps; with the division the proxy's score at the end is within 0.1 of that without.

Cost: about 2 hours of CPU time. In two minutes, to see that it works (the first seed, all five
methods):

    overopt run experiments/exp008_std.py --part 1/5 gold.kind=rubric labels.n_pairs=60 \\
        bon=none method.steps=2 method.batch=16 method.eval_prompts=4 --results results/exp008_smoke

In full:

    overopt run experiments/exp008_std.py --results experiments/results/exp008_std
"""

from dataclasses import replace

from overopt.methods import grpo, ppo, rloo
from overopt.methods.method import Schedule
from overopt.stages.settings import Experiment
from overopt.study.presets import MIDDLE, proxy, study_run

SEEDS = (0, 1, 2, 3, 4)
STEPS = 150


def methods() -> tuple[Schedule, ...]:
    """Each scale of each method, at the same number of responses."""
    same = {
        "steps": STEPS,
        "batch": 64,
        "eval_sqrt_kl": 0.5,
        "stop_sqrt_kl": 12.0,
        "eval_prompts": 48,
        "eval_copies": 2,
    }
    return (
        grpo.Settings(**same),
        grpo.Settings(sd=False, **same),
        ppo.Settings(**same),
        ppo.Settings(adv_scale="fixed", **same),
        rloo.Settings(**same),
    )


def build() -> Experiment:
    """Replicates × methods; best-of-n comes with the first method of each seed."""
    runs = []
    for seed in SEEDS:
        base = study_run()
        base = replace(
            base,
            labels=replace(base.labels, data_seed=seed),
            proxy=proxy(MIDDLE, base.labels.n_pairs, seed),
        )
        for i, method in enumerate(methods()):
            bon = base.bon if i == 0 else None
            runs.append(replace(base, method=method.with_seed(seed), bon=bon))
    return Experiment(
        name="exp008_std", runs=tuple(runs), description="division by the spread × method"
    )
