"""Train one rung of the ladder: small Llamas that share tokenizer, corpus and data order.

Hypothesis: validation loss falls with every rung, as it does for Pythia (Biderman et al. 2023).
All rungs minimise cross-entropy on stories sampled from the teacher, which is sequence-level
distillation (Kim and Rush 2016). Batch t holds the same stories for every rung; a rung trained on
fewer tokens sees a prefix of the same order. Rungs 3m and 6m start from the teacher's first three
and all six layers, because they have its width; the others start from random weights.

    python experiments/ladder/make_ladder.py RUNG --teacher DIR --stories FILE --tokenizer DIR \\
        --out DIR --tokens 16e6 [--device cuda]

``policy-0.8m`` is rung 0.8m fine-tuned on stories that end early, so that its end-of-story token
means something inside a response of 48 tokens (`cut_story`); it is the initial policy.

Hidden matrices are updated by Muon, the rest by AdamW; matrix products run in bfloat16.
"""

import argparse
import json
import lzma
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from overopt.nets import Llama, LlamaConfig, from_transformers_state, to_transformers_state
from overopt.seeding import numpy_rng, torch_generator

BOS = EOS = 1
ROOT_SEED = 0
WINDOW = 128  # tokens a row; prompts plus responses of the sandbox stay below 96
BATCH = 16  # rows a step
N_VALIDATION = 500  # last stories of the file
SHAPES = {  # hidden size, MLP size, layers, heads, peak learning rate
    "0.05m": (48, 128, 2, 2, 1.5e-2),
    "0.2m": (64, 176, 4, 2, 1.5e-2),
    "0.8m": (128, 352, 4, 4, 1e-2),
    "3m": (288, 768, 3, 6, 2e-3),
    "6m": (288, 768, 6, 6, 3e-4),
}


def rung_config(rung: str, vocab_size: int) -> LlamaConfig:
    """Shape of a rung."""
    d, h, n_layers, n_heads, _ = SHAPES[rung]
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=d,
        intermediate_size=h,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
    )


def encode_stories(stories: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Token ids of each story with the start token before and the end token behind it."""
    encoded = tokenizer.encode_batch(stories, add_special_tokens=False)
    return [np.array([BOS, *e.ids, EOS], dtype=np.int64) for e in encoded]


def sentence_ends(tokenizer: Tokenizer) -> np.ndarray:
    """Ids of the pieces that close a sentence."""
    closing = {".", "!", "?", '."', '!"', '?"'}
    return np.array([i for p, i in tokenizer.get_vocab().items() if p.strip("▁") in closing])


def cut_story(ids: np.ndarray, ends: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """End a story behind its first sentence that closes after a uniform draw of 16 to 96 tokens."""
    closes = np.flatnonzero(np.isin(ids, ends))
    later = closes[closes >= rng.integers(16, 97)]
    if later.size == 0:
        return ids
    return np.append(ids[: later[0] + 1], EOS)


def batches(stories: list[np.ndarray], *, cut: np.ndarray | None):
    """Endless batches (BATCH, WINDOW + 1) of token ids, -1 behind the end of a story.

    Each epoch visits every story once. Two rows in three begin with the story, the third at a
    uniform position, so that openings, which the sandbox uses as prompts, are seen most. With
    ``cut`` (ids that close a sentence) every row is a whole story that was ended early.
    """
    rng = numpy_rng(ROOT_SEED, "ladder", "order" if cut is None else "order-cut")
    while True:
        order = rng.permutation(len(stories))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = np.full((BATCH, WINDOW + 1), -1, dtype=np.int64)
            for row, i in zip(rows, order[start : start + BATCH], strict=True):
                ids = stories[i]
                if cut is not None:
                    ids = cut_story(ids, cut, rng)
                elif rng.random() < 1 / 3 and len(ids) > WINDOW:
                    ids = ids[rng.integers(0, len(ids) - WINDOW) :]
                ids = ids[: WINDOW + 1]
                row[: len(ids)] = ids
            yield torch.from_numpy(rows)


def loss_sum(model: Llama, rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Summed next-token cross-entropy in nats, and the number of predicted tokens."""
    targets = rows[:, 1:]
    with torch.autocast(rows.device.type, torch.bfloat16):
        hidden = model(rows[:, :-1].clamp_min(0))
        keep = targets >= 0
        logits = model.logits(hidden[keep])
    return F.cross_entropy(logits.float(), targets[keep], reduction="sum"), int(keep.sum())


@torch.no_grad()
def validation(model: Llama, stories: list[np.ndarray], texts: list[str], device: str) -> dict:
    """Mean nats per token and per character over the first WINDOW tokens of held-out stories."""
    total, n_tokens, n_chars = 0.0, 0, sum(len(t) for t in texts)
    for start in range(0, len(stories), 32):
        rows = np.full((32, WINDOW + 1), -1, dtype=np.int64)
        for row, s in zip(rows, stories[start : start + 32], strict=False):
            row[: len(s)] = s
        loss, n = loss_sum(model, torch.from_numpy(rows).to(device))
        total, n_tokens = total + loss.item(), n_tokens + n
    return {
        "nats_per_token": total / n_tokens,
        "nats_per_char": total / n_chars,
        "n_stories": len(stories),
        "n_tokens": n_tokens,
    }


def make_optimizers(model: Llama, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and n != "embed.weight"]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or n == "embed.weight"]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adam]


