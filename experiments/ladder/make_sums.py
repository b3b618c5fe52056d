"""Train a policy of the world of sums on solutions of its crowd, and write it with its model card.

    python experiments/ladder/make_sums.py sums-0.2m [--steps 5000] [--out overopt/ladder_sums]
    python experiments/ladder/make_sums.py card

One rung takes up to ten minutes of one CPU core. Problems are drawn as they are needed, from a seed
of their own, and none is seen twice. Only the solution is learned, not the problem in front of it.
Hidden matrices are updated by Muon, the rest by AdamW, as for the ladder of stories.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from make_ladder import make_optimizers, save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from overopt.base.seeding import derive_seed, torch_generator
from overopt.nets.block import LlamaConfig
from overopt.nets.checkpoints import load_lm
from overopt.nets.llama import Llama
from overopt.nets.sampling import sample
from overopt.worlds import sums, sums_text

ROOT_SEED = 0
BATCH, SORTED_TOGETHER = 32, 16  # rows a step; steps whose rows are sorted by length together
WARM_UP = 50
FIRST_STD = 0.05  # of the first weights; 0.02 starts slowly at these widths
SHAPES = {  # hidden size, MLP size, layers, heads, peak learning rate, steps
    "sums-0.05m": (32, 96, 3, 4, 1.5e-2, 4000),
    "sums-0.2m": (64, 192, 3, 4, 1e-2, 5000),
    "sums-0.4m": (96, 256, 3, 4, 7e-3, 2800),
}
N_CARD, COPIES, N_TOKENS = 200, 64, 64


def config(rung: str) -> LlamaConfig:
    """Shape of a rung."""
    d, h, n_layers, n_heads, *_ = SHAPES[rung]
    return LlamaConfig(
        vocab_size=len(sums_text.VOCABULARY),
        hidden_size=d,
        intermediate_size=h,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        max_position_embeddings=160,
    )


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer: one token a word."""
    words = {word: i for i, word in enumerate(sums_text.VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    spec = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<s>",
        "pad_token": "<unk>",
        "unk_token": "<unk>",
        "model_max_length": 160,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(spec, indent=1) + "\n")


def batches(seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless ids (R, L) and the mask (R, L − 1) of the tokens that are learned."""
    rng, word = random.Random(seed), {w: i for i, w in enumerate(sums_text.VOCABULARY)}
    while True:
        rows = []
        for _ in range(BATCH * SORTED_TOGETHER):
            problem = sums_text.make_problem(rng, 3 + int(rng.random() * 5))
            front = [1, *(word[w] for w in problem.text.split())]
            answer = [word[w] for w in sums_text.write_solution(problem, rng).split()]
            rows.append(([*front, *answer, 1], len(front)))
        rows.sort(key=lambda row: len(row[0]))
        order = list(range(SORTED_TOGETHER))
        rng.shuffle(order)
        for k in order:
            part = rows[k * BATCH : (k + 1) * BATCH]
            width = max(len(ids) for ids, _ in part)
            ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in part])
            at = torch.arange(width - 1)
            n_front = torch.tensor([n for _, n in part])[:, None]
            n_all = torch.tensor([len(ids) for ids, _ in part])[:, None]
            yield ids, (at >= n_front - 1) & (at < n_all - 1)


def train(rung: str, steps: int, out: Path) -> None:
    """Train a rung and write it."""
    *_, lr, _ = SHAPES[rung]
    model = Llama(config(rung))
    model.init_weights(torch_generator(ROOT_SEED, "sums", "init", rung))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(FIRST_STD / 0.02)
    optimizers = make_optimizers(model, lr)
    stream = batches(derive_seed(ROOT_SEED, "sums", "train"))
    started, seen, curve, recent = time.process_time(), 0, [], []
    for step in range(steps):
        scale = min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = lr * scale
        ids, mask = next(stream)
        logits = model.logits(model(ids[:, :-1])[mask])
        loss = F.cross_entropy(logits, ids[:, 1:][mask])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seen += int(mask.sum())
        recent.append(loss.item())
        if (step + 1) % 200 == 0 or step + 1 == steps:
            mean = sum(recent) / len(recent)
            if not math.isfinite(mean):
                raise SystemExit(f"loss is {mean} at step {step}")
            curve.append([seen, round(mean, 4)])
            recent.clear()
            cpu = time.process_time() - started
            print(f"{rung} step {step + 1}/{steps} loss {mean:.4f} cpu {cpu:.0f} s", flush=True)
    info = {
        "rung": rung,
        "tokens": seen,
        "problems": steps * BATCH,
        "steps": steps,
        "peak_learning_rate": lr,
        "n_params": sum(p.numel() for n, p in model.named_parameters() if n != "embed.weight"),
        "n_params_total": sum(p.numel() for p in model.parameters()),
        "cpu_s": round(time.process_time() - started),
        "torch": torch.__version__,
        "loss_curve": curve,
    }
    save(model, out / rung, info)


def measure(source: str) -> dict[str, float]:
    """Shares right and valid, and pass@k, on problems of the eval split."""
    world = sums.load(sums.Settings())
    prompts = world.prompts("eval", N_CARD)
    seed = derive_seed(ROOT_SEED, "sums", "card")
    r = sample(load_lm(source), prompts, n_tokens=N_TOKENS, seed=seed, copies=COPIES)
    verdicts = world.verdicts(r)
    right = np.array([v.right for v in verdicts]).reshape(N_CARD, COPIES)
    valid = np.array([v.valid for v in verdicts]).reshape(N_CARD, COPIES)
    found = {
        "right": right.mean(),
        "right_and_valid": (right & valid).mean(),
        "wrong_step_if_right": (right & ~valid).sum() / max(1, right.sum()),
        "checks": np.mean([v.n_checks for v in verdicts]),
        "several_answers": np.mean([v.n_answers > 1 for v in verdicts]),
        "formatted": np.mean([v.formatted for v in verdicts]),
        "ended": r.ended.float().mean(),
        "tokens": r.length.float().mean(),
    }
    for k in (4, 16, 64):
        failed = [math.comb(COPIES - c, k) / math.comb(COPIES, k) for c in right.sum(1).tolist()]
        found[f"pass_at_{k}"] = 1 - np.mean(failed)
    return {name: round(float(value), 4) for name, value in found.items()}


HEAD = """# The models of the world of sums

Small Llama-architecture language models that solve word problems of 3 to 7 steps as a crowd of writers
does: with slips, steps left out, and luck. One tokenizer (a word is a token), one stream of problems.
They serve as initial policy (`ladder:sums-0.2m`) and as backbones of reward models. All are in the
transformers layout, float16. [Worlds](../../docs/worlds.md) says what problems and solutions are.

| model | not embedding | parameters | problems | CPU s | right | and valid | luck | @4 | @16 | @64 |
|---|---|---|---|---|---|---|---|---|---|---|
"""
TAIL = """
Measured on the first {n} problems of the eval split of `world.kind=sums`, {copies} solutions each,
temperature 1, at most {tokens} tokens. *Right*: exactly one answer, the right one. *Valid*: every step
follows the plan. *Luck*: of those that are right, how many have a wrong step. *@k*: at least one of k
is right (pass@k, unbiased, from {copies}). *CPU s*: seconds of training, on one core.

**Training.** Random weights; cross-entropy on solutions only, one pass over problems that are drawn as
they are needed; Muon for matrices, AdamW for the rest, float32, batches of {batch} problems, linear
decay. One core each. `training.json` of each has rate, steps and loss curve. No rung was chosen among
several seeds. Rungs differ in problems as well as in size: sums-0.4m saw fewer, and is no
better than sums-0.2m. The problems of the world are drawn from another seed; some may be the same by
chance.

**Made by**

    python experiments/ladder/make_sums.py sums-0.2m     # and the others
    python experiments/ladder/make_sums.py card

**Samples** of `sums-0.2m`, and what the judge says:

"""


def card(out: Path) -> None:
    """Measure every rung that there is, and write the model card with samples."""
    table = HEAD
    for rung in (name for name in SHAPES if (out / name).is_dir()):
        file = out / rung / "training.json"
        info = json.loads(file.read_text()) | {"measured": measure(f"ladder:{rung}")}
        file.write_text(json.dumps(info, indent=1) + "\n")
        m = info["measured"]
        names = ("right", "right_and_valid", "wrong_step_if_right")
        shares = [m[name] for name in (*names, "pass_at_4", "pass_at_16", "pass_at_64")]
        table += (
            f"| {rung} | {info['n_params']:,} | {info['n_params_total']:,} | {info['problems']:,} |"
            f" {info['cpu_s']} | {' | '.join(f'{share:.3f}' for share in shares)} |\n"
        )
        print(rung, m, flush=True)
    world, samples = sums.load(sums.Settings()), ""
    r = sample(load_lm(sums.POLICY), world.prompts("eval", 8), n_tokens=N_TOKENS, seed=ROOT_SEED)
    for prompt, text, v in zip(
        world.prompt_texts(r), world.response_texts(r), world.verdicts(r), strict=True
    ):
        said = "right" if v.right else "wrong"
        said += "" if v.first_error < 0 else f", step {v.first_error + 1} is the first wrong one"
        samples += f"1. **{prompt}** `{text}` ({said})\n"
    tail = TAIL.format(n=N_CARD, copies=COPIES, tokens=N_TOKENS, batch=BATCH)
    (out / "README.md").write_text(table + tail + samples)


def main() -> None:
    """Read the command line; train a rung, or write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*SHAPES, "card"])
    parser.add_argument("--steps", type=int, help="default by rung")
    parser.add_argument("--out", type=Path, default=Path("overopt/ladder_sums"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    save_tokenizer(args.out / "tokenizer")
    if args.what == "card":
        card(args.out)
    else:
        train(args.what, args.steps or SHAPES[args.what][-1], args.out)


if __name__ == "__main__":
    main()
