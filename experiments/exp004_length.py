"""Length: do penalties and a length-controlled reward model take away what PPO gains by length alone?

Against a plain proxy PPO stops ending its stories and fills the 48 tokens it is allowed (0.59 of the
initial policy's responses end; under PPO fewer than 0.1). Singhal et al. 2023 find that most of PPO's
reward gain is length. Compared here: linear price of a token, hinge beyond the initial policy's mean
length, and a two-headed reward model whose length head is dropped (ODIN, Chen et al. 2024).

Predictions, written before the run:
- without a penalty mean length rises from 37 to above 45 tokens within √KL of 2;
- prices of 0.02 and more keep mean length within 3 tokens of the start;
- gold at its peak is higher with a moderate price (0.02) than without, by less than 0.3;
- the length-controlled model removes less than half of the drift: the ladder's proxies read length
  through the missing ending as well.

A seed is a replicate of everything: comparisons, proxy and PPO.

Cost: about 25 minutes of CPU time.

    overopt run experiments/exp004_length.py --results experiments/results/exp004_length
"""

from dataclasses import replace

from overopt.rewards.settings import RewardConfig
from overopt.stages.settings import Experiment
from overopt.study.presets import study_run

LINEAR = (0.01, 0.02, 0.05)
HINGE = (0.05,)
CONTROL = (1.0,)
SEEDS = (0, 1, 2, 3, 4)


def build() -> Experiment:
    """No penalty, linear and hinge prices, length control; best-of-n and PPO; replicates."""
    rewards = [RewardConfig(length_penalty="linear", length_coef=c) for c in LINEAR]
    rewards += [RewardConfig(length_penalty="hinge", length_coef=c) for c in HINGE]
    runs = []
    for seed in SEEDS:
        base = study_run()
        base = replace(
            base,
            labels=replace(base.labels, data_seed=seed),
            proxy=replace(base.proxy, rm_seed=seed),
            method=replace(base.method, ppo_seed=seed),
        )
        runs += [base, *(replace(base, reward=reward) for reward in rewards)]
        runs += [replace(base, proxy=replace(base.proxy, length_control=c)) for c in CONTROL]
    return Experiment(name="exp004_length", runs=tuple(runs), description="length")
