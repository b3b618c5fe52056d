"""The training of a reward model whose steps are timed: one pass over the pairs, AdamW, no decay."""

from collections.abc import Callable

import torch

from overopt.nets.compute import Compute
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.training.pairs import TrainingPairs
from overopt.rewards.training.train import train_reward_model

LR = 1e-4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def train_once(
    model: ScalarHeadModel,
    pairs: TrainingPairs,
    *,
    batch: int,
    seed: int = 0,
    compute: Compute | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Train ``model`` on ``pairs``, ``batch`` prompts a step; ``progress`` is called after each."""
    train_reward_model(
        model,
        pairs,
        epochs=1,
        lr=LR,
        batch_prompts=batch,
        weight_decay=0.0,
        seed=seed,
        validate=dict,
        progress=progress,
        compute=compute,
    )
