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
from overopt.bench.sizes import SMOLLM2_135M
from overopt.evals.shared import shared_beginning, shared_scores
from overopt.nets.block import LlamaConfig
from overopt.nets.heads import ScalarHeadModel

NAMES = ("pairs_vs_transformers",)
LONGEST = 512
REWARDBENCH_PAIRS = 2985
CPU_PAIRS = 64
"""One in 47: all of them take a CPU core three quarters of an hour, and the reference two hours. Fewer
do not stand for the whole: among few texts there are few of like length."""


def group(setting: Setting) -> Group:
    """Pairs as many as RewardBench has, at the shape of a checkpoint; on a CPU a share of them."""

    def measure() -> list[Row]:
        sizes = setting.sizes
        if sizes is None:
            return pair_rows(SMOLLM2_135M, n_pairs=CPU_PAIRS, repeats=1, **setting.where)
        return pair_rows(sizes.model, n_pairs=REWARDBENCH_PAIRS, repeats=1, **setting.where)

    return Group(NAMES, measure)


def random_questions(vocab_size: int, n_pairs: int, *, root_seed: int) -> list[list[list[int]]]:
    """Pairs as token ids: two responses behind one prompt, at most 512 tokens in all.

    Prompts and responses have 16 to 256 tokens, log-uniform: texts of 173 on average, with quartiles of
    96, 160 and 238. Those of LLMBar, a seventh of RewardBench, have 181 and 75, 114, 226 in SmolLM2's
    tokens and chat template, those of HH-RLHF's harmless test 176 and 90, 142, 224.
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
    scores: dict[str, torch.Tensor] = {}
    theirs = _padded_loop(model, pairs, batch, device)

    def keep_ours() -> None:
        scores["ours"] = shared_scores(model, ids, groups)[:, 0]

    def keep_theirs() -> None:
        scores["theirs"] = theirs()

    seconds = interleaved({"ours": keep_ours, "theirs": keep_theirs}, repeats, device=device)
    worst = float((scores["ours"] - scores["theirs"]).abs().max())
    if worst > 1e-4:
        raise BenchError(f"scores of the two sides differ by {worst:.2g}: nothing to compare")
    share = "" if n_pairs == REWARDBENCH_PAIRS else f" of {REWARDBENCH_PAIRS}, same lengths"
    note = (
        f"{n_pairs} pairs{share}, {sum(map(len, ids))} tokens, at most {LONGEST} a text; reference:"
        f" batches of {batch} in the order of the file; largest difference {worst:.1e}"
    )
    whole = random_questions(cfg.vocab_size, REWARDBENCH_PAIRS, root_seed=root_seed)
    details = {"here": positions(pairs, batch), "all_pairs": positions(whole, batch)}
    ours, reference = seconds["ours"], seconds["theirs"]
    return [make_row(NAMES[0], ours, reference, target=2.0, note=note, details=details)]


def positions(pairs: list[list[list[int]]], batch: int) -> dict[str, int]:
    """How much there is to compute: tokens; with prompts once; padded as the reference pads them."""
    own = [sum(map(len, pair)) for pair in pairs]
    shared = [shared_beginning(pair) for pair in pairs]
    padded = 0
    for side in (0, 1):
        length = [len(pair[side]) for pair in pairs]
        some = [length[start : start + batch] for start in range(0, len(length), batch)]
        padded += sum(len(part) * max(part) for part in some)
    return {"tokens": sum(own), "prompts_once": sum(own) - sum(shared), "padded": padded}


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
