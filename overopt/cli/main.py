"""The command line: arguments, the one place where errors become messages, exit statuses.

Each command lives in a file of its family beside this one: ``add(commands, common)`` declares its
arguments and names the function that carries it out. Everything heavy is imported inside that
function, so that ``--help`` answers at once.

Exit status: 0 done; 1 stages failed; 2 the request cannot be carried out, and nothing was started;
3 out of time, the same command goes on; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from overopt.base.errors import OveroptError
from overopt.cli import bench, compare, reports, run, settings, train

FAMILIES = (run, settings, compare, reports, train, bench)
"""In the order of ``overopt --help``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _parse(argv)
    try:
        return args.command(args)
    except OveroptError as error:
        if args.debug:
            raise
        print(f"overopt: error: {error}", file=sys.stderr)
        from overopt.engine.task import StageError

        return 1 if isinstance(error, StageError) else 2
    except KeyboardInterrupt:
        print(
            "overopt: interrupted; what is finished is kept, and running the same command again"
            " resumes",
            file=sys.stderr,
        )
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output went away (`overopt plan desk | head`): not worth a word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # argparse takes positionals that follow an option for unknown arguments.
    for extra in rest:
        if extra.startswith("-") or not hasattr(args, "overrides"):
            parser.error(f"unknown argument {extra!r}; see `overopt {args.name} --help`")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _parser() -> argparse.ArgumentParser:
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
    return parser


if __name__ == "__main__":
    sys.exit(main())
