"""Reward-model training: Bradley-Terry on pairs, all responses of one prompt in one batch element.

As in InstructGPT (Ouyang et al. 2022) the K responses of a prompt are scored once and all their
pairs enter the loss together, so a response is never seen twice in an epoch. The same loop fits
proxies to labels of gold (hard) and a learned gold to labels of the rubric (soft).

A pair may be split by micro-batches or processes: the loss is a function of the scores of all
responses of a step, so the scores come first (from everywhere), then the derivative of the loss in
each score, then each micro-batch's backward pass.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from overopt.base.datatypes import Sequences, length_sorted, shared_prompts
from overopt.base.errors import DivergenceError
from overopt.base.seeding import torch_generator
from overopt.nets.block import Prefix
from overopt.nets.compute import Compute, clear_gradients, tokens_at_once
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.llama import Llama
from overopt.rewards.training.pairs import PairBatch, PairBatches, TrainingPairs

# Padded tokens of one call of a network, where no micro-batch is set. On a CPU few, so that what one
# layer writes is in the cache of the next.
FORWARD_TOKENS, FORWARD_TOKENS_CPU = 1 << 14, 1 << 11
READ_LOSS_EVERY = 32  # steps on a CUDA GPU, which would wait for each reading
BETAS, EPS, GRAD_CLIP, WARM_UP = (0.9, 0.99), 1e-5, 1.0, 0.05


@dataclass
class TrainingLog:
    """What happened: mean loss of each optimizer step, and validation after each epoch."""

    loss: list[float] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    pairs_seen: int = 0


PairLoss = Callable[[Tensor, PairBatch], Tensor]
"""Scores (R,) or (R, k) of the batch's responses, and the batch -> loss to minimise."""


def preference_loss(scores: Tensor, batch: PairBatch) -> Tensor:
    """Mean Bradley-Terry loss of a batch in nats; scores (R,)."""
    device = scores.device
    pairs = (batch.first, batch.second, batch.target)
    first, second, target = (t.to(device, non_blocking=True) for t in pairs)
    return bradley_terry_loss(scores[first], scores[second], target)


def learning_rate(step: int, total: int) -> float:
    """Share of the peak at optimizer step ``step`` (from 0): 5 % warm-up, linear decay to 0."""
    return min((step + 1) / max(1, WARM_UP * total), 1.0) * (1 - step / total)


