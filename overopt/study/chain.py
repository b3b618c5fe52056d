"""The table of stages: from an experiment to its graph, and from finished artefacts to records.

    calibration -> gold -> comparisons -> labels -> proxy -> bon
                      \\-> pool -------------------------/  \\-> ppo -> ppo_gold

What each stage does is `overopt.stages`. Gold is an input of ``comparisons``, ``pool`` and
``ppo_gold`` only: no optimisation method can reach it.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

from overopt.engine.graph import Stage
from overopt.rewards.kinds.ensemble import load_transform
from overopt.rewards.transforms.inputs import check_contract
from overopt.stages import best_of_n, judge
from overopt.stages.calibration import CalibrationStage, run_calibration
from overopt.stages.comparisons import ComparisonsStage, LabelsStage, run_comparisons, run_labels
from overopt.stages.gold import GoldStage, run_gold
from overopt.stages.names import describe, name_of
from overopt.stages.optimise import ppo_stage
from overopt.stages.pool import pool_stages
from overopt.stages.reward import proxy_stage, scoring_rate
from overopt.stages.rounds import RoundDataStage, RoundPpoStage, run_round_data, run_round_ppo
from overopt.stages.settings import Experiment, RoundsConfig, RunConfig
from overopt.study.checks import check_prompts, check_sources, source_checksums, with_longest_prompt
from overopt.worlds import splits
from overopt.worlds.load import load_world
from overopt.worlds.world import World, WorldConfig


def curve_stages(run: RunConfig) -> list[Stage]:
    """The last stages of one run, with all their upstreams: its curves."""
    world, seed = run.world, run.root_seed
    calibration = Stage(
        name="calibration",
        version=2,
        run=run_calibration,
        gpu=True,
        label="calibration",
        cost_s=6,
        config=CalibrationStage(
            world=world, rubric=run.gold.rubric, root_seed=seed, sources=source_checksums(run)
        ),
    )
    gold = Stage(
        name="gold",
        version=2,
        run=run_gold,
        gpu=True,
        label="gold",
        cost_s=6 + 0.025 * run.gold.n_prompts * run.gold.copies * (run.gold.kind == "learned"),
        config=GoldStage(world=world, gold=run.gold, root_seed=seed),
        upstream={"calibration": calibration},
    )
    labels = run.labels_per_round
    # Data sizes share responses; a small world has fewer prompts than the steps of this ladder.
    available = splits.len_split(load_world(world), "train")
    # Large policies cost more a response, so their first step is small.
    steps = (50, 250, 1000) if world.kind == "stories" else (5, 50, 250, 1000)
    n_prompts = next((n for n in steps if n >= labels.n_prompts), available)
    n_prompts = min(n_prompts, available)
    comparisons = Stage(
        name="comparisons",
        version=2,
        run=run_comparisons,
        gpu=True,
        label=f"comparisons data seed {labels.data_seed} ({n_prompts} prompts)",
        cost_s=0.03 * n_prompts + 5,
        config=ComparisonsStage(
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
        run=run_labels,
        label=f"labels {labels.n_pairs} pairs flip {labels.label_flip_rate} data {labels.data_seed}",
        cost_s=1,
        config=LabelsStage(labels=labels, root_seed=seed),
        upstream={"comparisons": comparisons},
    )
    name = describe(run)
    proxy_inputs = {"calibration": calibration, "comparisons": comparisons, "labels": label_stage}
    if run.proxy.kind == "gold":
        proxy_inputs["gold"] = gold
    chain = round_stages(run, proxy_inputs, gold, proxy_stage=proxy_stage, ppo_stage=ppo_stage)
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
                run=best_of_n.run_scores,
                gpu=True,
                label=f"scores of {member.title} on pool {run.bon.n_prompts} x {run.bon.pool_size}",
                cost_s=3 + n_pool * 0.00025 * scoring_rate(run.proxy),
                disk_mb=n_pool * 4e-6,
                config=best_of_n.ScoresStage(
                    world=world, root_seed=seed, precision=run.bon.precision
                ),
                upstream={"calibration": calibration, "proxy": member} | pools,
            )
            for i, member in enumerate(members)
        }
        ends.append(
            Stage(
                name="bon",
                version=3,
                run=best_of_n.run_bon,
                label=f"bon {name}",
                cost_s=3,
                config=best_of_n.BonStage(world=world, bon=run.bon, root_seed=seed),
                upstream={"calibration": calibration, "proxy": proxy} | pools | scores,
            )
        )
    if run.ppo is not None and ppo is not None:
        ends.append(
            Stage(
                name="ppo_gold",
                version=2,
                run=judge.run_ppo_gold,
                gpu=True,
                label=f"ppo gold {name} kl {run.ppo.kl_coef} seed {run.ppo.ppo_seed}",
                cost_s=5 + 2 * len(run.ppo.evaluation_steps),
                config=judge.PpoGoldStage(world=world, root_seed=seed),
                upstream={"calibration": calibration, "gold": gold, "proxy": proxy, "ppo": ppo}
                | earlier_roles(run, chain),
            )
        )
    return ends


def build_graph(experiment: Experiment) -> list[Stage]:
    """Curve stages of all runs; their upstreams follow. Checks every source before any work."""
    worlds: dict[WorldConfig, tuple[World, int]] = {}
    for run in experiment.runs:
        if run.world not in worlds:
            worlds[run.world] = with_longest_prompt(run.world)
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


class Round(NamedTuple):
    """What one round trains and optimises; ``ppo``: None for a run without PPO."""

    proxy: Stage
    ppo: Stage | None


class ProxyStages(Protocol):
    """Builds the stage of a run's proxy; see `overopt.pipeline.proxy_stage`."""

    def __call__(
        self,
        run: RunConfig,
        inputs: dict[str, Stage],
        *,
        previous: Stage | None = None,
        note: str = "",
    ) -> Stage:
        """``previous``: the proxy to carry on; ``note``: ends the label."""
        ...


