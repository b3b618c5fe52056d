"""A first look at search over steps: beam search, best-of-n and votes at the same number of tokens.

In the world of sums, an outcome verifier and a process model (its lowest step), 1,500 comparisons each,
three seeds. No predictions were written, so nothing is confirmed here.

    overopt run experiments/search_steps.py --results experiments/results/search_steps

About ten minutes of CPU time.
"""

from dataclasses import replace

from overopt.rewards.kinds import outcome, process, rubric
from overopt.rewards.settings import LabelsConfig
from overopt.stages.settings import BonConfig, Experiment, RunConfig, SearchConfig
from overopt.worlds import sums

SEEDS = (0, 1, 2)


def build() -> Experiment:
    """Seeds × kinds."""
    base = RunConfig(
        world=sums.Settings(),
        gold=rubric.Settings(),
        bon=BonConfig(
            n_prompts=48,
            pool_size=256,
            ns=(1, 2, 4, 8, 16, 32, 64),
            also=("majority", "weighted_majority"),
        ),
        search=SearchConfig(candidates=(1, 4, 16, 64)),
    )
    runs = [
        replace(base, labels=LabelsConfig(n_pairs=1500, data_seed=seed), proxy=kind)
        for seed in SEEDS
        for kind in (
            outcome.Settings(rm_seed=seed),
            process.Settings(rm_seed=seed, aggregation="min"),
        )
    ]
    return Experiment(name="search_steps", runs=tuple(runs), description="search × kinds")
