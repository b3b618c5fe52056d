"""Many stages in one process: its memory does not grow, and it keeps no file open."""

import gc
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from overopt.base.files import load_arrays, save_arrays, save_json
from overopt.engine.execute import execute
from overopt.engine.graph import Stage, StageContext
from overopt.engine.store import Store

STAGES, BEFORE = 200, 50
"""Stages in all, and those after which everything that is kept once must be there."""
MOST_GROWTH = 0.05


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The config of a stage that writes half a megabyte, and reads that of the stage before."""

    index: int


def run_numbers(context: StageContext) -> None:
    """Write; report progress and keep a checkpoint, as stages do."""
    read = [load_arrays(folder.path / "x.npz")["x"] for folder in context.inputs.values()]
    save_json(context.checkpoint / "state.json", {"index": context.config.index})
    context.progress(1, 1)
    save_arrays(context.out / "x.npz", {"x": np.full(60_000, sum(r.mean() for r in read))})


def chain() -> list[Stage]:
    """The stages, each with the one before as its input."""
    stages: list[Stage] = []
    for index in range(STAGES):
        upstream = {"before": stages[-1]} if stages else {}
        stages.append(
            Stage(
                name="numbers", version=1, config=Numbers(index=index), run=run_numbers,
                upstream=upstream, cost_s=0.001, disk_mb=0.5,
            )
        )  # fmt: skip
    return stages


def now() -> tuple[float, int]:
    """Resident memory in MB, and open descriptors, of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd"))


def main(root: str) -> None:
    """Compute them in two calls, as one run after another does; print memory and descriptors."""
    stages, store = chain(), Store(Path(root))
    execute(stages[:BEFORE], store)
    before = now()
    execute(stages, store)
    sys.stdout.write(" ".join(map(str, (*before, *now()))))


def test_memory_and_descriptors_stay_over_200_stages(tmp_path):
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    memory_before, open_before, memory, opened = map(float, done.stdout.split())
    assert memory < (1 + MOST_GROWTH) * memory_before
    assert opened == open_before


if __name__ == "__main__":
    main(sys.argv[1])
