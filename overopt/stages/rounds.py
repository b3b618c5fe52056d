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

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from overopt.base import files
from overopt.base.datatypes import concat_responses
from overopt.base.seeding import derive_seed
from overopt.engine.graph import StageContext
from overopt.methods.ppo import PpoConfig, state_tensors
from overopt.nets.checkpoints import load_policy
from overopt.nets.sampling import sample
from overopt.rewards.labels.pairs import LabelsConfig, label_pairs
from overopt.stages import common, comparisons, optimise
from overopt.stages.common import load_responses, response_arrays
from overopt.worlds import splits
from overopt.worlds.load import load_world
from overopt.worlds.world import WorldConfig


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
    gold = common.scorer_of(ctx, "gold", world)
    earlier, earlier_labels = ctx.inputs["comparisons"].path, ctx.inputs["labels"].path
    # 1.
    n_earlier = (cfg.round - 1) * labels.n_prompts
    weights = ctx.inputs["policy"].path / "policy.safetensors"
    responses = sample(
        load_policy(cfg.world.policy, weights).to(ctx.runtime.device),
        splits.comparison_prompts(
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
    fresh = {name: getattr(pairs, name).numpy() for name in comparisons.LABEL_ARRAYS}
    # 3.
    if cfg.data == "concatenate":
        n_rows = n_earlier * labels.responses_per_prompt
        before = files.load_arrays(earlier_labels / "train.npz")
        fresh = {k: v + n_rows if k in ("chosen", "rejected") else v for k, v in fresh.items()}
        fresh = {k: np.concatenate([before[k], v]) for k, v in fresh.items()}
        kept = load_responses(earlier / "train.npz").select(slice(0, n_rows))
        responses = concat_responses([kept, responses])
        gold_before = files.load_arrays(earlier / "train_gold.npz")["gold"][:n_rows]
        scores = torch.cat([torch.from_numpy(gold_before), scores])
    table = response_arrays(responses, labels.responses_per_prompt)
    files.save_arrays(ctx.out / "train.npz", table | fresh)
    files.save_arrays(ctx.out / "train_gold.npz", {"gold": scores.numpy()})
    held_out = [
        files.load_arrays(folder / "validation.npz") for folder in (earlier, earlier_labels)
    ]
    files.save_arrays(ctx.out / "validation.npz", held_out[0] | held_out[1])


def run_round_ppo(ctx: StageContext) -> None:
    """Continue PPO against this round's proxy; keep the whole state for the next round."""
    cfg: RoundPpoStage = ctx.config
    state = optimise.optimise(ctx, cfg.evaluation_steps)
    if cfg.round < cfg.k:
        files.save_tensors(ctx.out / "state.safetensors", state_tensors(state))
