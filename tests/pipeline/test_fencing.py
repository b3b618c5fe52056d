"""Two attempts at one stage: the later one wins, the earlier one can do no harm when it wakes up."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fake_graph
import pytest
from fake_graph import build, contents

from overopt.base import locks
from overopt.base.config import RuntimeConfig
from overopt.base.errors import StoreError
from overopt.base.files import load_json, save_json
from overopt.base.folders import locked
from overopt.engine.attempts import Fenced
from overopt.engine.execute import execute
from overopt.engine.keeping import check_idle
from overopt.engine.store import Store

LEASE_S = 1.0
STAGE = build(8, pause_s=0.0)[0]
KEY = (STAGE.name, STAGE.fingerprint)


@pytest.fixture
def root(tmp_path):
    """A store whose locks are leases of a second."""
    return leased(tmp_path / "runs")


def leased(root: Path) -> Path:
    marker = Store(root).create().root / "store.json"
    save_json(marker, load_json(marker) | {"lease_s": LEASE_S})
    assert Store(root).lease_s == LEASE_S
    return root


def start(root: Path, log: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, fake_graph.__file__, str(root), *options],
        env=os.environ | {"FAKE_GRAPH_LOG": str(log)},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def committed(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every manifest: another commit would change them."""
    stats = {path: path.stat() for path in root.glob("*/*/manifest.json")}
    return {str(path): (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_zombie_that_wakes_up_is_fenced(root, tmp_path, workers):
    """Stopped for longer than its lease, it goes on while, and after, another does its stage."""
    steps = 300
    execute(build(steps), Store(tmp_path / "expected"))
    log = tmp_path / "log"
    zombie = start(root, log, "--steps", str(steps), "--workers", workers)
    while not list(root.glob(".inflight/train-*/*.json")):
        assert zombie.poll() is None, zombie.stderr.read()
        time.sleep(0.005)
    group = {zombie.pid, *(int(line.split()[2]) for line in log.read_text().splitlines())}
    for pid in group:
        os.kill(pid, signal.SIGSTOP)
    try:
        successor = start(root, log, "--steps", str(steps))
        mine = f" {successor.pid}\n"
        while not any(
            line.startswith("compute train") and line.endswith(mine)
            for line in log.read_text().splitlines(keepends=True)
        ):
            assert successor.poll() is None, successor.stderr.read()
            time.sleep(0.005)
    finally:
        for pid in group:
            os.kill(pid, signal.SIGCONT)
    finish(successor)
    before = committed(root)
    finish(zombie)
    assert committed(root) == before and len(before) == 5
    assert contents(root) == contents(tmp_path / "expected")
    for left in (".scratch", ".inflight", ".locks"):
        assert list((root / left).iterdir()) == []


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs").create()


def test_the_later_attempt_takes_the_checkpoint_and_the_earlier_finds_no_folder(store):
    with store.workspace(STAGE.identity) as first:
        (first.out / "x").write_text("half")
        save_json(first.checkpoint / "state.json", 1)
        with store.workspace(STAGE.identity) as second:
            assert second.resumed and load_json(second.checkpoint / "state.json") == 1
            with pytest.raises(FileNotFoundError):
                save_json(first.checkpoint / "state.json", 2)
            with pytest.raises(FileNotFoundError):
                (first.out / "y").write_text("more")
            with pytest.raises(Fenced, match="another attempt took over"):
                store.commit(first, RuntimeConfig())
            assert not store.has(*KEY)
            save_json(second.out / "result.json", 3)
            store.commit(second, RuntimeConfig())
        assert store.commit(first, RuntimeConfig()).manifest["files"].keys() == {"result.json"}
    assert not store.has_checkpoint(*KEY)


def test_an_attempt_fences_a_commit_that_has_begun(store, monkeypatch):
    """Between the check sums and the rename: the rename finds nothing, and nothing is half moved."""
    plain = os.rename

    def rename(source, target):
        monkeypatch.setattr(os, "rename", plain)
        with store.workspace(STAGE.identity):
            return plain(source, target)

    with store.workspace(STAGE.identity) as work:
        save_json(work.out / "result.json", 3)
        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(Fenced):
            store.commit(work, RuntimeConfig())
    assert not store.has(*KEY)


def test_a_rename_whose_answer_was_lost_counts(store, monkeypatch):
    """A network file system repeats the request, and is told that there is nothing to rename."""
    plain = os.rename

    def rename(source, target):
        plain(source, target)
        raise FileNotFoundError(2, "No such file or directory", str(source))

    with store.workspace(STAGE.identity) as work:
        save_json(work.out / "result.json", 3)
        monkeypatch.setattr(os, "rename", rename)
        assert store.commit(work, RuntimeConfig()).manifest["files"].keys() == {"result.json"}


def test_an_attempt_whose_lock_is_lost_does_not_begin(store):
    with store.lock(*KEY) as hold:
        assert hold.is_kept()
        (store.root / ".locks" / f"{KEY[0]}-{KEY[1]}").unlink()
        with (
            pytest.raises(Fenced, match="before the stage began"),
            store.workspace(STAGE.identity, hold),
        ):
            pass
    assert list((store.root / ".scratch").iterdir()) == []


def test_a_lease_excludes_is_seen_and_leaves_no_file(root):
    store = Store(root)
    with store.lock(*KEY) as first, store.lock(*KEY) as second:
        assert first.is_kept() and not first.is_lost() and second is None
        assert store.is_running(*KEY)
        with pytest.raises(StoreError, match="a run is computing source-"):
            check_idle(store)
        time.sleep(1.5 * LEASE_S)  # its heartbeat keeps it
        with store.lock(*KEY) as second:
            assert second is None
    assert not store.is_running(*KEY)
    assert list((root / ".locks").iterdir()) == []
    check_idle(store)


def test_a_lease_that_is_not_renewed_is_taken_over(root):
    """Of a holder on another machine, whose process cannot be asked for."""
    store, path = Store(root), root / ".locks" / "-".join(KEY)
    with store.lock(*KEY):
        text = path.read_text()
    host = next(line for line in text.splitlines() if line.startswith("host="))
    path.write_text(text.replace(host, "host=elsewhere"))
    begun = time.monotonic()
    while True:
        with store.lock(*KEY) as hold:
            if hold:
                break
        assert time.monotonic() - begun < 20 * LEASE_S
        time.sleep(0.05)
    assert time.monotonic() - begun >= LEASE_S


def test_where_kernel_locks_do_nothing_leases_take_their_place(tmp_path, monkeypatch):
    store = Store(tmp_path / "old").create()
    assert store.lease_s is None and locks.excludes(tmp_path)
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    assert not locks.excludes(tmp_path)
    assert store.create().lease_s == locks.LEASE_S, "a store of before"
    fresh = Store(tmp_path / "new")
    assert execute(build(8, pause_s=0.0), fresh).computed == 5
    assert Store(tmp_path / "new").lease_s == locks.LEASE_S
    with fresh.lock(*KEY) as first, fresh.lock(*KEY) as second:
        assert first and second is None
    inside, order = threading.Event(), []

    def other():
        inside.wait(30)
        with locked(tmp_path / "results"):
            order.append("second")

    thread = threading.Thread(target=other)
    thread.start()
    with locked(tmp_path / "results"):
        inside.set()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_without_kernel_locks_at_all_there_are_leases(tmp_path, monkeypatch):
    def flock(fd, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    store = Store(tmp_path / "runs")
    assert execute(build(8, pause_s=0.0), store).computed == 5
    assert store.lease_s == locks.LEASE_S


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "fuse.sshfs"])
def test_a_shared_file_system_gets_leases(tmp_path, monkeypatch, kind):
    place = tmp_path / "a b"
    place.mkdir()
    escaped = str(place).replace(" ", "\\040")
    table = f"x / ext4 rw 0 0\nserver:/x {escaped} {kind} rw 0 0\n"
    plain = Path.read_text
    monkeypatch.setattr(
        Path, "read_text",
        lambda self, *a, **k: table if str(self) == "/proc/self/mounts" else plain(self, *a, **k),
    )  # fmt: skip
    assert locks.lease_for(place) == locks.LEASE_S
    assert locks.lease_for(tmp_path) is None
    assert Store(place / "runs").create().lease_s == locks.LEASE_S


def test_a_store_that_says_nonsense_of_its_leases_is_refused(store):
    save_json(store.root / "store.json", {"format": 1, "lease_s": "soon"})
    with pytest.raises(StoreError, match=r"store.json: lease_s = 'soon': is no number of seconds"):
        Store(store.root)