def save(model: Llama, out: Path, info: dict) -> None:
    """Write a checkpoint in the transformers layout, half precision, with its training record."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(model.cfg.to_transformers(), indent=1) + "\n")
    state = {name: t.half() for name, t in to_transformers_state(model).items()}
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / "training.json").write_text(json.dumps(info, indent=1) + "\n")


def main() -> None:
    """Read the command line, train, validate, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rung", choices=[*SHAPES, "policy-0.8m"])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--stories", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, required=True, help="tokens to train on")
    parser.add_argument("--lr", type=float, help="peak learning rate, default by rung")
    parser.add_argument("--go-on", action="store_true", help="continue the rung found in --out")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    started = time.time(), time.process_time()

    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    with lzma.open(args.stories, "rt", encoding="utf-8") as f:
        texts = [json.loads(line) for line in f]
    stories = encode_stories(texts, tokenizer)
    held_out = [ids[: WINDOW + 1] for ids in stories[-N_VALIDATION:]]
    held_texts = [tokenizer.decode(ids.tolist()) for ids in held_out]
    stories = stories[:-N_VALIDATION]

    sft = args.rung == "policy-0.8m"
    rung = args.rung.removeprefix("policy-")
    cfg = rung_config(rung, tokenizer.get_vocab_size())
    lr = args.lr if args.lr is not None else SHAPES[rung][-1] * (0.2 if sft else 1)
    earlier: list[dict] = []
    if sft or args.go_on:
        model = from_transformers_state(load_file(args.out / rung / "model.safetensors"), cfg)
        earlier = [json.loads((args.out / rung / "training.json").read_text())]
    elif rung in ("3m", "6m"):
        state = load_file(args.teacher / "model.safetensors")
        kept = torch.tensor(json.loads((args.tokenizer / "kept_ids.json").read_text()))
        state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][kept]
        model = from_transformers_state(state, cfg)
    else:
        model = Llama(cfg)
        model.init_weights(torch_generator(ROOT_SEED, "ladder", "init", rung))
    model.to(args.device)

    ends = sentence_ends(tokenizer) if sft else None
    stream = batches(stories, cut=ends)
    for _ in range(sum(e["steps"] for e in earlier) if args.go_on else 0):
        next(stream)  # batches that were seen before
    seen, step, curve = 0, 0, []
    optimizers = make_optimizers(model, lr)
    while seen < args.tokens:
        rows = next(stream).to(args.device)
        done = seen / args.tokens
        warm = min(1.0, (step + 1) / 50)
        scale = warm * min(1.0, (1 - done) / 0.6)  # hold, then decay linearly over the last 60 %
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * max(scale, 0.01)
        loss, n = loss_sum(model, rows)
        (loss / n).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seen, step = seen + n, step + 1
        if not math.isfinite(loss.item()):
            raise SystemExit(f"loss is {loss.item()} at step {step}")
        if step % 100 == 0:
            curve.append([seen, round(loss.item() / n, 4)])
            print(f"{args.rung} step {step} tokens {seen} loss {loss.item() / n:.4f}", flush=True)
        if step % 500 == 0:
            save(model, args.out / f"{args.rung}.part", {"tokens": seen})

    info = {
        "rung": args.rung,
        "tokens": seen,
        "steps": step,
        "peak_learning_rate": lr,
        "n_params": sum(p.numel() for n, p in model.named_parameters() if n != "embed.weight"),
        "n_params_total": sum(p.numel() for p in model.parameters()),
        "validation": validation(model, held_out, held_texts, args.device),
        "wall_s": round(time.time() - started[0]),
        "cpu_s": round(time.process_time() - started[1]),
        "device": args.device,
        "torch": torch.__version__,
        "loss_curve": curve,
        "continues": earlier,
    }
    save(model, args.out / args.rung, info)
    print(json.dumps({k: v for k, v in info.items() if k not in ("loss_curve", "continues")}))


if __name__ == "__main__":
    main()
