"""One and two processes: the same trajectories, and one leader that writes."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_worker import trajectories

from overopt.base.errors import ConfigError
from overopt.nets.compute import Compute

pytestmark = pytest.mark.long

TESTS = Path(__file__).parents[1]
# Two processes add the same float32 numbers in another order; 20 steps pass it on.
TRAJECTORY = 1e-5


def launch(command: list[str], n: int = 2) -> list[str]:
    """Start ``command`` as n processes of one launch, as launchers do; returns their stdout."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(TESTS),
    }
    processes = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]
    try:
        results = [p.communicate(timeout=400) for p in processes]
    finally:
        for p in processes:
            p.kill()
    for p, (_, errors) in zip(processes, results, strict=True):
        assert p.returncode == 0, errors[-3000:]
    return [out for out, _ in results]


def test_two_processes_give_the_trajectories_of_one():
    outs = launch([sys.executable, str(TESTS / "training_worker.py")])
    found, expected = json.loads(outs[0]), trajectories()
    assert outs[1] == ""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert len(values) >= 20
        assert found[name] == pytest.approx(values, rel=TRAJECTORY, abs=1e-7), name


def test_shares_cover_all_rows_once():
    rows = torch.arange(7)
    shares = [Compute(rank=r, n_ranks=3).share(rows) for r in range(3)]
    assert torch.cat(shares).sort().values.tolist() == rows.tolist()


def test_more_processes_than_rows_is_refused():
    compute = replace(Compute(), rank=1, n_ranks=2)
    with pytest.raises(ConfigError, match="1 sequences cannot be shared by 2 processes"):
        compute.accumulate(torch.arange(1), [], lambda rows: torch.zeros(1))
