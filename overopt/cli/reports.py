"""Commands that read records: ``fit``, ``stops``, ``figures``, ``report``, ``forecast``, ``replay``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from overopt.base.errors import ConfigError
from overopt.cli.options import RECORDS_HELP, count, json_option, print_json


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Declare the arguments of this family's commands."""
    fit = commands.add_parser("fit", parents=[common], help="fit the functional forms to records")
    fit.add_argument("records", help=RECORDS_HELP)
    json_option(fit)
    fit.set_defaults(command=show_fit)

    stops = commands.add_parser(
        "stops", parents=[common], help="compare rules for stopping without gold"
    )
    stops.add_argument("records", help=RECORDS_HELP)
    json_option(stops)
    stops.set_defaults(command=show_stops)

    figures = commands.add_parser("figures", parents=[common], help="draw figures from records")
    figures.add_argument("records", help=RECORDS_HELP)
    figures.add_argument(
        "--out", type=Path, default=Path("figures"), help="where figures go (default: figures)"
    )
    figures.add_argument(
        "--figure",
        action="append",
        default=[],
        metavar="NAME|FILE",
        help="draw only this figure: a built-in one, or a .py file of yours with draw(results); may"
        " be repeated (default: all built-in ones)",
    )
    figures.set_defaults(command=draw_figures)

    report = commands.add_parser(
        "report",
        parents=[common],
        help="one HTML file with curves, responses, fits, costs, settings and provenance",
    )
    report.add_argument("records", help=RECORDS_HELP)
    report.add_argument(
        "--out", type=Path, default=Path("report.html"), help="the file (default: report.html)"
    )
    report.set_defaults(command=write_report)

    _add_forecast(commands, common)
    _add_replay(commands, common)


def _add_forecast(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    forecast = commands.add_parser(
        "forecast",
        parents=[common],
        help="predict the peak of a proxy size not yet trained, or score such a prediction",
    )
    forecast.add_argument("records", help=RECORDS_HELP)
    what = forecast.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--n-params", type=float, default=None, help="non-embedding parameters of the proxy to come"
    )
    what.add_argument(
        "--score", type=Path, default=None, metavar="FILE", help="a forecast written earlier"
    )
    forecast.add_argument(
        "--method",
        default=None,
        help="with --n-params: a method of the records as they call it (default: bon)",
    )
    forecast.add_argument(
        "--out",
        type=Path,
        default=None,
        help="file of the forecast (default: results/forecast_<records>_<method>_<size>M.json)",
    )
    forecast.set_defaults(command=make_forecast)


def _add_replay(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    replay = commands.add_parser(
        "replay", parents=[common], help="best-of-n, tilt and fit of scored samples of your own"
    )
    replay.add_argument(
        "table",
        type=Path,
        help="scored responses: .csv, .tsv, .json, .jsonl, each also compressed, or .parquet",
    )
    replay.add_argument(
        "--proxy",
        action="append",
        default=None,
        metavar="COLUMN",
        help="proxy scores; may be repeated (default: every column that begins with proxy)",
    )
    replay.add_argument(
        "--gold", default=None, metavar="COLUMN", help="gold scores (default: gold or gold_scores)"
    )
    replay.add_argument("--prompt-id", default=None, metavar="COLUMN", help="ids of the prompts")
    replay.add_argument(
        "--pool-size", type=count, default=None, help="keep the first N responses of each prompt"
    )
    replay.add_argument(
        "--out",
        type=Path,
        default=None,
        help="also write replay.csv, .json and .png into this folder",
    )
    json_option(replay)
    replay.set_defaults(command=show_replay)


def show_fit(args: argparse.Namespace) -> int:
    """``overopt fit``."""
    from overopt.reports import fit

    if args.json:
        return print_json(fit.fit_json(args.records))
    print(fit.fit(args.records))
    return 0


def show_stops(args: argparse.Namespace) -> int:
    """``overopt stops``."""
    from overopt.reports import stops

    if args.json:
        return print_json(stops.stops_json(args.records))
    print(stops.stops(args.records))
    return 0


def draw_figures(args: argparse.Namespace) -> int:
    """``overopt figures``."""
    from overopt.base import folders
    from overopt.reports.draw import draw

    folders.check_folder(args.out, "--out")
    with folders.locked(args.out):
        paths = draw(args.records, args.out, args.figure)
    for path in paths:
        print(path)
    return 0


def write_report(args: argparse.Namespace) -> int:
    """``overopt report``."""
    from overopt import __version__
    from overopt.base import folders
    from overopt.reports.page import report

    folders.check_folder(args.out.parent, "--out", args.out.name)
    out = folders.made_for(args.out)
    file = report(args.records, out, made_by=f"overopt {__version__}")
    print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
    return 0


def make_forecast(args: argparse.Namespace) -> int:
    """``overopt forecast``: make one, or score one."""
    from overopt.base import folders
    from overopt.records.curves import BON
    from overopt.reports import forecast

    if args.score is None:
        place = Path("results/x") if args.out is None else args.out
        folders.check_folder(place.parent, "--out", *([] if args.out is None else [place.name]))
        print(
            forecast.forecast(
                args.records, n_params=args.n_params, method=args.method or BON, out=args.out
            )
        )
        return 0
    for option, value in (("--method", args.method), ("--out", args.out)):
        if value is not None:
            raise ConfigError(f"{option} goes with --n-params; --score takes it from the forecast")
    print(forecast.score(args.records, args.score))
    return 0


def show_replay(args: argparse.Namespace) -> int:
    """``overopt replay``."""
    from overopt.base import folders
    from overopt.reports import replay

    if args.out is not None:
        folders.check_folder(args.out, "--out", "replay.csv", "replay.json", "replay.png")
    found = replay.replay(
        args.table,
        proxies=args.proxy,
        gold=args.gold,
        prompt_id=args.prompt_id,
        pool_size=args.pool_size,
    )
    if args.json:
        print_json(replay.as_json(found))
    else:
        print(replay.as_text(found))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        for file in replay.write(found, args.out):
            print(file, file=sys.stderr)
    return 0