def reward_optimizer(
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]], *, lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over parameters or groups; fused: a loop over tensors costs more than the update."""
    return torch.optim.AdamW(
        parameters, lr=lr, eps=EPS, betas=BETAS, weight_decay=weight_decay, fused=True
    )


def forward_scores(model: ScalarHeadModel, seq: Sequences, compute: Compute) -> Tensor:
    """Scores (R,) float32 with gradient of sequences, in calls of bounded size.

    On a CPU a compact Llama computes each distinct prompt once, and its responses behind it. Other
    networks, and accelerators, for which fewer and larger calls count more, read whole sequences.
    """
    device, backbone = model.head.weight.device, model.backbone
    most, shared = tokens_at_once(device, FORWARD_TOKENS), None
    if device.type == "cpu":
        most = min(most, FORWARD_TOKENS_CPU)
        shared = shared_prompts(seq) if isinstance(backbone, Llama) else None
    ids, length = (seq.ids, seq.length) if shared is None else (shared.ids, shared.length)
    batches = list(length_sorted(length, most))
    order = torch.cat([torch.zeros(0, dtype=torch.int64), *batches])
    parts = [torch.zeros(0, device=device)]
    with compute.autocast(device):
        before: list[Prefix | None] = [None] * len(batches)
        if shared is not None:
            prompts = model.compact.prefix(shared.prompt_ids, shared.n_prompt)
            before = [*prompts.select(shared.prompt[order]).split([len(b) for b in batches])]
        for rows, prefix in zip(batches, before, strict=True):
            n = length[rows]
            some = ids[rows, : int(n[-1])]
            # Copies that wait for nothing: the GPU works while the next step is prepared.
            some, n = (t.to(device, non_blocking=True) for t in (some, n))
            scores = model.at_last_token(some, n, prefix)
            parts.append(scores.float())
    return torch.cat(parts[1:] or parts)[torch.argsort(order).to(device)]


def pair_loss_backward(
    model: ScalarHeadModel,
    batch: PairBatch,
    compute: Compute,
    pair_loss: PairLoss = preference_loss,
) -> Tensor:
    """Loss of a batch (by default mean Bradley-Terry, in nats), and its gradients in ``.grad``.

    1. Scores of this process's share; with a graph where they fit one micro-batch.
    2. Scores of all processes; the loss and its derivative in each score.
    3. Backward pass micro-batch by micro-batch, from the derivatives; the scores are computed
       again where the graph was not kept.

    Both are the same, to the order of float32 sums, however the rows are divided.
    """
    n_rows, device = len(batch.seq.ids), model.head.weight.device
    mine = compute.share(torch.arange(n_rows))
    parameters = list(model.parameters())

    def scores_of(rows: Tensor) -> Tensor:
        return forward_scores(model, Sequences(*(t[rows] for t in batch.seq)), compute)

    def forward(size: int) -> list[Tensor]:
        parts = mine.split(size)
        with torch.set_grad_enabled(len(parts) == 1):
            return [scores_of(rows) for rows in parts]

    # 1.
    own = compute.attempt(forward, len(mine))
    # 2.
    scores = compute.gather(torch.cat([s.detach() for s in own]), mine, n_rows).requires_grad_()
    loss = pair_loss(scores, batch)
    (derivative,) = torch.autograd.grad(loss, scores)

    def backward(size: int) -> None:
        clear_gradients(parameters)
        for rows in mine.split(size):
            kept = own.pop() if own and own[-1].requires_grad else scores_of(rows)
            if len(rows) > 0:
                kept.backward(derivative[rows.to(device, non_blocking=True)])

    # 3.
    compute.attempt(backward, len(mine))
    compute.sum_gradients(parameters)
    return loss.detach()


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
    compute: Compute | None = None,
    pair_loss: PairLoss = preference_loss,
) -> TrainingLog:
    """Train ``model`` in place; AdamW (eps 1e-5), 5 % warm-up, linear decay to 0.

    Raises
    ------
    DivergenceError
        The loss is not finite; names the step.
    MemoryLimitError
        A single sequence does not fit the memory.
    """
    compute = compute or Compute()
    batches = PairBatches(pairs, batch_prompts=batch_prompts, seed=seed)
    total = epochs * batches.steps
    optimizer = reward_optimizer(model.parameters(), lr=lr, weight_decay=weight_decay)
    log = TrainingLog()
    pending: list[Tensor] = []

    def read_losses() -> None:
        for loss in torch.stack(pending).tolist() if pending else ():
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"reward-model loss is {loss} at step {len(log.loss)} of {total}: lower the"
                    f" learning rate (lr = {lr})"
                )
            log.loss.append(loss)
        pending.clear()

    for epoch in range(epochs):
        for batch in batches.epoch(epoch):
            pending.append(pair_loss_backward(model, batch, compute, pair_loss))
            if not pending[-1].is_cuda or len(pending) == READ_LOSS_EVERY:
                read_losses()
            torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
            for group in optimizer.param_groups:
                group["lr"] = lr * learning_rate(log.steps, total)
            optimizer.step()
            log.steps += 1
            log.pairs_seen += len(batch.target)
            progress(log.steps, total)
        read_losses()
        log.validation.append(validate())
    return log


def train_on_rows(
    parameters: list[Tensor],
    loss_of: Callable[[Tensor], Callable[[Tensor], Tensor]],
    *,
    n_rows: int,
    batch: int,
    epochs: int,
    lr: float,
    weight_decay: float,
    seed: int,
    name: str,
    validate: Callable[[], dict[str, float]],
    progress: Callable[[int, int], None],
    compute: Compute,
) -> TrainingLog:
    """Train on single rows in the order of ``seed``, ``batch`` of them a step; AdamW as for comparisons.

    ``loss_of(rows)`` gives, for the rows of a step, the function that maps some of them to their part
    (1,) of the step's loss; parts add up. ``name``: of what is trained, for the error.

    Raises
    ------
    DivergenceError
        The loss is not finite; names the step.
    """
    optimizer = reward_optimizer(parameters, lr=lr, weight_decay=weight_decay)
    total, log = epochs * math.ceil(n_rows / batch), TrainingLog()
    for epoch in range(epochs):
        order = torch.randperm(n_rows, generator=torch_generator(seed, "order", epoch))
        for rows in order.split(batch):
            loss = float(compute.accumulate(rows, parameters, loss_of(rows))[0])
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"{name} loss is {loss} at step {log.steps} of {total}: lower the learning rate"
                    f" (lr = {lr})"
                )
            log.loss.append(loss)
            torch.nn.utils.clip_grad_norm_(parameters, GRAD_CLIP)
            for group in optimizer.param_groups:
                group["lr"] = lr * learning_rate(log.steps, total)
            optimizer.step()
            log.steps += 1
            progress(log.steps, total)
        log.validation.append(validate())
    return log


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, target: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats of Bradley-Terry preferences; scores (C,).

    −log σ(chosen − rejected), or with soft ``target`` q (C,) = P(chosen preferred):
    −q log σ(m) − (1 − q) log σ(−m).
    """
    margin = chosen - rejected
    if target is None:
        return F.softplus(-margin).mean()
    return (target * F.softplus(-margin) + (1 - target) * F.softplus(margin)).mean()
