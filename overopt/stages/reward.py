"""The stage whose scorer is optimised, where that is more than the proxy itself.

It exists only where `RewardConfig` asks for an ensemble, a length penalty or a user's own file. It
writes a scorer with everything that scoring needs, which takes the proxy's place downstream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from overopt.base import files
from overopt.base.config import to_dict
from overopt.base.errors import ConfigError
from overopt.base.lazy import lazy
from overopt.engine.graph import Stage, StageContext
from overopt.rewards.kind import RewardSettings, Scorer
from overopt.rewards.settings import RewardConfig
from overopt.rewards.transforms.own import load_transform
from overopt.stages import heads, proxy
from overopt.stages.common import load_responses, scorer_of, world_of
from overopt.stages.names import describe
from overopt.stages.settings import RunConfig
from overopt.worlds.world import AnyWorld

if TYPE_CHECKING:
    from overopt.rewards import load
    from overopt.rewards.kinds import ensemble
    from overopt.rewards.training import calibration
else:
    load, ensemble = lazy("overopt.rewards.load"), lazy("overopt.rewards.kinds.ensemble")
    calibration = lazy("overopt.rewards.training.calibration")


@dataclass(frozen=True, kw_only=True)
class RewardStage:
    """The proxy score that is optimised; ``source``: checksum of the user's own file."""

    world: AnyWorld
    reward: RewardConfig
    root_seed: int
    source: str = ""


def stage(
    run: RunConfig, inputs: dict[str, Stage], *, previous: Stage | None = None, note: str = ""
) -> Stage:
    """The stage whose scorer is optimised: the proxy itself, or the reward made of its members.

    ``previous``: the same of an earlier round, whose members are trained further; ``note`` ends the
    label.
    """
    reward = run.reward

    def member_inputs(i: int) -> dict[str, Stage]:
        if previous is None:
            return inputs
        return inputs | {"start": previous.upstream.get(f"member_{i:02d}", previous)}

    if reward.members_by == "heads":
        members = [heads.stage(run, member_inputs(0), note)]
    else:
        members = [
            proxy.stage(run, settings, bootstrap, member_inputs(i), note)
            for i, (settings, bootstrap) in enumerate(member_proxies(run.proxy, reward))
        ]
    if reward == RewardConfig():
        return members[0]
    transform = Path(reward.transform)
    return Stage(
        name="reward",
        version=1,
        run=run_reward,
        gpu=True,
        label=f"reward {describe(run)}{note}",
        cost_s=3 + run.proxy.rate * reward.members,
        disk_mb=4.0 * reward.members,
        config=RewardStage(
            world=run.world,
            reward=reward,
            root_seed=run.root_seed,
            source=hashlib.sha256(transform.read_bytes()).hexdigest() if reward.transform else "",
        ),
        upstream=inputs | {f"member_{i:02d}": member for i, member in enumerate(members)},
    )


def member_proxies(
    settings: RewardSettings, reward: RewardConfig
) -> list[tuple[RewardSettings, int]]:
    """Settings of each separately trained member, and its bootstrap replicate (0: all pairs once).

    Replicate s of an ensemble of M seeds has the proxies of ``rm_seed`` s·M to s·M + M − 1: two
    replicates share no member, and the first is made of the single proxies 0 to M − 1.
    """
    m = reward.members
    match reward.members_by:
        case "seed" if m > 1:
            first = (settings.seed or 0) * m
            return [(settings.with_seed(first + i), 0) for i in range(m)]
        case "bootstrap":
            return [(settings, i + 1) for i in range(m)]
        case "pretraining":
            backbones = (settings.sources["backbone"], *reward.backbones)
            return [(replace(settings, backbone=b), 0) for b in backbones]  # type: ignore[call-arg]
    return [(settings, 0)]


def run_reward(ctx: StageContext) -> None:
    """Combine members (by score or by weight), and normalise the result on the initial policy."""
    cfg: RewardStage = ctx.config
    base = load_responses(ctx.inputs["calibration"].path / "responses.npz")
    world = world_of(ctx)
    roles = [role for role in sorted(ctx.inputs) if role.startswith("member_")]
    parts: Sequence[Scorer] = [scorer_of(ctx, role, world) for role in roles]
    if cfg.reward.combination.averages_weights:
        parts = [ensemble.average_weights(parts, base)]
    transform = Path(cfg.reward.transform) if cfg.reward.transform else None
    if transform and hashlib.sha256(transform.read_bytes()).hexdigest() != cfg.source:
        raise ConfigError(
            f"reward.transform = {str(transform)!r}: changed since the run was planned"
        )
    steps = ensemble.reward_steps(cfg.reward, load_transform(transform) if transform else None)
    scorer = ensemble.normalised_ensemble(parts, steps, base)
    sizes = files.load_json(ctx.inputs[roles[0]].path / "scorer.json")
    info = {name: sizes[name] for name in ("n_params", "n_params_total")}
    if transform:
        (ctx.out / "transform.py").write_bytes(transform.read_bytes())
    scorer.save(ctx.out, info | {"reward": to_dict(cfg.reward)})
    held = proxy.HeldOut.of(ctx)
    margin = held.margin(scorer.score(held.responses).numpy() * scorer.unit.std)
    measured = proxy.calibration_of(margin, held.pairs["gold_margin"])
    files.save_json(ctx.out / "training.json", measured)
