"""Commands about an experiment: ``plan``, ``run``, ``status``."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from overopt.base.errors import ConfigError, OveroptError
from overopt.cli import streams
from overopt.cli.options import (
    check_device,
    computing_options,
    cores,
    count,
    experiment_options,
    part_option,
    runtime_of,
)

if TYPE_CHECKING:
    from overopt.engine.graph import Plan, Stage
    from overopt.engine.store import Store
    from overopt.records.results import Results


STATE_MARKS = {
    "done": "done",
    "running": "running",
    "in-flight": "resumable",
    "missing": "to do",
    "not needed": "-",
    "stale": "STALE",
}


class _Loaded(NamedTuple):
    """An experiment, its stages, and the name under which its results are known."""

    experiment: Any
    stages: list[Stage]
    record_name: str


def _load(args: argparse.Namespace) -> _Loaded:
    from overopt.study import chain, presets

    experiment = presets.load_experiment(args.experiment, args.overrides)
    # Overrides make it another experiment: `quick` and `quick seed=1` may both have results.
    name = " ".join([experiment.name, *sorted(args.overrides)])
    return _Loaded(experiment, chain.build_graph(experiment), name)


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Declare the arguments of this family's commands."""
    plan = commands.add_parser(
        "plan",
        parents=[experiment_options(), part_option(), common],
        help="show what a run would compute, and its cost",
    )
    plan.add_argument("--workers", type=count, default=None, help="processes to plan for")
    plan.add_argument("--device", default="cpu", help="device to plan for (default: cpu)")
    plan.set_defaults(command=show_plan)

    run = commands.add_parser(
        "run",
        parents=[experiment_options(), computing_options(), part_option(), common],
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
    run.set_defaults(command=run_experiment)

    status = commands.add_parser(
        "status",
        parents=[experiment_options(), common],
        help="count what is done, running and missing",
    )
    status.set_defaults(command=show_status)


def default_results(record_name: str) -> Path:
    """results/NAME, the overrides in it: a run with others does not replace these records."""
    folder = re.sub(r"[^\w.=,+-]+", "_", record_name).lstrip(".") or "_"
    if len(folder) > 120:
        folder = f"{folder[:100]}_{hashlib.sha256(record_name.encode()).hexdigest()[:8]}"
    return Path("results") / folder


def show_plan(args: argparse.Namespace) -> int:
    """``overopt plan``: every stage with its state and cost."""
    from overopt.engine.graph import check_not_stale, find_stale, make_plan
    from overopt.engine.progress import Clock, duration
    from overopt.engine.store import Store
    from overopt.study.chain import build_graph

    loaded, store = _load(args), Store(args.store)
    wanted = loaded.stages
    if args.part:
        wanted = build_graph(_part_of(loaded.experiment, *args.part))
    plan = make_plan(wanted, store)
    workers = args.workers or cores()
    stale = find_stale(loaded.record_name, loaded.stages, store)
    for stage in plan.stages:
        changed = stage.title in stale and plan.states[stage.fingerprint] != "done"
        state = "stale" if changed else plan.states[stage.fingerprint]
        cost = "" if state == "done" else duration(stage.cost_s)
        print(f"{STATE_MARKS[state]:>9}  {stage.fingerprint}  {cost:>12}  {stage.title}")
    left = duration(Clock(plan, workers).seconds_left())
    print(
        f"{_summary(plan)}: {duration(plan.cost_s)} of CPU time, about {left} on {workers}"
        f" worker{'s' * (workers > 1)}, {plan.disk_mb:.0f} MB"
    )
    if args.device != "cpu":
        print(
            f"times are estimates for CPU cores; on {args.device} they are a small part, which is"
            " not estimated: docs/bench.md has what was measured on an H200"
        )
    if not args.accept_changes:
        check_not_stale(loaded.record_name, loaded.stages, store)
    return 0


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

    from overopt.base import folders
    from overopt.engine import launched
    from overopt.engine.execute import check_on_cpu, execute
    from overopt.engine.graph import check_not_stale, make_plan, snapshot
    from overopt.engine.progress import Silent, TextReporter, duration
    from overopt.engine.store import Store
    from overopt.engine.task import StageError
    from overopt.records.results import RESULT_FILES, check_part
    from overopt.study import chain, collect

    loaded, store = _load(args), Store(args.store)
    if not args.accept_changes:
        check_not_stale(loaded.record_name, loaded.stages, store)
    check_on_cpu(loaded.stages, runtime)
    check_device(runtime.device)
    results = args.results or default_results(loaded.record_name)
    if args.part:
        check_part(results, {stage.fingerprint for stage in loaded.stages})
    held = _held(results)  # unreadable ones are refused now, not after hours of work
    wanted = loaded.stages
    if args.part:
        wanted = chain.build_graph(_part_of(loaded.experiment, *args.part))
    done = held.run_ids if args.extend else set()
    wanted = [stage for stage in wanted if stage.fingerprint not in done]
    if make_plan(wanted, store).todo:
        store.create()  # before the other directory is tried: its errors come first
    folders.check_folder(results, "--results", *RESULT_FILES)
    workers = max(1, cores() // runtime.threads) if args.workers is None else args.workers
    try:
        summary = execute(
            wanted,
            store,
            runtime,
            workers=workers,
            reporter=Silent() if runtime.quiet else TextReporter(),
            time_limit_s=args.time_limit,
        )
        if launched.rank() > 0:
            return 0  # rank 0 writes
        written = None
        if not summary.left:
            written = collect.collect(loaded.experiment, store, results, partial=bool(args.part))
    except (KeyboardInterrupt, StageError):
        _collect_part(loaded, store, results)
        raise
    took = duration(summary.wall_s)
    if summary.left:
        _say_stopped(took, summary.computed, summary.left)
        _collect_part(loaded, store, results)
        return 3
    if not args.part:
        store.record(loaded.record_name, snapshot(loaded.stages))
    if not runtime.quiet:
        streams.mention(f"{summary.computed} stages computed in {took}; records in {written}")
    return 0


def _say_stopped(took: str, computed: int, left: int) -> None:
    print(
        f"overopt: stopped by --time-limit after {took}: {computed} stages computed, {left} left;"
        " running the same command again continues from here",
        file=sys.stderr,
    )


def _held(folder: Path) -> Results:
    """What is in a results directory, after what a killed writer had begun was finished."""
    from overopt.base import folders
    from overopt.records.results import RESULT_FILES, held_results, transaction

    if not folder.is_dir():
        return held_results(folder)
    folders.check_folder(folder, "--results", *RESULT_FILES)
    with transaction(folder):
        return held_results(folder)


def _part_of(experiment: Any, part: int, parts: int) -> Any:
    """The experiment with the ``part``-th of ``parts`` equal, contiguous shares of its runs."""
    start, stop = (len(experiment.runs) * k // parts for k in (part - 1, part))
    if start == stop:
        raise ConfigError(f"--part {part}/{parts}: there are {len(experiment.runs)} runs to divide")
    return dataclasses.replace(experiment, runs=experiment.runs[start:stop])


def _collect_part(loaded: _Loaded, store: Store, results: Path) -> None:
    """Write the records of the curves that are finished, and say so or why not."""
    from overopt.engine import launched, signals
    from overopt.study import collect

    if launched.rank() > 0:
        return
    try:
        with signals.deferred():
            written = collect.collect(loaded.experiment, store, results, partial=True)
    except (OveroptError, OSError) as error:  # what ended the run is the message that counts
        print(f"overopt: {error}", file=sys.stderr)
        return
    if written is not None:
        print(f"overopt: records of what is finished are in {results}", file=sys.stderr)


def show_status(args: argparse.Namespace) -> int:
    """``overopt status``: counts, and what is at work."""
    from overopt.engine.graph import find_stale, make_plan
    from overopt.engine.progress import duration
    from overopt.engine.store import Store

    loaded, store = _load(args), Store(args.store)
    plan = make_plan(loaded.stages, store)
    print(f"{loaded.record_name}: {_summary(plan)}")
    for stage in plan.todo:
        state = plan.states[stage.fingerprint]
        if state != "missing":
            print(f"{STATE_MARKS[state]:>9}  {stage.fingerprint}  {stage.title}")
    if plan.todo:
        print(f"about {duration(plan.cost_s)} of CPU time to go")
    for label, reason in find_stale(loaded.record_name, loaded.stages, store).items():
        print(f"{STATE_MARKS['stale']:>9}  {label}: {reason}")
    return 0


def _summary(plan: Plan) -> str:
    counts: dict[str, int] = {}
    for state in plan.states.values():
        counts[STATE_MARKS[state]] = counts.get(STATE_MARKS[state], 0) + 1
    shown = (f"{count} {mark}" for mark, count in counts.items() if mark != "-")
    return f"{len(plan.stages)} stages, " + ", ".join(shown)
