"""The command line: arguments, the one place where errors become messages, exit statuses.

Each command lives in a file of its family beside this one: ``add(commands, common)`` declares its
arguments and names the function that carries it out. Everything heavy is imported inside that
function, so that ``--help`` answers at once.

Exit status: 0 done; 1 stages failed, or output was lost; 2 the request cannot be carried out, and
nothing was started; 3 out of time, the same command goes on; 128 + N ended by signal N (130: Ctrl-C).
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from overopt.base import escape
from overopt.base.errors import OveroptError
from overopt.cli import (
    begin,
    bench,
    cluster,
    compare,
    evals,
    keep,
    look,
    proxies,
    reports,
    run,
    settings,
    streams,
    train,
)
from overopt.engine import signals

FAMILIES = (
    *(begin, run, cluster, settings, look, compare, reports, proxies),
    *(train, evals, keep, bench),
)
"""In the order of ``overopt --help``."""

RESUMES = ("run", "worker")
"""Commands that keep what is finished, and go on from it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    with streams.guarded() as output, signals.listening():
        try:
            status = _command(argv)
        except SystemExit as end:  # argparse, after help or a message about wrong usage
            output.flush()
            if end.code or output.lost is None:
                raise
            status = 0
        output.flush()
        if output.lost is not None:
            _say(f"error: standard output could not be written: {output.lost}")
            status = status or streams.OUTPUT_LOST
        return status


def _command(argv: Sequence[str] | None) -> int:
    args = _parse(argv)
    try:
        return args.command(args)
    except OveroptError as error:
        if args.debug:
            raise
        _say(f"error: {error}")
        from overopt.engine.task import StageError

        return 1 if isinstance(error, StageError) else 2
    except OSError as error:  # a file or folder that the command needs, and the system refuses
        if args.debug or error.filename is None:
            raise
        _say(f"error: {error.filename}: {error.strerror}: give another path")
        return 2
    except KeyboardInterrupt:
        signals.settle()
        number = signals.received() or signal.SIGINT
        word = "interrupted" if number == signal.SIGINT else f"ended by {_name(number)}"
        if args.name in RESUMES:
            word += "; what is finished is kept, and running the same command again resumes"
        _say(word)
        return 128 + number


def _say(text: str) -> None:
    """A message on standard error, in which names from files do no harm to the terminal."""
    print(f"overopt: {escape.terminal(text)}", file=sys.stderr)


def _name(number: int) -> str:
    return signal.Signals(number).name


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser()
    args, rest = made.parse_known_args(argv)
    # argparse takes positionals that follow an option for unknown arguments.
    for extra in rest:
        if extra.startswith("-") or not hasattr(args, "overrides"):
            meant = _as_setting(extra) if hasattr(args, "experiment") else ""
            made.error(
                f"unknown argument {extra!r}; {meant or f'see `overopt {args.name} --help`'}"
            )
    if hasattr(args, "overrides"):
        args.overrides = _settled([*args.overrides, *rest])
    return args


def _as_setting(option: str) -> str:
    """The settings that an unknown option sounds like, as they are given; nothing if there are none."""
    word = option.strip("-").partition("=")[0].replace("-", "_")
    last = {name: name.rpartition(".")[2] for name in settings.known_names()}
    alike = [
        name for name, own in last.items() if word and (own == word or own.endswith(f"_{word}"))
    ]
    if not alike:
        return ""
    return (
        f"settings are given without dashes: {' or '.join(f'{name}=VALUE' for name in alike[:8])}"
    )


def _settled(overrides: Sequence[str]) -> list[str]:
    """Each setting once, as it was given last; says which ones were given before."""
    last: dict[str, str] = {}
    for i, override in enumerate(overrides):
        name, equals, _ = override.partition("=")
        if not equals:  # no setting: an error, or a file, which may be named twice
            last[f"{i} {override}"] = override
            continue
        before = last.pop(name, override)
        if before != override:
            _say(f"{before} is overridden by {override}, which comes later")
        last[name] = override
    return list(last.values())


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    from overopt import __version__

    parser = argparse.ArgumentParser(
        prog="overopt",
        description="A sandbox for reward-model overoptimization: gold and proxy reward models,"
        " best-of-n and PPO, fits and figures.",
        epilog="Start with `overopt plan smoke` and `overopt run smoke`.",
    )
    parser.add_argument("--version", action="version", version=f"overopt {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="command")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of every error")
    for family in FAMILIES:
        family.add(commands, common)
    parser.set_defaults(whole=parser)  # for `overopt completion`
    return parser


if __name__ == "__main__":
    sys.exit(main())
