"""Retraining in rounds: iterated RLHF under one budget of gold labels.

    labels -> proxy -> ppo -> round_data -> proxy -> ppo -> round_data -> ...
              round 1         round 2                       round 3

Between pipeline and stages. Round 1 is the ordinary chain with a share of the comparisons. Every
other round labels fresh responses of the policy that the round before ended with, to prompts that no
round has used, and trains a proxy on them and what came before. One artefact, ``round_data``, holds
responses and labels together: it stands where ``comparisons`` and ``labels`` stand, so that whatever
trains a proxy or an ensemble takes it as it is. Gold reaches the next policy through it only, as
labels.

What it does differently from Wolf et al. 2025, whose rules of combination these are: rounds share
one budget instead of adding to it, and scores are normalised, validated and measured in KL on the
initial policy throughout, so that numbers of different rounds can be compared.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch

from overopt import stages, store
from overopt.artefacts import load_policy, load_responses, load_world, response_arrays
from overopt.datatypes import concat_responses
from overopt.graph import Stage, StageContext
from overopt.labels import label_pairs
from overopt.methods.ppo import state_tensors
from overopt.sampling import sample
from overopt.seeding import derive_seed
from overopt.settings import LabelsConfig, PpoConfig, RoundsConfig, RunConfig, WorldConfig


@dataclass(frozen=True, kw_only=True)
class RoundDataStage:
    """Labelled responses of the policy of the round before; ``labels``: those of one round."""

    world: WorldConfig
    labels: LabelsConfig
    data: Literal["concatenate", "take_last"]
    round: int
    root_seed: int


@dataclass(frozen=True, kw_only=True)
class RoundPpoStage:
    """PPO's share of one round, where the policy is carried on through all ``k``."""

    world: WorldConfig
    ppo: PpoConfig
    round: int
    k: int
    root_seed: int

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Those of the whole run that fall into this round, and its last step."""
        start, stop = (self.ppo.steps * j // self.k for j in (self.round - 1, self.round))
        inside = {step for step in self.ppo.evaluation_steps if start < step <= stop}
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
    gold = stages.scorer_of(ctx, "gold", world)
    earlier, earlier_labels = ctx.inputs["comparisons"].path, ctx.inputs["labels"].path
    # 1.
    n_earlier = (cfg.round - 1) * labels.n_prompts
    weights = ctx.inputs["policy"].path / "policy.safetensors"
    responses = sample(
        load_policy(cfg.world.policy, weights).to(ctx.runtime.device),
        stages.comparison_prompts(
            world, "train", n_earlier + labels.n_prompts, seeds=(cfg.root_seed, labels.data_seed)
        ).select(slice(n_earlier, None)),
        n_tokens=cfg.world.max_response_tokens,
        seed=derive_seed(cfg.root_seed, "comparisons", *seed_names),
        copies=labels.responses_per_prompt,
    )
    # 2.
    scores = gold.score(responses)
    pairs = label_pairs(
        responses,
        scores,
        copies=labels.responses_per_prompt,
        n_pairs=labels.n_pairs,
        rule=labels.label_rule,
        flip_rate=labels.label_flip_rate,
        seed=derive_seed(cfg.root_seed, "labels", *seed_names),
    )
    fresh = {name: getattr(pairs, name).numpy() for name in stages.LABEL_ARRAYS}
    # 3.
    if cfg.data == "concatenate":
        n_rows = n_earlier * labels.responses_per_prompt
        before = store.load_arrays(earlier_labels / "train.npz")
        fresh = {k: v + n_rows if k in ("chosen", "rejected") else v for k, v in fresh.items()}
        fresh = {k: np.concatenate([before[k], v]) for k, v in fresh.items()}
        kept = load_responses(earlier / "train.npz").select(slice(0, n_rows))
        responses = concat_responses([kept, responses])
        gold_before = store.load_arrays(earlier / "train_gold.npz")["gold"][:n_rows]
        scores = torch.cat([torch.from_numpy(gold_before), scores])
    table = response_arrays(responses, labels.responses_per_prompt)
    store.save_arrays(ctx.out / "train.npz", table | fresh)
    store.save_arrays(ctx.out / "train_gold.npz", {"gold": scores.numpy()})
    held_out = [
        store.load_arrays(folder / "validation.npz") for folder in (earlier, earlier_labels)
    ]
    store.save_arrays(ctx.out / "validation.npz", held_out[0] | held_out[1])


def run_round_ppo(ctx: StageContext) -> None:
    """Continue PPO against this round's proxy; keep the whole state for the next round."""
    cfg: RoundPpoStage = ctx.config
    state = stages.optimise(ctx, cfg.evaluation_steps)
    if cfg.round < cfg.k:
        store.save_tensors(ctx.out / "state.safetensors", state_tensors(state))


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


def chain(
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


def name_of(rounds: RoundsConfig) -> str:
    """Number of rounds, and what of data, proxy and policy is not the default."""
    parts = [f"{rounds.k} rounds"]
    parts += ["newest data"] * (rounds.data == "take_last")
    parts += ["proxy carried on"] * (rounds.rm == "carry_on")
    return ", ".join(parts + ["policy carried on"] * (rounds.policy == "carry_on"))


def earlier_roles(run: RunConfig, done: list[Round]) -> dict[str, Stage]:
    """The rounds before the last as inputs of a curve that spans them all; none where PPO restarts."""
    roles: dict[str, Stage] = {}
    if run.rounds.policy == "carry_on":
        for j, (proxy, ppo) in enumerate(done[:-1], start=1):
            assert ppo is not None
            roles |= {f"proxy_{j:02d}": proxy, f"ppo_{j:02d}": ppo}
    return roles


def earlier_ppo_steps(run: RunConfig, coord: str) -> int:
    """PPO steps of earlier rounds that a row's coordinate does not count."""
    k = run.rounds.k
    if run.ppo is None or (run.rounds.policy == "carry_on" and coord == "ppo_step"):
        return 0
    steps = run.ppo.steps * (k - 1)
    return steps // k if run.rounds.policy == "carry_on" else steps
