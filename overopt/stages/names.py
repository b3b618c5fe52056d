"""What runs, proxies and mitigations are called in labels, tables and figures."""

from pathlib import Path

from overopt.methods.ppo import PpoConfig
from overopt.rewards.settings import ProxyConfig
from overopt.stages.settings import RoundsConfig, RunConfig


def name_of(rounds: RoundsConfig) -> str:
    """Number of rounds, and what of data, proxy and policy is not the default."""
    parts = [f"{rounds.k} rounds"]
    parts += ["newest data"] * (rounds.data == "take_last")
    parts += ["proxy carried on"] * (rounds.rm == "carry_on")
    return ", ".join(parts + ["policy carried on"] * (rounds.policy == "carry_on"))


def backbone_name(proxy: ProxyConfig) -> str:
    """The proxy's backbone in records; ``[:k]`` where only its first k layers are used."""
    kept = f"[:{proxy.layers}]" if proxy.layers else ""
    return "gold" if proxy.kind == "gold" else proxy.backbone + kept


def describe(run: RunConfig) -> str:
    """What sets a run's proxy apart, in words."""
    flips = f" flip {run.labels.label_flip_rate}" if run.labels.label_flip_rate > 0 else ""
    what = run.proxy.backbone.removeprefix("ladder:")
    what += f" {run.proxy.layers} layers" if run.proxy.layers else ""
    what = "gold" if run.proxy.kind == "gold" else what
    seeds = f"data {run.labels.data_seed} rm {run.proxy.rm_seed}"
    name = mitigation_name(run, with_ppo=False)
    return f"{what} {run.labels.n_pairs} pairs{flips} {seeds}" + f" ({name})" * (name != "none")


_COMBINE_NAMES = {
    "mean": "mean",
    "worst_case": "WCO",
    "median": "median",
    "mean_minus_variance": "UWO",
    "mean_minus_std": "LCB",
    "log_mean_exp": "soft min",
    "weight_average": "WARM",
}


def mitigation_name(run: RunConfig, *, with_ppo: bool) -> str:
    """Short name of what a run does against overoptimization; "none" for the plain proxy.

    ``with_ppo``: what only PPO's reward has (shaping, adaptive KL) is named too.
    """
    reward, parts = run.reward, []
    if run.rounds.k > 1:
        parts.append(name_of(run.rounds))
    if run.proxy.length_control > 0:
        parts.append(f"ODIN {run.proxy.length_control:g}")
    if reward.members > 1 or reward.transform:
        combine = Path(reward.transform).stem or _COMBINE_NAMES[reward.combine]
        strength = f" {reward.strength:g}" if reward.uses_strength else ""
        by = "" if reward.members_by == "seed" else f" by {reward.members_by}"
        by += "".join(f" + {name.removeprefix('ladder:')}" for name in reward.backbones)
        parts.append(f"{combine}{strength} of {reward.members}{by}")
    if reward.length_penalty != "none":
        budget = f" past {reward.length_budget:g}" if reward.length_penalty == "hinge" else ""
        parts.append(f"length {reward.length_coef:g}{budget}")
    if with_ppo and run.ppo is not None:
        if run.ppo.shaping != "none":
            parts.append(f"{run.ppo.shaping} {run.ppo.shaping_scale:g}")
        if run.ppo.kl_target > 0:
            gain = run.ppo.kl_gain
            is_usual = gain == PpoConfig.kl_gain
            parts.append(f"KL target {run.ppo.kl_target:g}" + f" gain {gain:g}" * (not is_usual))
    return ", ".join(parts) or "none"
