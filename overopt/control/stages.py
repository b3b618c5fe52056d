"""The stages of a run, for the engine: initial policy, reward model and policy, round by round.

    start -> reward -> curve          (-> reward -> curve, with fresh preferences, in each later round)

Gold is part of what an environment gives; only the human of ``reward`` and the measurement in ``curve``
look at it. What optimises (`overopt.control.policy`) is handed actions and proxy scores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from overopt.base import files
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed, numpy_rng
from overopt.base.shown import Shown
from overopt.control.environment import load_environment
from overopt.control.human import Comparisons, compare
from overopt.control.policy import Policy
from overopt.control.settings import (
    PENDULUM,
    ControlRun,
    LabelsSettings,
    MethodSettings,
    ProxySettings,
    WorldSettings,
)
from overopt.control.trajectories import Environment, Trajectories
from overopt.engine.graph import Stage, StageContext
from overopt.stages import points

if TYPE_CHECKING:
    from overopt.control import gym, predictor
else:
    gym, predictor = lazy("overopt.control.gym"), lazy("overopt.control.predictor")

METHOD = "cem"
SHOWN = Shown(
    label="CEM", coord="cem_step", axis="CEM iteration", form="rl", marker="D",
    treatments={"mitigation": ""},
)  # fmt: skip
"""How figures and records call the method."""
HELD_OUT_PAIRS = 400
STRIP_FRAMES = 10
MISSING = (
    "control: trajectories are no texts: no intent, no tokens and no entropy by token, no sampled KL;"
    " a single proxy has no disagreement"
)


@dataclass(frozen=True, kw_only=True)
class StartStage:
    """Trajectories of the initial policy."""

    world: WorldSettings
    root_seed: int


@dataclass(frozen=True, kw_only=True)
class RewardStage:
    """Comparisons of one round, beside all before it, and the reward model fitted to them."""

    labels: LabelsSettings
    proxy: ProxySettings
    round: int
    root_seed: int


@dataclass(frozen=True, kw_only=True)
class CurveStage:
    """The policy optimised against the reward model, measured at each iteration."""

    world: WorldSettings
    method: MethodSettings
    root_seed: int


def curve_stage(run: ControlRun) -> Stage:
    """The last round's curve, with everything before it upstream."""
    world, root = run.world, run.root_seed
    rate = 4e-7 if world.env == PENDULUM else 1e-5  # CPU seconds a step of an environment
    start = Stage(
        name="control_start",
        version=1,
        run=run_start,
        config=StartStage(world=world, root_seed=root),
        label=f"control start {world.env}",
        cost_s=1 + rate * world.n_trajectories * world.horizon,
    )
    labels = replace(run.labels, n_pairs=run.labels.n_pairs // run.rounds.k)
    upstream = {"start": start}
    for j in range(1, run.rounds.k + 1):
        what = f"{describe(run)}{f' round {j}' if run.rounds.k > 1 else ''}"
        reward = Stage(
            name="control_reward",
            version=1,
            run=run_reward,
            config=RewardStage(labels=labels, proxy=run.proxy, round=j, root_seed=root),
            upstream=upstream,
            label=f"control reward {what}",
            cost_s=1 + 0.007 * run.proxy.steps * run.proxy.members,
        )
        n = world.n_starts * run.method.population * (run.method.iterations + 1)
        curve = Stage(
            name="control",
            version=1,
            run=run_curve,
            config=CurveStage(world=world, method=run.method, root_seed=root),
            upstream={"start": start, "reward": reward},
            label=f"control {METHOD} {what} seed {run.method.seed}",
            cost_s=1 + n * world.horizon * (rate + 6e-7 * run.proxy.members),
        )
        upstream = {"start": start, "before": reward, "policy": curve}
    return curve


def describe(run: ControlRun) -> str:
    """What sets a run's reward model apart, in words."""
    treated = "" if run.mitigation == "none" else f" ({run.mitigation})"
    seeds = f"data {run.labels.data_seed} rm {run.proxy.rm_seed}"
    return f"{run.world.env} {run.labels.n_pairs} pairs {seeds}{treated}"


def save_trajectories(path: Path, made: Trajectories) -> None:
    """Write them; `load_trajectories` reads them."""
    files.save_arrays(path, made._asdict())


def load_trajectories(path: Path) -> Trajectories:
    """What `save_trajectories` wrote."""
    return Trajectories(**files.load_arrays(path, Trajectories._fields))


def part(made: Trajectories, rows: slice) -> Trajectories:
    """Some of the trajectories."""
    return Trajectories(*(a[rows] for a in made))


def run_start(ctx: StageContext) -> None:
    """Sample the initial policy."""
    cfg: StartStage = ctx.config
    env, n = load_environment(cfg.world), cfg.world.n_trajectories
    rng = numpy_rng(cfg.root_seed, "control start")
    actions = rng.standard_normal((n, cfg.world.horizon, env.n_actions))
    made = env.roll_out(env.starts(n, rng), cfg.world.exploration * actions)
    save_trajectories(ctx.out / "trajectories.npz", made)


def run_reward(ctx: StageContext) -> None:
    """Ask the human, fit the reward model, fix its zero and unit on the initial policy."""
    cfg: RewardStage = ctx.config
    base = load_trajectories(ctx.inputs["start"].path / "trajectories.npz")
    half = len(base.length) // 2
    shown, unit = part(base, slice(half)), part(base, slice(half, None))
    is_first = "policy" not in ctx.inputs
    if not is_first:
        shown = load_trajectories(ctx.inputs["policy"].path / "trajectories.npz")
    labels = cfg.labels
    data = compare(
        shown,
        n_pairs=labels.n_pairs,
        segment=labels.segment,
        flip_rate=labels.label_flip_rate,
        rng=numpy_rng(cfg.root_seed, "human", labels.data_seed, cfg.round),
    )
    if not is_first:
        before = ctx.inputs["before"].path / "comparisons.npz"
        data = Comparisons(**files.load_arrays(before, Comparisons._fields)).joined(data)
    seed = derive_seed(cfg.root_seed, "predictors", labels.data_seed, cfg.proxy.rm_seed, cfg.round)
    members = predictor.train(cfg.proxy, data, seed=seed)
    held = compare(
        unit,
        n_pairs=HELD_OUT_PAIRS,
        segment=labels.segment,
        flip_rate=0.0,
        rng=numpy_rng(cfg.root_seed, "held out"),
    )
    files.save_arrays(ctx.out / "comparisons.npz", data._asdict())
    reward = predictor.normalised(members, cfg.proxy.combine, unit)
    reward.save(ctx.out)
    measured = predictor.measured(members, held) | {"n_params": reward.n_params}
    files.save_json(ctx.out / "training.json", measured)


class _Point(NamedTuple):
    """What an iteration is measured by, each (P, n): P initial states, n trajectories from each."""

    proxy: np.ndarray
    gold: np.ndarray
    length: np.ndarray
    spread: float | None
    ended: float


def run_curve(ctx: StageContext) -> None:
    """Improve the policy step by step; measure proxy, gold and KL on the same samples.

    The samples of an iteration are drawn before the policy is fitted to them, so their means are
    unbiased for the policy they are of.
    """
    cfg: CurveStage = ctx.config
    world, method = cfg.world, cfg.method
    proxy = predictor.load(ctx.inputs["reward"].path)
    base = load_trajectories(ctx.inputs["start"].path / "trajectories.npz")
    unit = part(base, slice(len(base.length) // 2, None)).gold
    env = load_environment(world)
    starts = env.starts(world.n_starts, numpy_rng(cfg.root_seed, "control eval"))
    policy = Policy.initial(world.n_starts, world.horizon, env.n_actions)
    rows: list[dict[str, Any]] = []
    columns: dict[str, list[np.ndarray]] = {}
    paths: list[np.ndarray] = []
    first = None
    for k in range(method.iterations + 1):
        actions = policy.sample(method.population, numpy_rng(cfg.root_seed, "cem", method.seed, k))
        made = _roll_out(env, starts, world.exploration * actions)
        point = _measure(proxy, made, unit, actions.shape[:2])
        first = point.gold if first is None else first
        _keep(columns, rows, point, policy, first, k)
        paths.append(actions[0, 0])
        if k == method.iterations:
            save_trajectories(ctx.out / "trajectories.npz", made)
        else:
            policy = policy.improved(
                actions,
                point.proxy,
                n_elite=method.n_elite,
                rate=method.rate,
                least_std=method.least_std,
            )
        ctx.progress(k + 1, method.iterations + 1)
    arrays = {name: np.stack(values) for name, values in columns.items()}
    points.save_curve(ctx.out, rows, arrays, [proxy.unit] * len(rows))
    _save_pictured(ctx.out, world, starts[0], np.stack(paths), arrays["gold"].mean(1))


def _roll_out(env: Environment, starts: np.ndarray, actions: np.ndarray) -> Trajectories:
    """From each of P states the n sequences of actions (P, n, H, A), as P·n rows."""
    n_starts, n, *step = actions.shape
    return env.roll_out(np.repeat(starts, n, 0), actions.reshape(n_starts * n, *step))


def _measure(
    proxy: predictor.Predictors, made: Trajectories, unit: np.ndarray, shape: tuple[int, ...]
) -> _Point:
    """Scores of trajectories; gold in standard deviations of the initial policy, ``unit``."""
    members = proxy.member_scores(made)
    gold = (made.gold - unit.mean()) / (unit.std() or 1.0)
    horizon = made.reward.shape[1]
    return _Point(
        proxy.score(made).reshape(shape),
        gold.reshape(shape),
        made.length.reshape(shape),
        float(members.std(0).mean()) if len(members) > 1 else None,
        float((made.length < horizon).mean()),
    )


def _keep(
    columns: dict[str, list[np.ndarray]],
    rows: list[dict[str, Any]],
    point: _Point,
    policy: Policy,
    first: np.ndarray,
    step: int,
) -> None:
    """Append an iteration to the rows and to the values by initial state."""
    kl = policy.kl()
    wins = (point.gold[:, :, None] > first[:, None, :]).mean((1, 2))
    wins += 0.5 * (point.gold[:, :, None] == first[:, None, :]).mean((1, 2))
    means = {"gold": point.gold, "proxy": point.proxy, "length": point.length}
    for name, values in means.items():
        columns.setdefault(name, []).append(values.mean(1))
    columns.setdefault("kl", []).append(kl)
    columns.setdefault("win_rate", []).append(wins)
    rows.append(
        {
            "coord": SHOWN.coord,
            "value": step,
            "kl_seq_nats": float(kl.mean()),
            "kl_seq_nats_stderr": points.stderr(kl),
            "kl_estimator": "exact",
            "n_responses": point.gold.size,
            "ended_share": point.ended,
            "proxy_std": points.within_std(point.proxy),
            "member_disagreement": point.spread,
            "missing_reason": MISSING,
        }
    )


def _save_pictured(
    out: Path, world: WorldSettings, start: np.ndarray, actions: np.ndarray, gold: np.ndarray
) -> None:
    """One trajectory of the first state at the start, at the peak of gold, and at the end.

    actions: (K, H, A) in initial standard deviations, a sequence an iteration; gold: (K,). Of the
    pendulum its angles and speeds (3, H, 2), of others pictures (3, T, h, w, 3) where they can be drawn.
    """
    at = np.array([0, int(gold.argmax()), len(gold) - 1])
    chosen = world.exploration * actions[at]
    kept: dict[str, np.ndarray] = {"at": at}
    if world.env == PENDULUM:
        made = load_environment(world).roll_out(np.repeat(start[None], 3, 0), chosen)
        angle = np.arctan2(made.observations[..., 1], made.observations[..., 0])
        kept["angle"] = angle.astype(np.float32)
    else:
        pictures = gym.pictures(world.env, start, chosen, STRIP_FRAMES)
        if pictures is not None:
            kept["frames"] = pictures
    files.save_arrays(out / "pictured.npz", kept)
