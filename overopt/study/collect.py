"""From finished artefacts to the records of an experiment."""

from pathlib import Path
from typing import Any

from overopt.base import files
from overopt.engine import store
from overopt.engine.graph import Stage, topological
from overopt.records.results import (
    Results,
    check_part,
    held_results,
    save_results,
    transaction,
)
from overopt.records.schema import SCHEMA_VERSION, validate_records
from overopt.stages.names import backbone_name, mitigation_name
from overopt.stages.settings import Experiment, RunConfig
from overopt.study.chain import curve_stages


def earlier_ppo_steps(run: RunConfig, coord: str) -> int:
    """PPO steps of earlier rounds that a row's coordinate does not count."""
    k = run.rounds.k
    if run.ppo is None or (run.rounds.policy == "carry_on" and coord == "ppo_step"):
        return 0
    steps = run.ppo.steps * (k - 1)
    return steps // k if run.rounds.policy == "carry_on" else steps


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
    found = Results([], [], [], {})
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
        if role.startswith("proxy")
    }
    scorer = files.load_json(proxies["proxy"] / "scorer.json")
    training = {r: files.load_json(f / "training.json") for r, f in proxies.items()}
    is_ppo = stage.name == "ppo_gold"
    common = {
        "schema_version": SCHEMA_VERSION,
        "experiment": name,
        "run_id": stage.fingerprint,
        "method": "ppo" if is_ppo else "bon",
        "backbone": backbone_name(run.proxy),
        "n_params": scorer["n_params"],
        "n_params_total": scorer["n_params_total"],
        "n_pairs": run.labels.n_pairs,
        "label_rule": run.labels.label_rule,
        "label_flip_rate": run.labels.label_flip_rate,
        "data_seed": run.labels.data_seed,
        "rm_seed": run.proxy.rm_seed,
        "length_control": run.proxy.length_control,
        **_mitigation_columns(run, is_ppo=is_ppo),
        "ppo_seed": run.ppo.ppo_seed if is_ppo and run.ppo else None,
        "kl_coef": run.ppo.kl_coef if is_ppo and run.ppo else None,
        "proxy_lr": run.proxy.lr,
        "ppo_lr": run.ppo.lr if is_ppo and run.ppo else None,
        "rounds": run.rounds.k,
        "round": run.rounds.k,
    }
    rows = []
    for row in (common | row for row in files.load_json(folder / "rows.json")):
        of_round = training.get(f"proxy_{row['round']:02d}", training["proxy"])
        rows.append(
            row
            | {
                "proxy_accuracy": of_round["accuracy"],
                "proxy_val_loss": of_round["loss"],
                "proxy_recalibration": of_round["recalibration"],
                "gold_labels": _gold_labels(run) * row["round"],
                "rm_calls": _rm_calls(run, row),
            }
        )
    run_id = {"run_id": stage.fingerprint}
    costs = [
        run_id | _cost(artefacts, part)
        for part in topological([stage])
        if part.name not in SHARED_STAGES and artefacts.has(part.name, part.fingerprint)
    ]
    tilt = [] if is_ppo else [run_id | p for p in files.load_json(folder / "tilt.json")]
    curve = files.load_arrays(folder / "curve.npz")
    return Results(rows, tilt, costs, {f"{stage.fingerprint}.{k}": v for k, v in curve.items()})


def _mitigation_columns(run: RunConfig, *, is_ppo: bool) -> dict[str, Any]:
    """What a record says about the reward that was optimised."""
    reward, ppo = run.reward, run.ppo if is_ppo else None
    return {
        "mitigation": mitigation_name(run, with_ppo=is_ppo),
        "reward_members": reward.members,
        "members_by": reward.members_by if reward.members > 1 else None,
        "reward_combine": Path(reward.transform).name if reward.transform else reward.combine,
        "reward_strength": reward.strength if reward.uses_strength else None,
        "length_penalty": reward.length_penalty,
        "length_coef": reward.length_coef,
        "length_budget": reward.length_budget if reward.length_penalty == "hinge" else None,
        "shaping": ppo.shaping if ppo else None,
        "shaping_scale": ppo.shaping_scale if ppo and ppo.shaping != "none" else None,
        "kl_target": ppo.kl_target if ppo else None,
    }


def _gold_labels(run: RunConfig) -> int:
    """Responses that gold scored for the proxy's training, a round: distinct ones in comparisons."""
    labels = run.labels_per_round
    if run.proxy.kind == "gold":
        return 0
    whole, rest = divmod(labels.n_pairs, labels.pairs_per_prompt)
    # The last prompt's pairs come in the order (0, 1), (0, 2), …, (1, 2), …
    of_last = min(rest, labels.responses_per_prompt - 1) + 1 if rest else 0
    return whole * labels.responses_per_prompt + of_last


def _rm_calls(run: RunConfig, row: dict[str, Any]) -> int:
    """Responses that proxies scored for the point of ``row``; see docs/metrics.md."""
    batch = run.ppo.batch if run.ppo else 0
    responses = row["value"] * (batch if row["coord"] == "ppo_step" else row["n_prompts"])
    responses += batch * earlier_ppo_steps(run, row["coord"])
    one_model = run.reward.members_by == "heads" or run.reward.combine == "weight_average"
    return responses * (1 if one_model else run.reward.members)


def _cost(artefacts: store.Store, stage: Stage) -> dict[str, Any]:
    """What a stage took, from its manifest. Of a resumed stage, the last attempt only."""
    manifest = artefacts.open(stage.name, stage.fingerprint).manifest
    keys = ("cpu_s", "wall_s", "device", "threads", "resumed")
    return {"stage": stage.name, "stage_id": stage.fingerprint} | {k: manifest[k] for k in keys}
