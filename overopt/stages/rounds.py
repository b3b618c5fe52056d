"""Retraining in rounds: iterated RLHF under one budget of gold labels.

    labels -> proxy -> method -> round_data -> proxy -> method -> round_data -> ...
              round 1            round 2                          round 3

Round 1 is the ordinary chain with a share of the comparisons. Every
other round labels fresh responses of the policy that the round before ended with, to prompts that no
round has used, and trains a proxy on them and what came before. One artefact, ``round_data``, holds
responses and labels together: it stands where ``comparisons`` and ``labels`` stand, so that whatever
trains a proxy or an ensemble takes it as it is. Gold reaches the next policy through it only, as
labels.

What it does differently from Wolf et al. 2025, whose rules of combination these are: rounds share
one budget instead of adding to it, and scores are normalised, validated and measured in KL on the
initial policy throughout, so that numbers of different rounds can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from overopt.base import files
from overopt.base.kinds import module_of
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed
from overopt.engine.graph import Stage, StageContext
from overopt.rewards.settings import LabelsConfig
from overopt.stages import common, comparisons, optimise, reward
from overopt.stages.common import load_responses, response_arrays
from overopt.stages.names import name_of
from overopt.stages.optimise import NamedMethod
from overopt.stages.settings import RoundsConfig, RunConfig
from overopt.worlds.load import load_world
from overopt.worlds.world import AnyWorld

if TYPE_CHECKING:
    import torch

    from overopt.base import datatypes
    from overopt.nets import checkpoints, sampling
    from overopt.rewards.labels import pairs as labelling
    from overopt.worlds import draws
else:
    torch, datatypes = lazy("torch"), lazy("overopt.base.datatypes")
    checkpoints, sampling = lazy("overopt.nets.checkpoints"), lazy("overopt.nets.sampling")
    labelling, draws = lazy("overopt.rewards.labels.pairs"), lazy("overopt.worlds.draws")


@dataclass(frozen=True, kw_only=True)
class RoundDataStage:
    """Labelled responses of the policy of the round before; ``labels``: those of one round."""

    world: AnyWorld
    labels: LabelsConfig
    data: Literal["concatenate", "take_last"]
    round: int
    root_seed: int


@dataclass(frozen=True, kw_only=True)
class RoundMethodStage:
    """A method's share of one round, where the policy is carried on through all ``k``."""

    world: AnyWorld
    method: NamedMethod
    round: int
    k: int
    root_seed: int
    start_sources: tuple[str, ...] = ()

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Those of the whole run that fall into this round, and its last step."""
        start, stop = (self.method.steps * j // self.k for j in (self.round - 1, self.round))
        inside = {step for step in self.method.evaluation_steps if start < step <= stop}
        return tuple(sorted(inside | {stop} | ({0} if self.round == 1 else set())))


def run_round_data(ctx: StageContext) -> None:
    """Label fresh responses of the last policy and join them with the data of earlier rounds.

    1. Sample K responses to each of the next prompts from the policy.
    2. Label their pairs with gold.
    3. Put the earlier rounds' responses and labels in front; validation is the first round's.
    """
    cfg: RoundDataStage = ctx.config
    labels, seed_names = cfg.labels, ("train", cfg.labels.data_seed, "round", cfg.round)
    world = load_world(cfg.world)
    gold = common.scorer_of(ctx, "gold", world)
    earlier, earlier_labels = ctx.inputs["comparisons"].path, ctx.inputs["labels"].path
    # 1.
    n_earlier = (cfg.round - 1) * labels.n_prompts
    weights = ctx.inputs["policy"].path / "policy.safetensors"
    responses = sampling.sample(
        checkpoints.load_policy(cfg.world.policy, weights).to(ctx.runtime.device),
        draws.comparison_prompts(
            world, "train", n_earlier + labels.n_prompts, seeds=(cfg.root_seed, labels.data_seed)
        ).select(slice(n_earlier, None)),
        n_tokens=cfg.world.max_response_tokens,
        seed=derive_seed(cfg.root_seed, "comparisons", *seed_names),
        copies=labels.responses_per_prompt,
    )
    # 2.
    scores = gold.score(responses)
    pairs = labelling.label_pairs(
        responses,
        scores,
        copies=labels.responses_per_prompt,
        n_pairs=labels.n_pairs,
        rule=labels.label_rule,
        flip_rate=labels.label_flip_rate,
        seed=derive_seed(cfg.root_seed, "labels", *seed_names),
        cue=comparisons.cue_of(cfg.world, labels, responses),
        cue_share=labels.cue_share,
    )
    fresh = {name: getattr(pairs, name).numpy() for name in comparisons.LABEL_ARRAYS}
    # 3.
    if cfg.data == "concatenate":
        n_rows = n_earlier * labels.responses_per_prompt
        before = files.load_arrays(earlier_labels / "train.npz")
        fresh = {k: v + n_rows if k in ("chosen", "rejected") else v for k, v in fresh.items()}
        fresh = {k: np.concatenate([before[k], v]) for k, v in fresh.items()}
        kept = load_responses(earlier / "train.npz").select(slice(0, n_rows))
        responses = datatypes.concat_responses([kept, responses])
        gold_before = files.load_arrays(earlier / "train_gold.npz")["gold"][:n_rows]
        scores = torch.cat([torch.from_numpy(gold_before), scores])
    table = response_arrays(responses, labels.responses_per_prompt)
    files.save_arrays(ctx.out / "train.npz", table | fresh)
    files.save_arrays(ctx.out / "train_gold.npz", {"gold": scores.numpy()})
    held_out = [
        files.load_arrays(folder / "validation.npz") for folder in (earlier, earlier_labels)
    ]
    files.save_arrays(ctx.out / "validation.npz", held_out[0] | held_out[1])


def run_round_method(ctx: StageContext) -> None:
    """Continue the method against this round's proxy; keep the whole state for the next round."""
    cfg: RoundMethodStage = ctx.config
    state = optimise.optimise(ctx, cfg.evaluation_steps)
    if cfg.round < cfg.k:
        tensors = module_of(cfg.method).state_tensors(state)
        files.save_tensors(ctx.out / "state.safetensors", tensors)


