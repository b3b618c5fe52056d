"""Real processes, really killed: nothing is damaged, nothing is computed twice, nothing lingers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_graph import build, contents

from overopt.base.files import load_json
from overopt.base.seeding import numpy_rng
from overopt.engine.execute import execute
from overopt.engine.store import Store

SCRIPT = Path(__file__).with_name("fake_graph.py")
STEPS = 80


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Files of an uninterrupted run in one process."""
    root = tmp_path_factory.mktemp("reference") / "runs"
    execute(build(STEPS, pause_s=0.005), Store(root))
    return contents(root)


def start(root, log, workers, fate="finish"):
    options = [f"--workers={workers}", f"--steps={STEPS}", f"--fate={fate}"]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(root), *options],
        env={**os.environ, "FAKE_GRAPH_LOG": str(log)},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def entries(log):
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def is_alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_for_the_end_of_workers(log):
    deadline = time.monotonic() + 10
    while any(is_alive(int(pid)) for _, _, pid in entries(log)):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_killed_at_random_moments_ends_with_the_same_files(tmp_path, expected, workers):
    root, log = tmp_path / "runs", tmp_path / "log"
    rng = numpy_rng(20, "kill", workers)
    kills = 0
    for _ in range(4):
        seen = len(entries(log))
        process = start(root, log, workers)
        # Wait for a stage to begin, so that the kill hits the work and not the imports.
        while len(entries(log)) == seen and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.3))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        wait_for_the_end_of_workers(log)
        process.communicate()
    finish(start(root, log, workers))
    assert kills >= 2
    assert contents(root) == expected
    manifests = [load_json(path) for path in root.glob("*/*/manifest.json")]
    assert any(manifest["resumed"] for manifest in manifests), "no kill hit a stage in flight"
    for left in (".scratch", ".inflight", ".locks"):
        assert list((root / left).iterdir()) == []


def test_two_runs_on_one_store_compute_each_artefact_once(tmp_path, expected):
    root, log = tmp_path / "runs", tmp_path / "log"
    first, second = start(root, log, 1), start(root, log, 2)
    finish(first)
    finish(second)
    counts = Counter(name for _, name, _ in entries(log))
    assert len(counts) == 5
    assert set(counts.values()) == {1}
    assert contents(root) == expected
    assert execute(build(STEPS, pause_s=0.005), Store(root)).computed == 0


def test_a_run_takes_over_when_the_run_it_waits_for_is_killed(tmp_path, expected):
    root, log = tmp_path / "runs", tmp_path / "log"
    first = start(root, log, 1)
    while not any(name.startswith("train") for _, name, _ in entries(log)):
        time.sleep(0.005)
    second = start(root, log, 1)
    time.sleep(0.3)
    first.kill()
    first.communicate()
    finish(second)
    assert contents(root) == expected


def test_workers_that_say_nothing_end_with_their_parent_and_free_their_locks(tmp_path):
    root, log = tmp_path / "runs", tmp_path / "log"
    process = start(root, log, 2, fate="sleep")
    while sum(name.startswith("train") for _, name, _ in entries(log)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    wait_for_the_end_of_workers(log)
    process.communicate()
    store = Store(root)
    trains = build(STEPS, ("sleep",) * 3)[1:4]
    assert not any(store.is_running("train", stage.fingerprint) for stage in trains)
