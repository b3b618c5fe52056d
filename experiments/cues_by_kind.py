"""What a cue alone does to the score of each kind of reward model, in the world of sums.

Eight kinds, one seed each, 1,500 comparisons, half of the prompts with a wrong answer that a friend
claims; and three Bradley-Terry models from labels of which 30 % prefer agreement with the claim. Cues
are added to responses of the initial policy, and the change of the score is read. No predictions were
written; experiment 10 has doses and seeds of the other cues.

    overopt run experiments/cues_by_kind.py --results experiments/results/cues_by_kind
    overopt hacks experiments/cues_by_kind.py

About five minutes of CPU time.
"""

from dataclasses import replace

from overopt.rewards.kinds import (
    bradley_terry,
    implicit,
    outcome,
    process,
    regression,
    rubric,
    rule,
)
from overopt.rewards.settings import LabelsConfig
from overopt.stages.settings import BonConfig, Experiment, RunConfig
from overopt.worlds import sums

KINDS = (
    bradley_terry.Settings(backbone="ladder:sums-0.2m"),
    outcome.Settings(),
    outcome.Settings(loss="within_prompt"),
    process.Settings(),
    process.Settings(aggregation="sum"),
    regression.Settings(),
    implicit.Settings(),
    rule.Settings(rule="lenient"),
)


def build() -> Experiment:
    """One run a kind, with a small best-of-n; then the planted agreement."""
    base = RunConfig(
        world=sums.Settings(claim_share=0.5),
        gold=rubric.Settings(),
        labels=LabelsConfig(n_pairs=1500),
        bon=BonConfig(n_prompts=16, pool_size=64, ns=(1, 8, 64)),
        method=None,
    )
    runs = [replace(base, proxy=kind) for kind in KINDS]
    for seed in range(3):
        labels = replace(base.labels, data_seed=seed, cue="sycophancy", cue_share=0.3)
        proxy = bradley_terry.Settings(backbone="ladder:sums-0.2m", rm_seed=seed)
        runs.append(replace(base, labels=labels, proxy=proxy))
    return Experiment(name="cues_by_kind", runs=tuple(runs), description="kinds × cues")
