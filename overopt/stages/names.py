"""What runs, proxies and mitigations are called in labels, tables and figures."""

from pathlib import Path

from overopt.stages.settings import RoundsConfig, RunConfig


def name_of(rounds: RoundsConfig) -> str:
    """Number of rounds, and what of data, proxy and policy is not the default."""
    parts = [f"{rounds.k} rounds"]
    if rounds.data == "take_last":
        parts.append("newest data")
    if rounds.rm == "carry_on":
        parts.append("proxy carried on")
    if rounds.policy == "carry_on":
        parts.append("policy carried on")
    return ", ".join(parts)


def describe(run: RunConfig) -> str:
    """What sets a run's proxy apart, in words."""
    labels = run.labels
    flips = f" flip {labels.label_flip_rate}" if labels.label_flip_rate > 0 else ""
    flips += f" {labels.rule_name}" if labels.cue else ""
    seeds = f"data {labels.data_seed} rm {run.proxy.seed or 0}"
    name = mitigation_name(run, with_method=False)
    treated = "" if name == "none" else f" ({name})"
    return f"{run.proxy.title} {labels.n_pairs} pairs{flips} {seeds}{treated}"


def describe_curve(run: RunConfig) -> str:
    """The same, and the policy that is optimised against the proxy where it is not the world's."""
    return describe(run) + (f" policy {run.start_policy}" if run.start_policy else "")


def mitigation_name(run: RunConfig, *, with_method: bool) -> str:
    """Short name of what a run does against overoptimization; "none" for the plain proxy.

    ``with_method``: what only a method's reward has (shaping, adaptive KL) is named too.
    """
    reward, parts = run.reward, []
    if run.rounds.k > 1:
        parts.append(name_of(run.rounds))
    parts.append(run.proxy.treatment)
    if reward.members > 1 or reward.transform:
        combine = Path(reward.transform).stem or reward.combination.title
        strength = f" {reward.strength:g}" if reward.uses_strength else ""
        by = "" if reward.members_by == "seed" else f" by {reward.members_by}"
        by += "".join(f" + {name.removeprefix('ladder:')}" for name in reward.backbones)
        parts.append(f"{combine}{strength} of {reward.members}{by}")
    if reward.length_penalty != "none":
        budget = f" past {reward.length_budget:g}" if reward.length_penalty == "hinge" else ""
        parts.append(f"length {reward.length_coef:g}{budget}")
    if with_method and run.method is not None:
        parts.append(run.method.treatment)
    return ", ".join(filter(None, parts)) or "none"
