"""Speed of scoring a table of responses with a reward model, against transformers."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from overopt.base.datatypes import Prompts, Responses
from overopt.base.seeding import torch_generator
from overopt.bench.harness import (
    BenchError,
    Row,
    forward_products,
    interleaved,
    make_row,
    product_runner,
)
from overopt.bench.models import write_reward_model
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.scorer import raw_scores

NAMES = ("score_vs_transformers", "score_vs_products")


def scoring_rows(
    model: ScalarHeadModel,
    *,
    n_responses: int = 512,
    n_prompt_tokens: int = 16,
    max_tokens: int = 48,
    batch: int = 64,
    repeats: int = 5,
    root_seed: int = 0,
    device: str = "cpu",
) -> list[Row]:
    """Scores of one table by `raw_scores`, by transformers, and the products of the real tokens.

    The reference is ``AutoModelForSequenceClassification`` on batches of ``batch`` rows in table
    order, each padded to its longest row. Response lengths are uniform from 1 to ``max_tokens``.

    Raises
    ------
    BenchError
        The two sides disagree by more than 1e-4.
    """
    responses = random_responses(
        model.backbone.cfg.vocab_size, n_responses, n_prompt_tokens, max_tokens, root_seed=root_seed
    )
    model = model.to(device).eval()
    theirs = _transformers_scorer(model, responses, batch, device)
    ours = raw_scores(model, responses)
    worst = float((ours - theirs()).abs().max())
    if worst > 1e-4:
        raise BenchError(f"scores of the two sides differ by {worst:.2g}: nothing to compare")
    n_tokens = int(responses.sequences().length.sum())
    products = product_runner(
        forward_products(model.backbone.cfg, n_tokens, n_read=n_responses),
        torch_generator(root_seed, "products"),
        device=device,
    )
    seconds = interleaved(
        {"ours": lambda: raw_scores(model, responses), "theirs": theirs, "products": products},
        repeats,
        device=device,
    )
    work = f"{n_responses} responses of {n_prompt_tokens} + 1 to {max_tokens} tokens"
    return [
        make_row(
            NAMES[0],
            seconds["ours"],
            seconds["theirs"],
            note=f"{work}; reference: batches of {batch} in table order; largest difference {worst:.1e}",
        ),
        make_row(
            NAMES[1],
            seconds["ours"],
            seconds["products"],
            against="limit",
            note="reference: the linear maps of the real tokens alone; ratio at most 1",
        ),
    ]


def random_responses(
    vocab_size: int, n_rows: int, n_prompt_tokens: int, max_tokens: int, *, root_seed: int
) -> Responses:
    """Responses (R, T) of random tokens, lengths uniform in 1 … T, to prompts of one length."""
    generator = torch_generator(root_seed, "responses")
    ids = torch.randint(2, vocab_size, (n_rows, n_prompt_tokens + max_tokens), generator=generator)
    length = torch.randint(1, max_tokens + 1, (n_rows,), generator=generator)
    mask = torch.arange(max_tokens) < length[:, None]
    prompt_ids = ids[:, :n_prompt_tokens]
    prompts = Prompts(
        prompt_ids, torch.ones_like(prompt_ids, dtype=torch.bool), torch.arange(n_rows)
    )
    return Responses(
        prompts,
        ids[:, n_prompt_tokens:] * mask,
        mask,
        torch.zeros(mask.shape),
        torch.zeros(n_rows, dtype=torch.bool),
    )


def _transformers_scorer(
    model: ScalarHeadModel, responses: Responses, batch: int, device: str
) -> Callable[[], torch.Tensor]:
    """Scoring by transformers with the same weights; the head's bias is added behind it."""
    from transformers import AutoModelForSequenceClassification

    with TemporaryDirectory() as folder:
        write_reward_model(model, Path(folder))
        loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    network = loaded.to(device).eval()
    bias = model.head.bias.detach().cpu()
    seq = responses.sequences()

    @torch.inference_mode()
    def run() -> torch.Tensor:
        parts = []
        for rows in torch.arange(len(seq.length)).split(batch):
            width = int(seq.length[rows].max())
            ids = seq.ids[rows, :width].to(device)
            mask = (torch.arange(width) < seq.length[rows, None]).long().to(device)
            parts.append(network(input_ids=ids, attention_mask=mask).logits[:, 0].cpu())
        return torch.cat(parts) + bias

    return run
