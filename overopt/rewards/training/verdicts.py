"""Training a language model to write a verdict behind a response, with or without a critique."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from overopt.base.datatypes import Sequences, length_sorted
from overopt.nets.backbone import Backbone
from overopt.nets.compute import Compute, fit_memory, tokens_at_once
from overopt.nets.sampling import response_hidden, response_view, token_logprobs
from overopt.rewards.training.train import TrainingLog, train_on_rows

_BATCH_TOKENS, _BATCH_TOKENS_CPU = 8192, 2048


def written_behind(fronts: Sequence[Sequence[int]], said: Sequence[Sequence[int]]) -> Sequences:
    """Rows of tokens (R), what is read and what is written behind it, as sequences."""
    rows = [[*front, *words] for front, words in zip(fronts, said, strict=True)]
    length = torch.tensor([len(row) for row in rows])
    ids = torch.zeros((len(rows), int(length.max())), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return Sequences(ids, length, torch.tensor([len(front) for front in fronts]))


def train_to_write(
    model: Backbone,
    seq: Sequences,
    *,
    epochs: int,
    lr: float,
    batch: int,
    weight_decay: float,
    seed: int,
    validate: Callable[[], dict[str, float]],
    progress: Callable[[int, int], None],
    compute: Compute,
) -> TrainingLog:
    """Train ``model`` in place to write what stands behind the first ``n_prompt`` tokens of each row.

    Mean −log π(token) in nats over what is written; AdamW as for comparisons.

    Raises
    ------
    DivergenceError
        The loss is not finite; names the step.
    """

    def loss_of(rows: Tensor) -> Callable[[Tensor], Tensor]:
        n_tokens = int((seq.length - seq.n_prompt)[rows].sum())

        def nats(part: Tensor) -> Tensor:
            width = int(seq.length[part].max())
            some = Sequences(seq.ids[part, :width], seq.length[part], seq.n_prompt[part])
            some = Sequences(*(t.to(model.device) for t in some))
            view = response_view(some)
            with compute.autocast(model.device):
                logits = model.logits(response_hidden(model, some, view)[view.mask])
            found = token_logprobs(logits.float(), view.tokens[view.mask])
            return -found.sum()[None] / n_tokens

        return nats

    return train_on_rows(
        list(model.parameters()),
        loss_of,
        n_rows=len(seq.ids),
        batch=batch,
        epochs=epochs,
        lr=lr,
        weight_decay=weight_decay,
        seed=seed,
        name="judge's",
        validate=validate,
        progress=progress,
        compute=compute,
    )


@torch.no_grad()
def verdict_log_odds(model: Backbone, rows: Sequence[Sequence[int]], yes: int, no: int) -> Tensor:
    """log π(yes | row) − log π(no | row) (R,) float32 of the token behind each row."""
    length = torch.tensor([len(row) for row in rows])
    table, device = written_behind(rows, [[] for _ in rows]).ids, model.device
    out = torch.zeros(len(rows))
    elsewhere = _BATCH_TOKENS_CPU if device.type == "cpu" else _BATCH_TOKENS

    def fill(batch_tokens: int) -> None:
        for at in length_sorted(length, batch_tokens):
            width = int(length[at].max())
            ends = (length[at] - 1)[:, None].to(device)
            logits = model.logits(model(table[at, :width].to(device), ends)[:, 0]).float()
            out[at] = (logits[:, yes] - logits[:, no]).cpu()

    fit_memory(fill, tokens_at_once(device, elsewhere), "padded tokens")
    return out
