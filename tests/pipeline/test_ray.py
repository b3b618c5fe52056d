"""A Ray of two nodes on this machine: what it computes, loses and goes on with is one serial run's."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_graph
import pytest
from small_smoke import prompts_file

from overopt.base.files import load_json
from overopt.engine import attempts
from overopt.engine.on_ray import LOCAL
from overopt.engine.store import Store

SCRIPT = Path(__file__).parents[1] / "cluster" / "ray_nodes.py"
RESULTS = ("records.jsonl", "curves.npz", "tilt.jsonl")
SMALL = ["gold.kind=rubric", "proxy.backbone=ladder:0.05m", "labels.n_pairs=60",
         "labels.n_validation_prompts=6", "proxy.epochs=1", "bon.n_prompts=3", "bon.pool_size=16",
         "bon.ns=1,4,16", "method.steps=16", "method.batch=4", "method.eval_prompts=4",
         "method.eval_every=4"]  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
]


class Cluster:
    """Two nodes with two cores each and a head with none, held by a process of its own."""

    def __init__(self, log: Path) -> None:
        self.log = log  # where stages of the fake graph say that they begin
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "2", "2"],
            env=os.environ | {"FAKE_GRAPH_LOG": str(log)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.read()

    def read(self) -> None:
        """What the process says of the cluster."""
        while not (line := self.process.stdout.readline()).startswith("{"):
            if not line:
                self.close()
                pytest.fail("the cluster did not come up")
        known = json.loads(line)
        self.address, (self.head, *self.raylets) = known["address"], known["raylets"]

    def add_node(self) -> None:
        """Take another node in."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.read()

    def close(self) -> None:
        """End the cluster."""
        try:
            self.process.communicate(timeout=60)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("ray") / "log")
    yield made
    made.close()


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=os.environ | LOCAL,  # else a driver looks for a node with the address of a network
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    said, _ = process.communicate(timeout=900)
    assert process.returncode == status, said
    return said


def run(place: Path, settings: list[str], *options: str) -> subprocess.Popen[str]:
    """``overopt run smoke`` into ``place``."""
    return start("-m", "overopt", "run", "smoke", *settings, "--store", place / "store",
                 "--results", place / "results", *options)  # fmt: skip


def on(cluster: Cluster, *more: str) -> list[str]:
    return ["--executor", "ray", "--ray-address", cluster.address, *more]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def parent(pid: int) -> int:
    """Of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def same_records(place: Path, expected: Path) -> None:
    for name in RESULTS:
        made = (place / "results" / name).read_bytes()
        assert made == (expected / "results" / name).read_bytes(), name


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[list[str], Path]:
    """Settings of a small smoke preset with PPO, and the place of a serial run of it."""
    place = tmp_path_factory.mktemp("smoke")
    settings = [prompts_file(place / "prompts.jsonl"), *SMALL]
    finish(run(place, settings, "--workers", "1", "--quiet"))
    return settings, place


def processes(raylet: int) -> list[int]:
    """Of a node: its raylet, and what that started."""
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [raylet, *(pid for pid in found if parent(pid) == raylet)]


def listening(raylet: int) -> list[str]:
    """Local addresses, in hexadecimal, at which the processes of a node listen."""
    mine = set()
    for pid in processes(raylet):
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                mine.add(os.readlink(fd))
            except OSError:
                continue
    rows = [line.split() for name in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]  # fmt: skip
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine]


def test_an_exception_is_met_once_and_a_request_to_leave_saves_a_checkpoint(cluster, tmp_path):
    cluster.log.unlink(missing_ok=True)
    store = Store(tmp_path / "runs").create()
    words = ("--steps", "4000", "--every", "5000", "--ray", cluster.address)
    failing = start(fake_graph.__file__, store.root, *words, "--fate", "bug")
    said = finish(failing, 1)
    assert "ZeroDivisionError" in said and "in run_train" in said
    lines = cluster.log.read_text().splitlines()
    assert len([line for line in lines if line.startswith("compute train")]) == 3
    leaving = start(fake_graph.__file__, store.root, *words)
    wait_for(lambda: any(w.done > 20 for w in attempts.working(store.root)), leaving)
    leaving.send_signal(signal.SIGUSR2)
    finish(leaving, 3)
    saved = [load_json(path)["step"] for path in store.root.glob(".inflight/train-*/*.json")]
    assert saved and max(saved) > 20


def test_a_cluster_that_is_not_there_is_an_error(tmp_path):
    said = finish(start("-m", "overopt", "run", "smoke", "gold.kind=rubric", "--executor", "ray",
                        "--ray-address", "127.0.0.1:1", "--store", tmp_path / "runs",
                        "--results", tmp_path / "results"), 2)  # fmt: skip
    assert "Ray cluster at '127.0.0.1:1' cannot be joined" in said


def test_smoke_on_two_nodes(cluster, smoke, tmp_path):
    settings, expected = smoke
    said = finish(run(tmp_path, settings, *on(cluster)))
    same_records(tmp_path, expected)
    assert "on 4 workers" in said
    for node in (cluster.head, *cluster.raylets):
        addresses = listening(node)
        assert len(addresses) >= 2
        assert {a[-8:] for a in addresses} == {"0100007F"}, "it listens to other machines"


def test_a_node_is_killed_in_the_middle(cluster, smoke, tmp_path):
    """Of PPO, which goes on elsewhere from its checkpoint."""
    settings, expected = smoke
    driver = run(tmp_path, settings, *on(cluster))
    store = Store(tmp_path / "store")
    node = 0

    def is_at_ppo() -> bool:
        nonlocal node
        for each in attempts.working(store.root):
            if each.stage == "ppo" and each.done > 5:
                node = parent(each.pid)
        return node in cluster.raylets

    wait_for(is_at_ppo, driver)
    for pid in processes(node):
        os.kill(pid, signal.SIGKILL)
    assert ": its node was lost" in finish(driver)
    same_records(tmp_path, expected)
    (manifest,) = store.root.glob("ppo/*/manifest.json")
    assert load_json(manifest)["resumed"], "it began again"
    cluster.add_node()


def test_the_driver_is_killed_and_another_executor_goes_on(cluster, smoke, tmp_path):
    settings, expected = smoke
    driver = run(tmp_path, settings, *on(cluster))
    at_work = tmp_path / "store"
    wait_for(lambda: any(w.stage == "proxy" for w in attempts.working(at_work)), driver)
    driver.kill()
    driver.communicate()
    finish(run(tmp_path, settings, *on(cluster, "--workers", "2")))
    same_records(tmp_path, expected)
    assert list((at_work / ".scratch").glob("[!.]*")) == []
