"""The smoke preset killed without warning while it works: its results are those of a whole run.

Moments are spread over the measured work by CPU time, so that a busy machine moves none of them.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_smoke import prompts_file

from overopt.base.files import load_json
from overopt.base.seeding import numpy_rng

pytestmark = pytest.mark.long

KILLS = 2
SMALLER = ["proxy.backbone=ladder:0.05m", "gold.n_prompts=8", "bon.pool_size=32", "bon.ns=1,8,32"]
RESULTS = ("records.jsonl", "curves.npz", "tilt.jsonl")


def cpu_s(group):
    """CPU seconds of a process group, ended children included."""
    total = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:  # it ended a moment ago
            continue
        if int(fields[2]) == group:
            total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def start(folder, workers, world):
    """``overopt run smoke`` in a process group of its own, once its first stage works."""
    command = [sys.executable, "-m", "overopt", "run", "smoke", world, *SMALLER, "--quiet"]
    places = ["--store", str(folder / "store"), "--results", str(folder / "results")]
    process = subprocess.Popen(
        [*command, *places, "--workers", str(workers)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    scratch = folder / "store" / ".scratch"
    before = set(artefacts(folder))
    while process.poll() is None and set(artefacts(folder)) == before:
        if scratch.is_dir() and any(not p.name.startswith(".") for p in scratch.iterdir()):
            break
        time.sleep(0.01)
    return process


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def artefacts(folder):
    """Every file of every finished artefact but the manifests, which tell of times and processes."""
    store = folder / "store"
    return {
        str(file.relative_to(store)): file.read_bytes()
        for file in store.glob("[a-z]*/*/*")
        if file.name != "manifest.json"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder, the CPU seconds from its first stage on, and its world."""
    folder = tmp_path_factory.mktemp("whole")
    world = prompts_file(folder / "prompts.jsonl")
    process = start(folder, 1, world)
    began = now = cpu_s(process.pid)
    while process.poll() is None:
        now = max(now, cpu_s(process.pid))
        time.sleep(0.02)
    finish(process)
    return folder, now - began, world


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments_ends_like_an_uninterrupted_run(whole, tmp_path, workers):
    expected, work, world = whole
    folder = tmp_path / "run"
    rng = numpy_rng(7, "kill", workers)
    for _ in range(KILLS):
        process = start(folder, workers, world)
        stop = cpu_s(process.pid) + rng.uniform(0.0, 1.0) * work / KILLS
        while process.poll() is None and cpu_s(process.pid) < stop:
            time.sleep(0.01)
        assert process.poll() is None, "it was done before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (folder / "results").exists()
    finish(start(folder, workers, world))
    for name in RESULTS:
        assert (folder / "results" / name).read_bytes() == (
            expected / "results" / name
        ).read_bytes(), name
    assert artefacts(folder) == artefacts(expected)
    for left in (".scratch", ".inflight", ".locks"):
        assert list((folder / "store" / left).iterdir()) == []
    manifests = [load_json(file) for file in (folder / "store").glob("*/*/manifest.json")]
    assert all(manifest["status"] == "complete" for manifest in manifests)
