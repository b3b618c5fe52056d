"""Several reward models of one shape at once: batched weights with a leading member axis.

Members of an ensemble differ in head, data order or data, not in shape. Small networks spend more
time between matrix products than in them; here one call serves all members. Per member the result
is that of `train_reward_model` alone, to the order of float32 sums: same batches, loss, clipping,
schedule and optimizer.

What it does differently from ``torch.func.vmap``: the forward pass is written out for a member axis,
with batched products around the functions of `overopt.nets.fused`. Everything runs in one process;
micro-batches and autocast are for `train_reward_model`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from overopt.base.datatypes import Responses
from overopt.base.errors import ConfigError, DivergenceError
from overopt.nets.block import LlamaConfig
from overopt.nets.compute import tokens_at_once
from overopt.nets.fused import Normalise, SwiGlu
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.sampling import sequence_batches
from overopt.rewards.training.pairs import PairBatch, PairBatches, TrainingPairs
from overopt.rewards.training.train import (
    GRAD_CLIP,
    READ_LOSS_EVERY,
    TrainingLog,
    learning_rate,
    reward_optimizer,
)


def _rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (x_i, x_{i+half}) in place by the angles of ``cos`` and ``sin`` (…, half)."""
    left, right = x.chunk(2, -1)
    before = left.clone()
    left.mul_(cos).addcmul_(right, sin, value=-1)
    right.mul_(cos).addcmul_(before, sin)
    return x


class _Rotated(Function):
    """Products y Wᵀ (M, B, n·D) of which the first ``n_rotated``·D columns get their position.

    The product is rotated where it lies: its own gradient does not need it.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, w: Tensor, cos: Tensor, sin: Tensor, shape: tuple, n_rotated: int
    ) -> Tensor:
        out = torch.bmm(y, w.transpose(1, 2))
        _rotate_(out.view(shape)[..., :n_rotated, :, :], cos, sin)
        ctx.save_for_backward(y, w, cos, sin)
        ctx.shape, ctx.n_rotated = shape, n_rotated
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        y, w, cos, sin = ctx.saved_tensors
        grad = grad.contiguous().clone()
        _rotate_(grad.view(ctx.shape)[..., : ctx.n_rotated, :, :], cos, -sin)
        return torch.bmm(grad, w), torch.bmm(grad.transpose(1, 2), y), None, None, None, None


# --- the network ----------------------------------------------------------------------------------


class _Stack(NamedTuple):
    """Weights of M reward models in one table: (M, P), with the shapes of the P by name."""

    flat: Tensor
    shapes: dict[str, torch.Size]
    cfg: LlamaConfig

    def weights(self) -> dict[str, Tensor]:
        """Views of the table by name, each (M, …); one operation gives back the table's gradient."""
        parts = self.flat.split([shape.numel() for shape in self.shapes.values()], 1)
        return {
            name: part.view(len(part), *shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }


def _check_shapes(models: Sequence[ScalarHeadModel]) -> LlamaConfig:
    """The shape of all models.

    Raises
    ------
    ConfigError
        No models, or models of different shapes.
    """
    if not models:
        raise ConfigError("models has 0 members: pass at least one")
    cfg = models[0].compact.cfg
    for i, model in enumerate(models):
        if model.compact.cfg != cfg:
            raise ConfigError(
                f"models[{i}] has shape {model.compact.cfg}, models[0] {cfg}: only members of one"
                " shape can be stacked; train the others apart"
            )
    return cfg


def _stack(models: Sequence[ScalarHeadModel]) -> _Stack:
    """Copy the weights into one table.

    Raises
    ------
    ConfigError
        No models, or models of different shapes.
    """
    cfg = _check_shapes(models)
    rows = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in models]
    shapes = {name: p.shape for name, p in models[0].named_parameters()}
    return _Stack(torch.stack(rows), shapes, cfg)


@torch.no_grad()
def _unstack(stack: _Stack, models: Sequence[ScalarHeadModel], members: Sequence[int]) -> None:
    """Give the models of ``members`` what the table holds."""
    weights = stack.weights()
    for m in members:
        for name, p in models[m].named_parameters():
            p.copy_(weights[name][m])


def _normalise(x: Tensor, eps: float) -> Tensor:
    """`Normalise`, on a GPU in one kernel."""
    return F.rms_norm(x, x.shape[-1:], None, eps) if x.is_cuda else Normalise.apply(x, eps)


