"""From finished artefacts to the records of an experiment."""

import re
from pathlib import Path
from typing import Any

from overopt.base import files
from overopt.base.config import canonical
from overopt.base.kinds import kind_of, module_of
from overopt.control.settings import ControlExperiment, ControlRun
from overopt.engine import store
from overopt.engine.graph import Stage, flatten, topological
from overopt.methods.method import Schedule
from overopt.nets import examine
from overopt.pools import selection
from overopt.records.curves import BON
from overopt.records.results import (
    Tables,
    check_part,
    held_results,
    save_results,
    transaction,
)
from overopt.records.schema import SCHEMA_VERSION, validate_records
from overopt.stages import search
from overopt.stages.names import mitigation_name
from overopt.stages.samples import load_samples
from overopt.stages.search import SEARCH
from overopt.stages.settings import Experiment, RunConfig
from overopt.study import collect_control
from overopt.study.chain import curve_stages

SHARED_STAGES = ("calibration", "gold", "comparisons", "labels", "pool", "control_start")
"""Stages that serve every run of an experiment: no cost of a run in particular."""


def collect(
    experiment: Experiment | ControlExperiment,
    artefacts: store.Store,
    results_dir: Path,
    *,
    partial: bool = False,
) -> Path | None:
    """Write records.jsonl, curves.npz, tilt.jsonl, samples.jsonl, costs.jsonl, runs.jsonl.

    Returns their folder, or None if nothing was written. What was measured is in the first four
    and depends on the experiment alone; costs.jsonl says what computing it took, which differs from
    time to time, and runs.jsonl with which settings and by which code.

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
    experiment: Experiment | ControlExperiment,
    artefacts: store.Store,
    results_dir: Path,
    *,
    partial: bool,
) -> Path | None:
    """`collect`, while no other process writes there."""
    if partial:
        stages = [stage for run in experiment.runs for stage in curve_stages(run)]
        check_part(results_dir, {stage.fingerprint for stage in stages})
    before = held_results(results_dir)
    found = Tables()
    seen: set[str] = set()
    for run in experiment.runs:
        for stage in curve_stages(run):
            run_id = stage.fingerprint
            if run_id in seen:
                continue
            seen.add(run_id)
            if artefacts.has(stage.name, run_id):
                found.add(of_curve(experiment.name, run, stage, artefacts))
                found.costs.extend(_costs(stage, artefacts))
            elif run_id in before.run_ids:
                found.add(before.of(run_id))
            elif not partial:
                artefacts.open(stage.name, run_id)  # raises with the remedy
    if partial and not found.records:
        return None
    validate_records(found.records)
    save_results(results_dir, found)
    return results_dir


def of_curve(
    name: str, run: RunConfig | ControlRun, stage: Stage, artefacts: store.Store
) -> Tables:
    """What a finished curve adds, but for its costs."""
    if isinstance(run, ControlRun):
        tables = collect_control.curve_results(name, run, stage, artefacts)
        tables.runs.append({"run_id": stage.fingerprint} | _about(run, artefacts, stage))
        return tables
    return curve_tables(name, run, stage, artefacts)


def curve_tables(name: str, run: RunConfig, stage: Stage, artefacts: store.Store) -> Tables:
    """The tables of one finished curve of experiment ``name``, without costs."""
    folder = artefacts.open(stage.name, stage.fingerprint).path
    proxies = {
        role: artefacts.open(part.name, part.fingerprint).path
        for role, part in stage.upstream.items()
        if re.fullmatch(r"proxy(_\d\d)?", role)
    }
    training = {r: files.load_json(f / "training.json") for r, f in proxies.items()}
    on_pool = stage.name == BON or (run.bon is not None and stage.name in run.bon.also)
    is_untrained = on_pool or stage.name == SEARCH
    method = None if is_untrained else run.method
    scorer = files.load_json(proxies["proxy"] / "scorer.json")
    common = _common(name, run, method, stage.fingerprint) | {
        size: scorer[size] for size in ("n_params", "n_params_total")
    }
    if is_untrained:
        common["method"] = stage.name
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
    if run.labels.pairs_file:
        labels = artefacts.open("labels", _labels_of(stage)).path
        agreement = files.load_json(labels / "agreement.json")["validation"]
        for row in rows:
            row["label_agreement"] = agreement["share"]
    run_id = {"run_id": stage.fingerprint}
    tilt = files.load_json(folder / "tilt.json") if stage.name == BON else []
    curve = files.load_arrays(folder / "curve.npz")
    arrays = {f"{stage.fingerprint}.{_RENAMED.get(k, k)}": v for k, v in curve.items()}
    shown = {} if method is None else {kind_of(method): module_of(method).SHOWN}
    if stage.name == SEARCH:
        shown = {SEARCH: search.SHOWN}
    elif on_pool and stage.name != BON:
        shown = {stage.name: selection.selector(stage.name).SHOWN}
    return Tables(
        records=rows,
        tilt=[run_id | p for p in tilt],
        arrays=arrays,
        shown=shown,
        samples=[run_id | row for row in load_samples(folder)],
        runs=[run_id | _about(run, artefacts, stage)],
    )


def _labels_of(stage: Stage) -> str:
    """Fingerprint of the labels that the proxy of a curve was trained on."""
    return next(part.fingerprint for part in topological([stage]) if part.name == "labels")


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
        "label_rule": run.labels.rule_name,
        "label_flip_rate": run.labels.label_flip_rate,
        "data_seed": run.labels.data_seed,
        "length_control": 0.0,
        "proxy_lr": None,
        **run.proxy.columns,
        "mitigation": mitigation_name(run, with_method=method is not None),
        "start_policy": run.start_policy or "none",
        "policy_params": examine.policy_params(run.optimised_world.policy),
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
    if not run.proxy.reads_comparisons or labels.pairs_file:
        return 0
    whole, rest = divmod(labels.n_pairs, labels.pairs_per_prompt)
    # The last prompt's pairs come in the order (0, 1), (0, 2), …, (1, 2), …
    of_last = min(rest, labels.responses_per_prompt - 1) + 1 if rest else 0
    return whole * labels.responses_per_prompt + of_last


def _rm_calls(run: RunConfig, method: Schedule | None, row: dict[str, Any]) -> int:
    """Responses that proxies scored for the point of ``row``; see docs/metrics.md."""
    a_step = run.method.responses_per_step if run.method else 0
    if method:
        responses = row["value"] * a_step
    elif row["method"] == SEARCH:
        responses = row["rm_calls"]
    elif row["method"] == BON or selection.selector(row["method"]).DRAWS:
        responses = row["value"] * row["n_prompts"]
    else:  # it weighs the whole pool
        responses = row["n_responses"]
    responses += a_step * _earlier_steps(run, is_curve_of_method=method is not None)
    one_model = run.reward.members_by == "heads" or run.reward.combination.averages_weights
    return responses * (1 if one_model else run.reward.members)


def _earlier_steps(run: RunConfig, *, is_curve_of_method: bool) -> int:
    """Steps of earlier rounds that a row's coordinate does not count."""
    rounds = run.rounds
    if run.method is None or (rounds.policy == "carry_on" and is_curve_of_method):
        return 0
    steps = run.method.steps * (rounds.k - 1)
    return steps // rounds.k if rounds.policy == "carry_on" else steps


