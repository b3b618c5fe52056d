"""Benchmarks of reward models: ``eval``, ``make-benchmark``, ``convert-benchmark``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from overopt.base.config import RuntimeConfig
from overopt.base.errors import ConfigError
from overopt.base.kinds import names
from overopt.cli.options import count

if TYPE_CHECKING:
    from overopt.evals.converter import Converted

BENCHMARKS = "overopt.evals.benchmarks"
CONVERTERS = "overopt.evals.converters"


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Declare the arguments of this family's commands."""
    known = ", ".join(names(BENCHMARKS))
    evals = commands.add_parser(
        "eval",
        parents=[common],
        help="score a reward model on a benchmark, or compare such scores",
        description="`overopt eval BENCHMARK --model SOURCE --data FILE` scores a model;"
        " `overopt eval table RESULT...` makes a page of results that --out wrote, and"
        " `overopt eval agreement RESULT RESULT` says how far two models agree.",
    )
    evals.add_argument(
        "what", help=f"a benchmark ({known}, or a .py file of yours), or table, or agreement"
    )
    evals.add_argument(
        "overrides",
        nargs="*",
        metavar="name=value|RESULT",
        help="settings, such as benchmark.tie=half or model.kind=policy; or files of results",
    )
    evals.add_argument(
        "--model",
        default="",
        metavar="SOURCE",
        help="checkpoint, or folder of an artefact in a store",
    )
    evals.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="FILE",
        help="Parquet or JSON lines in the published layout, or datasets:NAME[:SPLIT]; may be repeated",
    )
    evals.add_argument(
        "--reference", default="", metavar="SOURCE", help="what a DPO policy was trained from"
    )
    evals.add_argument(
        "--judge", default="", metavar="FILE", help="template with which a language model judges"
    )
    evals.add_argument("--out", type=Path, default=None, help="file to write: JSON, or a page")
    evals.add_argument("--json", action="store_true", help="print the result as JSON")
    evals.add_argument("--figure", type=Path, default=None, help="reliability diagram to draw")
    evals.add_argument("--threads", type=count, default=1, help="threads (default: 1)")
    evals.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    evals.set_defaults(command=run_eval)
    _add_make(commands, common)
    _add_convert(commands, common)


def _add_make(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    make = commands.add_parser(
        "make-benchmark",
        parents=[common],
        help="write benchmarks in the published layouts from a world with known gold",
    )
    make.add_argument("world", help="stories, sums, or a .py file of yours")
    make.add_argument(
        "overrides",
        nargs="*",
        metavar="name=value",
        help="settings, such as n_prompts=500 world.max_steps=5",
    )
    make.add_argument("--out", type=Path, required=True, help="folder to write the files to")
    make.add_argument("--threads", type=count, default=1, help="threads (default: 1)")
    make.set_defaults(command=run_make)


def _add_convert(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    known = ", ".join(names(CONVERTERS))
    convert = commands.add_parser(
        "convert-benchmark",
        parents=[common],
        help="write your copy of public data in the layout of a benchmark",
    )
    convert.add_argument("data", help=f"{known}, or a .py file of yours")
    convert.add_argument("path", type=Path, help="your copy: a file or folder")
    convert.add_argument(
        "overrides", nargs="*", metavar="name=value", help="settings of the converter"
    )
    convert.add_argument("--out", type=Path, required=True, help="folder to write the files to")
    convert.set_defaults(command=run_convert)


def run_eval(args: argparse.Namespace) -> int:
    """``overopt eval``."""
    from overopt.base import folders

    if args.out is not None:
        folders.check_folder(args.out.parent, "--out", args.out.name)
    if args.what in ("table", "agreement"):
        return _compare(args)
    for name in ("model", "data"):
        if not getattr(args, name):
            raise ConfigError(
                f"--{name} is missing: overopt eval BENCHMARK --model SOURCE --data FILE"
            )
    _set_threads(args.threads)
    from overopt.evals import run

    config = run.configure(
        args.what, args.model, args.overrides, reference=args.reference, template=args.judge
    )
    from overopt.engine.execute import check_device

    check_device(args.device)
    if args.figure is not None:
        if args.what != "pairs":
            raise ConfigError("--figure draws the reliability diagram of `overopt eval pairs`")
        folders.check_folder(args.figure.parent, "--figure", args.figure.name)
    found = run.evaluate(config, args.data, device=args.device)
    if args.out is not None:
        run.save(found, folders.made_for(args.out))
    print(json.dumps(found.to_json(), indent=1) if args.json else run.text_of(found))
    if args.figure is not None:
        from overopt.base import pictures
        from overopt.reports import reliability

        table = found.report.tables.get("reliability")
        if not table:
            raise ConfigError("--figure: a judge's verdicts have no reliability diagram")
        figure = reliability.diagram(table, found.config.model.title)
        pictures.save_figure(folders.made_for(args.figure), figure)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from overopt.base import files, folders
    from overopt.evals import results

    found = [results.read_result(Path(path)) for path in args.overrides]
    if args.what == "agreement":
        if len(found) != 2:
            raise ConfigError(f"agreement is of two results, {len(found)} are given")
        agreed = results.agreement(*found)
        kappa = agreed.kappa
        print(
            f"{agreed.n} rows in common, equal credit on {agreed.share:.1%};"
            f" Cohen's kappa {kappa.value:.3f} [{kappa.low:.3f}, {kappa.high:.3f}]"
        )
        return 0
    if not found:
        raise ConfigError("table needs results: files that `overopt eval ... --out FILE` wrote")
    board = results.board(found)
    if args.out is None:
        print(results.markdown(board), end="")
        return 0
    if args.out.suffix not in (".html", ".md"):
        raise ConfigError(f"--out {str(args.out)!r}: a page ends in .html or .md")
    page = results.html(board) if args.out.suffix == ".html" else results.markdown(board)
    files.atomic_write(folders.made_for(args.out), page.encode())
    print(f"{len(found)} results written to {args.out}")
    return 0


def run_make(args: argparse.Namespace) -> int:
    """``overopt make-benchmark``."""
    _set_threads(args.threads)
    from overopt.base import folders
    from overopt.base.overrides import apply_overrides
    from overopt.evals import homemade
    from overopt.worlds import stories

    folders.check_folder(args.out, "--out")
    start = homemade.HomemadeConfig(world=stories.Settings())
    config = apply_overrides(start, [f"world.kind={args.world}", *args.overrides])
    return _write(homemade.make(config), args.out)


def run_convert(args: argparse.Namespace) -> int:
    """``overopt convert-benchmark``."""
    from overopt.base import folders
    from overopt.base.kinds import module_of
    from overopt.base.overrides import apply_overrides
    from overopt.evals.run import ConvertConfig

    folders.check_folder(args.out, "--out")
    chosen = [f"data.kind={args.data}", *(f"data.{o}" for o in args.overrides)]
    settings = apply_overrides(ConvertConfig(), chosen).data
    return _write(module_of(settings).convert(settings, args.path), args.out)


def _write(made: Sequence[Converted], out: Path) -> int:
    from overopt.base import files

    out.mkdir(parents=True, exist_ok=True)
    for one in made:
        path = out / f"{one.name}.jsonl"
        files.save_records(path, one.rows)
        print(f"{path}: {len(one.rows)} rows for `overopt eval {one.benchmark}`")
        for note in one.notes:
            print(f"  {note}")
    return 0


def _set_threads(threads: int) -> None:
    os.environ.update(RuntimeConfig(threads=threads).environment)
