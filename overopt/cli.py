"""The command line: ``overopt plan | run | compare | status | fit | stops | sft | figures | bench
| forecast | replay``.

Level 3, the outermost layer and the only one that prints. It parses arguments, calls the other
modules and turns the errors that overopt raises on purpose into one message each. Everything heavy
is imported inside the command that needs it, so that ``--help`` answers at once.

Exit status: 0 done; 1 stages failed; 2 the request cannot be carried out, and nothing was started;
3 out of time, the same command goes on; 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import re
import signal
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from overopt.config import RuntimeConfig
from overopt.errors import ConfigError, OveroptError

if TYPE_CHECKING:
    from overopt.graph import Plan, Stage
    from overopt.store import Store

PRESETS = ("smoke", "quick", "desk", "gpu", "smollm", "quantile")
BENCH_GROUPS = (
    "estimators",
    "sampling",
    "scoring",
    "reward",
    "ppo",
    "ppo-defaults",
    "stacked",
    "mfu",
    "pool",
)
PEER_ENVIRONMENTS = Path("runs") / "bench-envs"
STATE_MARKS = {
    "done": "done",
    "running": "running",
    "in-flight": "resumable",
    "missing": "to do",
    "not needed": "-",
    "stale": "STALE",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _parse(argv)
    try:
        return args.command(args)
    except OveroptError as error:
        if args.debug:
            raise
        print(f"overopt: error: {error}", file=sys.stderr)
        from overopt.executors import StageError

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


# --- arguments ------------------------------------------------------------------------------------


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

    experiment = argparse.ArgumentParser(add_help=False)
    experiment.add_argument(
        "experiment",
        help=f"a preset ({', '.join(PRESETS)}) or an experiment file with a function build()",
    )
    experiment.add_argument(
        "overrides", nargs="*", metavar="name=value", help="settings, such as labels.n_pairs=2000"
    )
    experiment.add_argument(
        "--store", type=Path, default=Path("runs"), help="directory of results (default: runs)"
    )
    experiment.add_argument(
        "--accept-changes",
        action="store_true",
        help="let changed settings or code replace what the experiment's name stood for",
    )

    partly = argparse.ArgumentParser(add_help=False)
    partly.add_argument(
        "--part",
        type=_part,
        default=None,
        metavar="I/N",
        help="the I-th of N equal parts of the runs only; `run` joins its records to those of other"
        " parts that the results directory holds",
    )

    plan = commands.add_parser(
        "plan",
        parents=[experiment, partly, common],
        help="show what a run would compute, and its cost",
    )
    plan.add_argument("--workers", type=_count, default=None, help="processes to plan for")
    plan.add_argument("--device", default="cpu", help="device to plan for (default: cpu)")
    plan.set_defaults(command=_plan)

    settings = commands.add_parser(
        "settings", parents=[common], help="list what can be set in a run, with defaults"
    )
    settings.add_argument(
        "words", nargs="*", help="show settings whose name or meaning has all of these words"
    )
    settings.set_defaults(command=_settings)

    computing = argparse.ArgumentParser(add_help=False)
    computing.add_argument(
        "--workers", type=_count, default=None, help="stages side by side (default: all cores)"
    )
    computing.add_argument(
        "--threads", type=_count, default=1, help="threads per stage (default: 1)"
    )
    computing.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    computing.add_argument(
        "--gpu-jobs", type=_count, default=1, help="stages that share the device (default: 1)"
    )
    computing.add_argument(
        "--stack",
        type=_count,
        default=1,
        metavar="N",
        help="train up to N proxies of one size at once in one process: worth it on a GPU; changes"
        " results by rounding (default: 1)",
    )
    computing.add_argument(
        "--on-cpu",
        default="",
        metavar="STAGES",
        help="stages that stay on the CPU although --device is another, such as ppo,ppo_gold",
    )
    computing.add_argument(
        "--micro-batch", type=_count, default=None, help="largest batch through a network at once"
    )
    computing.add_argument("--quiet", action="store_true", help="show no progress")
    computing.add_argument(
        "--results",
        type=Path,
        default=None,
        help="where records go (default: results/<name+overrides>)",
    )

    run = commands.add_parser(
        "run",
        parents=[experiment, computing, partly, common],
        help="compute what is missing, then collect records",
    )
    run.add_argument(
        "--time-limit",
        type=_count,
        default=None,
        metavar="SECONDS",
        help="stop after this time, write the records of what is finished, and exit with status 3;"
        " the same command goes on from there",
    )
    run.add_argument(
        "--extend",
        action="store_true",
        help="do not compute what the results directory has records of already, whatever the store"
        " holds: for runs in pieces on machines that do not share a store",
    )
    run.set_defaults(command=_run)

    compare = commands.add_parser(
        "compare",
        parents=[experiment, computing, common],
        help="tune mitigations with equal budgets and test them against a baseline",
        description="EXPERIMENT is here a preset (smoke), a Python file with a function compare(),"
        " or a directory of results, whose leaderboard and figures are made again.",
    )
    compare.add_argument(
        "--plan", action="store_true", help="show what would run, and its cost, and stop"
    )
    compare.set_defaults(command=_compare)

    status = commands.add_parser(
        "status", parents=[experiment, common], help="count what is done, running and missing"
    )
    status.set_defaults(command=_status)

    fit = commands.add_parser("fit", parents=[common], help="fit the functional forms to records")
    fit.add_argument("records", type=Path, help="directory with records.jsonl")
    fit.set_defaults(command=_fit)

    stops = commands.add_parser(
        "stops", parents=[common], help="compare rules for stopping PPO without gold"
    )
    stops.add_argument("records", help="a preset's name or a directory with records.jsonl")
    stops.set_defaults(command=_stops)

    sft = commands.add_parser(
        "sft", parents=[common], help="fine-tune a policy on responses; world.policy=DIR takes it"
    )
    sft.add_argument(
        "overrides", nargs="*", metavar="name=value", help="settings, such as epochs=2 lr=1e-4"
    )
    sft.add_argument("--model", required=True, help="what to start from, such as ladder:0.8m")
    sft.add_argument(
        "--data", type=Path, required=True, help="JSONL with the fields prompt and response"
    )
    sft.add_argument("--out", type=Path, required=True, help="checkpoint directory to write")
    sft.add_argument("--threads", type=_count, default=1, help="threads (default: 1)")
    sft.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    sft.add_argument(
        "--micro-batch", type=_count, default=None, help="largest batch through a network at once"
    )
    sft.add_argument("--quiet", action="store_true", help="show no progress")
    sft.set_defaults(command=_sft)

    figures = commands.add_parser("figures", parents=[common], help="draw figures from records")
    figures.add_argument("records", help="a preset's name or a directory with records.jsonl")
    figures.add_argument(
        "--out", type=Path, default=Path("figures"), help="where figures go (default: figures)"
    )
    figures.set_defaults(command=_figures)

    bench = commands.add_parser("bench", parents=[common], help="time the package on this machine")
    bench.add_argument("--threads", type=_count, default=1, help="threads (default: 1)")
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
        choices=BENCH_GROUPS,
        help=f"one group of {', '.join(BENCH_GROUPS)}; may be repeated (default: all; mfu and "
        "pool on cuda only)",
    )
    bench.add_argument(
        "--out",
        type=Path,
        default=Path("results") / "bench",
        help="where bench.json and bench.png go (default: results/bench)",
    )
    bench.set_defaults(command=_bench)

    forecast = commands.add_parser(
        "forecast",
        parents=[common],
        help="predict the peak of a proxy size not yet trained, or score such a prediction",
    )
    forecast.add_argument("records", help="a preset's name or a directory with records.jsonl")
    what = forecast.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--n-params", type=float, default=None, help="non-embedding parameters of the proxy to come"
    )
    what.add_argument(
        "--score", type=Path, default=None, metavar="FILE", help="a forecast written earlier"
    )
    forecast.add_argument(
        "--method", choices=("bon", "ppo"), default=None, help="with --n-params (default: bon)"
    )
    forecast.add_argument(
        "--out",
        type=Path,
        default=None,
        help="file of the forecast (default: results/forecast_<records>_<method>_<size>M.json)",
    )
    forecast.set_defaults(command=_forecast)

    replay = commands.add_parser(
        "replay", parents=[common], help="best-of-n, tilt and fit of scored samples of your own"
    )
    replay.add_argument("table", type=Path, help="scored responses, .jsonl or .parquet")
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
        "--pool-size", type=_count, default=None, help="keep the first N responses of each prompt"
    )
    replay.set_defaults(command=_replay)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _part(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form I/N with I from 1 to N")
    return int(part), int(parts)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- commands -------------------------------------------------------------------------------------


class _Loaded(NamedTuple):
    """An experiment, its stages, and the name under which its results are known."""

    experiment: Any
    stages: list[Stage]
    record_name: str


def _load(args: argparse.Namespace) -> _Loaded:
    from overopt import pipeline, presets

    experiment = presets.load_experiment(args.experiment, args.overrides)
    # Overrides make it another experiment: `quick` and `quick seed=1` may both have results.
    name = " ".join([experiment.name, *sorted(args.overrides)])
    return _Loaded(experiment, pipeline.build_graph(experiment), name)


def default_results(record_name: str) -> Path:
    """results/NAME, the overrides in it: a run with others does not replace these records."""
    folder = re.sub(r"[^\w.=,+-]+", "_", record_name)
    if len(folder) > 120:
        folder = f"{folder[:100]}_{hashlib.sha256(record_name.encode()).hexdigest()[:8]}"
    return Path("results") / folder


def _settings(args: argparse.Namespace) -> int:
    from overopt.settings import RunConfig
    from overopt.settings_help import describe_settings

    words = [word.lower() for word in args.words]
    shown = [
        setting
        for setting in describe_settings(RunConfig())
        if all(word in f"{setting.name} {setting.meaning}".lower() for word in words)
    ]
    if not shown:
        raise ConfigError(f"settings {' '.join(args.words)!r}: no setting has these words")
    for name, value, meaning in shown:
        text = f"{name}={value}"
        print(
            text
            if not meaning
            else f"{text}\n{textwrap.indent(textwrap.fill(meaning.replace('``', ''), 92), '    ')}"
        )
    return 0


def _plan(args: argparse.Namespace) -> int:
    from overopt.graph import check_not_stale, find_stale, make_plan
    from overopt.pipeline import build_graph
    from overopt.progress import Clock, duration
    from overopt.store import Store

    loaded, store = _load(args), Store(args.store)
    wanted = loaded.stages
    if args.part:
        wanted = build_graph(_part_of(loaded.experiment, *args.part))
    plan = make_plan(wanted, store)
    workers = args.workers or _cores()
    stale = find_stale(loaded.record_name, loaded.stages, store)
    for stage in plan.stages:
        changed = stage.title in stale and plan.states[stage.fingerprint] != "done"
        state = "stale" if changed else plan.states[stage.fingerprint]
        cost = "" if state == "done" else duration(stage.cost_s)
        print(f"{STATE_MARKS[state]:>9}  {stage.fingerprint}  {cost:>12}  {stage.title}")
    left = duration(Clock(plan, workers).seconds_left())
    print(
        f"{_summary(plan)}: {duration(plan.cost_s)} of CPU time, about {left} on {workers}"
        f" worker{'s' * (workers > 1)}, {plan.disk_mb:.0f} MB"
    )
    if args.device != "cpu":
        print(
            f"times are estimates for CPU cores; on {args.device} they are a small part, which is"
            " not estimated: docs/bench.md has what was measured on an H200"
        )
    if not args.accept_changes:
        check_not_stale(loaded.record_name, loaded.stages, store)
    return 0


def _quantile() -> int:
    from overopt.world.quantile import quantile_demo

    print("Estimators against closed forms on gold g(u) over proxy quantiles (seconds, no torch):")
    print(f"{'method':16} {'point':>8} {'√KL':>6} {'exact':>8} {'estimate':>17} {'off by':>8}")
    for row in quantile_demo(0):
        print(
            f"{row['method']:16} {row['point']:8.4g} {row['sqrt_kl']:6.3f} {row['gold_exact']:8.4f}"
            f" {row['gold']:8.4f} ± {row['gold_stderr']:.4f} {row['discrepancy_stderrs']:6.2f} se"
        )
    return 0


def _run(args: argparse.Namespace) -> int:
    if args.experiment == "quantile":
        return _quantile()
    runtime = _runtime(args)

    from overopt import distributed, pipeline
    from overopt.executors import StageError, check_on_cpu, execute
    from overopt.graph import check_not_stale, snapshot
    from overopt.progress import Silent, TextReporter, duration
    from overopt.store import Store

    loaded, store = _load(args), Store(args.store)
    if not args.accept_changes:
        check_not_stale(loaded.record_name, loaded.stages, store)
    check_on_cpu(loaded.stages, runtime)
    _check_device(runtime.device)
    results = args.results or default_results(loaded.record_name)
    held = pipeline.held_results(
        results
    )  # unreadable ones are refused now, not after hours of work
    wanted = loaded.stages
    if args.part:
        pipeline.check_joins(results, held, {stage.fingerprint for stage in wanted})
        wanted = pipeline.build_graph(_part_of(loaded.experiment, *args.part))
    done = held.run_ids if args.extend else set()
    workers = max(1, _cores() // runtime.threads) if args.workers is None else args.workers
    try:
        summary = execute(
            [stage for stage in wanted if stage.fingerprint not in done],
            store,
            runtime,
            workers=workers,
            reporter=Silent() if runtime.quiet else TextReporter(),
            time_limit_s=args.time_limit,
        )
    except (KeyboardInterrupt, StageError):
        _collect_part(loaded, store, results)
        raise
    if distributed.rank() > 0:
        return 0  # rank 0 writes
    if summary.left:
        took = duration(summary.wall_s)
        print(
            f"overopt: stopped by --time-limit after {took}: {summary.computed} stages computed,"
            f" {summary.left} left; running the same command again continues from here",
            file=sys.stderr,
        )
        _collect_part(loaded, store, results)
        return 3
    written = pipeline.collect(loaded.experiment, store, results, partial=bool(args.part))
    if not args.part:
        store.record(loaded.record_name, snapshot(loaded.stages))
    if not runtime.quiet:
        took = duration(summary.wall_s)
        print(f"{summary.computed} stages computed in {took}; records in {written}")
    return 0


def _part_of(experiment: Any, part: int, parts: int) -> Any:
    """The experiment with the ``part``-th of ``parts`` equal, contiguous shares of its runs."""
    start, stop = (len(experiment.runs) * k // parts for k in (part - 1, part))
    if start == stop:
        raise ConfigError(f"--part {part}/{parts}: there are {len(experiment.runs)} runs to divide")
    return dataclasses.replace(experiment, runs=experiment.runs[start:stop])


def _collect_part(loaded: _Loaded, store: Store, results: Path) -> None:
    """Write the records of the curves that are finished, and say so or why not."""
    from overopt import distributed, pipeline

    if distributed.rank() > 0:
        return
    try:
        written = pipeline.collect(loaded.experiment, store, results, partial=True)
    except (OveroptError, OSError) as error:  # what ended the run is the message that counts
        print(f"overopt: {error}", file=sys.stderr)
        return
    if written is not None:
        print(f"overopt: records of what is finished are in {results}", file=sys.stderr)


def _runtime(args: argparse.Namespace) -> RuntimeConfig:
    """How stages are run; call it before numpy and torch are loaded, whose threads it sets."""
    runtime = RuntimeConfig(
        device=args.device,
        threads=args.threads,
        micro_batch=args.micro_batch,
        gpu_jobs=args.gpu_jobs,
        stack=args.stack,
        on_cpu=tuple(filter(None, args.on_cpu.split(","))),
        quiet=args.quiet,
    )
    os.environ.update(runtime.environment)
    return runtime


def _compare(args: argparse.Namespace) -> int:
    runtime = _runtime(args)

    from overopt import comparison, comparison_report
    from overopt.progress import Silent, TextReporter
    from overopt.store import Store

    if Path(args.experiment).is_dir():
        if args.overrides or args.plan:
            raise ConfigError(
                f"{args.experiment!r} holds results, which are reported as they are: leave out"
                " overrides and --plan, or give the comparison's file"
            )
        print(comparison_report.report(args.experiment))
        return 0
    loaded, store = comparison.load_comparison(args.experiment, args.overrides), Store(args.store)
    if args.plan:
        for line in comparison.plan_lines(loaded, store):
            print(line)
        return 0
    _check_device(runtime.device)
    text = comparison.run_comparison(
        loaded,
        store,
        runtime,
        workers=max(1, _cores() // runtime.threads) if args.workers is None else args.workers,
        reporter=Silent() if runtime.quiet else TextReporter(),
        results=args.results or Path("results") / loaded.name,
        accept_changes=args.accept_changes,
        record_name=" ".join([loaded.name, *sorted(args.overrides)]),
    )
    print(text)
    return 0


def _status(args: argparse.Namespace) -> int:
    from overopt.graph import find_stale, make_plan
    from overopt.progress import duration
    from overopt.store import Store

    loaded, store = _load(args), Store(args.store)
    plan = make_plan(loaded.stages, store)
    print(f"{loaded.record_name}: {_summary(plan)}")
    for stage in plan.todo:
        state = plan.states[stage.fingerprint]
        if state != "missing":
            print(f"{STATE_MARKS[state]:>9}  {stage.fingerprint}  {stage.title}")
    if plan.todo:
        print(f"about {duration(plan.cost_s)} of CPU time to go")
    for label, reason in find_stale(loaded.record_name, loaded.stages, store).items():
        print(f"{STATE_MARKS['stale']:>9}  {label}: {reason}")
    return 0


def _fit(args: argparse.Namespace) -> int:
    from overopt import analysis

    print(analysis.fit(args.records))
    return 0


def _stops(args: argparse.Namespace) -> int:
    from overopt import analysis

    print(analysis.stops(args.records))
    return 0


def _sft(args: argparse.Namespace) -> int:
    runtime = RuntimeConfig(
        device=args.device, threads=args.threads, micro_batch=args.micro_batch, quiet=args.quiet
    )
    os.environ.update(runtime.environment)
    from overopt import distributed, sft_files
    from overopt.config import apply_overrides
    from overopt.sft import SftConfig

    _check_device(args.device)
    tenth = 0

    def progress(done: int, total: int) -> None:
        nonlocal tenth
        if not args.quiet and distributed.rank() == 0 and 10 * done // total > tenth:
            tenth = 10 * done // total
            print(f"step {done} of {total}", file=sys.stderr)

    cfg = apply_overrides(SftConfig(), args.overrides)
    log = sft_files.run(
        args.model, args.data, args.out, cfg=cfg, runtime=runtime, progress=progress
    )
    if distributed.rank() == 0:
        print(
            f"{log.n_train} examples, {log.n_validation} held out: {log.validation_before:.3f} ->"
            f" {log.validation_after:.3f} nats a response token; written to {args.out}"
        )
    return 0


def _figures(args: argparse.Namespace) -> int:
    from overopt import analysis

    for path in analysis.draw(args.records, args.out):
        print(path)
    return 0


def _bench(args: argparse.Namespace) -> int:
    os.environ.update(RuntimeConfig(threads=args.threads).environment)
    from overopt.benchmarks.report import bench

    _check_device(args.device)
    constraints = Path("constraints.txt")
    print(
        bench(
            threads=args.threads,
            device=args.device,
            groups=tuple(args.only or BENCH_GROUPS) + (("quick",) if args.quick else ()),
            peers=PEER_ENVIRONMENTS if args.peers or args.peer_wheels else None,
            wheels=args.peer_wheels,
            budget_s=args.budget,
            constraints=constraints if constraints.is_file() else None,
            out=args.out,
            say=lambda group: print(f"measuring: {group}", file=sys.stderr),
        )
    )
    return 0


def _forecast(args: argparse.Namespace) -> int:
    from overopt import forecasts

    if args.score is None:
        print(
            forecasts.forecast(
                args.records, n_params=args.n_params, method=args.method or "bon", out=args.out
            )
        )
        return 0
    for option, value in (("--method", args.method), ("--out", args.out)):
        if value is not None:
            raise ConfigError(f"{option} goes with --n-params; --score takes it from the forecast")
    print(forecasts.score(args.records, args.score))
    return 0


def _replay(args: argparse.Namespace) -> int:
    from overopt import replay_report

    print(
        replay_report.replay(
            args.table,
            proxies=args.proxy,
            gold=args.gold,
            prompt_id=args.prompt_id,
            pool_size=args.pool_size,
        )
    )
    return 0


def _summary(plan: Plan) -> str:
    counts: dict[str, int] = {}
    for state in plan.states.values():
        counts[STATE_MARKS[state]] = counts.get(STATE_MARKS[state], 0) + 1
    shown = (f"{count} {mark}" for mark, count in counts.items() if mark != "-")
    return f"{len(plan.stages)} stages, " + ", ".join(shown)


def _check_device(device: str) -> None:
    """Raise ConfigError if torch cannot use ``device``, before any stage is started."""
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device = {device!r}: torch cannot use it ({reason}); use --device cpu"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