class PpoStages(Protocol):
    """Builds the stage of a run's PPO; see `overopt.pipeline.ppo_stage`."""

    def __call__(self, run: RunConfig, inputs: dict[str, Stage], *, note: str = "") -> Stage:
        """``note``: ends the label."""
        ...


def round_stages(
    run: RunConfig,
    inputs: dict[str, Stage],
    gold: Stage,
    *,
    proxy_stage: ProxyStages,
    ppo_stage: PpoStages,
) -> list[Round]:
    """The proxy and PPO of each round, the last one's at the end; one for a run without retraining.

    ``inputs``: what round 1's proxy is trained on (calibration, comparisons, labels).
    """
    rounds, labels, calibration = run.rounds, run.labels_per_round, inputs["calibration"]
    is_last_only = rounds.data == "take_last"
    done: list[Round] = []
    for j in range(1, rounds.k + 1):
        note = f", {name_of(rounds)}: round {j}" if rounds.k > 1 else ""
        last_proxy, policy = done[-1] if done else (None, None)
        if policy is not None:
            data = Stage(
                name="round_data",
                version=1,
                run=run_round_data,
                gpu=True,
                label=f"labels of {policy.label}",
                cost_s=5 + 0.03 * labels.n_prompts,
                config=RoundDataStage(
                    world=run.world,
                    labels=labels,
                    data=rounds.data,
                    round=j,
                    root_seed=run.root_seed,
                ),
                upstream={r: inputs[r] for r in ("calibration", "comparisons", "labels")}
                | {"gold": gold, "policy": policy},
            )
            inputs = inputs | {"comparisons": data, "labels": data}
        seen = replace(labels, n_pairs=labels.n_pairs * (1 if is_last_only else j))
        plain = replace(run, rounds=RoundsConfig(), labels=seen)
        previous = last_proxy if rounds.rm == "carry_on" else None
        proxy = proxy_stage(plain, inputs, previous=previous, note=note)
        ppo = None
        if run.ppo is not None:
            ppo = ppo_stage(plain, {"calibration": calibration, "proxy": proxy}, note=note)
            if rounds.policy == "carry_on":
                ppo = replace(
                    ppo,
                    run=run_round_ppo,
                    config=RoundPpoStage(
                        world=run.world,
                        ppo=run.ppo,
                        round=j,
                        k=rounds.k,
                        root_seed=run.root_seed,
                    ),
                    upstream=ppo.upstream if policy is None else {**ppo.upstream, "start": policy},
                    cost_s=ppo.cost_s / rounds.k,
                    disk_mb=3 * ppo.disk_mb,
                )
        done.append(Round(proxy, ppo))
    return done


def earlier_roles(run: RunConfig, done: list[Round]) -> dict[str, Stage]:
    """The rounds before the last as inputs of a curve that spans them all; none where PPO restarts."""
    roles: dict[str, Stage] = {}
    if run.rounds.policy == "carry_on":
        for j, (proxy, ppo) in enumerate(done[:-1], start=1):
            assert ppo is not None
            roles |= {f"proxy_{j:02d}": proxy, f"ppo_{j:02d}": ppo}
    return roles
