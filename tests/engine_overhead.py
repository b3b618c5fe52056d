"""What the engine itself costs: stages that compute nothing, and plans of many stages.

``python tests/engine_overhead.py`` prints milliseconds a stage for 2,000 empty stages in 1 and 8 worker
processes, and seconds and megabytes for the plan of 10,000 stages, half of which are done.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from overopt.engine.costs import corrected
from overopt.engine.execute import drain
from overopt.engine.graph import Stage, StageContext, make_plan
from overopt.engine.store import Store


@dataclass(frozen=True, kw_only=True)
class Empty:
    """The config of a stage that does nothing."""

    index: int


def run_empty(context: StageContext) -> None:
    """Write a byte."""
    (context.out / "x").write_bytes(b"x")


def chains(n: int, length: int = 4) -> list[Stage]:
    """``n`` empty stages in chains of ``length``."""
    stages: list[Stage] = []
    for index in range(n):
        upstream = {"before": stages[-1]} if index % length else {}
        stages.append(
            Stage(
                name="empty", version=1, config=Empty(index=index), run=run_empty,
                upstream=upstream, cost_s=0.001, disk_mb=0.001,
            )
        )  # fmt: skip
    return stages


def cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=2_000)
    parser.add_argument("--plan", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for workers in (1, 8):
            store = Store(Path(folder, f"runs{workers}")).create()
            started, before = time.perf_counter(), cpu_s()
            summary = drain(chains(args.stages), store, workers=workers)
            took, cpu = time.perf_counter() - started, cpu_s() - before
            assert summary.computed == args.stages
            each = f"{1e3 * took / args.stages:.1f} ms, {1e3 * cpu / args.stages:.1f} ms of CPU"
            sys.stdout.write(f"{workers} workers: {each} a stage\n")
        store = Store(Path(folder, "plan")).create()
        stages = chains(args.plan)
        for stage in stages[: args.plan // 2]:
            store.path(stage.name, stage.fingerprint).mkdir(parents=True)
        started, before = time.perf_counter(), cpu_s()
        plan = corrected(make_plan(chains(args.plan), store), store)
        assert len(plan.todo) == args.plan // 2
        took, cpu = time.perf_counter() - started, cpu_s() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(
        f"plan of {args.plan} stages: {took:.2f} s, {cpu:.2f} s of CPU, {peak:.0f} MB\n"
    )


if __name__ == "__main__":
    main()
