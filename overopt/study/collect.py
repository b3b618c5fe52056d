"""From finished artefacts to the records of an experiment."""

import re
from pathlib import Path
from typing import Any

from overopt.base import files
from overopt.base.kinds import kind_of, module_of
from overopt.engine import store
from overopt.engine.graph import Stage, topological
from overopt.methods.method import Schedule
from overopt.records.results import (
    Results,
    check_part,
    held_results,
    save_results,
    transaction,
)
from overopt.records.schema import SCHEMA_VERSION, validate_records
from overopt.stages.names import mitigation_name
from overopt.stages.settings import Experiment, RunConfig
from overopt.study.chain import curve_stages

SHARED_STAGES = ("calibration", "gold", "comparisons", "labels", "pool")
"""Stages that serve every run of an experiment: no cost of a run in particular."""


def collect(
    experiment: Experiment, artefacts: store.Store, results_dir: Path, *, partial: bool = False
) -> Path | None:
    """Write records.jsonl, curves.npz, tilt.jsonl and costs.jsonl of an experiment.

    Returns their folder, or None if nothing was written. What was measured is in the first three
    and depends on the experiment alone; costs.jsonl says what computing it took, which differs from
    time to time.

    A curve that is not in the store but in the folder already, of an earlier run elsewhere, is kept.
    ``partial``: leave out what is in neither, where that is otherwise an error; nothing is written
    if no curve is finished, or if it would replace more by less.

    Raises
    ------
    StoreError
        A curve is missing or damaged, or (``partial``) the folder holds curves of something else.
    """
    with transaction(results_dir):  # another run may write its part into the same folder
        return _collect(experiment, artefacts, results_dir, partial=partial)


def _collect(
    experiment: Experiment, artefacts: store.Store, results_dir: Path, *, partial: bool
) -> Path | None:
    """`collect`, while no other process writes there."""
    if partial:
        stages = [stage for run in experiment.runs for stage in curve_stages(run)]
        check_part(results_dir, {stage.fingerprint for stage in stages})
    before = held_results(results_dir)
    found = Results([], [], [], {}, {})
    seen: set[str] = set()
    for run in experiment.runs:
        for stage in curve_stages(run):
            run_id = stage.fingerprint
            if run_id in seen:
                continue
            seen.add(run_id)
            if artefacts.has(stage.name, run_id):
                found.add(_curve_results(experiment.name, run, stage, artefacts))
            elif run_id in before.run_ids:
                found.add(before.of(run_id))
            elif not partial:
                artefacts.open(stage.name, run_id)  # raises with the remedy
    if partial and not found.records:
        return None
    validate_records(found.records)
    save_results(results_dir, found)
    return results_dir


def _curve_results(name: str, run: RunConfig, stage: Stage, artefacts: store.Store) -> Results:
    """Records of one finished curve of experiment ``name``."""
    folder = artefacts.open(stage.name, stage.fingerprint).path
    proxies = {
        role: artefacts.open(part.name, part.fingerprint).path
        for role, part in stage.upstream.items()
        if re.fullmatch(r"proxy(_\d\d)?", role)
    }
    training = {r: files.load_json(f / "training.json") for r, f in proxies.items()}
    method = None if stage.name == "bon" else run.method
    scorer = files.load_json(proxies["proxy"] / "scorer.json")
    common = _common(name, run, method, stage.fingerprint) | {
        size: scorer[size] for size in ("n_params", "n_params_total")
    }
    rows = []
    for row in (common | _renamed(row) for row in files.load_json(folder / "rows.json")):
        of_round = training.get(f"proxy_{row['round']:02d}", training["proxy"])
        rows.append(
            row
            | {
                "proxy_accuracy": of_round["accuracy"],
                "proxy_val_loss": of_round["loss"],
                "proxy_recalibration": of_round["recalibration"],
                "proxy_gold_slope": of_round.get("gold_slope"),
                "gold_labels": _gold_labels(run) * row["round"],
                "rm_calls": _rm_calls(run, method, row),
            }
        )
    run_id = {"run_id": stage.fingerprint}
    costs = [
        run_id | _cost(artefacts, part)
        for part in topological([stage])
        if part.name not in SHARED_STAGES and artefacts.has(part.name, part.fingerprint)
    ]
    tilt = [] if method else [run_id | p for p in files.load_json(folder / "tilt.json")]
    curve = files.load_arrays(folder / "curve.npz")
    arrays = {f"{stage.fingerprint}.{_RENAMED.get(k, k)}": v for k, v in curve.items()}
    shown = {} if method is None else {kind_of(method): module_of(method).SHOWN}
    return Results(rows, tilt, costs, arrays, shown)