class Round(NamedTuple):
    """What one round trains and optimises; ``method``: None for a run without one."""

    proxy: Stage
    method: Stage | None


def stages(run: RunConfig, inputs: dict[str, Stage], gold: Stage) -> list[Round]:
    """The proxy and method of each round, the last one's at the end; one without retraining.

    ``inputs``: what round 1's proxy is trained on (calibration, comparisons, labels).
    """
    rounds, labels, calibration = run.rounds, run.labels_per_round, inputs["calibration"]
    done: list[Round] = []
    for j in range(1, rounds.k + 1):
        note = f", {name_of(rounds)}: round {j}" if rounds.k > 1 else ""
        last_proxy, policy = done[-1] if done else (None, None)
        if policy is not None:
            data = _data_stage(run, inputs, gold, policy, j)
            inputs = inputs | {"comparisons": data, "labels": data}
        seen = replace(labels, n_pairs=labels.n_pairs * (1 if rounds.data == "take_last" else j))
        plain = replace(run, rounds=RoundsConfig(), labels=seen)
        previous = last_proxy if rounds.rm == "carry_on" else None
        proxy = reward.stage(plain, inputs, previous=previous, note=note)
        method = None
        if run.method is not None:
            given = inputs | {"calibration": calibration, "proxy": proxy}
            method = optimise.stage(plain, given, note=note)
            if rounds.policy == "carry_on":
                method = _carried_on(run, method, policy, j)
        done.append(Round(proxy, method))
    return done


def _data_stage(
    run: RunConfig, inputs: dict[str, Stage], gold: Stage, policy: Stage, j: int
) -> Stage:
    """Labels of round ``j``, on the policy of the round before."""
    labels = run.labels_per_round
    return Stage(
        name="round_data",
        version=1,
        run=run_round_data,
        gpu=True,
        label=f"labels of {policy.label}",
        cost_s=5 + 0.03 * labels.n_prompts * common.policy_cost(run.optimised_world),
        config=RoundDataStage(
            world=run.optimised_world,
            labels=labels,
            data=run.rounds.data,
            round=j,
            root_seed=run.root_seed,
        ),
        upstream={r: inputs[r] for r in ("calibration", "comparisons", "labels")}
        | {"gold": gold, "policy": policy},
    )


def _carried_on(run: RunConfig, method: Stage, policy: Stage | None, j: int) -> Stage:
    """The method's stage of round ``j``, which goes on from where ``policy`` ended."""
    assert run.method is not None
    return replace(
        method,
        run=run_round_method,
        config=RoundMethodStage(
            world=run.optimised_world,
            method=run.method,
            round=j,
            k=run.rounds.k,
            root_seed=run.root_seed,
            start_sources=common.start_sources(run),
        ),
        upstream=method.upstream if policy is None else {**method.upstream, "start": policy},
        cost_s=method.cost_s / run.rounds.k,
        disk_mb=3 * method.disk_mb,
    )


def earlier_roles(run: RunConfig, done: list[Round]) -> dict[str, Stage]:
    """The rounds before the last as inputs of a curve that spans them all; none where it restarts."""
    roles: dict[str, Stage] = {}
    if run.rounds.policy == "carry_on":
        for j, (proxy, method) in enumerate(done[:-1], start=1):
            assert method is not None
            roles |= {f"proxy_{j:02d}": proxy, f"{method.name}_{j:02d}": method}
    return roles
