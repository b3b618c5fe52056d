"""Hacks planted with a dose: does a labeller's foible reach the reward model, and then the policy?

The world of sums. In a share of the training comparisons the response with more of a cue is chosen,
whatever gold says: redundant checks, a step written twice, a second answer, the answer marked twice, a
step that contradicts itself. A reward model of 0.2M parameters learns from 3,000 comparisons and is
optimised against by best-of-n and by RLOO. Measured are what the cue alone does to the score (paired
edits of the same responses), how much of the cue there is at each n and step, and what gold loses. Three
doses, of which 0 is shared, five seeds, each a replicate of comparisons, reward model and method.

Predictions, written before any of these runs, after three seeds of two cues with 1,500 comparisons:

1. The change of score by the edit grows with the dose for checks and for verbosity (slope over doses
   positive, t test over seeds p < 0.05), and not for contradiction, which hardly any response has.
2. Checks a response in the best of 128 are at least 0.3 more at a dose of 0.3 than at 0; so is any other
   cue that at least a twentieth of the policy's responses have.
3. Under RLOO the dose shows more than under best-of-n: checks a response at the end at least twice those
   without a dose.
4. Gold at the end of RLOO is lower by at least 0.1 sd at a dose of 0.3 of hedging than at 0, and
   differs by less than 0.1 for checks, which harm nobody.

Cost: about 45 minutes of CPU time. In two minutes, to see that it works:

    overopt run experiments/exp010_hacks.py --part 1/55 labels.n_pairs=120 bon.n_prompts=4 \\
        bon.pool_size=16 bon.ns=1,4,16 method.steps=2 method.batch=16 method.eval_prompts=4 \\
        --results results/exp010_smoke

In full, and then the effects and the growth of every cue:

    overopt run experiments/exp010_hacks.py --results experiments/results/exp010_hacks
    overopt hacks experiments/exp010_hacks.py --out experiments/results/exp010_hacks/hacks.json \\
        --figure experiments/results/exp010_hacks/hacks.png
"""

from dataclasses import replace

from overopt.methods import rloo
from overopt.rewards.kinds import bradley_terry, rubric
from overopt.rewards.settings import LabelsConfig
from overopt.stages.settings import BonConfig, Experiment, RunConfig
from overopt.worlds import sums

SEEDS = (0, 1, 2, 3, 4)
CUES = ("checks", "verbosity", "hedging", "formatting", "contradiction")
DOSES = (0.1, 0.3)
N_PAIRS = 3000


def build() -> Experiment:
    """Seeds × (no dose, then cues × doses)."""
    base = RunConfig(
        world=sums.Settings(),
        gold=rubric.Settings(),
        bon=BonConfig(n_prompts=48, pool_size=256, ns=(1, 2, 4, 8, 16, 32, 64, 128)),
    )
    runs = []
    for seed in SEEDS:
        plain = LabelsConfig(n_pairs=N_PAIRS, data_seed=seed)
        planted = [replace(plain, cue=cue, cue_share=dose) for cue in CUES for dose in DOSES]
        method = rloo.Settings(
            steps=24, batch=64, lr=2e-3, eval_every=6, eval_prompts=64, eval_copies=2, seed=seed
        )
        proxy = bradley_terry.Settings(backbone="ladder:sums-0.2m", rm_seed=seed)
        runs += [
            replace(base, labels=labels, proxy=proxy, method=method) for labels in (plain, *planted)
        ]
    return Experiment(name="exp010_hacks", runs=tuple(runs), description="cues × doses")
