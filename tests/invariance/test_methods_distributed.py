"""One and two processes: every method logs the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from methods_worker import logs

TESTS = Path(__file__).parents[1]


def test_two_processes_log_what_one_does():
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(
        [*command, str(TESTS / "methods_worker.py")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = json.loads(done.stdout), logs()
    assert found.keys() == expected.keys()
    for name, steps in expected.items():
        for one, two in zip(steps, found[name], strict=True):
            assert two == pytest.approx(one, rel=1e-4, abs=1e-6), name
