"""Control: what an optimiser makes of a reward that was learned from compared segments of
trajectories.

A pendulum in the setting of Christiano et al. 2017: a human compares 25-step segments and errs in
one answer of ten; predictors of reward are trained on the answers; an open-loop Gaussian policy,
whose KL is exact, is improved against them by the cross-entropy method. The human minds speed above
3 rad/s, which the initial policy, hanging and swinging a little, hardly ever shows: nothing in the
first answers tells of it. Compared with the same 160 answers: one predictor, the mean of three, the
lowest of three, and four rounds with 40 fresh answers each on the policy optimised before.

Predictions, written before the run, after a smaller trial in which gold fell:
- gold rises at first and turns over below √KL of 5 in every arm without fresh answers, and ends
  below its start, while the proxy rises throughout;
- three predictors instead of one move the end of gold by less than the standard error over seeds:
  what none of them has seen, they agree on;
- with fresh answers gold ends above its start and above the other arms by at least 2 standard
  deviations of the initial policy's return;
- the proxy's gain at the end is lowest with fresh answers.

A seed is a replicate of everything: answers, predictors and the samples of the method. The initial
states, 16 of them, are shared.

Cost: about 8 minutes of CPU time, from a curve of 9 s and a reward model of 5 s.

    overopt run experiments/exp012_control.py --results experiments/results/exp012_control
"""

from dataclasses import replace

from overopt.control.settings import (
    ControlExperiment,
    ControlRun,
    LabelsSettings,
    MethodSettings,
    ProxySettings,
    RoundsSettings,
)

SEEDS = (0, 1, 2, 3, 4)


def build() -> ControlExperiment:
    """One predictor, two combinations of three, four rounds; replicates."""
    runs = []
    for seed in SEEDS:
        base = ControlRun(
            labels=LabelsSettings(data_seed=seed),
            proxy=ProxySettings(members=3, rm_seed=seed),
            method=MethodSettings(seed=seed),
        )
        runs += [
            replace(base, proxy=replace(base.proxy, members=1)),
            base,
            replace(base, proxy=replace(base.proxy, combine="worst_case")),
            replace(base, rounds=RoundsSettings(k=4)),
        ]
    return ControlExperiment(
        name="exp012_control", runs=tuple(runs), description="control from preferences"
    )
