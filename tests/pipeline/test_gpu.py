"""The whole pipe on an accelerator; only where there is one."""

import pytest
import torch

from overopt.cli.main import main
from overopt.records.curves import read_records

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_smoke_on_cuda_agrees_with_the_cpu(tmp_path):
    settings = [
        "gold.kind=rubric",
        "labels.n_pairs=60",
        "method.steps=2",
        "--workers",
        "1",
        "--quiet",
    ]
    tables = {}
    for device in ("cpu", "cuda"):
        where = [
            "--store",
            str(tmp_path / device),
            "--results",
            str(tmp_path / f"{device}-results"),
        ]
        assert main(["run", "smoke", *settings, *where, "--device", device]) == 0
        tables[device] = read_records(tmp_path / f"{device}-results")
    for row, other in zip(tables["cpu"], tables["cuda"], strict=True):
        assert row["value"] == other["value"]
        if row["value"] in (
            0,
            1,
        ):  # the same initial policy; later steps agree in distribution only
            assert row["gold_score"] == pytest.approx(other["gold_score"], abs=0.3)
        assert other["kl_seq_nats"] >= 0
