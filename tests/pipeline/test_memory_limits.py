"""Memory: a limit, a second try with nothing beside it, and what earlier stages took."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from overopt.base.config import RuntimeConfig
from overopt.base.files import save_json
from overopt.engine.costs import corrected, measured
from overopt.engine.execute import execute
from overopt.engine.graph import Stage, StageContext, make_plan
from overopt.engine.progress import TextReporter
from overopt.engine.store import Store
from overopt.engine.task import StageError, WorkerKilled, is_out_of_memory


@dataclass(frozen=True, kw_only=True)
class Config:
    megabytes: int = 0
    fate: str = "fill"
    index: int = 0


def run(context: StageContext) -> None:
    """Take memory, or run out of it where another stage is at work."""
    config, store = context.config, context.out.parents[1]
    crowd, end = store / "crowd", time.monotonic() + 20

    def beside() -> int:
        return sum(p != context.out for p in (store / ".scratch").glob("m-*"))

    # The first time they wait for each other, however long workers take to start.
    if config.fate in ("crowded", "killed", "never"):
        while not crowd.exists() and not beside() and time.monotonic() < end:
            time.sleep(0.02)
    others = beside()
    save_json(context.out / "others.json", others)
    if config.fate in ("crowded", "killed", "never") and others:
        crowd.touch()
    if config.fate == "crowded" and others:
        raise MemoryError("no room beside others")
    if config.fate == "killed" and others:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.fate == "never":
        raise MemoryError("no room at all")
    if config.fate == "slow":
        while not crowd.exists() and time.monotonic() < end:
            time.sleep(0.02)
    data = np.ones(config.megabytes * 125_000)
    save_json(context.out / "sum.json", float(data.sum()))


def stage(**config) -> Stage:
    settings = Config(**config)
    return Stage(
        name="m", version=1, config=settings, run=run, label=f"{settings.fate} {settings.index}"
    )


def slow(n: int) -> list[Stage]:
    return [dataclasses.replace(stage(fate="slow", index=i), cost_s=9.0) for i in range(n)]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.mark.parametrize("fate", ["crowded", "killed"])
def test_what_runs_out_of_memory_beside_others_is_tried_again_with_nothing_beside_it(store, fate):
    stream = io.StringIO()
    stages = [*slow(3), dataclasses.replace(stage(fate=fate), cost_s=8.0)]
    assert execute(stages, store, workers=4, reporter=TextReporter(stream)).computed == 4
    assert f"again  {fate} 0, alone: together with others it failed" in stream.getvalue()
    others = store.path("m", stages[-1].fingerprint) / "others.json"
    assert others.read_text().strip() == "0"


def test_what_never_fits_is_tried_twice_at_most(store):
    stream = io.StringIO()
    with pytest.raises(StageError, match="'never 0' failed: MemoryError: no room at all"):
        execute([*slow(1), stage(fate="never")], store, workers=2, reporter=TextReporter(stream))
    assert stream.getvalue().count("again  never 0") <= 1
    with pytest.raises(StageError, match="no room at all"):  # alone from the start
        execute([stage(fate="never", index=1)], store, reporter=TextReporter(stream))
    assert "again  never 1" not in stream.getvalue()


def test_a_limit_fails_the_stage_that_asks_for_more_and_no_other(store):
    status = Path("/proc/self/status").read_text()
    taken = int(re.search(r"VmData:\s+(\d+)", status)[1]) * 1024 / 1e6
    runtime = RuntimeConfig(memory_mb=int(taken) + 200)
    with pytest.raises(StageError, match="'fill 1' failed: .*Unable to allocate") as caught:
        execute([stage(megabytes=10), stage(megabytes=400, index=1)], store, runtime, workers=1)
    assert is_out_of_memory(caught.value.failures[0].error)
    assert store.has("m", stage(megabytes=10).fingerprint)
    assert execute([stage(megabytes=400, index=1)], store).computed == 1, "the limit stayed"


def test_lack_of_memory_is_told_from_other_errors():
    assert is_out_of_memory(WorkerKilled("signal 9"))
    assert is_out_of_memory(RuntimeError("OutOfMemoryError: CUDA out of memory. Tried to allocate"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_manifests_say_what_was_taken_and_plans_follow(store):
    done = [dataclasses.replace(stage(megabytes=300, index=i), cost_s=1e-4) for i in range(3)]
    execute(done, store, workers=2)
    other = dataclasses.replace(done[0], name="other")
    took = measured(store, [done[0], other])
    assert set(took) == {"m"}
    assert 300 < took["m"].memory_mb < 3000 and took["m"].gpu_memory_mb is None
    seconds = [store.open("m", s.fingerprint).manifest["cpu_s"] for s in done]
    assert took["m"].factor == pytest.approx(sum(seconds) / 3e-4)
    ahead = stage(megabytes=1)
    plan = corrected(make_plan([ahead], store), store)
    assert plan.cost_s == plan.seconds(ahead) == pytest.approx(took["m"].factor)
    assert measured(store, [ahead], "cuda") == took, "a stage that uses no device runs on the CPU"
    assert measured(store, [dataclasses.replace(ahead, gpu=True)], "cuda") == {}


def test_stages_of_another_machine_or_resumed_ones_do_not_count(store, monkeypatch):
    execute([stage(megabytes=1)], store)
    monkeypatch.setattr("platform.machine", lambda: "another")
    assert measured(store, [stage()]) == {}
