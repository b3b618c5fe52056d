"""Coste's result: do ensembles of reward models mitigate overoptimization, with and without label noise?

Coste, Anwar, Kirk and Krueger 2023: five members that differ in seed only; under 25 % flipped labels
worst-case (WCO) and uncertainty-weighted optimisation (UWO) do not overoptimise with best-of-n while
the mean does; with PPO they help, and remove overoptimization with a small KL penalty.

Predictions, written before the run:
- best-of-n at n = 512 under 25 % flips: WCO, UWO >= mean >= single in gold, with differences of less
  than 0.3 standard deviations and intervals that overlap;
- PPO without a penalty overoptimises under every combination; its fall from the peak is smaller under
  WCO and UWO than under a single model, in most of the flip rates;
- the disagreement of members grows more along PPO against the mean than along PPO against UWO.

λ of UWO is 0.5 for both methods. The KL penalty is 0.02 per nat, used under 25 % flips.

A seed is a replicate of everything: comparisons, members and PPO.

Cost: about an hour of CPU time.

    overopt run experiments/exp002_ensembles.py --results experiments/results/exp002_ensembles
"""

from dataclasses import replace

from overopt.rewards.settings import RewardConfig
from overopt.stages.settings import Experiment
from overopt.study.presets import study_run

FLIPS = (0.0, 0.25, 0.35)
SEEDS = (0, 1, 2)
COMBINATIONS = (
    RewardConfig(),
    RewardConfig(members=5, combine="mean"),
    RewardConfig(members=5, combine="worst_case"),
    RewardConfig(members=5, combine="mean_minus_variance", strength=0.5),
)


def build() -> Experiment:
    """Flip rates × combinations × replicates; under 25 % flips PPO with a small KL penalty too."""
    runs = []
    for seed in SEEDS:
        for flip in FLIPS:
            base = study_run()
            base = replace(
                base,
                labels=replace(base.labels, label_flip_rate=flip, data_seed=seed),
                proxy=replace(base.proxy, rm_seed=seed),
                method=replace(base.method, ppo_seed=seed),
            )
            runs += [replace(base, reward=reward) for reward in COMBINATIONS]
            if flip == 0.25:
                penalised = replace(base, bon=None, method=replace(base.method, kl_coef=0.02))
                runs += [replace(penalised, reward=reward) for reward in COMBINATIONS]
    return Experiment(name="exp002_ensembles", runs=tuple(runs), description="after Coste et al.")
