"""Commands for more than one machine: ``worker``, ``submit``, ``watch``, ``cancel``."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from overopt.base.errors import ConfigError, StoreError
from overopt.cli.options import (
    array_of,
    array_options,
    computing_options,
    count,
    experiment_options,
    runtime_of,
)
from overopt.cli.run import status_lines

if TYPE_CHECKING:
    from overopt.engine.slurm import Array
    from overopt.study.run import Loaded


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Declare the arguments of this family's commands."""
    worker = commands.add_parser(
        "worker",
        parents=[common, computing_options(results=False)],
        help="compute what is missing in a store, as one of many that come and go",
    )
    worker.add_argument("store", type=Path, help="directory of results, which must exist")
    worker.add_argument("experiment", help="a preset or an experiment file, as for `run`")
    worker.add_argument("overrides", nargs="*", metavar="name=value", help="settings, as for `run`")
    worker.add_argument(
        "--accept-changes", action="store_true", help="as for `run`: settings or code may change"
    )
    worker.add_argument(
        "--deadline",
        type=count,
        default=None,
        metavar="SECONDS",
        help="leave after this time: stages at work save a checkpoint, the exit status is 3",
    )
    worker.add_argument(
        "--since",
        type=float,
        default=None,
        metavar="TIME",
        help="start of all these workers in seconds since 1970: what failed in one of them since then"
        " is not tried again (default: now)",
    )
    worker.set_defaults(command=work)

    submit = commands.add_parser(
        "submit",
        help="hand an experiment to a batch system: workers, and a job that collects",
    )
    systems = submit.add_subparsers(dest="system", required=True, metavar="system")
    slurm = systems.add_parser(
        "slurm",
        parents=[experiment_options(), computing_options(), array_options(), common],
        help="as an array of SLURM that is queued again when it is preempted or out of time",
    )
    slurm.add_argument("--no-collect", action="store_true", help="submit no job that collects")
    slurm.add_argument("--dry-run", action="store_true", help="print what would be submitted")
    slurm.set_defaults(command=submit_slurm)

    watch = commands.add_parser(
        "watch", parents=[experiment_options(), common], help="show `status` again and again"
    )
    watch.add_argument(
        "--every", type=count, default=2, metavar="SECONDS", help="pause (default: 2)"
    )
    watch.set_defaults(command=show_watch)

    cancel = commands.add_parser(
        "cancel",
        parents=[experiment_options(), common],
        help="end the jobs that were submitted for an experiment; what is finished is kept",
    )
    cancel.set_defaults(command=cancel_jobs)


def work(args: argparse.Namespace) -> int:
    """``overopt worker``: drain a store."""
    if not (args.store / "store.json").exists():
        raise StoreError(
            f"{args.store}: there is no store here; a worker joins one that exists: is the directory"
            " shared with this machine under this path? (`overopt submit` and `overopt run` make it)"
        )
    runtime = runtime_of(args)

    from overopt.engine.execute import check_device, check_on_cpu, drain
    from overopt.engine.graph import check_not_stale
    from overopt.engine.progress import Silent, TextReporter, duration
    from overopt.engine.store import Store
    from overopt.study.run import load

    loaded, store = load(args.experiment, args.overrides), Store(args.store)
    if not args.accept_changes:
        check_not_stale(loaded.record_name, loaded.stages, store)
    check_on_cpu(loaded.stages, runtime)
    check_device(runtime.device)
    summary = drain(
        loaded.stages,
        store,
        runtime,
        workers=1 if args.workers is None else args.workers,
        reporter=Silent() if runtime.quiet else TextReporter(),
        deadline_s=args.deadline,
        since=args.since,
    )
    if summary.left:
        print(
            f"overopt: left after {duration(summary.wall_s)}: {summary.computed} stages computed,"
            f" {summary.left} left to other workers",
            file=sys.stderr,
        )
        return 3
    if not runtime.quiet:
        print(f"{summary.computed} stages computed in {duration(summary.wall_s)}, none left")
    return 0


