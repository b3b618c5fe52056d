"""``overopt compare``: tune mitigations with equal budgets and test them against a baseline."""

from __future__ import annotations

import argparse
from pathlib import Path

from overopt.base.errors import ConfigError
from overopt.cli.options import (
    computing_options,
    cores,
    experiment_options,
    runtime_of,
)


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Declare the arguments of this family's commands."""
    compare = commands.add_parser(
        "compare",
        parents=[experiment_options(), computing_options(), common],
        help="tune mitigations with equal budgets and test them against a baseline",
        description="EXPERIMENT is here a preset (smoke), a Python file with a function compare(),"
        " or a directory of results, whose leaderboard and figures are made again.",
    )
    compare.add_argument(
        "--plan", action="store_true", help="show what would run, and its cost, and stop"
    )
    compare.set_defaults(command=run_comparison)


def run_comparison(args: argparse.Namespace) -> int:
    """``overopt compare``: carry a comparison out, plan it, or report its results again."""
    runtime = runtime_of(args)

    from overopt.base import folders
    from overopt.engine.execute import check_device
    from overopt.engine.progress import Silent, TextReporter
    from overopt.engine.store import Store
    from overopt.reports.comparison import report
    from overopt.study import compare

    if Path(args.experiment).is_dir():
        if args.overrides or args.plan:
            raise ConfigError(
                f"{args.experiment!r} holds results, which are reported as they are: leave out"
                " overrides and --plan, or give the comparison's file"
            )
        print(report(args.experiment))
        return 0
    loaded, store = compare.load_comparison(args.experiment, args.overrides), Store(args.store)
    if args.plan:
        for line in compare.plan_lines(loaded, store):
            print(line)
        return 0
    check_device(runtime.device)
    results = args.results or Path("results") / loaded.name
    folders.check_folder(results, "--results", "comparison.json", "leaderboard.json")
    text = compare.run_comparison(
        loaded,
        store,
        runtime,
        workers=max(1, cores() // runtime.threads) if args.workers is None else args.workers,
        reporter=Silent() if runtime.quiet else TextReporter(),
        results=results,
        accept_changes=args.accept_changes,
        record_name=" ".join([loaded.name, *sorted(args.overrides)]),
    )
    print(text)
    return 0
