"""Direct alignment overoptimizes too: does it here, and where in the epoch?

Rafailov et al. 2024 train with DPO, IPO and SLiC on the comparisons themselves, without a reward model,
and find that gold rises and falls with √KL as it does under PPO, often before one epoch is over. Here
the same three losses, at four strengths β each, pass once over 3,000 comparisons, with five evaluations
along the way. A seed is a replicate of everything: comparisons, proxy and method. The proxy is trained
on the same comparisons and only measures.

β does not mean the same in the three losses: in `dpo` it multiplies the margin, in `ipo_mean` the
margin is driven to 1/(2β), in `slic` it sets how far. So each loss has a grid of its own, from a strong
pull back to the initial policy to a weak one.

Predictions, written before any run of DPO at these settings on this world, in standard deviations of
gold under the initial policy, means over seeds:

1. At the weakest pull of each loss gold ends the epoch at least 0.2 below its peak; at the strongest it
   ends within 0.1 of its peak.
2. At the weakest pull the best of the five evaluations is the first or second (a quarter or half of the
   epoch), for `dpo` and `slic`; `ipo_mean` peaks later than `dpo`.
3. Peak gold is between 0.2 and 0.8 for all losses, below the peak of best-of-n on the same proxy.
4. Gold against √KL, all β of a loss together, follows d(α − β log d) with R² of at least 0.6.
5. The accuracy of the implicit reward on training pairs rises along the epoch in every run, also where
   gold falls: over all runs its rank correlation with gold at the end is below 0.3 in absolute value.

Cost: about 75 minutes of CPU time. In two minutes, to see that it works (the first seed, one step a
loss and β):

    overopt run experiments/exp007_direct.py --part 1/5 gold.kind=rubric labels.n_pairs=120 \\
        method.steps=2 method.batch=16 method.eval_prompts=4 --results results/exp007_smoke

In full:

    overopt run experiments/exp007_direct.py --results experiments/results/exp007_direct
"""

from dataclasses import replace
from typing import Any

from overopt.methods import dpo
from overopt.stages.settings import Experiment
from overopt.study.presets import MIDDLE, proxy, study_run

STRENGTHS: dict[Any, tuple[float, ...]] = {
    "dpo": (0.01, 0.05, 0.2, 0.8),
    "ipo_mean": (0.05, 0.2, 0.8, 3.0),
    "slic": (0.01, 0.05, 0.2, 0.8),
}
SEEDS = (0, 1, 2, 3, 4)
BATCH, PAIRS = 64, 3000
STEPS = PAIRS // BATCH


def build() -> Experiment:
    """Replicates × losses × strengths; best-of-n on the proxy comes with the first of each seed."""
    runs = []
    for seed in SEEDS:
        base = study_run()
        base = replace(
            base,
            labels=replace(base.labels, data_seed=seed, n_pairs=PAIRS),
            proxy=proxy(MIDDLE, PAIRS, seed),
        )
        for loss, strengths in STRENGTHS.items():
            for beta in strengths:
                method = dpo.Settings(
                    loss=loss,
                    beta=beta,
                    batch=BATCH,
                    steps=STEPS,
                    warmup_steps=4,
                    eval_every=-(-STEPS // 4),
                    eval_early_every=STEPS,
                    eval_prompts=48,
                    eval_copies=2,
                    seed=seed,
                )
                is_first = (loss, beta) == ("dpo", STRENGTHS["dpo"][0])
                runs.append(replace(base, method=method, bon=base.bon if is_first else None))
    return Experiment(
        name="exp007_direct", runs=tuple(runs), description="DPO, IPO and SLiC × strength"
    )
