"""A store that two users of a group share."""

import grp
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_graph import build, contents

from overopt.engine.execute import execute
from overopt.engine.store import Store

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).with_name("fake_graph.py")
STEPS = 80
TOOLS = ("useradd", "userdel", "groupadd", "groupdel", "setpriv")
as_root = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, TOOLS)),
    reason=f"only root may make users and become them; needs {', '.join(TOOLS)}",
)


@pytest.fixture(scope="module")
def users():
    """Two new users of this system, Anna and Ben, and a new group with both; gone afterwards."""
    mark = f"ovt{os.getpid()}"
    group, names = mark, (f"{mark}a", f"{mark}b")
    try:
        subprocess.run(["groupadd", group], check=True)
        for name in names:
            made = ["useradd", "--no-create-home", "--user-group", "--groups", group, name]
            subprocess.run(made, check=True)
        yield grp.getgrnam(group).gr_gid, *(pwd.getpwnam(name) for name in names)
    finally:
        for tool, name in (*(("userdel", name) for name in names), ("groupdel", group)):
            subprocess.run([tool, name], check=False)


@pytest.fixture
def shared(users):
    """A directory of the group; not pytest's, which other users may not enter."""
    folder = Path(f"/tmp/overopt-shared-{os.getpid()}")
    folder.mkdir()
    os.chown(folder, 0, users[0])
    folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


def start(root, user, workers=1):
    """The fake graph by another user, whose umask keeps everything from the group."""
    package = str(Path(__file__).parents[2])
    # The interpreter may lie where only root may look: they may read everything, as root may.
    become = [
        "setpriv", f"--reuid={user.pw_name}", f"--regid={user.pw_gid}", "--init-groups",
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
def test_two_users_of_a_group_compute_into_one_store(users, shared, tmp_path, workers):
    _, anna_user, ben_user = users
    execute(build(STEPS, pause_s=0.005), Store(tmp_path / "expected"))
    root = shared / "runs"
    anna = start(root, anna_user, workers)
    while not list(root.glob(".inflight/train-*/*.json")):
        assert anna.poll() is None, anna.stderr.read()
        time.sleep(0.01)
    anna.send_signal(signal.SIGKILL)  # leaves scratch, checkpoints and lock files of her own
    anna.communicate()
    owners = {path.stat().st_uid for path in root.rglob("*")}
    assert owners == {anna_user.pw_uid}
    finish(start(root, ben_user, workers))
    assert contents(root) == contents(tmp_path / "expected")
    assert {p.stat().st_uid for p in root.glob("merge/*")} == {ben_user.pw_uid}
    assert all(path.stat().st_mode & 0o060 == 0o060 for path in root.rglob("*"))
    assert list((root / ".scratch").iterdir()) == []
    finish(start(root, anna_user, workers))


@as_root
def test_what_another_user_left_and_keeps_is_passed_by_with_its_path(users, shared):
    _, anna_user, ben_user = users
    root = shared / "runs"
    finish(start(root, anna_user))
    source, train, *_ = build(STEPS)
    left = root / ".scratch" / f"{train.name}-{train.fingerprint}"
    (left / "sub").mkdir(parents=True)
    (left / "sub" / "x").write_text("kept")
    for path in (left / "sub", left):
        path.chmod(0o755)  # root's: Ben may not empty it
    shutil.rmtree(root / "train" / train.fingerprint)
    shutil.rmtree(root / "merge")
    errors = finish(start(root, ben_user))
    assert str(left) in errors and "may not be removed" in errors
    assert (root / "train" / train.fingerprint).exists()
