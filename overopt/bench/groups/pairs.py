"""Speed of scoring a benchmark of pairs, against the straightforward loop with transformers."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from overopt.base.seeding import numpy_rng
from overopt.bench.harness import BenchError, Row, interleaved, make_row
from overopt.bench.models import write_reward_model
from overopt.bench.random_inputs import random_reward_model
from overopt.bench.setting import Group, Setting
from overopt.evals.shared import shared_scores
from overopt.nets.block import LlamaConfig
from overopt.nets.heads import ScalarHeadModel

NAMES = ("pairs_vs_transformers",)
LONGEST = 512
REWARDBENCH_PAIRS = 2985
SMALL = LlamaConfig(
    vocab_size=4096,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=6,
    num_attention_heads=3,
    max_position_embeddings=LONGEST,
)
"""A tenth of the layers' width and a fifth of the depth of SmolLM2-135M, for a CPU."""


def group(setting: Setting) -> Group:
    """A tenth of RewardBench's pairs on a small model, or all of them at the shape of a checkpoint."""

    def measure() -> list[Row]:
        sizes = setting.sizes
        if sizes is None:
            return pair_rows(SMALL, n_pairs=64, repeats=3, **setting.where)
        return pair_rows(sizes.model, n_pairs=REWARDBENCH_PAIRS, repeats=1, **setting.where)

    return Group(NAMES, measure)


def random_questions(vocab_size: int, n_pairs: int, *, root_seed: int) -> list[list[list[int]]]:
    """Pairs as token ids: two responses behind one prompt, lengths log-uniform, at most 512 in all.

    Prompts have 16 to 256 tokens and responses 16 to 256, most of them short, as in RewardBench.
    """
    rng = numpy_rng(root_seed, "pairs")
    half = LONGEST // 2

    def tokens() -> list[int]:
        n = int(np.exp(rng.uniform(np.log(16), np.log(half))))
        return rng.integers(2, vocab_size, n).tolist()

    return [[prompt + tokens(), prompt + tokens()] for prompt in (tokens() for _ in range(n_pairs))]


def pair_rows(
    cfg: LlamaConfig,
    *,
    n_pairs: int,
    batch: int = 16,
    repeats: int = 3,
    root_seed: int = 0,
    device: str = "cpu",
) -> list[Row]:
    """Scores of pairs by `shared_scores`, and by transformers as benchmarks' own scripts score them.

    The reference is ``AutoModelForSequenceClassification`` on batches of ``batch`` texts in the order of
    the file, first the chosen and then the rejected ones, each padded to its longest text.

    Raises
    ------
    BenchError
        The two sides disagree by more than 1e-4.
    """
    pairs = random_questions(cfg.vocab_size, n_pairs, root_seed=root_seed)
    ids = [row for pair in pairs for row in pair]
    groups = [[2 * i, 2 * i + 1] for i in range(n_pairs)]
    model = random_reward_model(cfg, seed=root_seed).to(device).eval()
    theirs = _padded_loop(model, pairs, batch, device)

    def ours() -> torch.Tensor:
        return shared_scores(model, ids, groups)[:, 0]

    worst = float((ours() - theirs()).abs().max())
    if worst > 1e-4:
        raise BenchError(f"scores of the two sides differ by {worst:.2g}: nothing to compare")
    seconds = interleaved({"ours": ours, "theirs": theirs}, repeats, device=device)
    note = (
        f"{n_pairs} pairs, {sum(map(len, ids))} tokens, at most {LONGEST} a text; reference: batches of"
        f" {batch} in the order of the file; largest difference {worst:.1e}"
    )
    return [make_row(NAMES[0], seconds["ours"], seconds["theirs"], target=2.0, note=note)]


def _padded_loop(
    model: ScalarHeadModel, pairs: list[list[list[int]]], batch: int, device: str
) -> Callable[[], torch.Tensor]:
    """The reference: scores (2 · pairs,) in the order of the pairs."""
    from transformers import AutoModelForSequenceClassification

    with TemporaryDirectory() as folder:
        write_reward_model(model, Path(folder))
        loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    network = loaded.to(device).eval()
    bias = model.head.bias.detach().cpu()

    @torch.inference_mode()
    def run() -> torch.Tensor:
        sides = []
        for side in (0, 1):
            texts, parts = [pair[side] for pair in pairs], []
            for start in range(0, len(texts), batch):
                some = texts[start : start + batch]
                width = max(map(len, some))
                table = torch.tensor([row + [0] * (width - len(row)) for row in some])
                mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in some])
                out = network(input_ids=table.to(device), attention_mask=mask.to(device))
                parts.append(out.logits[:, 0].cpu())
            sides.append(torch.cat(parts))
        return torch.stack(sides, 1).flatten() + bias

    return run
