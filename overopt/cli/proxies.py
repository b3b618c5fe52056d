"""What finished proxies pay for, and how well they rank policies: ``hacks``, ``rank``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overopt.base.config import RuntimeConfig
from overopt.cli.options import count, experiment_options, json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from overopt.study.finished import Finished


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Declare the arguments of this family's commands."""
    hacks = commands.add_parser(
        "hacks",
        parents=[experiment_options(), common],
        help="what cues alone do to the scores of finished proxies, and how they grow",
        description="Of each proxy of a finished experiment: the change of its score, and of gold's, by"
        " paired edits that add one cue. Of each curve: how much of each cue responses have.",
    )
    hacks.add_argument(
        "--prompts",
        type=count,
        default=128,
        help="prompts whose responses are edited (default: 128)",
    )
    hacks.add_argument(
        "--pool",
        type=count,
        default=256,
        metavar="N",
        help="responses of each prompt's pool that are read, and so the largest n (default: 256)",
    )
    hacks.add_argument("--figure", type=Path, default=None, help="picture of the cues to draw")
    _output_options(hacks)
    hacks.set_defaults(command=run_hacks)

    ranks = commands.add_parser(
        "rank",
        parents=[experiment_options(), common],
        help="how well finished proxies rank policies, those optimised against them and others",
        description="Kendall's tau of the ranking of policies by each proxy with the ranking by gold:"
        " on policies that were optimised against the same proxy, and against other seeds.",
    )
    ranks.add_argument(
        "--draws", type=count, default=1000, help="draws of the bootstrap (default: 1000)"
    )
    _output_options(ranks)
    ranks.set_defaults(command=run_rank)


def _output_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, default=None, help="JSON file to write")
    command.add_argument("--threads", type=count, default=1, help="threads (default: 1)")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    json_option(command)


def _curves(args: argparse.Namespace) -> Sequence[Finished]:
    """Finished curves of the experiment; output paths and device are tried first."""
    runtime = RuntimeConfig(device=args.device, threads=args.threads)
    os.environ.update(runtime.environment)
    from overopt.base import folders
    from overopt.engine.execute import check_device
    from overopt.engine.store import Store
    from overopt.study import run
    from overopt.study.finished import finished_curves

    for name in ("out", "figure"):
        path = getattr(args, name, None)
        if path is not None:
            folders.check_folder(path.parent, f"--{name}", path.name)
    check_device(args.device)
    loaded = run.load(args.experiment, args.overrides)
    return finished_curves(loaded, Store(args.store), runtime)


def _tell(args: argparse.Namespace, result: dict[str, Any], text: str) -> int:
    """Write and print a result."""
    from overopt.base import files, folders

    if args.out is not None:
        files.save_json(folders.made_for(args.out), result)
    if args.json:
        return print_json(result)
    print(text)
    return 0


def run_hacks(args: argparse.Namespace) -> int:
    """``overopt hacks``."""
    curves = _curves(args)
    from overopt.study import hacks

    found = hacks.measure(curves, n_prompts=args.prompts, pool_size=args.pool)
    if args.figure is not None:
        from overopt.base import folders, pictures
        from overopt.reports.hacks import growth_figure

        figure = growth_figure(found.to_json())
        pictures.save_figure(folders.made_for(args.figure), figure)
    return _tell(args, found.to_json(), hacks.text_of(found))


def run_rank(args: argparse.Namespace) -> int:
    """``overopt rank``."""
    curves = _curves(args)
    from overopt.study import ranking

    found = ranking.rank(curves, n_draws=args.draws)
    made = {"format": 1, "ci_level": ranking.CI_LEVEL, "series": [one.to_json() for one in found]}
    return _tell(args, made, ranking.text_of(found))