def _scores(stack: _Stack, ids: Tensor, length: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Scores (M, R) at the last real token of ids (M, R, L) with ``length`` (M, R) real tokens.

    rope: cosine and sine (S, D_head/2).
    """
    w, cfg = stack.weights(), stack.cfg
    n_members, n_rows, n_tokens = ids.shape
    d, heads, eps = cfg.hidden_size, cfg.num_attention_heads, cfg.rms_norm_eps
    member = torch.arange(n_members, device=ids.device)[:, None]
    embed = w["backbone.embed.weight"]
    flat = (ids + (member * cfg.vocab_size)[..., None]).view(n_members, -1)
    x = F.embedding(flat, embed.reshape(-1, d))
    cos, sin = (t[:n_tokens, None, None] for t in rope)
    for i in range(cfg.num_hidden_layers):
        p = f"backbone.layers.{i}."
        # A norm's weight multiplies the matrix that follows: a few rows instead of all tokens.
        qkv = w[p + "qkv.weight"] * w[p + "norm1"][:, None]
        gate_up = w[p + "gate_up.weight"] * w[p + "norm2"][:, None]
        y = _normalise(x, eps)
        if i + 1 < cfg.num_hidden_layers:
            shape = (n_members * n_rows, n_tokens, 3, heads, -1)
            rotated = _Rotated.apply(y, qkv, cos, sin, shape, 2).view(shape)
            q, k, v = rotated.permute(0, 3, 2, 1, 4).unbind(2)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            y = y.transpose(1, 2).reshape(n_members, -1, d)
        else:  # the last block's output is needed at the last token only
            last = length - 1
            at = member * n_rows * n_tokens + torch.arange(
                0, n_rows * n_tokens, n_tokens, device=ids.device
            )
            at = (at + last).flatten()
            shape = (n_members * n_rows, n_tokens, 2, heads, -1)
            kv = _Rotated.apply(y, qkv[:, d:], cos, sin, shape, 1).view(shape)
            k, v = kv.permute(0, 3, 2, 1, 4).unbind(2)
            here = tuple(t[last.flatten(), None, None] for t in rope)
            one = (n_members * n_rows, 1, heads, -1)
            y = y.view(-1, d)[at].view(n_members, n_rows, d)
            q = _Rotated.apply(y, qkv[:, :d], *here, one, 1).view(one).transpose(1, 2)
            ahead = torch.arange(n_tokens, device=ids.device) > last.flatten()[:, None]
            scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
            scores = scores.masked_fill(ahead[:, None, None], -torch.inf)
            y = (scores.softmax(-1) @ v).view(n_members, n_rows, d)
            x = x.view(-1, d)[at].view(n_members, n_rows, d)
        x = torch.baddbmm(x, y, w[p + "out.weight"].transpose(1, 2))
        y = torch.bmm(_normalise(x, eps), gate_up.transpose(1, 2))
        x = torch.baddbmm(x, SwiGlu.apply(y), w[p + "down.weight"].transpose(1, 2))
    x = _normalise(x, eps)
    head = w["head.weight"] * w["backbone.norm"][:, None]
    return torch.baddbmm(w["head.bias"][:, None], x, head.transpose(1, 2))[..., 0]


def _half_rope(model: ScalarHeadModel) -> tuple[Tensor, Tensor]:
    trunk = model.compact
    half = trunk.cfg.head_dim // 2
    return trunk.rope_cos[:, :half], trunk.rope_sin[:, :half]


# --- training -------------------------------------------------------------------------------------


class _StackedBatch(NamedTuple):
    """One step of each member, padded to the widest.

    ids (M, R, L), length (M, R); first, second (C,): positions in the flattened (M·R) scores; target
    (C,); member (C,): whose pair it is; weight (C,): 1 / the member's number of pairs.
    """

    ids: Tensor
    length: Tensor
    first: Tensor
    second: Tensor
    target: Tensor
    member: Tensor
    weight: Tensor


def _stack_batches(batches: Sequence[PairBatch | None]) -> _StackedBatch:
    """Batches of all members; None for a member that has none left."""
    some = [b for b in batches if b is not None]
    n_rows = max(len(b.seq.ids) for b in some)
    width = max(b.seq.ids.shape[1] for b in some)
    ids = torch.zeros((len(batches), n_rows, width), dtype=torch.int64)
    length = torch.ones((len(batches), n_rows), dtype=torch.int64)
    first, second, target, member, weight = [], [], [], [], []
    for m, batch in enumerate(batches):
        if batch is None:
            continue
        rows, columns = batch.seq.ids.shape
        ids[m, :rows, :columns] = batch.seq.ids
        length[m, :rows] = batch.seq.length
        first.append(batch.first + m * n_rows)
        second.append(batch.second + m * n_rows)
        target.append(batch.target)
        member.append(torch.full_like(batch.first, m))
        weight.append(torch.full_like(batch.target, 1 / len(batch.target)))
    lists = (first, second, target, member, weight)
    return _StackedBatch(ids, length, *(torch.cat(x) for x in lists))


def _pair_losses(scores: Tensor, batch: _StackedBatch) -> Tensor:
    """Mean Bradley-Terry loss (M,) in nats of each member; scores (M, R)."""
    flat = scores.view(-1)
    margin = flat[batch.first] - flat[batch.second]
    loss = batch.target * F.softplus(-margin) + (1 - batch.target) * F.softplus(margin)
    return scores.new_zeros(len(scores)).index_add(0, batch.member, loss * batch.weight)


def train_reward_models_stacked(
    models: Sequence[ScalarHeadModel],
    pairs_per_member: Sequence[TrainingPairs],
    *,
    epochs: int,
    lr: float,
    batch_prompts: int,
    weight_decay: float,
    seeds: Sequence[int],
    validate: Callable[[ScalarHeadModel], dict[str, float]],
    progress: Callable[[int, int], None],
) -> list[TrainingLog]:
    """Train M models in place, each as `train_reward_model` would alone; one log a member.

    Parameters
    ----------
    models, pairs_per_member, seeds : M each
        Models of one shape; members may share a `TrainingPairs` or have their own (a bootstrap).
    validate : callable
        Receives one model after each of its epochs.
    progress : callable
        Optimizer steps done and in all, of the member with the most.

    Raises
    ------
    ConfigError
        Not as many pairs and seeds as models, or models of different shapes.
    DivergenceError
        A member's loss is not finite; names the member and the step.
    """
    if not len(models) == len(pairs_per_member) == len(seeds):
        raise ConfigError(
            f"{len(models)} models, {len(pairs_per_member)} pairs_per_member and {len(seeds)} seeds:"
            " give one of each for every member"
        )
    device = models[0].head.weight.device
    stack = _stack(models)
    plans = [
        PairBatches(pairs, batch_prompts=batch_prompts, seed=seed)
        for pairs, seed in zip(pairs_per_member, seeds, strict=True)
    ]
    totals = [epochs * plan.steps for plan in plans]
    # A group for each member: its own rate, and no step where it has no batch.
    optimizer = reward_optimizer(
        [{"params": [row]} for row in stack.flat], lr=lr, weight_decay=weight_decay
    )
    stack.flat.requires_grad_()
    streams = [plan.all(epochs) for plan in plans]
    logs = [TrainingLog() for _ in models]
    rope = _half_rope(models[0])
    pending: list[Tensor] = []

    try:
        for step in range(max(totals)):
            batches = [next(stream, None) for stream in streams]
            stacked = _stack_batches(batches)
            batch = _StackedBatch(*(t.to(device, non_blocking=True) for t in stacked))
            losses = _pair_losses(_scores(stack, batch.ids, batch.length, rope), batch)
            stack.flat.grad = None
            losses.sum().backward()
            pending.append(losses.detach())
            if not losses.is_cuda or len(pending) == READ_LOSS_EVERY:
                _read_losses(pending, logs, totals, lr)
            rates = [lr * learning_rate(step, total) for total in totals]
            _update(stack.flat, optimizer, [b is not None for b in batches], rates)
            for m, mine in enumerate(batches):
                if mine is None:
                    continue
                log = logs[m]
                log.steps, log.pairs_seen = log.steps + 1, log.pairs_seen + len(mine.target)
                if log.steps % plans[m].steps == 0:
                    _read_losses(pending, logs, totals, lr)
                    _unstack(stack, models, [m])
                    log.validation.append(validate(models[m]))
            progress(step + 1, max(totals))
    finally:
        _unstack(stack, models, range(len(models)))
    return logs


def _read_losses(
    pending: list[Tensor], logs: Sequence[TrainingLog], totals: Sequence[int], lr: float
) -> None:
    """Fetch the losses (M,) of steps that were not read yet, into the members' logs."""
    for of_members in torch.stack(pending).tolist() if pending else ():
        for m, (loss, log) in enumerate(zip(of_members, logs, strict=True)):
            at = len(log.loss)
            if at == totals[m]:
                continue
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"reward-model loss of member {m} is {loss} at step {at} of {totals[m]}:"
                    f" lower the learning rate (lr = {lr})"
                )
            log.loss.append(loss)
    pending.clear()


