"""The leaderboard: which mitigation helps against overoptimization, by how much, how surely?

Every mitigation gets two tuning trials on one tuning seed and on tuning prompts; its choice is run on
five other seeds and other prompts, and compared with the single reward model on the same seeds and
prompts (docs/compare.md). A quarter of the labels are flipped, as in Coste et al. 2023: that is where
mitigations were reported to matter. A mitigation without a setting of its own varies the number of its
members, the single model its learning rate.

Predictions, written before the run:
- best-of-n: ensembles gain 0.1 to 0.3 in area over the single model; WCO, UWO and LCB do not differ from
  the mean by more than 0.1; length penalties change little, because best-of-n moves length little;
- PPO: nothing but stopping early and penalties on KL or length keeps gold at the end above its start;
- PPO: stopping by a KL budget is within 0.1 of the best mitigation in area, at no cost;
- WARM is at least as good as the mean of scores, at a fifth of the reward-model calls;
- retraining on fresh comparisons at the same label budget helps PPO more than any combination does.

The area of these predictions is the mean of gold over √KL. It led leaderboards when this was run, and
trials were chosen by it; a policy that never moves does well by it, so gold at the end leads now.

Cost: 1.8 hours of CPU time. What came of the predictions is in LOG.md.

    overopt compare experiments/exp005_leaderboard.py --results experiments/results/exp005_leaderboard
"""

from dataclasses import replace

from overopt.study.comparison import Comparison, Method, Mitigation
from overopt.study.presets import study_run


def ensemble(
    name: str, combine: str, *settings: str, methods: tuple[Method, ...] = ("bon", "ppo")
) -> Mitigation:
    """Five members with two strengths, or three and five members where there is no strength."""
    chosen = f"reward.combine={combine}"
    sizes = ("reward.members=5",) * 2 if settings else ("reward.members=3", "reward.members=5")
    extra = [(f"reward.strength={s}",) for s in settings] or [(), ()]
    trials = tuple((size, chosen, *more) for size, more in zip(sizes, extra, strict=True))
    return Mitigation(name=name, family="ensembles", trials=trials, methods=methods)


def on_ppo(name: str, family: str, *trials: tuple[str, ...]) -> Mitigation:
    """A mitigation of PPO only."""
    return Mitigation(name=name, family=family, trials=trials, methods=("ppo",))


def stopping(name: str, rule: str) -> Mitigation:
    """A rule that stops the single model's runs."""
    return Mitigation(name=name, family="stopping", kind="stopping", rule=rule, methods=("ppo",))


LENGTH = "reward.length_penalty"
MITIGATIONS = (
    Mitigation(name="single", family="single", trials=(("proxy.lr=3e-3",), ("proxy.lr=1.5e-3",))),
    ensemble("mean", "mean"),
    ensemble("WCO", "worst_case"),
    ensemble("UWO", "mean_minus_variance", "0.5", "2"),
    ensemble("LCB", "mean_minus_std", "0.5", "2"),
    ensemble("median", "median", methods=("bon",)),
    ensemble("soft min", "log_mean_exp", "0.2", "1", methods=("bon",)),
    Mitigation(
        name="WARM",
        family="ensembles",
        trials=tuple(
            (f"reward.members={m}", "reward.members_by=bootstrap", "reward.combine=weight_average")
            for m in (3, 5)
        ),
    ),
    Mitigation(
        name="linear length",
        family="length",
        trials=tuple((f"{LENGTH}=linear", f"reward.length_coef={c}") for c in (0.01, 0.04)),
    ),
    Mitigation(
        name="hinge length",
        family="length",
        trials=tuple((f"{LENGTH}=hinge", f"reward.length_coef={c}") for c in (0.02, 0.1)),
    ),
    Mitigation(
        name="length control",
        family="length",
        trials=(("proxy.length_control=0.5",), ("proxy.length_control=2",)),
    ),
    on_ppo("KL penalty", "KL", ("method.kl_coef=0.02",), ("method.kl_coef=0.1",)),
    on_ppo("PAR", "shaping", *(("method.shaping=par", f"method.shaping_scale={k}") for k in (1.5, 4.0))),
    on_ppo(
        "retraining", "retraining",
        ("rounds.k=2", "rounds.policy=carry_on"), ("rounds.k=3", "rounds.policy=carry_on"),
    ),
    stopping("stop at KL", "kl_budget"),
    stopping("stop at entropy", "entropy_floor"),
    stopping("stop at plateau", "proxy_plateau"),
)  # fmt: skip


def compare() -> Comparison:
    """Twelve mitigations and three stopping rules for PPO, eleven for best-of-n."""
    base = study_run()
    return Comparison(
        name="exp005_leaderboard",
        base=replace(base, labels=replace(base.labels, label_flip_rate=0.25)),
        baseline="single",
        mitigations=MITIGATIONS,
        tuning_seeds=(100,),
        test_seeds=(0, 1, 2, 3, 4),
        description="every mitigation under one tuning budget",
    )
