"""Does this world show what Gao et al. 2022 saw? Sizes, numbers of comparisons, shuffled labels.

Gold is the rubric of the world of stories: saturating features and coherence. A seed is a replicate of
everything: comparisons, proxy and PPO; seeds share no training prompt. Exploring runs used data seeds
16 and above, or responses outside of this pipe; none of them is used here.

- Sizes: 0.028M, 0.056M, 0.2M and 0.8M on 300 comparisons, eight seeds, best-of-n to n = 2,048. PPO
  for five seeds at 0.028M, 0.2M and 0.8M, to √KL 8. The first four seeds (three of PPO) are Figure 1.
- Comparisons: 300, 600, 1,500 and 6,000 at 0.2M, eight seeds, best-of-n.
- Shuffled labels: 49.9 % of them flipped, 0.028M and 0.2M, eight seeds, best-of-n.

Tests: of a size or a number of comparisons, one slope per seed against its log10, and a t test over the
eight (five) slopes, two-sided. Peaks are cross-fitted over prompts: placed on one half of the prompts,
read on the other, both ways. √KL of a peak at the end of the range counts as the end. "Fall" is the
cross-fitted peak minus gold at the end.

Predictions, written before any of these runs, gains in standard deviations of gold:

1. Best-of-n, along size: peak gold and gold at the end rise, √KL of the peak rises, each p < 0.01; the
   fall shrinks, p < 0.05. Peaks from 0.4 to 0.6 at 0.028M to 1.0 to 1.3 at 0.8M.
2. Best-of-n: the smallest proxy falls (p < 0.01); 0.8M does not, or by less than 0.1.
3. Along comparisons, at 0.2M: peak and end rise, p < 0.01. No claim about the fall: 0.2M hardly has one.
4. With shuffled labels: no slope of peak or end with p < 0.05, and cross-fitted peaks below 0.15.
5. PPO: every size falls from its cross-fitted peak to its end; at 0.028M with p < 0.01.
6. PPO: gold at the end (√KL near 8) rises with size, p < 0.01, from about −0.1 to about 0.9.
7. PPO: within a size, ends scatter with a standard deviation of at most 0.5, in one cluster.
8. PPO: peaks lie at √KL 3 to 6, and rise with size, p < 0.05.
9. PPO: the form d(α − β log d) describes at least two of the three sizes (p of at least 0.01).
10. PPO needs more √KL than best-of-n for a gold gain of 0.5, at 0.2M and 0.8M.

Cost: about 75 minutes of CPU time.

    overopt run experiments/exp014_world.py --results experiments/results/exp014_world
    overopt fit experiments/results/exp014_world
"""

from dataclasses import replace

from overopt.stages.settings import Experiment
from overopt.study.presets import LARGE, MIDDLE, SMALL, SMALLEST, figure_run

SEEDS, PPO_SEEDS = range(8), range(5)
MORE_COMPARISONS = (600, 1500, 6000)
SHUFFLED = 0.499


def build() -> Experiment:
    """The runs in the order of seeds."""
    runs = []
    for seed in SEEDS:
        sizes = [figure_run(size, seed) for size in (SMALLEST, SMALL, MIDDLE, LARGE)]
        has_ppo = [True, False, True, True] if seed in PPO_SEEDS else [False] * 4
        runs += [
            run if ppo else replace(run, method=None)
            for run, ppo in zip(sizes, has_ppo, strict=True)
        ]
        runs += [replace(figure_run(MIDDLE, seed, n), method=None) for n in MORE_COMPARISONS]
        for run in (sizes[0], sizes[2]):
            labels = replace(run.labels, label_flip_rate=SHUFFLED)
            runs.append(replace(run, labels=labels, method=None))
    return Experiment(
        name="exp014_world", runs=tuple(runs), description="sizes, comparisons, shuffled labels"
    )
