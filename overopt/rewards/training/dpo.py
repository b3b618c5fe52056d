"""Training a policy on comparisons by DPO, for the reward that it stands for."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from overopt.base.datatypes import Sequences
from overopt.base.errors import DivergenceError
from overopt.nets.backbone import Backbone
from overopt.nets.compute import Compute
from overopt.nets.sampling import response_hidden, response_view, token_logprobs
from overopt.rewards.training.pairs import PairBatches, TrainingPairs
from overopt.rewards.training.train import (
    GRAD_CLIP,
    TrainingLog,
    learning_rate,
    preference_loss,
    reward_optimizer,
)


def response_logprob(policy: Backbone, seq: Sequences) -> Tensor:
    """log π(response | prompt) (R,) float32 in nats of joined sequences; differentiable."""
    seq = Sequences(*(t.to(policy.device) for t in seq))
    view = response_view(seq)
    logits = policy.logits(response_hidden(policy, seq, view)).float()
    return (token_logprobs(logits, view.tokens) * view.mask).sum(1)


def train_dpo(
    policy: Backbone,
    reference: Backbone,
    pairs: TrainingPairs,
    *,
    beta: float,
    epochs: int,
    lr: float,
    batch_prompts: int,
    seed: int,
    validate: Callable[[], dict[str, float]],
    progress: Callable[[int, int], None],
    compute: Compute,
) -> TrainingLog:
    """Train ``policy`` in place by the loss −log σ(β(h_chosen − h_rejected)), h = log π/π_ref.

    Rafailov et al. 2023, equation 7. The optimiser is that of reward models. A step's responses go
    through the networks together.

    Raises
    ------
    DivergenceError
        The loss is not finite; names the step.
    """
    batches = PairBatches(pairs, batch_prompts=batch_prompts, seed=seed)
    optimizer = reward_optimizer(policy.parameters(), lr=lr, weight_decay=0.0)
    total, log = epochs * batches.steps, TrainingLog()
    for epoch in range(epochs):
        for batch in batches.epoch(epoch):
            with compute.autocast(policy.device):
                with torch.no_grad():
                    before = response_logprob(reference, batch.seq)
                ratio = response_logprob(policy, batch.seq) - before
            loss = preference_loss(beta * ratio, batch)
            log.loss.append(loss.item())
            if not math.isfinite(log.loss[-1]):
                raise DivergenceError(
                    f"DPO loss is {log.loss[-1]} at step {log.steps} of {total}: lower the learning"
                    f" rate (lr = {lr})"
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), GRAD_CLIP)
            for group in optimizer.param_groups:
                group["lr"] = lr * learning_rate(log.steps, total)
            optimizer.step()
            log.steps += 1
            log.pairs_seen += len(batch.target)
            progress(log.steps, total)
        log.validation.append(validate())
    return log