def _costs(curve: Stage, artefacts: store.Store) -> list[dict[str, Any]]:
    """What each stage of a curve took, but those that serve every run."""
    return [
        {"run_id": curve.fingerprint} | _cost(artefacts, part)
        for part in topological([curve])
        if part.name not in SHARED_STAGES and artefacts.has(part.name, part.fingerprint)
    ]


def _about(run: Any, artefacts: store.Store, stage: Stage) -> dict[str, Any]:
    """Settings of a run that differ from the defaults, and by what its curve was computed."""
    manifest = artefacts.open(stage.name, stage.fingerprint).manifest
    git, versions = manifest.get("git", {}), manifest.get("versions", {})
    return {
        "label": stage.title,
        "settings": flatten(canonical(run)),
        "stage": stage.name,
        "stage_version": stage.version,
        "device": manifest["device"],
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "versions": {name: versions.get(name) for name in ("overopt", "python", "torch", "numpy")},
    }


def _cost(artefacts: store.Store, stage: Stage) -> dict[str, Any]:
    """What a stage took, from its manifest. Of a resumed stage, the last attempt only."""
    manifest = artefacts.open(stage.name, stage.fingerprint).manifest
    keys = ("cpu_s", "wall_s", "device", "threads", "resumed")
    return {"stage": stage.name, "stage_id": stage.fingerprint} | {k: manifest[k] for k in keys}
