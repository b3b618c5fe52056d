"""Supervised fine-tuning: a policy learns given responses; what PPO and best-of-n start from.

It makes the initial policy of a world. The loss is on response tokens and
the end token only. There is no packing and no padding to a fixed length: micro-batches are sorted by
length, and a step's loss is its token sum over its token count, so every token weighs the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from overopt.base.config import check_types, require
from overopt.base.datatypes import Sequences, length_sorted
from overopt.base.errors import DataError, DivergenceError
from overopt.base.seeding import torch_generator
from overopt.nets.backbone import Backbone
from overopt.nets.compute import Compute, tokens_at_once
from overopt.nets.sampling import response_hidden, response_view, token_logprobs

_FORWARD_TOKENS = 8192  # padded tokens of one forward pass without gradient


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Supervised fine-tuning of a policy.

    Attributes
    ----------
    epochs, batch : int
        Passes over the examples and examples an optimizer step.
    lr, weight_decay, grad_clip : float
        Peak AdamW learning rate (5 % warm-up, linear decay to 0), decay, gradient norm.
    validation_share : float
        Examples held out, in [0, 0.5]; at least one is, unless it is 0.
    precision : "fp32" or "bf16"
        Of matrix products.
    seed : int
        Which examples are held out, and their order.
    """

    epochs: int = 1
    batch: int = 32
    lr: float = 2e-4
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    validation_share: float = 0.05
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("epochs", "batch"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("lr", "grad_clip"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        require(
            0 <= self.validation_share <= 0.5,
            "validation_share",
            self.validation_share,
            "must be in [0, 0.5]",
        )


@dataclass
class SftLog:
    """Mean loss in nats a response token: of each optimizer step, and on held-out examples.

    validation_before, validation_after are nan where nothing is held out.
    """

    loss: list[float] = field(default_factory=list)
    validation_before: float = math.nan
    validation_after: float = math.nan
    n_train: int = 0
    n_validation: int = 0


class Examples(NamedTuple):
    """Token ids of one prompt and one response a row, the end token included."""

    prompts: list[list[int]]
    responses: list[list[int]]


def join_examples(examples: Examples, *, context: int) -> Sequences:
    """Prompts and responses joined and right-padded.

    Raises
    ------
    DataError
        No examples, an empty prompt or response, or a row longer than ``context``; names the row.
    """
    if not examples.prompts:
        raise DataError("data has 0 examples: give at least one prompt and response")
    rows = []
    for i, (prompt, response) in enumerate(
        zip(examples.prompts, examples.responses, strict=True), start=1
    ):
        for name, part in (("prompt", prompt), ("response", response)):
            if not part:
                raise DataError(f"example {i} has a {name} without tokens: remove it")
        if len(prompt) + len(response) > context:
            raise DataError(
                f"example {i} has {len(prompt) + len(response)} tokens, the policy's context is"
                f" {context}: shorten or remove it"
            )
        rows.append(prompt + response)
    length = torch.tensor([len(row) for row in rows])
    ids = torch.zeros((len(rows), int(length.max())), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return Sequences(ids, length, torch.tensor([len(p) for p in examples.prompts]))


def _select(seq: Sequences, rows: Tensor, device: torch.device) -> Sequences:
    width = int(seq.length[rows].max())
    return Sequences(
        *(t.to(device) for t in (seq.ids[rows, :width], seq.length[rows], seq.n_prompt[rows]))
    )


def _nats(policy: Backbone, seq: Sequences, compute: Compute) -> Tensor:
    """Sum of −log π(token) over the response tokens of ``seq``, in nats."""
    view = response_view(seq)
    with compute.autocast(seq.ids.device):
        # Hidden states of real tokens only: most of the work is the vocabulary.
        logits = policy.logits(response_hidden(policy, seq, view)[view.mask])
    return -token_logprobs(logits.float(), view.tokens[view.mask]).sum()


@torch.no_grad()
def mean_loss(policy: Backbone, seq: Sequences, compute: Compute) -> float:
    """Mean −log π(token) over all response tokens, in nats; nan where there are none."""
    if len(seq.ids) == 0:
        return math.nan
    total = torch.zeros((), dtype=torch.float64)
    at_once = tokens_at_once(policy.device, _FORWARD_TOKENS, n_logits=policy.cfg.vocab_size)
    for rows in length_sorted(seq.length, at_once):
        for part in rows.split(compute.micro_batch or len(rows)):
            total += _nats(policy, _select(seq, part, policy.device), compute).double().cpu()
    return float(total / (seq.length - seq.n_prompt).sum())


def _divided(everything: Sequences, cfg: SftConfig, *, n_ranks: int) -> tuple[Sequences, Sequences]:
    """Examples held out for validation, and those to train on; DataError where too few are left."""
    order = torch.randperm(len(everything.ids), generator=torch_generator(cfg.seed, "sft", "split"))
    n_held = math.ceil(cfg.validation_share * len(order))
    held, train = (
        Sequences(*(t[rows] for t in everything)) for rows in (order[:n_held], order[n_held:])
    )
    if len(train.ids) < n_ranks:
        raise DataError(
            f"{len(order)} examples, of which {n_held} are held out, leave too few to train on:"
            " give more, or lower validation_share"
        )
    return held, train


def fine_tune(
    policy: Backbone,
    examples: Examples,
    cfg: SftConfig,
    *,
    progress: Callable[[int, int], None],
    compute: Compute | None = None,
) -> SftLog:
    """Train ``policy`` in place on the responses of ``examples``.

    Raises
    ------
    DataError
        Examples that cannot be used, or none left to train on.
    DivergenceError
        The loss is not finite; names the step.
    MemoryLimitError
        A single example does not fit the memory.
    """
    compute = compute or Compute()
    everything = join_examples(examples, context=policy.cfg.max_position_embeddings)
    held, train = _divided(everything, cfg, n_ranks=compute.n_ranks)
    parameters = list(policy.parameters())
    optimizer = torch.optim.AdamW(
        parameters,
        lr=cfg.lr,
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=cfg.weight_decay,
        fused=True,
    )
    log = SftLog(
        validation_before=mean_loss(policy, held, compute),
        n_train=len(train.ids),
        n_validation=len(held.ids),
    )
    steps = math.ceil(len(train.ids) / cfg.batch)
    total = cfg.epochs * steps
    for epoch in range(cfg.epochs):
        shuffled = torch.randperm(
            len(train.ids), generator=torch_generator(cfg.seed, "sft", "order", epoch)
        )
        # As even as they come: no small last step, which processes could not share.
        for rows in shuffled.tensor_split(steps):
            rows = rows[torch.argsort(train.length[rows], stable=True)]
            n_tokens = int((train.length[rows] - train.n_prompt[rows]).sum())

            def loss_of(part: Tensor, n_tokens: int = n_tokens) -> Tensor:
                return _nats(policy, _select(train, part, policy.device), compute)[None] / n_tokens

            loss = float(compute.accumulate(rows, parameters, loss_of))
            step = len(log.loss)
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"fine-tuning loss is {loss} at step {step} of {total}: lower the learning rate"
                    f" (lr = {cfg.lr})"
                )
            torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
            warm = min((step + 1) / max(1, 0.05 * total), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = cfg.lr * warm * (1 - step / total)
            optimizer.step()
            log.loss.append(loss)
            progress(step + 1, total)
    for p in parameters:
        p.grad = None
    log.validation_after = mean_loss(policy, held, compute)
    return log
