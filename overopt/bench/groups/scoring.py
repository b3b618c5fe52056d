"""Speed of scoring a table of responses with a reward model, against transformers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from overopt.base.datatypes import Responses
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
from overopt.bench.random_inputs import random_responses, random_reward_model
from overopt.bench.setting import Group, Setting
from overopt.nets.checkpoints import load_lm
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.scorer import raw_scores

NAMES = ("score_vs_transformers", "score_vs_products")


def group(setting: Setting) -> Group:
    """The ladder's 0.8M reward model, or one at the shape of a checkpoint."""

    def measure() -> list[Row]:
        sizes = setting.sizes
        if sizes is None:
            return scoring_rows(ladder_reward_model(setting.root_seed), **setting.where)
        return scoring_rows(
            random_reward_model(sizes.model, seed=setting.root_seed),
            n_responses=sizes.n_scored,
            **setting.where,
        )

    return Group(NAMES, measure)


def ladder_reward_model(root_seed: int) -> ScalarHeadModel:
    """The ladder's 0.8M backbone with a head drawn as for training."""
    model = ScalarHeadModel(load_lm("ladder:0.8m"))
    model.init_head(torch_generator(root_seed, "scoring"))
    return model


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
        forward_products(model.compact.cfg, n_tokens, n_read=n_responses),
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
        _vs_transformers(
            seconds,
            f"{work}; reference: batches of {batch} in table order; largest difference {worst:.1e}",
        ),
        _vs_products(seconds),
    ]


def _vs_transformers(seconds: Mapping[str, list[float]], note: str) -> Row:
    return make_row(NAMES[0], seconds["ours"], seconds["theirs"], note=note)


def _vs_products(seconds: Mapping[str, list[float]]) -> Row:
    return make_row(
        NAMES[1],
        seconds["ours"],
        seconds["products"],
        against="limit",
        note="reference: the linear maps of the real tokens alone; ratio at most 1",
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
