"""From finished stages of control to records: the columns that texts have, with what they mean here.

A start takes the place of a prompt, a trajectory that of a response, a step that of a token.
"""

from __future__ import annotations

from typing import Any

from overopt.base import files
from overopt.control.settings import ControlRun
from overopt.control.stages import METHOD, SHOWN
from overopt.engine.graph import Stage
from overopt.engine.store import Store
from overopt.records.results import Tables
from overopt.records.schema import SCHEMA_VERSION


def curve_results(name: str, run: ControlRun, stage: Stage, artefacts: Store) -> Tables:
    """Records and arrays of one finished curve of experiment ``name``, without costs."""
    run_id = stage.fingerprint
    folder = artefacts.open(stage.name, run_id).path
    reward = stage.upstream["reward"]
    proxy = artefacts.open(reward.name, reward.fingerprint).path
    training = files.load_json(proxy / "training.json")
    common = _common(name, run, run_id) | {
        "proxy_accuracy": training["accuracy"],
        "proxy_val_loss": training["loss"],
        "n_params": training["n_params"],
        "n_params_total": training["n_params"],
    }
    rows = []
    for row in files.load_json(folder / "rows.json"):
        steps = row["value"] + (run.rounds.k - 1) * run.method.iterations
        calls = run.proxy.members * row["n_responses"] * steps
        rows.append(common | row | {"rm_calls": calls, "gold_labels": 2 * run.labels.n_pairs})
    arrays = {f"{run_id}.{k}": v for k, v in files.load_arrays(folder / "curve.npz").items()}
    pictured = files.load_arrays(folder / "pictured.npz")
    arrays |= {f"{run_id}.pictured_{k}": v for k, v in pictured.items()}
    return Tables(records=rows, arrays=arrays, shown={METHOD: SHOWN})


def _common(name: str, run: ControlRun, run_id: str) -> dict[str, Any]:
    """What all rows of a curve share."""
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": name,
        "run_id": run_id,
        "method": METHOD,
        "backbone": f"{run.world.env} 2x{run.proxy.hidden}",
        "n_pairs": run.labels.n_pairs,
        "label_rule": "argmax",
        "label_flip_rate": run.labels.label_flip_rate,
        "data_seed": run.labels.data_seed,
        "rm_seed": run.proxy.rm_seed,
        "mitigation": run.mitigation,
        "reward_members": run.proxy.members,
        "members_by": "bootstrap" if run.proxy.members > 1 else None,
        "reward_combine": run.proxy.combine,
        "proxy_lr": run.proxy.lr,
        "method_seed": run.method.seed,
        "rounds": run.rounds.k,
        "round": run.rounds.k,
    }
