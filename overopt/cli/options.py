"""Options that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overopt.base.config import RuntimeConfig
from overopt.base.errors import ConfigError

if TYPE_CHECKING:
    from overopt.engine.slurm import Array

PRESETS = ("smoke", "quick", "desk", "gpu", "smollm", "control", "quantile")

RECORDS_HELP = "a preset's name or a directory with records.jsonl"


def count(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def json_option(command: argparse.ArgumentParser) -> None:
    """``--json``: print the result for programs."""
    command.add_argument("--json", action="store_true", help="print JSON, for programs")


def print_json(value: Any) -> int:
    """Print ``value``, of JSON types without nan; returns exit status 0."""
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))
    return 0


def share(text: str) -> tuple[int, int]:
    """``I/N``: the I-th of N parts."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form I/N with I from 1 to N")
    return int(part), int(parts)


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def runtime_of(args: argparse.Namespace) -> RuntimeConfig:
    """How stages are run; call it before numpy and torch are loaded, whose threads it sets."""
    runtime = RuntimeConfig(
        device=args.device,
        threads=args.threads,
        micro_batch=args.micro_batch,
        gpu_jobs=args.gpu_jobs,
        stack=args.stack,
        on_cpu=tuple(filter(None, args.on_cpu.split(","))),
        memory_mb=args.memory_limit,
        quiet=args.quiet,
    )
    os.environ.update(runtime.environment)
    return runtime


def experiment_options() -> argparse.ArgumentParser:
    """Which experiment, with which settings, in which store."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "experiment",
        help=f"a preset ({', '.join(PRESETS)}) or an experiment file with a function build()",
    )
    options.add_argument(
        "overrides", nargs="*", metavar="name=value", help="settings, such as labels.n_pairs=2000"
    )
    options.add_argument(
        "--store", type=Path, default=Path("runs"), help="directory of results (default: runs)"
    )
    options.add_argument(
        "--accept-changes",
        action="store_true",
        help="let changed settings or code replace what the experiment's name stood for",
    )
    return options


def part_option() -> argparse.ArgumentParser:
    """A part of an experiment's runs."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--part",
        type=share,
        default=None,
        metavar="I/N",
        help="the I-th of N equal parts of the runs only; `run` joins its records to those of other"
        " parts that the results directory holds",
    )
    return options


def computing_options(*, results: bool = True) -> argparse.ArgumentParser:
    """How stages are computed, and where the records go, if ``results`` are made."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--workers", type=count, default=None, help="stages side by side (default: all cores)"
    )
    options.add_argument("--threads", type=count, default=1, help="threads per stage (default: 1)")
    options.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    options.add_argument(
        "--gpu-jobs", type=count, default=1, help="stages that share the device (default: 1)"
    )
    options.add_argument(
        "--stack",
        type=count,
        default=1,
        metavar="N",
        help="train up to N proxies of one size at once in one process: worth it on a GPU; changes"
        " results by rounding (default: 1)",
    )
    options.add_argument(
        "--on-cpu",
        default="",
        metavar="STAGES",
        help="stages that stay on the CPU although --device is another, by name, such as a method's",
    )
    options.add_argument(
        "--micro-batch", type=count, default=None, help="largest batch through a network at once"
    )
    options.add_argument(
        "--memory-limit",
        type=count,
        default=None,
        metavar="MB",
        help="memory that a stage on the CPU may take; one that asks for more fails by itself",
    )
    options.add_argument("--quiet", action="store_true", help="show no progress")
    if results:
        options.add_argument(
            "--results",
            type=Path,
            default=None,
            help="where records go (default: results/<name+overrides>)",
        )
    return options


def executor_options(*choices: str) -> argparse.ArgumentParser:
    """Where stages are computed: on this machine, or one of ``choices``."""
    what = {
        "slurm": "slurm: print the batch script that `overopt submit slurm` would send",
        "ray": "ray: as tasks of a Ray cluster",
    }
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--executor",
        choices=("local", *choices),
        default="local",
        help="; ".join(["local: processes of this machine (default)", *(what[c] for c in choices)]),
    )
    options.add_argument(
        "--ray-address",
        default=None,
        metavar="HOST:PORT",
        help="of a Ray cluster, or auto (default: $RAY_ADDRESS, or else a cluster of this machine,"
        " which ends with the run)",
    )
    return options


def array_options() -> argparse.ArgumentParser:
    """What each job of an array of SLURM gets."""
    options = argparse.ArgumentParser(add_help=False)
    slurm = options.add_argument_group("SLURM")
    slurm.add_argument("--array", type=count, default=1, metavar="N", help="jobs (default: 1)")
    slurm.add_argument(
        "--cpus", type=count, default=1, metavar="N", help="cores of each job (default: 1)"
    )
    slurm.add_argument("--gpus", type=count, default=0, metavar="N", help="GPUs of each: 0 or 1")
    slurm.add_argument(
        "--memory", type=count, default=None, metavar="MB", help="memory of each job"
    )
    slurm.add_argument(
        "--minutes",
        type=count,
        default=60,
        metavar="N",
        help="time limit of each job, which is queued again if that is not enough (default: 60)",
    )
    for name in ("partition", "account", "qos"):
        slurm.add_argument(
            f"--{name}", default=None, help=f"{name} of the jobs, as sbatch takes it"
        )
    slurm.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="COMMAND",
        help="shell command before the start of each job, such as 'module load cuda'; may be repeated",
    )
    return options


def array_of(args: argparse.Namespace) -> Array:
    """The array that the arguments ask for."""
    from overopt.engine.slurm import Array

    if args.gpus > 1:
        raise ConfigError(
            f"--gpus = {args.gpus}: a worker uses one GPU; ask for more jobs with --array instead"
        )
    return Array(
        tasks=args.array,
        cpus=args.cpus,
        gpus=args.gpus,
        memory_mb=args.memory,
        minutes=args.minutes,
        partition=args.partition,
        account=args.account,
        qos=args.qos,
        setup=tuple(args.setup),
    )
