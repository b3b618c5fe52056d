"""Reward-model training: Bradley-Terry on pairs, all responses of one prompt in one batch element.

As in InstructGPT (Ouyang et al. 2022) the K responses of a prompt are scored once and all their
pairs enter the loss together, so a response is never seen twice in an epoch. The same loop fits
proxies to labels of gold (hard) and a learned gold to labels of the rubric (soft).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from overopt.datatypes import Responses
from overopt.errors import DivergenceError
from overopt.functional import bradley_terry_loss
from overopt.nets import ScalarHeadModel
from overopt.sampling import sequence_batches
from overopt.seeding import torch_generator


@dataclass(frozen=True)
class TrainingPairs:
    """Pairs by row of ``responses``; ``target`` (C,) = P(first preferred), 1 for a hard label."""

    responses: Responses
    first: Tensor
    second: Tensor
    target: Tensor


@dataclass
class TrainingLog:
    """What happened: mean loss of each optimizer step, and validation after each epoch."""

    loss: list[float] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    pairs_seen: int = 0


def forward_scores(model: ScalarHeadModel, responses: Responses, batch_tokens: int) -> Tensor:
    """Scores (R,) with gradient, computed in length-sorted batches without wasted padding."""
    parts, order = [], []
    for rows, seq in sequence_batches(responses, batch_tokens):
        parts.append(model.at_last_token(seq.ids, seq.length))
        order.append(rows)
    return torch.cat(parts)[torch.argsort(torch.cat(order))]


def train_reward_model(
    model: ScalarHeadModel,
    pairs: TrainingPairs,
    *,
    epochs: int,
    lr: float,
    batch_prompts: int,
    weight_decay: float,
    seed: int,
    validate: Callable[[], dict[str, float]],
    progress: Callable[[int, int], None],
) -> TrainingLog:
    """Train ``model`` in place; AdamW (eps 1e-5), 5 % warm-up, linear decay to 0.

    Raises
    ------
    DivergenceError
        The loss is not finite; names the step.
    """
    prompt_ids = pairs.responses.prompts.prompt_id
    pair_prompt = prompt_ids[pairs.first]
    groups = [torch.nonzero(pair_prompt == p)[:, 0] for p in pair_prompt.unique(sorted=True)]
    steps_per_epoch = math.ceil(len(groups) / batch_prompts)
    total = epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, eps=1e-5, betas=(0.9, 0.99), weight_decay=weight_decay
    )
    log = TrainingLog()
    for epoch in range(epochs):
        order = torch.randperm(
            len(groups), generator=torch_generator(seed, "order", epoch)
        ).tolist()
        for start in range(0, len(order), batch_prompts):
            batch = torch.cat([groups[i] for i in order[start : start + batch_prompts]])
            rows, where = torch.unique(
                torch.stack([pairs.first[batch], pairs.second[batch]]), return_inverse=True
            )
            scores = forward_scores(model, pairs.responses.select(rows), batch_tokens=1 << 14)
            loss = bradley_terry_loss(scores[where[0]], scores[where[1]], pairs.target[batch])
            if not math.isfinite(loss.item()):
                raise DivergenceError(
                    f"reward-model loss is {loss.item()} at step {log.steps} of {total}: lower the"
                    f" learning rate (lr = {lr})"
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scale = min((log.steps + 1) / max(1, 0.05 * total), 1.0) * (1 - log.steps / total)
            for group in optimizer.param_groups:
                group["lr"] = lr * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            log.loss.append(loss.item())
            log.steps += 1
            log.pairs_seen += len(batch)
            progress(log.steps, total)
        log.validation.append(validate())
    return log
