"""The table of stages: from an experiment to its graph, and from finished artefacts to records.

    calibration -> gold -> comparisons -> labels -> proxy -> bon
                      \\-> pool -------------------------/  \\-> ppo -> ppo_gold

What each stage does is `overopt.stages`. Gold is an input of ``comparisons``, ``pool`` and
``ppo_gold`` only: no optimisation method can reach it.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from overopt import checkpoints, stages, store
from overopt.artefacts import load_world
from overopt.graph import Stage
from overopt.records import SCHEMA_VERSION, validate_records
from overopt.settings import Experiment, RunConfig


def source_checksums(run: RunConfig) -> tuple[str, ...]:
    """SHA-256 of every file a run reads from outside the package, in a fixed order."""
    sources = [run.world.policy, run.gold.source, run.proxy.backbone]
    if run.ppo is not None:
        sources.append(run.ppo.value_backbone)
    files = [Path(run.world.prompts_file)] if run.world.prompts_file else []
    for source in sources:
        if not source.startswith("ladder:"):
            folder = checkpoints.checkpoint_dir(source)
            files += [folder / "config.json", folder / "model.safetensors"]
    return tuple(hashlib.sha256(f.read_bytes()).hexdigest() for f in dict.fromkeys(files))


def curve_stages(run: RunConfig) -> list[Stage]:
    """The last stages of one run, with all their upstreams: its curves."""
    world, seed = run.world, run.root_seed
    calibration = Stage(
        name="calibration",
        version=1,
        run=stages.run_calibration,
        label="calibration",
        cost_s=6,
        config=stages.CalibrationStage(
            world=world, rubric=run.gold.rubric, root_seed=seed, sources=source_checksums(run)
        ),
    )
    gold = Stage(
        name="gold",
        version=1,
        run=stages.run_gold,
        label="gold",
        cost_s=6 + 0.025 * run.gold.n_prompts * run.gold.copies * (run.gold.kind == "learned"),
        config=stages.GoldStage(world=world, gold=run.gold, root_seed=seed),
        upstream={"calibration": calibration},
    )
    labels = run.labels
    n_prompts = next(n for n in (50, 250, 1000, 2400) if n >= labels.n_prompts)
    comparisons = Stage(
        name="comparisons",
        version=1,
        run=stages.run_comparisons,
        label=f"comparisons data seed {labels.data_seed} ({n_prompts} prompts)",
        cost_s=0.03 * n_prompts + 5,
        config=stages.ComparisonsStage(
            world=world,
            n_prompts=n_prompts,
            n_validation_prompts=labels.n_validation_prompts,
            copies=labels.responses_per_prompt,
            data_seed=labels.data_seed,
            root_seed=seed,
        ),
        upstream={"calibration": calibration, "gold": gold},
    )
    label_stage = Stage(
        name="labels",
        version=1,
        run=stages.run_labels,
        label=f"labels {labels.n_pairs} pairs flip {labels.label_flip_rate} data {labels.data_seed}",
        cost_s=1,
        config=stages.LabelsStage(labels=labels, root_seed=seed),
        upstream={"comparisons": comparisons},
    )
    name = describe(run)
    size = run.proxy.backbone.removeprefix("ladder:")
    rate = {"0.05m": 1.0, "0.2m": 2.5, "0.8m": 6.0, "3m": 18.0, "6m": 36.0}.get(size, 6.0)
    proxy_inputs = {"calibration": calibration, "comparisons": comparisons, "labels": label_stage}
    if run.proxy.kind == "gold":
        proxy_inputs["gold"] = gold
    proxy = Stage(
        name="proxy",
        version=1,
        run=stages.run_proxy,
        label=f"proxy {name}",
        cost_s=4 + rate * run.proxy.epochs * labels.n_pairs / 2000,
        config=stages.ProxyStage(world=world, proxy=run.proxy, root_seed=seed),
        upstream=proxy_inputs,
    )
    ends = []
    if run.bon is not None:
        n_pool = run.bon.n_prompts * run.bon.pool_size
        pool = Stage(
            name="pool",
            version=1,
            run=stages.run_pool,
            label=f"pool {run.bon.n_prompts} x {run.bon.pool_size}",
            cost_s=5 + n_pool * 0.0075,
            disk_mb=n_pool * 5e-4,
            config=stages.PoolStage(
                world=world,
                n_prompts=run.bon.n_prompts,
                pool_size=run.bon.pool_size,
                root_seed=seed,
            ),
            upstream={"calibration": calibration, "gold": gold},
        )
        ends.append(
            Stage(
                name="bon",
                version=2,
                run=stages.run_bon,
                label=f"bon {name}",
                cost_s=3 + n_pool * 0.00025 * rate,
                config=stages.BonStage(world=world, bon=run.bon, root_seed=seed),
                upstream={"calibration": calibration, "pool": pool, "proxy": proxy},
            )
        )
    if run.ppo is not None:
        full = f"{name} kl {run.ppo.kl_coef} seed {run.ppo.ppo_seed}"
        ppo = Stage(
            name="ppo",
            version=1,
            run=stages.run_ppo,
            label=f"ppo {full}",
            cost_s=5 + run.ppo.steps * run.ppo.batch * 0.025 * run.ppo.ppo_epochs,
            disk_mb=20,
            config=stages.PpoStage(world=world, ppo=run.ppo, root_seed=seed),
            upstream={"calibration": calibration, "proxy": proxy},
        )
        ends.append(
            Stage(
                name="ppo_gold",
                version=1,
                run=stages.run_ppo_gold,
                label=f"ppo gold {full}",
                cost_s=5 + run.ppo.steps / run.ppo.eval_every * 2,
                config=stages.PpoGoldStage(world=world, root_seed=seed),
                upstream={"calibration": calibration, "gold": gold, "proxy": proxy, "ppo": ppo},
            )
        )
    return ends


def describe(run: RunConfig) -> str:
    """What sets a run's proxy apart, in words."""
    flips = f" flip {run.labels.label_flip_rate}" if run.labels.label_flip_rate > 0 else ""
    what = "gold" if run.proxy.kind == "gold" else run.proxy.backbone.removeprefix("ladder:")
    seeds = f"data {run.labels.data_seed} rm {run.proxy.rm_seed}"
    return f"{what} {run.labels.n_pairs} pairs{flips} {seeds}"


