"""Learning rates of proxies: searched for each size and each number of comparisons, by validation loss.

Every proxy is trained at several rates on the same comparisons of two data seeds that no other
experiment uses. The rate with the lowest mean loss on held-out pairs should be the preset's
(`overopt.study.presets.RATES`). The table in LOG.md is of a smaller search outside of the pipe; this
experiment has not been run to its end.

    overopt run experiments/proxy_rates.py --results experiments/results/proxy_rates
    python experiments/proxy_rates.py experiments/results/proxy_rates

Cost: about 15 minutes of CPU time.
"""

import sys

import overopt
from overopt.rewards.kinds import bradley_terry
from overopt.rewards.settings import LabelsConfig
from overopt.stages.settings import BonConfig, Experiment, RunConfig

RATES = {
    ("ladder:0.05m", 1): (5e-3, 1e-2, 2e-2),
    ("ladder:0.05m", 0): (3e-3, 6e-3, 1.2e-2),
    ("ladder:0.2m", 0): (1.5e-3, 3e-3, 6e-3),
    ("ladder:0.8m", 0): (5e-4, 1e-3, 2e-3, 4e-3),
    ("ladder:3m", 0): (3e-4, 6e-4),
}
COMPARISONS = (300, 600, 1500, 6000)
SEEDS = (16, 17)


def build() -> Experiment:
    """Proxies at every rate; the smallest best-of-n there is, so that they have records."""
    runs = [
        RunConfig(
            labels=LabelsConfig(n_pairs=n, data_seed=seed),
            proxy=bradley_terry.Settings(backbone=backbone, layers=layers, lr=lr, rm_seed=seed),
            bon=BonConfig(n_prompts=2, pool_size=64, ns=(1, 64)),
        )
        for (backbone, layers), rates in RATES.items()
        for n in COMPARISONS
        for lr in rates
        for seed in SEEDS
        if not (backbone == "ladder:3m" and n > 1500)  # a fifth of the whole cost
    ]
    return Experiment(name="proxy_rates", runs=tuple(runs), description="rates of proxies")


def main() -> None:
    """Print mean validation loss and accuracy by backbone, comparisons and rate."""
    table = overopt.load_records(sys.argv[1])
    keys = ["backbone", "n_pairs", "proxy_lr"]
    mean = table.groupby(keys)[["proxy_val_loss", "proxy_accuracy"]].mean().reset_index()
    best = mean.groupby(keys[:2])["proxy_val_loss"].transform("min")
    mean["best"] = (mean["proxy_val_loss"] == best).map({True: "*", False: ""})
    print(mean.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
