"""``overopt bench``: time the package on this machine."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from overopt.base.config import RuntimeConfig
from overopt.bench.names import DEFAULT_GROUPS, ON_REQUEST
from overopt.cli.options import count

PEER_ENVIRONMENTS = Path("runs") / "bench-envs"


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Declare the arguments of this family's commands."""
    bench = commands.add_parser("bench", parents=[common], help="time the package on this machine")
    bench.add_argument("--threads", type=count, default=1, help="threads (default: 1)")
    bench.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    bench.add_argument(
        "--peers",
        action="store_true",
        help=f"also time TRL, in virtual environments made once in {PEER_ENVIRONMENTS}",
    )
    bench.add_argument(
        "--peer-wheels",
        type=Path,
        default=None,
        metavar="DIR",
        help="install TRL from the wheels in DIR/common, DIR/trl-1.16.0 and DIR/trl-1.12.0, without a"
        " network; torch and transformers are this environment's",
    )
    bench.add_argument(
        "--budget",
        type=float,
        default=None,
        metavar="SECONDS",
        help="start no group after so many seconds (default: no limit)",
    )
    bench.add_argument(
        "--quick", action="store_true", help="also time the whole preset quick (minutes)"
    )
    bench.add_argument(
        "--only",
        action="append",
        default=None,
        metavar="GROUP",
        choices=DEFAULT_GROUPS,
        help=f"one group of {', '.join(DEFAULT_GROUPS)}; may be repeated (default: all; mfu and "
        "pool on cuda only)",
    )
    bench.add_argument(
        "--out",
        type=Path,
        default=Path("results") / "bench",
        help="where bench.json and bench.png go (default: results/bench)",
    )
    bench.set_defaults(command=run_bench)


def run_bench(args: argparse.Namespace) -> int:
    """Measure the groups that were asked for and print their table."""
    os.environ.update(RuntimeConfig(threads=args.threads).environment)
    from overopt.base import folders
    from overopt.bench.report import bench
    from overopt.engine.execute import check_device

    check_device(args.device)
    folders.check_folder(args.out, "--out", "bench.json", "bench.png")
    constraints = Path("constraints.txt")
    print(
        bench(
            threads=args.threads,
            device=args.device,
            groups=tuple(args.only or DEFAULT_GROUPS) + (ON_REQUEST if args.quick else ()),
            peers=PEER_ENVIRONMENTS if args.peers or args.peer_wheels else None,
            wheels=args.peer_wheels,
            budget_s=args.budget,
            constraints=constraints if constraints.is_file() else None,
            out=args.out,
            say=lambda group: print(f"measuring: {group}", file=sys.stderr),
        )
    )
    return 0
