"""A small graph with checkpointing stages, and a script that runs it, for the executor tests.

``python fake_graph.py STORE [--workers N] [--steps N] [--fate F] [--ray ADDRESS]`` runs the graph. Every
stage that begins to compute appends its name and process to the file named by ``FAKE_GRAPH_LOG``.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from overopt.base.config import RuntimeConfig
from overopt.base.errors import DivergenceError
from overopt.base.files import load_arrays, load_json, save_arrays, save_json
from overopt.base.seeding import numpy_rng
from overopt.engine import signals
from overopt.engine.drive import Draining, drive
from overopt.engine.execute import drain, execute, prepare
from overopt.engine.graph import Stage, StageContext
from overopt.engine.progress import TextReporter
from overopt.engine.schedule import Limit, Schedule
from overopt.engine.store import Store


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    root_seed: int = 0
    size: int = 64


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    root_seed: int = 0
    steps: int = 40
    every: int = 4
    pause_s: float = 0.005
    fate: str = "finish"


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    scale: float = 1.0


def log(context: StageContext, what: str) -> None:
    path = os.environ.get("FAKE_GRAPH_LOG")
    if path:
        stage = context.out.name.split(".")[0]  # without the attempt
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(fd, f"{what} {stage} {os.getpid()}\n".encode())
        os.close(fd)


def run_source(context: StageContext) -> None:
    log(context, "compute")
    rng = numpy_rng(context.config.root_seed, "source")
    save_arrays(context.out / "x.npz", {"x": rng.standard_normal(context.config.size)})


def run_train(context: StageContext) -> None:
    """A loop whose state (values, generator, counter, metrics) is checkpointed as one file pair."""
    log(context, "compute")
    config = context.config
    match config.fate:
        case "diverge":
            raise DivergenceError("loss = nan at step 3; lower lr")
        case "bug":
            raise ZeroDivisionError("division by zero")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "sleep":
            time.sleep(30)
        case "pid":
            save_json(context.out / "pid.json", os.getpid())
    rng = numpy_rng(config.root_seed, "train")
    x, start, norms = load_arrays(context.inputs["source"].path / "x.npz")["x"], 0, []
    saved = sorted(context.checkpoint.glob("step*.json"))
    if saved:
        state = load_json(saved[-1])
        rng.bit_generator.state = state["rng"]
        x, start, norms = np.array(state["x"]), state["step"], state["norms"]
    for step in range(start, config.steps):
        x = np.sin(x + 0.1 * rng.standard_normal(x.shape))
        norms.append(float(np.linalg.norm(x)))
        time.sleep(config.pause_s)
        is_leaving = context.leaving()
        if is_leaving or (step + 1) % config.every == 0:
            state = {"rng": rng.bit_generator.state, "x": x.tolist(), "norms": norms}
            path = context.checkpoint / f"step{step + 1:06d}.json"
            save_json(path, {**state, "step": step + 1})
        context.progress(step + 1, config.steps)
    save_arrays(context.out / "final.npz", {"x": x, "norms": np.array(norms)})
    save_json(
        context.out / "summary.json", {"norm": norms[-1], "omp": os.environ["OMP_NUM_THREADS"]}
    )


def run_trains(contexts: Sequence[StageContext]) -> None:
    """`run_train` of several stages in one call."""
    log(contexts[0], f"together-{len(contexts)}")
    for context in contexts:
        run_train(context)


def run_merge(context: StageContext) -> None:
    log(context, "compute")
    parts = [
        load_arrays(context.inputs[role].path / "final.npz")["x"]
        for role in sorted(context.inputs)
        if role != "source"
    ]
    save_arrays(context.out / "merged.npz", {"mean": context.config.scale * np.mean(parts, axis=0)})


@dataclass(frozen=True, kw_only=True)
class SpanConfig:
    root_seed: int


def run_span(context: StageContext) -> None:
    """Sleep, and write down when and on which device."""
    span = {"device": context.runtime.device, "start": time.monotonic()}
    time.sleep(0.3)
    save_json(context.out / "span.json", span | {"stop": time.monotonic()})


def build(
    steps: int = 40,
    fates: tuple[str, ...] = ("finish",) * 3,
    pause_s: float = 0.005,
    alike: tuple[str, ...] | None = None,
    every: int = 4,
):
    """Stages source -> train[0..] -> merge; train stage i ends as ``fates[i]`` says.

    ``alike``: of each train stage, which then can be run with others.
    """
    source = Stage(
        name="source", version=1, config=SourceConfig(), run=run_source, label="source", cost_s=0.01
    )
    trains = [
        Stage(
            name="train",
            version=1,
            config=TrainConfig(root_seed=i, steps=steps, fate=fate, pause_s=pause_s, every=every),
            run=run_train,
            stacked=None if alike is None else run_trains,
            alike="" if alike is None else alike[i],
            upstream={"source": source},
            label=f"train {i}",
            cost_s=steps * pause_s,
        )
        for i, fate in enumerate(fates)
    ]
    merge = Stage(
        name="merge",
        version=1,
        config=MergeConfig(),
        run=run_merge,
        upstream={f"train{i}": train for i, train in enumerate(trains)},
        label="merge",
        cost_s=0.01,
    )
    return [source, *trains, merge]


def contents(root: Path) -> dict[str, bytes]:
    """Every file of every artefact except the manifests, by path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for stage in ("source", "train", "merge")
        for path in sorted((Path(root) / stage).rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def on_ray_cluster(args: argparse.Namespace) -> int:
    """The graph on a Ray cluster; SIGUSR2 asks its tasks to leave, and then the exit status is 3."""
    from fake_graph import build  # the nodes know this module by its name, not as __main__

    from overopt.engine.on_ray import RayCluster

    runtime, store = RuntimeConfig(), Store(args.store)
    plan = prepare(build(args.steps, (args.fate,) * 3, every=args.every), store)
    schedule, reporter = Schedule(plan, runtime, Limit(None)), TextReporter()
    with signals.leaving(signals.LEAVE):
        reporter.begin(plan, 1)
        cluster = RayCluster(store, runtime, plan, address=args.ray)
        drive(schedule, cluster, runtime, reporter, draining=Draining(store, time.time(), 120.0))
    schedule.raise_failures()
    return 3 if schedule.left else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--fate", default="finish")
    parser.add_argument("--every", type=int, default=4, help="steps between checkpoints")
    parser.add_argument("--drain", action="store_true", help="as a worker; status 3: left early")
    parser.add_argument("--ray", help="address of a Ray cluster that computes")
    args = parser.parse_args()
    if args.ray:
        sys.exit(on_ray_cluster(args))
    stages, store = build(args.steps, (args.fate,) * 3, every=args.every), Store(args.store)
    if args.drain:
        sys.exit(3 if drain(stages, store, workers=args.workers).left else 0)
    execute(stages, store, workers=args.workers)
