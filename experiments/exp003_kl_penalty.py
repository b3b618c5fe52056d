"""Gao's null: does a KL penalty move the frontier of gold against KL, or only stop earlier on it?

Gao, Schulman and Hilton 2022 (sec. 3.6) find that a KL penalty in PPO's reward raises the proxy score at
a given KL but leaves gold against KL where it was: it acts like early stopping. They warn that this may
depend on hyperparameters, so five coefficients are crossed with two learning rates. A seed is a
replicate of everything: comparisons, proxy and PPO. The predictions were made for one seed.

Hypothesis: at equal √KL, gold does not depend on the coefficient. Tested as an equivalence: the
smallest bound δ such that |gold with penalty − gold without| < δ over the common range of √KL can be
claimed at the 5 % level (two one-sided tests, prompts as replicates).

Predictions, written before the run, in standard deviations of gold under the initial policy:
- larger coefficients end at smaller √KL, at both learning rates;
- the mean difference on the common range is below 0.3 for every coefficient;
- the smallest bound that holds is below 0.6 (48 prompts), so a null within 0.2 cannot be
  claimed from these runs;
- learning rate moves the frontier more than the coefficient does.

Cost: about 50 minutes of CPU time.

    overopt run experiments/exp003_kl_penalty.py --results experiments/results/exp003_kl_penalty
"""

from dataclasses import replace

from overopt.stages.settings import Experiment
from overopt.study.presets import study_run

KL_COEFS = (0.0, 0.01, 0.03, 0.1, 0.3)
RATES = (4e-4, 8e-4)
SEEDS = (0, 1, 2, 3, 4)


def build() -> Experiment:
    """KL coefficients × learning rates × replicates."""
    runs = []
    for seed in SEEDS:
        base = study_run()
        base = replace(
            base,
            labels=replace(base.labels, data_seed=seed),
            proxy=replace(base.proxy, rm_seed=seed),
            bon=None,
        )
        runs += [
            replace(base, method=replace(base.method, kl_coef=kl, lr=rate, ppo_seed=seed))
            for rate in RATES
            for kl in KL_COEFS
        ]
    return Experiment(name="exp003_kl_penalty", runs=tuple(runs), description="KL penalty × rate")
