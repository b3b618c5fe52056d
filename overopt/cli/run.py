"""Commands about an experiment: ``plan``, ``run``, ``status``."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overopt.base import escape
from overopt.base.config import RuntimeConfig, require
from overopt.cli import streams
from overopt.cli.options import (
    array_of,
    array_options,
    computing_options,
    cores,
    count,
    executor_options,
    experiment_options,
    json_option,
    part_option,
    print_json,
    runtime_of,
)

if TYPE_CHECKING:
    from overopt.engine.attempts import Working
    from overopt.engine.costs import Took
    from overopt.engine.executor import Connect
    from overopt.engine.graph import Plan
    from overopt.engine.progress import Reporter
    from overopt.engine.store import Store
    from overopt.study.run import Loaded


STATE_MARKS = {
    "done": "done",
    "running": "running",
    "in-flight": "resumable",
    "missing": "to do",
    "not needed": "-",
    "stale": "STALE",
}


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Declare the arguments of this family's commands."""
    _add_plan(commands, common)
    _add_run(commands, common)
    status = commands.add_parser(
        "status",
        parents=[experiment_options(), common],
        help="count what is done, running and missing",
    )
    json_option(status)
    status.set_defaults(command=show_status)


def _add_plan(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    plan = commands.add_parser(
        "plan",
        parents=[
            experiment_options(),
            computing_options(results=False),
            executor_options("slurm", "ray"),
            part_option(),
            array_options(),
            common,
        ],
        help="show what a run would compute, and its cost",
    )
    json_option(plan)
    plan.set_defaults(command=show_plan)


def _add_run(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    run = commands.add_parser(
        "run",
        parents=[
            experiment_options(),
            computing_options(),
            executor_options("ray"),
            part_option(),
            common,
        ],
        help="compute what is missing, then collect records",
    )
    run.add_argument(
        "--time-limit",
        type=count,
        default=None,
        metavar="SECONDS",
        help="stop after this time, write the records of what is finished, and exit with status 3;"
        " the same command goes on from there",
    )
    run.add_argument(
        "--extend",
        action="store_true",
        help="do not compute what the results directory has records of already, whatever the store"
        " holds: for runs in pieces on machines that do not share a store",
    )
    run.add_argument(
        "--track",
        action="append",
        default=[],
        metavar="TRACKER",
        help="send each curve when it is finished to tensorboard, wandb, trackio or mlflow; may be"
        " repeated (default: to none)",
    )
    run.add_argument(
        "--track-to",
        type=Path,
        default=Path("tracks"),
        metavar="DIR",
        help="where trackers that write files do (default: tracks)",
    )
    run.set_defaults(command=run_experiment)


def show_plan(args: argparse.Namespace) -> int:
    """``overopt plan``: every stage with its state and cost."""
    runtime = runtime_of(args)
    _check_address(args)
    from overopt.engine import costs
    from overopt.engine.graph import check_not_stale, find_stale, make_plan
    from overopt.engine.progress import Clock, duration
    from overopt.engine.store import Store
    from overopt.study import run
    from overopt.study.chain import build_graph

    loaded, store = run.load(args.experiment, args.overrides), Store(args.store)
    wanted = loaded.stages
    if args.part:
        wanted = build_graph(run.part_of(loaded.experiment, *args.part))
    plan = costs.corrected(make_plan(wanted, store), store, args.device)
    took = costs.measured(store, plan.todo, args.device)
    workers = args.workers or cores()
    stale = find_stale(loaded.record_name, loaded.stages, store)
    if args.json:
        left_s = Clock(plan, workers).seconds_left()
        return print_json(_as_json(loaded.record_name, plan, stale) | {"wall_s": left_s})
    for stage in plan.stages:
        changed = stage.title in stale and plan.states[stage.fingerprint] != "done"
        state = "stale" if changed else plan.states[stage.fingerprint]
        cost = "" if state == "done" else duration(plan.seconds(stage))
        of_kind = took.get(stage.name)
        memory = "" if state == "done" or of_kind is None else of_kind.memory
        print(f"{STATE_MARKS[state]:>9}  {stage.fingerprint}  {cost:>12}{memory}  {stage.title}")
    left = duration(Clock(plan, workers).seconds_left())
    print(
        f"{_summary(plan)}: {duration(plan.cost_s)} of CPU time, about {left} on {workers}"
        f" worker{'s' * (workers > 1)}, {plan.disk_mb:.0f} MB"
    )
    if args.executor == "slurm":
        _print_script(loaded, store, args)
    if args.executor == "ray":
        _print_needs(plan, took, runtime, args.ray_address)
    if args.device != "cpu":
        print(
            f"times are estimates for CPU cores; on {args.device} they are a small part, which is"
            " not estimated: docs/bench.md has what was measured on an H200"
        )
    if not args.accept_changes:
        check_not_stale(loaded.record_name, loaded.stages, store)
    return 0


def _print_script(loaded: Loaded, store: Store, args: argparse.Namespace) -> None:
    from overopt.engine import slurm
    from overopt.study.run import default_results

    name = default_results(loaded.record_name).name
    folder = store.root.resolve() / slurm.FOLDER / name
    print(f"\n{slurm.sbatch_text(array_of(args), name, folder)}")


def _print_needs(
    plan: Plan, took: Mapping[str, Took], runtime: RuntimeConfig, address: str | None
) -> None:
    """What the tasks of each kind of stage would ask of the nodes of a Ray cluster."""
    from overopt.engine import on_ray
    from overopt.engine.perform import make_task

    on_ray.check(runtime, address)
    asked: dict[tuple[str, on_ray.Need], int] = {}
    for stage in plan.todo:
        key = (stage.name, on_ray.need(make_task(stage, runtime), took))
        asked[key] = asked.get(key, 0) + 1
    print(f"\ntasks for Ray ({address or 'a cluster of this machine, or of $RAY_ADDRESS'}):")
    for (name, need), n in asked.items():
        words = ", ".join(f"{option}={value:.15g}" for option, value in need.options().items())
        print(f"{n:9}  {name}: {words}")


def _check_address(args: argparse.Namespace) -> None:
    """Raise ConfigError where an address of Ray is given for another executor."""
    is_alone = args.ray_address is not None and args.executor != "ray"
    require(not is_alone, "--ray-address", args.ray_address, "add --executor ray")


def _connect(args: argparse.Namespace, runtime: RuntimeConfig) -> Connect | None:
    """What makes the executor that was asked for; None: that of this machine."""
    _check_address(args)
    if args.executor == "local":
        return None
    from overopt.engine import on_ray

    on_ray.check(runtime, args.ray_address)
    return functools.partial(
        on_ray.RayCluster, address=args.ray_address, tasks=args.workers or None
    )


def _quantile() -> int:
    from overopt.pools.quantile import quantile_demo

    print("Estimators against closed forms on gold g(u) over proxy quantiles (seconds, no torch):")
    print(f"{'method':16} {'point':>8} {'√KL':>6} {'exact':>8} {'estimate':>17} {'off by':>8}")
    for row in quantile_demo(0):
        print(
            f"{row['method']:16} {row['point']:8.4g} {row['sqrt_kl']:6.3f} {row['gold_exact']:8.4f}"
            f" {row['gold']:8.4f} ± {row['gold_stderr']:.4f} {row['discrepancy_stderrs']:6.2f} se"
        )
    return 0


def run_experiment(args: argparse.Namespace) -> int:
    """``overopt run``: compute what is missing, then collect records."""
    if args.experiment == "quantile":
        return _quantile()
    runtime = runtime_of(args)
    connect = _connect(args, runtime)

    from overopt.engine import launched
    from overopt.engine.progress import Silent, TextReporter, duration
    from overopt.engine.store import Store
    from overopt.study import run, track

    loaded, store = run.load(args.experiment, args.overrides), Store(args.store)
    reporter: Reporter = Silent() if runtime.quiet else TextReporter()
    done = run.carry_out(
        loaded,
        store,
        runtime,
        results=args.results or run.default_results(loaded.record_name),
        workers=max(1, cores() // runtime.threads) if args.workers is None else args.workers,
        reporter=track.tracked(reporter, args.track, loaded.experiment, store, args.track_to, _say),
        part=args.part,
        extend=args.extend,
        time_limit_s=args.time_limit,
        accept_changes=args.accept_changes,
        connect=connect,
        say=_say,
    )
    if launched.rank() > 0:
        return 0
    took = duration(done.summary.wall_s)
    if done.summary.left:
        _say(
            f"stopped by --time-limit after {took}: {done.summary.computed} stages computed,"
            f" {done.summary.left} left; running the same command again continues from here"
        )
        return 3
    if not runtime.quiet:
        streams.mention(
            f"{done.summary.computed} stages computed in {took}; records in {done.written}"
        )
    return 0


def _say(text: str) -> None:
    print(f"overopt: {escape.terminal(text)}", file=sys.stderr)


def show_status(args: argparse.Namespace) -> int:
    """``overopt status``: counts, and what is at work."""
    from overopt.engine.graph import find_stale, make_plan
    from overopt.engine.store import Store
    from overopt.study import run

    loaded, store = run.load(args.experiment, args.overrides), Store(args.store)
    plan = make_plan(loaded.stages, store)
    if args.json:
        stale = find_stale(loaded.record_name, loaded.stages, store)
        return print_json(_as_json(loaded.record_name, plan, stale))
    for line in status_lines(loaded, store, plan):
        print(line)
    for label, reason in find_stale(loaded.record_name, loaded.stages, store).items():
        print(f"{STATE_MARKS['stale']:>9}  {label}: {reason}")
    return 0


def status_lines(loaded: Loaded, store: Store, plan: Plan) -> list[str]:
    """Counts, who does what, what failed, and what is left."""
    from overopt.engine import attempts, failures
    from overopt.engine.progress import duration

    lines = [f"{loaded.record_name}: {_summary(plan)}"]
    who = {each.fingerprint: each for each in attempts.working(store.root)}
    for stage in plan.todo:
        state = plan.states[stage.fingerprint]
        failed = failures.read(store, stage) if state != "running" else None
        if failed is not None:
            first = failed["error"].partition("\n")[0]
            lines.append(
                f"   FAILED  {stage.fingerprint}  {stage.title} ({failed['host']}: {first})"
            )
        elif state != "missing":
            by = f" ({_by(who[stage.fingerprint])})" if stage.fingerprint in who else ""
            lines.append(f"{STATE_MARKS[state]:>9}  {stage.fingerprint}  {stage.title}{by}")
    if plan.todo:
        lines.append(f"about {duration(plan.cost_s)} of CPU time to go")
    return lines


def _by(who: Working) -> str:
    """Host, process, how long, how far."""
    from overopt.engine.progress import duration

    share = f", {min(1.0, who.done / who.total):.0%}" if who.total > 0 else ""
    return f"{who.host} {who.pid}, {duration(max(0.0, time.time() - who.started))}{share}"


def _as_json(name: str, plan: Plan, stale: Mapping[str, str]) -> dict[str, Any]:
    """A plan as JSON types; costs are estimates in CPU seconds and megabytes of what is to do."""
    return {
        "experiment": name,
        "stages": [
            {
                "stage": stage.name,
                "fingerprint": stage.fingerprint,
                "title": stage.title,
                "state": plan.states[stage.fingerprint],
                "cost_s": plan.seconds(stage),
                "disk_mb": stage.disk_mb,
            }
            for stage in plan.stages
        ],
        "cost_s": plan.cost_s,
        "disk_mb": plan.disk_mb,
        "stale": dict(stale),
    }


def _summary(plan: Plan) -> str:
    counts: dict[str, int] = {}
    for state in plan.states.values():
        counts[STATE_MARKS[state]] = counts.get(STATE_MARKS[state], 0) + 1
    shown = (f"{count} {mark}" for mark, count in counts.items() if mark != "-")
    return f"{len(plan.stages)} stages, " + ", ".join(shown)
