"""A results directory with responses, settings and provenance, on the curves of smollm."""

import json
import shutil
from pathlib import Path

RECORDS = Path(__file__).parents[1] / "experiments" / "results" / "smollm"
HOSTILE = (
    "</script><script>window.hacked = true</script><img src=x onerror='hacked = 1'> & \x1b[2J\u202e"
)


def sample(run_id, value, rank, **more):
    """A response whose text says where it belongs."""
    return {
        "run_id": run_id,
        "value": value,
        "shown_for": ["gold", "gap"] if rank < 3 else ["typical"],
        "prompt": f"Once upon a time, {rank}",
        "response": f"response {rank} at {value} of {run_id}. {HOSTILE if rank == 0 else ''}",
        "tokens": 30 + rank,
        "ended": rank != 1,
        "gold": -3.0 + rank,
        "proxy": 2.0 - 0.1 * rank,
        "intent": 0.5 * rank,
    } | more


def write_results(folder):
    """Make the directory; returns it."""
    folder.mkdir(parents=True)
    for name in ("records.jsonl", "curves.npz", "costs.jsonl", "tilt.jsonl"):
        shutil.copy(RECORDS / name, folder / name)
    lines = (RECORDS / "records.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    samples = [sample(row["run_id"], row["value"], rank) for row in rows for rank in range(6)]
    firsts = {row["run_id"]: row for row in reversed(rows)}
    runs = [
        {
            "run_id": run_id,
            "label": f"{row['method']} {row['backbone']}",
            "settings": {"proxy.backbone": row["backbone"], "labels.n_pairs": 6000},
            "stage": row["method"],
            "stage_version": 3,
            "device": "cpu",
            "commit": "0123abcd",
            "dirty": False,
            "versions": {"overopt": "0.1.0", "python": "3.11.7"},
        }
        for run_id, row in firsts.items()
    ]
    for name, table in (("samples", samples), ("runs", runs)):
        text = "".join(json.dumps(row) + "\n" for row in table)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder
