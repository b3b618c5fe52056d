"""The table of stages: from an experiment to its graph, and from finished artefacts to records.

    calibration -> gold -> comparisons -> labels -> proxy -> bon
                      \\-> pool -------------------------/  \\-> ppo -> ppo_gold

What each stage does is `overopt.stages`. Gold is an input of ``comparisons``, ``pool`` and
``ppo_gold`` only: no optimisation method can reach it.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from overopt import checkpoints, proxy_stages, reward_stages, rounds, stages, store
from overopt.artefacts import load_transform, load_world
from overopt.config import require
from overopt.errors import StoreError
from overopt.graph import Stage, topological
from overopt.mitigations.inputs import check_contract
from overopt.records import SCHEMA_VERSION, validate_records
from overopt.settings import (
    SPLITS,
    Experiment,
    PpoConfig,
    ProxyConfig,
    RewardConfig,
    RunConfig,
    WorldConfig,
)
from overopt.world.hf import World
from overopt.world.stories import MAX_PROMPT_TOKENS

SHARED_STAGES = ("calibration", "gold", "comparisons", "labels", "pool")
"""Stages that serve every run of an experiment: no cost of a run in particular."""

PIECE_RESPONSES = 1 << 17
"""Most responses in one piece of a pool: about a minute of work and half a gigabyte in memory."""


def source_checksums(run: RunConfig) -> tuple[str, ...]:
    """SHA-256 of all checkpoints and prompts that a run reads, in a fixed order."""
    sources = [run.world.policy, run.gold.source, run.proxy.backbone, *run.reward.backbones]
    if run.ppo is not None:
        sources.append(run.ppo.value_backbone)
    prompts, found = run.world.prompts_file, []
    if prompts.startswith("datasets:"):
        texts = json.dumps(checkpoints.read_prompts(prompts)).encode()
        found.append(hashlib.sha256(texts).hexdigest())
    files = [Path(prompts)] if prompts and not found else []
    if run.world.kind == "hf" and not prompts:
        files.append(checkpoints.instructions_file())
    for source in sources:
        files += checkpoints.source_files(source)
    return (*found, *(checkpoints.checksum(f) for f in dict.fromkeys(files)))


def curve_stages(run: RunConfig) -> list[Stage]:
    """The last stages of one run, with all their upstreams: its curves."""
    world, seed = run.world, run.root_seed
    calibration = Stage(
        name="calibration",
        version=2,
        run=stages.run_calibration,
        gpu=True,
        label="calibration",
        cost_s=6,
        config=stages.CalibrationStage(
            world=world, rubric=run.gold.rubric, root_seed=seed, sources=source_checksums(run)
        ),
    )
    gold = Stage(
        name="gold",
        version=2,
        run=stages.run_gold,
        gpu=True,
        label="gold",
        cost_s=6 + 0.025 * run.gold.n_prompts * run.gold.copies * (run.gold.kind == "learned"),
        config=stages.GoldStage(world=world, gold=run.gold, root_seed=seed),
        upstream={"calibration": calibration},
    )
    labels = run.labels_per_round
    # Data sizes share responses; a small world has fewer prompts than the steps of this ladder.
    available = stages.len_split(load_world(world), "train")
    # Large policies cost more a response, so their first step is small.
    steps = (50, 250, 1000) if world.kind == "stories" else (5, 50, 250, 1000)
    n_prompts = next((n for n in steps if n >= labels.n_prompts), available)
    n_prompts = min(n_prompts, available)
    comparisons = Stage(
        name="comparisons",
        version=2,
        run=stages.run_comparisons,
        gpu=True,
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
    proxy_inputs = {"calibration": calibration, "comparisons": comparisons, "labels": label_stage}
    if run.proxy.kind == "gold":
        proxy_inputs["gold"] = gold
    chain = rounds.chain(run, proxy_inputs, gold, proxy_stage=proxy_stage, ppo_stage=ppo_stage)
    proxy, ppo = chain[-1]
    ends = []
    if run.bon is not None:
        n_pool = run.bon.n_prompts * run.bon.pool_size
        pools = pool_stages(run, {"calibration": calibration, "gold": gold})
        members = [s for role, s in sorted(proxy.upstream.items()) if role.startswith("member_")]
        if not members or run.reward.combine == "weight_average":
            members = [proxy]  # it is one model, which scores for itself
        scores = {
            f"scores_{i:02d}": Stage(
                name="scores",
                version=1,
                run=stages.run_scores,
                gpu=True,
                label=f"scores of {member.title} on pool {run.bon.n_prompts} x {run.bon.pool_size}",
                cost_s=3 + n_pool * 0.00025 * scoring_rate(run.proxy),
                disk_mb=n_pool * 4e-6,
                config=stages.ScoresStage(world=world, root_seed=seed, precision=run.bon.precision),
                upstream={"calibration": calibration, "proxy": member} | pools,
            )
            for i, member in enumerate(members)
        }
        ends.append(
            Stage(
                name="bon",
                version=3,
                run=stages.run_bon,
                label=f"bon {name}",
                cost_s=3,
                config=stages.BonStage(world=world, bon=run.bon, root_seed=seed),
                upstream={"calibration": calibration, "proxy": proxy} | pools | scores,
            )
        )
    if run.ppo is not None and ppo is not None:
        ends.append(
            Stage(
                name="ppo_gold",
                version=2,
                run=stages.run_ppo_gold,
                gpu=True,
                label=f"ppo gold {name} kl {run.ppo.kl_coef} seed {run.ppo.ppo_seed}",
                cost_s=5 + 2 * len(run.ppo.evaluation_steps),
                config=stages.PpoGoldStage(world=world, root_seed=seed),
                upstream={"calibration": calibration, "gold": gold, "proxy": proxy, "ppo": ppo}
                | rounds.earlier_roles(run, chain),
            )
        )
    return ends


def pool_stages(run: RunConfig, inputs: dict[str, Stage]) -> dict[str, Stage]:
    """The pool of a run by role: one stage, or pieces of whole prompts of at most PIECE_RESPONSES.

    Pieces are sampled side by side, are read one after the other, and a kill costs the pieces in
    flight. A prompt's responses do not depend on the piece it is in.
    """
    bon = run.bon
    assert bon is not None
    size = max(1, PIECE_RESPONSES // bon.pool_size)
    pieces: dict[str, Stage] = {}
    for start in range(0, bon.n_prompts, size):
        n_prompts = min(size, bon.n_prompts - start)
        part = "" if size >= bon.n_prompts else f" from prompt {start}"
        pieces[f"pool_{len(pieces):03d}"] = Stage(
            name="pool",
            version=2,
            run=stages.run_pool,
            gpu=True,
            label=f"pool {n_prompts} x {bon.pool_size}{part}",
            cost_s=5 + n_prompts * bon.pool_size * 0.0075,
            disk_mb=n_prompts * bon.pool_size * 5e-4,
            config=stages.PoolStage(
                world=run.world,
                n_prompts=n_prompts,
                pool_size=bon.pool_size,
                root_seed=run.root_seed,
                eval_offset=bon.eval_offset + start,
            ),
            upstream=inputs,
        )
    return pieces if len(pieces) > 1 else {"pool": pieces["pool_000"]}


def scoring_rate(proxy: ProxyConfig) -> float:
    """CPU seconds to train on 2,000 pairs once, the measure of a proxy's cost."""
    size = proxy.backbone.removeprefix("ladder:")
    return {"0.05m": 1.0, "0.2m": 2.5, "0.8m": 6.0, "3m": 18.0, "6m": 36.0}.get(size, 6.0)


def ppo_stage(run: RunConfig, inputs: dict[str, Stage], *, note: str = "") -> Stage:
    """PPO of a run against the proxy among ``inputs``; ``note`` ends its label."""
    ppo = run.ppo
    assert ppo is not None
    return Stage(
        name="ppo",
        version=3 if ppo.precision == "bf16" else 2,
        run=stages.run_ppo,
        gpu=True,
        label=f"ppo {describe(run)} kl {ppo.kl_coef} seed {ppo.ppo_seed}{note}",
        cost_s=5 + ppo.steps * ppo.batch * 0.025 * ppo.ppo_epochs,
        disk_mb=20,
        config=stages.PpoStage(world=run.world, ppo=ppo, root_seed=run.root_seed),
        upstream=inputs,
    )


def proxy_stage(
    run: RunConfig, inputs: dict[str, Stage], *, previous: Stage | None = None, note: str = ""
) -> Stage:
    """The stage whose scorer is optimised: the proxy itself, or the reward made of its members.

    ``previous``: the same of an earlier round, whose members are trained further; ``note`` ends the
    label.
    """
    reward, members = run.reward, []

    def member_inputs(i: int) -> dict[str, Stage]:
        if previous is None:
            return inputs
        return inputs | {"start": previous.upstream.get(f"member_{i:02d}", previous)}

    if reward.members_by == "heads":
        members.append(
            Stage(
                name="heads",
                version=1,
                run=reward_stages.run_heads,
                gpu=True,
                label=f"{reward.members} heads {describe(run)}{note}",
                cost_s=4 + scoring_rate(run.proxy) * run.proxy.epochs * run.labels.n_pairs / 2000,
                config=reward_stages.HeadsStage(
                    world=run.world,
                    proxy=run.proxy,
                    n_heads=reward.members,
                    root_seed=run.root_seed,
                ),
                upstream=member_inputs(0),
            )
        )
    else:
        for i, (proxy, bootstrap) in enumerate(reward_stages.member_proxies(run.proxy, reward)):
            of_member = describe(replace(run, proxy=proxy, reward=RewardConfig()))
            members.append(
                Stage(
                    name="proxy",
                    version=3 if bootstrap > 0 else 2,
                    run=proxy_stages.run_proxy,
                    stacked=proxy_stages.run_proxies,
                    alike=proxy_stages.stacks_with(proxy, run.labels.n_pairs),
                    gpu=True,
                    label=f"proxy {of_member}" + f" bootstrap {bootstrap}" * (bootstrap > 0) + note,
                    cost_s=4 + scoring_rate(proxy) * proxy.epochs * run.labels.n_pairs / 2000,
                    config=stages.ProxyStage(
                        world=run.world, proxy=proxy, root_seed=run.root_seed, bootstrap=bootstrap
                    ),
                    upstream=member_inputs(i),
                )
            )
    if reward == RewardConfig():
        return members[0]
    transform = Path(reward.transform)
    return Stage(
        name="reward",
        version=1,
        run=reward_stages.run_reward,
        gpu=True,
        label=f"reward {describe(run)}{note}",
        cost_s=3 + scoring_rate(run.proxy) * reward.members,
        disk_mb=4.0 * reward.members,
        config=reward_stages.RewardStage(
            world=run.world,
            reward=reward,
            root_seed=run.root_seed,
            source=hashlib.sha256(transform.read_bytes()).hexdigest() if reward.transform else "",
        ),
        upstream=inputs | {f"member_{i:02d}": member for i, member in enumerate(members)},
    )


def backbone_name(proxy: ProxyConfig) -> str:
    """The proxy's backbone in records; ``[:k]`` where only its first k layers are used."""
    kept = f"[:{proxy.layers}]" if proxy.layers else ""
    return "gold" if proxy.kind == "gold" else proxy.backbone + kept


def describe(run: RunConfig) -> str:
    """What sets a run's proxy apart, in words."""
    flips = f" flip {run.labels.label_flip_rate}" if run.labels.label_flip_rate > 0 else ""
    what = run.proxy.backbone.removeprefix("ladder:")
    what += f" {run.proxy.layers} layers" if run.proxy.layers else ""
    what = "gold" if run.proxy.kind == "gold" else what
    seeds = f"data {run.labels.data_seed} rm {run.proxy.rm_seed}"
    name = mitigation_name(run, with_ppo=False)
    return f"{what} {run.labels.n_pairs} pairs{flips} {seeds}" + f" ({name})" * (name != "none")


_COMBINE_NAMES = {
    "mean": "mean",
    "worst_case": "WCO",
    "median": "median",
    "mean_minus_variance": "UWO",
    "mean_minus_std": "LCB",
    "log_mean_exp": "soft min",
    "weight_average": "WARM",
}


def mitigation_name(run: RunConfig, *, with_ppo: bool) -> str:
    """Short name of what a run does against overoptimization; "none" for the plain proxy.

    ``with_ppo``: what only PPO's reward has (shaping, adaptive KL) is named too.
    """
    reward, parts = run.reward, []
    if run.rounds.k > 1:
        parts.append(rounds.name_of(run.rounds))
    if run.proxy.length_control > 0:
        parts.append(f"ODIN {run.proxy.length_control:g}")
    if reward.members > 1 or reward.transform:
        combine = Path(reward.transform).stem or _COMBINE_NAMES[reward.combine]
        strength = f" {reward.strength:g}" if reward.uses_strength else ""
        by = "" if reward.members_by == "seed" else f" by {reward.members_by}"
        by += "".join(f" + {name.removeprefix('ladder:')}" for name in reward.backbones)
        parts.append(f"{combine}{strength} of {reward.members}{by}")
    if reward.length_penalty != "none":
        budget = f" past {reward.length_budget:g}" if reward.length_penalty == "hinge" else ""
        parts.append(f"length {reward.length_coef:g}{budget}")
    if with_ppo and run.ppo is not None:
        if run.ppo.shaping != "none":
            parts.append(f"{run.ppo.shaping} {run.ppo.shaping_scale:g}")
        if run.ppo.kl_target > 0:
            gain = run.ppo.kl_gain
            is_usual = gain == PpoConfig.kl_gain
            parts.append(f"KL target {run.ppo.kl_target:g}" + f" gain {gain:g}" * (not is_usual))
    return ", ".join(parts) or "none"


