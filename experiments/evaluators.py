"""A first look at reward models as evaluators and as filters, and at one planted hack.

The world of sums, Bradley-Terry models on the 0.2M rung, 1,500 comparisons. Six are optimised against by
a short RLOO, and then rank the policies, their own and those of the others. Labels with two doses of a
preference for redundant checks, and none, three seeds each, under best-of-n. Four filter the data of a
fine-tuning, beside gold and no filter. No predictions were written, so nothing is confirmed here.

    overopt run experiments/evaluators.py --results experiments/results/evaluators
    overopt rank experiments/evaluators.py
    overopt hacks experiments/evaluators.py

About six minutes of CPU time.
"""

from dataclasses import replace

from overopt.methods import filtered_sft, rloo
from overopt.rewards.kinds import bradley_terry, gold, rubric
from overopt.rewards.settings import LabelsConfig
from overopt.stages.settings import BonConfig, Experiment, RunConfig
from overopt.worlds import sums

POLICIES, DOSED, FILTERS = range(6), range(3), range(4)
DOSES = (0.0, 0.1, 0.3)
KEPT = ((100.0, "all"), (25.0, "all"), (25.0, "prompt"), (5.0, "all"))


def build() -> Experiment:
    """Policies, then doses, then filters."""
    base = RunConfig(world=sums.Settings(), gold=rubric.Settings(), bon=None)

    def of(seed: int) -> RunConfig:
        proxy = bradley_terry.Settings(backbone="ladder:sums-0.2m", rm_seed=seed)
        return replace(base, labels=LabelsConfig(n_pairs=1500, data_seed=seed), proxy=proxy)

    runs = [
        replace(
            of(seed),
            method=rloo.Settings(
                steps=24, batch=64, lr=2e-3, eval_every=2, eval_prompts=64, seed=seed
            ),
        )
        for seed in POLICIES
    ]
    pool = BonConfig(n_prompts=32, pool_size=128, ns=(1, 8, 128))
    for seed in DOSED:
        for dose in DOSES:
            run = of(seed)
            cue = "checks" if dose else ""
            labels = replace(run.labels, cue=cue, cue_share=dose)
            runs.append(replace(run, labels=labels, bon=pool, method=None))
    for seed in FILTERS:
        ways = [
            filtered_sft.Settings(
                keep=keep, keep_of=of_what, steps=40, batch=16, lr=1e-3, eval_every=40,
                eval_prompts=128, seed=seed,
            )
            for keep, of_what in KEPT
        ]  # fmt: skip
        runs += [replace(of(seed), method=way) for way in ways]
        runs.append(replace(of(seed), proxy=gold.Settings(), method=ways[1]))
    return Experiment(name="evaluators", runs=tuple(runs), description="rank, doses, filters")
