"""Trains with SFT, RM and PPO as one of several processes; rank 0 prints the trajectories."""

import json
import sys

import torch
from ppo_steps import ppo_step
from training_data import (
    CountsToken,
    backbone,
    examples,
    prompts,
    reward_model,
    training_pairs,
)

from overopt.base.config import RuntimeConfig
from overopt.engine import launched
from overopt.methods import ppo
from overopt.methods.ppo import new_state
from overopt.methods.sft import Examples, SftConfig, fine_tune
from overopt.nets.compute import compute_of
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.training.train import train_reward_model


def quiet(done: int, total: int) -> None:
    """Show nothing."""


def trajectories() -> dict[str, list[float]]:
    """Loss of each optimizer step of SFT and RM; scores and losses of each PPO step."""
    compute = compute_of(RuntimeConfig(micro_batch=3))
    # Odd shapes on purpose: shares of the processes differ in rows and tokens.
    sft = fine_tune(
        backbone(), Examples(*examples(47)), SftConfig(batch=7, lr=1e-2, epochs=4),
        progress=quiet, compute=compute,
    )  # fmt: skip
    rm = train_reward_model(
        reward_model(), training_pairs(25), epochs=3, lr=1e-2, batch_prompts=3, weight_decay=0.01,
        seed=3, validate=dict, progress=quiet, compute=compute,
    )  # fmt: skip
    cfg = ppo.Settings(
        steps=20, batch=140, minibatches=2, lr=3e-4, warmup_steps=1, eval_prompts=4, kl_coef=0.05
    )
    state = new_state(backbone(), ScalarHeadModel(backbone(1)), cfg)
    steps = [
        ppo_step(
            state, backbone(), CountsToken(), prompts(6), cfg, n_tokens=6, seed=5, compute=compute
        )
        for _ in range(20)
    ]
    names = ("train_proxy_score", "value_loss", "update_kl_token_nats", "entropy_token_nats")
    return {
        "sft": sft.loss + [sft.validation_before, sft.validation_after],
        "rm": rm.loss,
        **{f"ppo {name}": [step[name] for step in steps] for name in names},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    launched.connect(RuntimeConfig())
    found = trajectories()
    if launched.rank() == 0:
        json.dump(found, sys.stdout)
    launched.disconnect()