def check_prompts(run: RunConfig, world: World) -> None:
    """Raise ConfigError or DataError unless every split has the prompts that the run asks for."""
    labels, available = run.labels, stages.len_split(world, "train")
    n_prompts = run.rounds.k * run.labels_per_round.n_prompts  # no round uses another's
    require(
        n_prompts <= available,
        "labels.n_pairs",
        labels.n_pairs,
        f"needs {n_prompts} training prompts of {labels.responses_per_prompt} responses, the "
        f"world has {available}: use fewer pairs or more responses_per_prompt",
    )
    available = stages.len_split(world, "validation")
    require(
        2 <= labels.n_validation_prompts <= available,
        "labels.n_validation_prompts",
        labels.n_validation_prompts,
        f"must be 2 to {available}, the validation prompts of this world",
    )
    if run.gold.kind == "learned":
        available = stages.len_split(world, "gold")
        require(
            run.gold.n_prompts <= available,
            "gold.n_prompts",
            run.gold.n_prompts,
            f"must be at most {available}, the gold prompts of this world",
        )
    if run.bon is not None:
        stages.eval_prompts(world, run.bon.n_prompts, run.bon.eval_offset)
    if run.ppo is not None:
        stages.eval_prompts(world, run.ppo.eval_prompts, run.ppo.eval_offset)


def check_sources(run: RunConfig, world: World, longest_prompt: int) -> None:
    """Raise unless every checkpoint of a run is complete, and its tokens mean what they should.

    The policy and the value model must share the world's tokenizer; a gold or proxy backbone with
    another one reads text. Where tokens are shared, the longest prompt (``longest_prompt`` tokens)
    with the longest response must fit the context.
    """
    policy, longest = run.world.policy, longest_prompt + run.world.max_response_tokens
    checkpoints.checkpoint_dir(policy)
    require(
        checkpoints.shares_vocabulary(policy, world.tokenizer),
        "world.policy",
        policy,
        "has another tokenizer than the embedded world: use world.kind=hf",
    )
    used = {}
    match run.gold.kind:
        case "pretrained":
            checkpoints.check_classifier(run.gold.source)
        case "frozen" | "learned":
            used["gold.source"] = run.gold.source
    if run.proxy.kind == "learned":
        used["proxy.backbone"] = run.proxy.backbone
        used |= {f"reward.backbones[{i}]": name for i, name in enumerate(run.reward.backbones)}
    if run.ppo is not None:
        used["ppo.value_backbone"] = run.ppo.value_backbone
    for field, source in used.items():
        checkpoints.checkpoint_dir(source)
        is_shared = checkpoints.shares_vocabulary(source, world.tokenizer)
        require(
            is_shared or field != "ppo.value_backbone",
            field,
            source,
            f"has another tokenizer than the policy, and values are per token: use {policy!r} or a "
            "model that shares its tokenizer",
        )
        context = checkpoints.context_tokens(source)
        require(
            not is_shared or context is None or longest <= context,
            field,
            source,
            f"has a context of {context} tokens; the longest prompt and world.max_response_tokens "
            f"make {longest}: shorten them",
        )


def _with_longest_prompt(cfg: WorldConfig) -> tuple[World, int]:
    """A world, and the tokens of its longest prompt; reads every prompt that is not the package's."""
    world = load_world(cfg)
    if cfg.kind == "stories" and not cfg.prompts_file:
        return world, MAX_PROMPT_TOKENS
    sizes = {split: stages.len_split(world, split) for split in SPLITS}
    return world, max(world.prompts(s, n).ids.shape[1] for s, n in sizes.items() if n > 0)