def build_graph(experiment: Experiment) -> list[Stage]:
    """Curve stages of all runs; their upstreams follow. Checks every source before any work."""
    for run in experiment.runs:
        world = load_world(run.world)
        checkpoints.checkpoint_dir(run.world.policy)
        if run.gold.kind != "rubric":
            checkpoints.checkpoint_dir(run.gold.source)
        if run.proxy.kind == "learned":
            checkpoints.checkpoint_dir(run.proxy.backbone)
        world.prompts("train", min(run.labels.n_prompts, 4))
        if run.bon is not None:
            world.prompts("eval", run.bon.n_prompts)
        if run.ppo is not None:
            checkpoints.checkpoint_dir(run.ppo.value_backbone)
            world.prompts("eval", run.ppo.eval_prompts)
    return [stage for run in experiment.runs for stage in curve_stages(run)]


def collect(experiment: Experiment, artefacts: store.Store, results_dir: Path) -> Path:
    """Write records.jsonl, curves.npz and tilt.jsonl of a finished experiment; return their folder."""
    rows: list[dict[str, Any]] = []
    tilts: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for run in experiment.runs:
        for stage in curve_stages(run):
            if f"{stage.fingerprint}.gold" in arrays:
                continue
            folder = artefacts.open(stage.name, stage.fingerprint).path
            proxy = stage.upstream["proxy"]
            proxy_folder = artefacts.open("proxy", proxy.fingerprint).path
            scorer = store.load_json(proxy_folder / "scorer.json")
            training = store.load_json(proxy_folder / "training.json")
            is_ppo = stage.name == "ppo_gold"
            common = {
                "schema_version": SCHEMA_VERSION,
                "experiment": experiment.name,
                "run_id": stage.fingerprint,
                "method": "ppo" if is_ppo else "bon",
                "backbone": "gold" if run.proxy.kind == "gold" else run.proxy.backbone,
                "n_params": scorer["n_params"],
                "n_params_total": scorer["n_params_total"],
                "n_pairs": run.labels.n_pairs,
                "label_rule": run.labels.label_rule,
                "label_flip_rate": run.labels.label_flip_rate,
                "data_seed": run.labels.data_seed,
                "rm_seed": run.proxy.rm_seed,
                "ppo_seed": run.ppo.ppo_seed if is_ppo and run.ppo else None,
                "kl_coef": run.ppo.kl_coef if is_ppo and run.ppo else None,
                "proxy_accuracy": training["accuracy"],
                "proxy_val_loss": training["loss"],
                "proxy_recalibration": training["recalibration"],
            }
            rows += [common | row for row in store.load_json(folder / "rows.json")]
            if not is_ppo:
                points = store.load_json(folder / "tilt.json")
                tilts += [{"run_id": stage.fingerprint} | point for point in points]
            for name, table in store.load_arrays(folder / "curve.npz").items():
                arrays[f"{stage.fingerprint}.{name}"] = table
    validate_records(rows)
    results_dir.mkdir(parents=True, exist_ok=True)
    store.save_arrays(results_dir / "curves.npz", arrays)
    store.save_records(results_dir / "tilt.jsonl", tilts)
    store.save_records(results_dir / "records.jsonl", rows)
    return results_dir