_RENAMED = {
    "rubric": "intent",
    "rubric_score": "intent_score",
    "rubric_score_stderr": "intent_score_stderr",
}
"""What older artefacts call the columns of the world's intent."""


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(name, name): value for name, value in row.items()}


def _common(name: str, run: RunConfig, method: Schedule | None, run_id: str) -> dict[str, Any]:
    """What all rows of a curve share; ``method``: None for best-of-n."""
    reward = run.reward
    own = getattr(module_of(method), "columns", None) if method else None
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": name,
        "run_id": run_id,
        "method": kind_of(method) if method else "bon",
        "n_pairs": run.labels.n_pairs,
        "label_rule": run.labels.label_rule,
        "label_flip_rate": run.labels.label_flip_rate,
        "data_seed": run.labels.data_seed,
        "length_control": 0.0,
        "proxy_lr": None,
        **run.proxy.columns,
        "mitigation": mitigation_name(run, with_method=method is not None),
        "reward_members": reward.members,
        "members_by": reward.members_by if reward.members > 1 else None,
        "reward_combine": Path(reward.transform).name if reward.transform else reward.combine,
        "reward_strength": reward.strength if reward.uses_strength else None,
        "length_penalty": reward.length_penalty,
        "length_coef": reward.length_coef,
        "length_budget": reward.length_budget if reward.length_penalty == "hinge" else None,
        **(own(method) if own else {"method_seed": getattr(method, "seed", None)}),
        "rounds": run.rounds.k,
        "round": run.rounds.k,
    }


def _gold_labels(run: RunConfig) -> int:
    """Responses that gold scored for the proxy's training, a round: distinct ones in comparisons."""
    labels = run.labels_per_round
    if not run.proxy.reads_comparisons:
        return 0
    whole, rest = divmod(labels.n_pairs, labels.pairs_per_prompt)
    # The last prompt's pairs come in the order (0, 1), (0, 2), …, (1, 2), …
    of_last = min(rest, labels.responses_per_prompt - 1) + 1 if rest else 0
    return whole * labels.responses_per_prompt + of_last


def _rm_calls(run: RunConfig, method: Schedule | None, row: dict[str, Any]) -> int:
    """Responses that proxies scored for the point of ``row``; see docs/metrics.md."""
    a_step = run.method.responses_per_step if run.method else 0
    responses = row["value"] * (a_step if method else row["n_prompts"])
    responses += a_step * _earlier_steps(run, is_curve_of_method=method is not None)
    one_model = run.reward.members_by == "heads" or run.reward.combine == "weight_average"
    return responses * (1 if one_model else run.reward.members)


def _earlier_steps(run: RunConfig, *, is_curve_of_method: bool) -> int:
    """Steps of earlier rounds that a row's coordinate does not count."""
    rounds = run.rounds
    if run.method is None or (rounds.policy == "carry_on" and is_curve_of_method):
        return 0
    steps = run.method.steps * (rounds.k - 1)
    return steps // rounds.k if rounds.policy == "carry_on" else steps


def _cost(artefacts: store.Store, stage: Stage) -> dict[str, Any]:
    """What a stage took, from its manifest. Of a resumed stage, the last attempt only."""
    manifest = artefacts.open(stage.name, stage.fingerprint).manifest
    keys = ("cpu_s", "wall_s", "device", "threads", "resumed")
    return {"stage": stage.name, "stage_id": stage.fingerprint} | {k: manifest[k] for k in keys}
