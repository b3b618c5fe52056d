"""Figure 1: gold and proxy score against √KL, for best-of-n and PPO, by proxy size.

Hypothesis (Gao, Schulman and Hilton 2022): optimising against a learned proxy first raises and then
lowers the gold score, while the proxy score keeps rising; larger proxies peak later and higher.

Predictions, written before the first run (then with the sizes 0.05M, 0.2M and 0.8M), in standard
deviations of gold under the initial policy:
- PPO against the 0.05M and 0.2M proxies falls from its gold peak by more than two standard errors;
- PPO's KL exceeds 36 nats (√KL of 6), best-of-n reaches √KL of 2.3 at n = 512;
- best-of-n gold at its peak lies between 0.7 and 1.5 and grows with size.

The 3M proxy took the place of the 0.8M one when the ladder's 0.8M rung was hardly better a language
model than the 0.2M one (LOG.md). The ladder has been retrained since, and all curves made again.

Cost: about 17 minutes of CPU time, 9 minutes on two cores.

    overopt run experiments/exp001_figure1.py --results experiments/results/exp001_figure1
    overopt figures experiments/results/exp001_figure1 --out figures
"""

from dataclasses import replace

from overopt.stages.settings import Experiment
from overopt.study.presets import quick


def build() -> Experiment:
    """The preset ``quick`` under this experiment's name."""
    return replace(quick(), name="exp001_figure1")
