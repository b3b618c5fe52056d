"""A store that two users of a group share, and file systems whose locks do nothing."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_graph import build, contents

from overopt.base import locks
from overopt.base.errors import StoreError
from overopt.base.folders import locked
from overopt.engine.execute import execute
from overopt.engine.store import Store

SCRIPT = Path(__file__).with_name("fake_graph.py")
GROUP, ANNA, BEN = 61_000, 61_001, 61_002
STEPS = 80
as_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to become others"
)


@pytest.fixture
def shared():
    """A directory of the group; not pytest's, which other users may not enter."""
    folder = Path(f"/tmp/overopt-shared-{os.getpid()}")
    folder.mkdir()
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


def start(root, user, workers=1):
    """The fake graph by another user, whose umask keeps everything from the group."""
    package = str(Path(__file__).parents[2])
    # The interpreter may lie where only root may look: they may read everything, as root may.
    become = [
        "setpriv", f"--reuid={user}", f"--regid={user}", f"--groups={GROUP}",
        "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
    ]  # fmt: skip
    run = [str(SCRIPT), str(root), f"--steps={STEPS}", f"--workers={workers}"]
    return subprocess.Popen(
        [*become, sys.executable, *run], umask=0o077, cwd="/tmp",
        env={**os.environ, "PYTHONPATH": package, "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return errors


@as_root
@pytest.mark.parametrize("workers", [1, 2])
def test_two_users_of_a_group_compute_into_one_store(shared, tmp_path, workers):
    execute(build(STEPS, pause_s=0.005), Store(tmp_path / "expected"))
    root = shared / "runs"
    anna = start(root, ANNA, workers)
    while not list(root.glob(".inflight/train-*/*.json")):
        assert anna.poll() is None, anna.stderr.read()
        time.sleep(0.01)
    anna.send_signal(signal.SIGKILL)  # leaves scratch, checkpoints and lock files of her own
    anna.communicate()
    owners = {path.stat().st_uid for path in root.rglob("*")}
    assert owners == {ANNA}
    finish(start(root, BEN, workers))
    assert contents(root) == contents(tmp_path / "expected")
    assert {p.stat().st_uid for p in root.glob("merge/*")} == {BEN}
    assert all(path.stat().st_mode & 0o060 == 0o060 for path in root.rglob("*"))
    assert list((root / ".scratch").iterdir()) == []
    finish(start(root, ANNA, workers))


@as_root
def test_what_another_user_left_and_keeps_is_passed_by_with_its_path(shared):
    root = shared / "runs"
    finish(start(root, ANNA))
    source, train, *_ = build(STEPS)
    left = root / ".scratch" / f"{train.name}-{train.fingerprint}"
    (left / "sub").mkdir(parents=True)
    (left / "sub" / "x").write_text("kept")
    for path in (left / "sub", left):
        path.chmod(0o755)  # root's: Ben may not empty it
    shutil.rmtree(root / "train" / train.fingerprint)
    shutil.rmtree(root / "merge")
    errors = finish(start(root, BEN))
    assert str(left) in errors and "may not be removed" in errors
    assert (root / "train" / train.fingerprint).exists()


def test_locks_that_do_nothing_are_found_out_and_runs_side_by_side_refused(tmp_path, monkeypatch):
    store = Store(tmp_path / "runs").create()
    assert locks.excludes(tmp_path)
    with store.claimed(), store.claimed():
        pass
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    assert not locks.excludes(tmp_path)
    assert execute(build(8, pause_s=0.0), store).computed == 5, "alone it may be used"
    refused = pytest.raises(StoreError, match=r"no working locks .* process \d+ on .* at work")
    with store.claimed(), refused:
        execute(build(9, pause_s=0.0), store)
    with pytest.raises(StoreError, match="no working locks"), locked(tmp_path / "results"):
        pass
    assert execute(build(9, pause_s=0.0), store).computed == 4
