"""Workers without a driver: any number come and go, and the results are those of one run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_graph
import pytest
from fake_graph import build, contents

from overopt.base.files import load_json
from overopt.engine import attempts, failures
from overopt.engine.execute import drain, execute
from overopt.engine.graph import make_plan
from overopt.engine.store import Store
from overopt.engine.task import StageError

pytestmark = pytest.mark.long

STEPS = 200


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs").create()


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_GRAPH_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def start(store: Store, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, fake_graph.__file__, str(store.root), "--drain", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str], status: int = 0) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors


def wait_for_checkpoint(store: Store, process: subprocess.Popen[str]) -> None:
    while not list(store.root.glob(".inflight/train-*/*.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


def computed(log: Path) -> list[str]:
    return [line.split()[1].split(".")[0] for line in log.read_text().splitlines()]


def test_workers_side_by_side_compute_each_stage_once(store, tmp_path, log):
    execute(build(STEPS), Store(tmp_path / "expected"))
    log.unlink()
    workers = [start(store, "--steps", str(STEPS)) for _ in range(3)]
    for worker in workers:
        finish(worker)
    assert contents(store.root) == contents(tmp_path / "expected")
    assert len(computed(log)) == len(set(computed(log))) == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_worker_that_is_asked_to_leave_saves_a_checkpoint(store, tmp_path, number):
    """A stage that asks saves one at the very step; the next worker goes on from there.

    The signal goes to all its processes, as SLURM sends it.
    """
    options = ("--steps", "1200", "--every", "5000")
    worker = start(store, *options)
    while not any(each.done > 20 for each in attempts.working(store.root)):
        assert worker.poll() is None, worker.stderr.read()
        time.sleep(0.01)
    (seen,) = attempts.working(store.root)
    os.killpg(worker.pid, number)
    finish(worker, 3)
    (left,) = store.root.glob(".inflight/train-*/*.json")
    assert load_json(left)["step"] >= seen.done
    for kind in (".locks", ".scratch"):
        assert list((store.root / kind).iterdir()) == []
    expected = Store(tmp_path / "expected")
    stages = [stage for stage in build(1200, every=5000) if stage.fingerprint == seen.fingerprint]
    drain(stages, store)
    execute(stages, expected)
    assert store.open("train", seen.fingerprint).manifest["resumed"]
    assert contents(store.root) == contents(expected.root)


def test_a_deadline_makes_a_worker_leave_with_a_checkpoint(store):
    stages = build(5000)
    summary = drain(stages, store, deadline_s=10.0)
    assert summary.left >= 4 and summary.wall_s < 30
    assert make_plan(stages, store).states[stages[1].fingerprint] in ("in-flight", "missing")
    assert list((store.root / ".locks").iterdir()) == []


def test_a_killed_worker_costs_nothing_that_is_finished_and_others_go_on(store, tmp_path, log):
    execute(build(STEPS), Store(tmp_path / "expected"))
    log.unlink()
    first = start(store, "--steps", str(STEPS))
    wait_for_checkpoint(store, first)
    second = start(store, "--steps", str(STEPS))
    first.kill()
    first.communicate()
    finish(second)
    assert contents(store.root) == contents(tmp_path / "expected")


def test_a_failure_is_met_once_and_told_to_the_others(store, log):
    stages = build(8, ("bug", "finish", "finish"), pause_s=0.0)
    begun = time.time() - 1
    with pytest.raises(StageError, match=r"(?s)'train 0' failed: ZeroDivisionError.*in run_train"):
        drain(stages, store, since=begun)
    with pytest.raises(StageError, match=r"(?s)'train 0' failed: Zero.* \(on .*in run_train"):
        drain(stages, store, since=begun)
    assert computed(log).count(f"train-{stages[1].fingerprint}") == 1
    assert failures.read(store, stages[1])["host"]
    with pytest.raises(StageError, match=r"'train 0' failed"):  # a worker of another day
        drain(stages, store)
    assert computed(log).count(f"train-{stages[1].fingerprint}") == 2


def test_a_process_that_is_killed_is_no_failure_of_the_stage(store):
    stages = build(8, ("killed", "finish", "finish"), pause_s=0.0)
    with pytest.raises(StageError, match="signal 9"):
        drain(stages, store)
    assert failures.read(store, stages[1]) is None


def test_who_does_what_can_be_seen(store):
    worker = start(store, "--steps", "2000")
    while not any(each.done > 0 for each in attempts.working(store.root)):
        assert worker.poll() is None, worker.stderr.read()
        time.sleep(0.01)
    (who,) = attempts.working(store.root)
    assert who.stage == "train" and who.total == 2000
    assert abs(time.time() - who.started) < 300
    os.kill(who.pid, 0)
    worker.kill()
    worker.communicate()