def _update(
    flat: Tensor, optimizer: torch.optim.Optimizer, active: Sequence[bool], rates: Sequence[float]
) -> None:
    """One step of the members that are ``active``, the norm of each one's gradient clipped."""
    assert flat.grad is not None
    norm = torch.linalg.vector_norm(flat.grad, dim=1, keepdim=True)
    flat.grad.mul_((GRAD_CLIP / (norm + 1e-6)).clamp(max=1.0))
    for m, (group, rate) in enumerate(zip(optimizer.param_groups, rates, strict=True)):
        group["lr"] = rate
        group["params"][0].grad = flat.grad[m] if active[m] else None
    optimizer.step()


@torch.no_grad()
def raw_scores_stacked(
    models: Sequence[ScalarHeadModel], responses: Responses, *, batch_tokens: int | None = None
) -> Tensor:
    """Head outputs (M, R) at the last real token of each response, before normalisation.

    ``batch_tokens``: padded tokens of one call, members counted; None: what suits the device.
    """
    stack = _stack(models)
    out = torch.zeros((len(models), len(responses)))
    device = models[0].head.weight.device
    rope = _half_rope(models[0])
    if batch_tokens is None:
        batch_tokens = tokens_at_once(device, 8192)
    for rows, seq in sequence_batches(responses, max(1, batch_tokens // len(models)), device):
        ids, length = (t.expand(len(models), *t.shape) for t in (seq.ids, seq.length))
        out[:, rows] = _scores(stack, ids, length, rope).float().cpu()
    return out