def submit_slurm(args: argparse.Namespace) -> int:
    """``overopt submit slurm``: workers as an array, and a job that collects."""
    array = array_of(args)
    if array.gpus and args.device == "cpu":
        args.device = "cuda"
    runtime = runtime_of(args)

    from overopt.engine import slurm
    from overopt.engine.execute import check_on_cpu, prepare
    from overopt.engine.graph import check_not_stale
    from overopt.engine.store import Store
    from overopt.study.run import default_results, load

    loaded, store = load(args.experiment, args.overrides), Store(args.store)
    if not args.accept_changes:
        check_not_stale(loaded.record_name, loaded.stages, store)
    check_on_cpu(loaded.stages, runtime)
    root, begun = store.root.resolve(), time.time()
    name = f"{default_results(loaded.record_name).name}-{time.strftime('%Y%m%d-%H%M%S')}"
    worker = _worker_arguments(args, root, array, begun)
    collect = None if args.no_collect else _collect_arguments(args, root, loaded)
    if args.dry_run:
        print(slurm.sbatch_text(array, name, root / slurm.FOLDER / name))
        print(f"# each of {array.tasks}: overopt {shlex.join(worker)}")
        if collect is not None:
            print(f"# afterok: overopt {shlex.join(collect)}")
        return 0
    prepare(loaded.stages, store)
    store.create()
    known = slurm.submit(root, name, loaded.record_name, array, worker, collect)
    print(f"submitted {known.name}: array {known.array}, {array.tasks} workers", end="")
    print("" if known.collect is None else f"; job {known.collect} collects when they have ended")
    print(f"logs: {root / slurm.FOLDER / name}")
    return 0


def _worker_arguments(
    args: argparse.Namespace, root: Path, array: Array, begun: float
) -> list[str]:
    """``overopt worker ...`` as it runs in each job."""
    side_by_side = array.cpus // args.threads if args.workers is None else args.workers
    if array.gpus and args.workers is None:
        side_by_side = max(side_by_side, args.gpu_jobs)
    words = ["worker", str(root), args.experiment, *args.overrides, "--since", f"{begun:.0f}"]
    words += ["--workers", str(max(1, side_by_side)), "--threads", str(args.threads)]
    words += ["--device", args.device, "--gpu-jobs", str(args.gpu_jobs), "--stack", str(args.stack)]
    if args.on_cpu:
        words += ["--on-cpu", args.on_cpu]
    if args.micro_batch is not None:
        words += ["--micro-batch", str(args.micro_batch)]
    if args.memory_limit is not None:
        words += ["--memory-limit", str(args.memory_limit)]
    return words + ["--accept-changes"] * args.accept_changes


def _collect_arguments(args: argparse.Namespace, root: Path, loaded: Loaded) -> list[str]:
    """``overopt run ...`` as it runs when nothing is left to compute."""
    from overopt.study.run import default_results

    results = (args.results or default_results(loaded.record_name)).resolve()
    words = ["run", args.experiment, *args.overrides, "--store", str(root)]
    words += ["--results", str(results), "--workers", "1"]
    return words + ["--accept-changes"] * args.accept_changes


def show_watch(args: argparse.Namespace) -> int:
    """``overopt watch``: status until nothing is left to compute."""
    from overopt.engine import slurm
    from overopt.engine.graph import make_plan
    from overopt.engine.store import Store
    from overopt.study.run import load

    loaded = load(args.experiment, args.overrides)
    while True:
        store = Store(args.store)
        plan = make_plan(loaded.stages, store)
        lines = status_lines(loaded, store, plan)
        for known in slurm.submissions(store.root):
            if known.experiment == loaded.record_name:
                jobs = slurm.states(known)
                lines += [f"      job  {job} {state}" for job, state in jobs.items()]
        clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
        _show(clear, lines)
        if not plan.todo:
            return 0
        time.sleep(max(1, args.every))


def _show(clear: str, lines: list[str]) -> None:
    if clear:  # past what makes control characters harmless
        sys.__stdout__.write(clear)  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]
    print("\n".join(lines), flush=True)


def cancel_jobs(args: argparse.Namespace) -> int:
    """``overopt cancel``: end jobs."""
    from overopt.engine import slurm
    from overopt.engine.store import Store
    from overopt.study.run import load

    loaded, store = load(args.experiment, args.overrides), Store(args.store)
    found = [s for s in slurm.submissions(store.root) if s.experiment == loaded.record_name]
    if not found:
        raise ConfigError(f"{store.root}: nothing was submitted here for {loaded.record_name!r}")
    for known in found:
        slurm.cancel(known)
        jobs = " and ".join(filter(None, (known.array, known.collect)))
        print(f"cancelled {known.name} (jobs {jobs})")
    return 0
