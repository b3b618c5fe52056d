"""The stages between trained proxies and what is optimised: shared-trunk members, and the reward.

They exist only where `settings.RewardConfig` asks for more than the proxy itself. ``reward`` writes a
scorer with everything that scoring needs, and takes the proxy's place in best-of-n and PPO.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from overopt.base import files
from overopt.base.config import to_dict
from overopt.base.errors import ConfigError
from overopt.engine.graph import Stage, StageContext
from overopt.rewards.kinds import ensemble
from overopt.rewards.kinds.ensemble import (
    average_weights,
    load_transform,
    normalised_ensemble,
    reward_steps,
)
from overopt.rewards.scorer import Scorer
from overopt.rewards.settings import ProxyConfig, RewardConfig
from overopt.rewards.training.calibration import pair_metrics, recalibration
from overopt.stages.common import load_asked, load_responses
from overopt.stages.names import describe
from overopt.stages.proxy import (
    HeadsStage,
    ProxyStage,
    run_heads,
    run_proxies,
    run_proxy,
    stacks_with,
)
from overopt.stages.settings import RunConfig
from overopt.worlds.load import load_world
from overopt.worlds.world import WorldConfig


@dataclass(frozen=True, kw_only=True)
class RewardStage:
    """The proxy score that is optimised; ``source``: checksum of the user's own file."""

    world: WorldConfig
    reward: RewardConfig
    root_seed: int
    source: str = ""


def run_reward(ctx: StageContext) -> None:
    """Combine members (by score or by weight), and normalise the result on the initial policy."""
    cfg: RewardStage = ctx.config
    calibration, comparisons = ctx.inputs["calibration"].path, ctx.inputs["comparisons"].path
    world = load_world(cfg.world)
    base = load_responses(calibration / "responses.npz")
    roles = [role for role in sorted(ctx.inputs) if role.startswith("member_")]
    parts: Sequence[Scorer] = [
        load_asked(ctx.inputs[role], calibration, world, ctx.runtime.device) for role in roles
    ]
    if cfg.reward.combine == "weight_average":
        parts = [average_weights(parts, base)]
    transform = Path(cfg.reward.transform) if cfg.reward.transform else None
    source = transform.read_bytes() if transform else b""
    if transform and hashlib.sha256(source).hexdigest() != cfg.source:
        raise ConfigError(
            f"reward.transform = {str(transform)!r}: changed since the run was planned"
        )
    steps = reward_steps(cfg.reward, load_transform(transform, source) if transform else None)
    scorer = normalised_ensemble(parts, steps, base)
    sizes = files.load_json(ctx.inputs[roles[0]].path / "scorer.json")
    info = {name: sizes[name] for name in ("n_params", "n_params_total")}
    if transform:
        (ctx.out / "transform.py").write_bytes(source)
    scorer.save(ctx.out, info | {"reward": to_dict(cfg.reward)})
    held_pairs = files.load_arrays(ctx.inputs["labels"].path / "validation.npz")
    logits = scorer.score(load_responses(comparisons / "validation.npz")).numpy() * scorer.unit.std
    margin = logits[held_pairs["chosen"]] - logits[held_pairs["rejected"]]
    soft = recalibration(margin, held_pairs["gold_margin"])
    files.save_json(ctx.out / "training.json", pair_metrics(margin) | {"recalibration": soft})


def scoring_rate(proxy: ProxyConfig) -> float:
    """CPU seconds to train on 2,000 pairs once, the measure of a proxy's cost."""
    size = proxy.backbone.removeprefix("ladder:")
    return {"0.05m": 1.0, "0.2m": 2.5, "0.8m": 6.0, "3m": 18.0, "6m": 36.0}.get(size, 6.0)


def proxy_stage(
    run: RunConfig, inputs: dict[str, Stage], *, previous: Stage | None = None, note: str = ""
) -> Stage:
    """The stage whose scorer is optimised: the proxy itself, or the reward made of its members.

    ``previous``: the same of an earlier round, whose members are trained further; ``note`` ends the
    label.
    """
    reward, members = run.reward, []

    def member_inputs(i: int) -> dict[str, Stage]:
        if previous is None:
            return inputs
        return inputs | {"start": previous.upstream.get(f"member_{i:02d}", previous)}

    if reward.members_by == "heads":
        members.append(
            Stage(
                name="heads",
                version=1,
                run=run_heads,
                gpu=True,
                label=f"{reward.members} heads {describe(run)}{note}",
                cost_s=4 + scoring_rate(run.proxy) * run.proxy.epochs * run.labels.n_pairs / 2000,
                config=HeadsStage(
                    world=run.world,
                    proxy=run.proxy,
                    n_heads=reward.members,
                    root_seed=run.root_seed,
                ),
                upstream=member_inputs(0),
            )
        )
    else:
        for i, (proxy, bootstrap) in enumerate(ensemble.member_proxies(run.proxy, reward)):
            of_member = describe(replace(run, proxy=proxy, reward=RewardConfig()))
            members.append(
                Stage(
                    name="proxy",
                    version=3 if bootstrap > 0 else 2,
                    run=run_proxy,
                    stacked=run_proxies,
                    alike=stacks_with(proxy, run.labels.n_pairs),
                    gpu=True,
                    label=f"proxy {of_member}" + f" bootstrap {bootstrap}" * (bootstrap > 0) + note,
                    cost_s=4 + scoring_rate(proxy) * proxy.epochs * run.labels.n_pairs / 2000,
                    config=ProxyStage(
                        world=run.world, proxy=proxy, root_seed=run.root_seed, bootstrap=bootstrap
                    ),
                    upstream=member_inputs(i),
                )
            )
    if reward == RewardConfig():
        return members[0]
    transform = Path(reward.transform)
    return Stage(
        name="reward",
        version=1,
        run=run_reward,
        gpu=True,
        label=f"reward {describe(run)}{note}",
        cost_s=3 + scoring_rate(run.proxy) * reward.members,
        disk_mb=4.0 * reward.members,
        config=RewardStage(
            world=run.world,
            reward=reward,
            root_seed=run.root_seed,
            source=hashlib.sha256(transform.read_bytes()).hexdigest() if reward.transform else "",
        ),
        upstream=inputs | {f"member_{i:02d}": member for i, member in enumerate(members)},
    )
