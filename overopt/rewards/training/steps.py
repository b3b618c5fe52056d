"""Training on single steps: cross-entropy at the tokens where steps of a response end."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from overopt.base.datatypes import Responses, Sequences
from overopt.nets.backbone import Backbone
from overopt.nets.compute import Compute, fit_memory, tokens_at_once
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.sampling import sequence_batches
from overopt.rewards.training.train import TrainingLog, train_on_rows
from overopt.worlds.codecs import in_own_tokens

_BATCH_TOKENS, _BATCH_TOKENS_CPU = 8192, 2048


class Steps(NamedTuple):
    """Where the steps of R responses end.

    position (R, S) int64: which token of the response; mask (R, S) bool: where there is a step.
    """

    position: Tensor
    mask: Tensor


def step_table(ends: Sequence[Sequence[int]]) -> Steps:
    """The ends of the steps of each response as a table."""
    most = max(map(len, ends), default=0)
    position = torch.tensor([[*row, *[0] * (most - len(row))] for row in ends]).view(-1, most)
    return Steps(position, torch.arange(most) < torch.tensor([len(row) for row in ends])[:, None])


def logits_at(model: ScalarHeadModel, seq: Sequences, position: Tensor) -> Tensor:
    """Head output (R, S) float32 at the response tokens ``position`` (R, S) of sequences."""
    hidden = model.backbone(seq.ids, seq.n_prompt[:, None] + position)
    return model.head(hidden)[..., 0].float()


@torch.no_grad()
def hidden_at_ends(backbone: Backbone, responses: Responses) -> Tensor:
    """Last hidden states (R, 2, D) float32 at the last token of each prompt and of each response.

    A backbone of another tokenizer reads the responses' text.
    """
    read = in_own_tokens(backbone, responses)
    out = torch.zeros(len(read), 2, backbone.cfg.hidden_size)
    device = backbone.device
    elsewhere = _BATCH_TOKENS_CPU if device.type == "cpu" else _BATCH_TOKENS

    def fill(batch_tokens: int) -> None:
        for rows, seq in sequence_batches(read, batch_tokens, device):
            ends = torch.stack([seq.n_prompt - 1, seq.length - 1], 1).clamp_min(0)
            out[rows] = backbone(seq.ids, ends).float().cpu()

    fit_memory(fill, tokens_at_once(device, elsewhere), "padded tokens")
    return out


@torch.no_grad()
def step_logits(model: ScalarHeadModel, responses: Responses, steps: Steps) -> Tensor:
    """Head output (R, S) at the end of each step; 0 where there is none."""
    out = torch.zeros(steps.mask.shape)
    device = model.head.weight.device
    elsewhere = _BATCH_TOKENS_CPU if device.type == "cpu" else _BATCH_TOKENS

    def fill(batch_tokens: int) -> None:
        for rows, seq in sequence_batches(responses, batch_tokens, device):
            found = logits_at(model, seq, steps.position[rows].to(device)).cpu()
            out[rows] = found * steps.mask[rows]

    fit_memory(fill, tokens_at_once(device, elsewhere), "padded tokens")
    return out


def train_on_steps(
    model: ScalarHeadModel,
    responses: Responses,
    steps: Steps,
    target: Tensor,
    *,
    epochs: int,
    lr: float,
    batch_responses: int,
    weight_decay: float,
    seed: int,
    validate: Callable[[], dict[str, float]],
    progress: Callable[[int, int], None],
    compute: Compute,
) -> TrainingLog:
    """Train ``model`` in place on P(step is right) = ``target`` (R, S), mean cross-entropy in nats.

    AdamW as for comparisons. Every step of a batch of responses weighs the same.

    Raises
    ------
    DivergenceError
        The loss is not finite; names the step.
    """
    seq, device = responses.sequences(), model.head.weight.device

    def loss_of(rows: Tensor) -> Callable[[Tensor], Tensor]:
        n_steps = steps.mask[rows].sum().to(device)

        def summed(part: Tensor) -> Tensor:
            width = int(seq.length[part].max())
            some = Sequences(seq.ids[part, :width], seq.length[part], seq.n_prompt[part])
            some = Sequences(*(t.to(device) for t in some))
            at, mask, wanted = (t[part].to(device) for t in (steps.position, steps.mask, target))
            with compute.autocast(device):
                logits = logits_at(model, some, at)
            nats = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            return (nats * mask).sum()[None] / n_steps

        return summed

    return train_on_rows(
        list(model.parameters()),
        loss_of,
        n_rows=len(responses),
        batch=batch_responses,
        epochs=epochs,
        lr=lr,
        weight_decay=weight_decay,
        seed=seed,
        name="reward-model",
        validate=validate,
        progress=progress,
        compute=compute,
    )