def build_graph(experiment: Experiment) -> list[Stage]:
    """Curve stages of all runs; their upstreams follow. Checks every source before any work."""
    worlds: dict[WorldConfig, tuple[World, int]] = {}
    for run in experiment.runs:
        if run.world not in worlds:
            worlds[run.world] = _with_longest_prompt(run.world)
        world, longest = worlds[run.world]
        if run.reward.transform:
            check_contract(
                load_transform(Path(run.reward.transform)),
                strength=run.reward.strength,
                n_members=run.reward.members,
                name=f"reward.transform = {run.reward.transform!r}: reward",
            )
        check_prompts(run, world)
        check_sources(run, world, longest)
    return [stage for run in experiment.runs for stage in curve_stages(run)]


class Results(NamedTuple):
    """Tables of a results directory, rows in the order of the runs.

    arrays: ``RUN_ID.NAME`` -> per-prompt values; the other three by the file they are in.
    """

    records: list[dict[str, Any]]
    tilt: list[dict[str, Any]]
    costs: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]

    @property
    def run_ids(self) -> set[str]:
        """Identities of the curves held."""
        return {row["run_id"] for row in self.records}

    def of(self, run_id: str) -> "Results":
        """The part that belongs to one curve."""
        records, tilt, costs = (
            [row for row in table if row["run_id"] == run_id] for table in self[:3]
        )
        mine = {k: v for k, v in self.arrays.items() if k.startswith(f"{run_id}.")}
        return Results(records, tilt, costs, mine)

    def add(self, other: "Results") -> None:
        """Append the tables of ``other``."""
        for mine, theirs in zip(self[:3], other[:3], strict=True):
            mine.extend(theirs)
        self.arrays.update(other.arrays)


def held_results(folder: Path) -> Results:
    """What a results directory holds; nothing if it has no complete set of files."""
    names = [folder / f"{name}.jsonl" for name in Results._fields[:3]]
    if not all(file.is_file() for file in (*names, folder / "curves.npz")):
        return Results([], [], [], {})
    records, tilt, costs = map(store.load_records, names)
    return Results(records, tilt, costs, store.load_arrays(folder / "curves.npz"))


def check_joins(folder: Path, held: Results, run_ids: set[str]) -> None:
    """Raise StoreError where ``held``, the results in ``folder``, has curves not in ``run_ids``.

    Records of a part of those would replace them.
    """
    lost = held.run_ids - run_ids
    if lost:
        raise StoreError(
            f"{folder}: no records were written: it holds {len(lost)} other curves; give another"
            " directory with --results"
        )


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
    if partial:
        check_joins(results_dir, before, seen)
    if partial and not found.records:
        return None
    validate_records(found.records)
    results_dir.mkdir(parents=True, exist_ok=True)
    store.save_arrays(results_dir / "curves.npz", found.arrays)
    for name, rows in zip(Results._fields[:3], found[:3], strict=True):
        if name != "records":
            store.save_records(results_dir / f"{name}.jsonl", rows)
    store.save_records(results_dir / "records.jsonl", found.records)
    return results_dir


def _curve_results(name: str, run: RunConfig, stage: Stage, artefacts: store.Store) -> Results:
    """Records of one finished curve of experiment ``name``."""
    folder = artefacts.open(stage.name, stage.fingerprint).path
    proxies = {
        role: artefacts.open(part.name, part.fingerprint).path
        for role, part in stage.upstream.items()
        if role.startswith("proxy")
    }
    scorer = store.load_json(proxies["proxy"] / "scorer.json")
    training = {r: store.load_json(f / "training.json") for r, f in proxies.items()}
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
    for row in (common | row for row in store.load_json(folder / "rows.json")):
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
    tilt = [] if is_ppo else [run_id | p for p in store.load_json(folder / "tilt.json")]
    curve = store.load_arrays(folder / "curve.npz")
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
    responses += batch * rounds.earlier_ppo_steps(run, row["coord"])
    one_model = run.reward.members_by == "heads" or run.reward.combine == "weight_average"
    return responses * (1 if one_model else run.reward.members)


def _cost(artefacts: store.Store, stage: Stage) -> dict[str, Any]:
    """What a stage took, from its manifest. Of a resumed stage, the last attempt only."""
    manifest = artefacts.open(stage.name, stage.fingerprint).manifest
    keys = ("cpu_s", "wall_s", "device", "threads", "resumed")
    return {"stage": stage.name, "stage_id": stage.fingerprint} | {k: manifest[k] for k in keys}
