"""Commands for looking at results: ``show``, ``diff``, ``samples``, ``table``."""

from __future__ import annotations

import argparse
from pathlib import Path

from overopt.cli.options import RECORDS_HELP, count


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Declare the arguments of this family's commands."""
    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("records", help=RECORDS_HELP)
    one.add_argument(
        "--run", default="", metavar="ID", help="only the curve whose run_id begins so"
    )

    show = commands.add_parser(
        "show",
        parents=[one, common],
        help="settings, provenance, curves and hacked responses of results, in the terminal",
    )
    show.set_defaults(command=show_results)

    diff = commands.add_parser(
        "diff", parents=[common], help="what differs between two results: settings and curves"
    )
    diff.add_argument("first", help=RECORDS_HELP)
    diff.add_argument("second", help="the same")
    diff.set_defaults(command=show_difference)

    samples = commands.add_parser(
        "samples", parents=[one, common], help="responses at a point of each curve, worst first"
    )
    samples.add_argument(
        "--at",
        default="end",
        metavar="POINT",
        help="start, peak, end, or a value of n or of the step (default: end)",
    )
    samples.add_argument(
        "--worst",
        default="gold",
        choices=("gold", "intent", "gap"),
        help="what makes a response bad: low gold, low intent, or a proxy far above gold"
        " (default: gold)",
    )
    samples.add_argument("--count", type=count, default=3, help="responses a curve (default: 3)")
    samples.set_defaults(command=show_samples)

    _add_table(commands, common)


def _add_table(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    table = commands.add_parser(
        "table", parents=[common], help="a row a curve, of one experiment or several, to compare"
    )
    table.add_argument("records", nargs="+", help=RECORDS_HELP)
    table.add_argument(
        "--columns", default="", metavar="A,B", help="columns to show, those of the records too"
    )
    table.add_argument(
        "--select",
        action="append",
        default=[],
        metavar="CONDITION",
        help="keep rows such as method=ppo or 'end_gold<0'; may be repeated",
    )
    table.add_argument(
        "--sort", default="", metavar="A,B-", help="sort by columns; with - behind, largest first"
    )
    table.add_argument(
        "--format", default="text", choices=("text", "csv", "md"), help="(default: text)"
    )
    table.add_argument("--out", type=Path, default=None, help="a file (default: the terminal)")
    table.set_defaults(command=show_table)


def show_results(args: argparse.Namespace) -> int:
    """``overopt show``."""
    from overopt.reports.look import show

    print(show(args.records, run=args.run))
    return 0


def show_difference(args: argparse.Namespace) -> int:
    """``overopt diff``."""
    from overopt.reports.look import diff

    print(diff(args.first, args.second))
    return 0


def show_samples(args: argparse.Namespace) -> int:
    """``overopt samples``."""
    from overopt.reports.look import samples

    print(samples(args.records, at=args.at, by=args.worst, n=args.count, run=args.run))
    return 0


def show_table(args: argparse.Namespace) -> int:
    """``overopt table``."""
    from overopt.base import files, folders
    from overopt.reports.table import table

    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    if args.out is not None:
        folders.check_folder(args.out.parent, "--out", args.out.name)
    text = table(
        args.records,
        columns=words(args.columns),
        select=args.select,
        sort=words(args.sort),
        format=args.format,
    )
    if args.out is None:
        print(text.rstrip("\r\n"))
        return 0
    content = text if args.format == "csv" else f"{text.rstrip()}\n"
    files.atomic_write(folders.made_for(args.out), content.encode())
    print(args.out)
    return 0
