"""Train one rung of the ladder: small Llamas that share tokenizer, corpus and data order.

Hypothesis: validation loss falls with every rung, as it does for Pythia (Biderman et al. 2023).
All rungs minimise cross-entropy on stories sampled from the teacher, which is sequence-level
distillation (Kim and Rush 2016). Batch t holds the same stories for every rung. Rungs 3m and 6m
start from the teacher's first three and all six layers, because they have its width; the others
start from random weights.

    python experiments/ladder/make_ladder.py RUNG --teacher DIR --stories FILE --corpus FILE.npz \\
        --tokenizer DIR --out DIR --tokens 100e6 [--device cuda]

``policy-0.8m`` is rung 0.8m fine-tuned on stories that end early, so that its end-of-story token
means something inside a response of 48 tokens (`corpus.cut_corpus`); it is the initial policy.

Hidden matrices are updated by Muon, the rest by AdamW; matrix products run in bfloat16.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from corpus import (
    N_VALIDATION,
    ROOT_SEED,
    WINDOW,
    batches,
    cut_corpus,
    encode_stories,
    load_corpus,
    read_stories,
    sentence_ends,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from overopt.base.seeding import torch_generator
from overopt.nets.block import LlamaConfig
from overopt.nets.layout import from_transformers_state, to_transformers_state
from overopt.nets.llama import Llama

BATCH = 128  # rows a step
WARM_UP = 100  # steps
PROBE = 250  # steps between readings of the loss
SHAPES = {  # hidden size, MLP size, layers, heads, peak learning rate
    "0.05m": (48, 128, 2, 2, 1.5e-2),
    "0.2m": (64, 176, 4, 2, 1.5e-2),
    "0.8m": (128, 352, 4, 4, 1e-2),
    "3m": (288, 768, 3, 6, 2e-3),
    "6m": (288, 768, 6, 6, 1e-3),
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


def loss_sum(model: Llama, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed next-token cross-entropy in nats of rows (R, L), and the number of predicted tokens."""
    targets = rows[:, 1:]
    with torch.autocast(rows.device.type, torch.bfloat16):
        logits = model.logits(model(rows[:, :-1].clamp_min(0)))
    loss = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum"
    )
    return loss, (targets >= 0).sum()


@torch.no_grad()
def validation(model: Llama, stories: list[np.ndarray], texts: list[str], device: str) -> dict:
    """Mean nats per token and per character over the first WINDOW tokens of held-out stories."""
    total, n_tokens, n_chars = 0.0, 0, sum(len(t) for t in texts)
    for start in range(0, len(stories), 32):
        rows = np.full((32, WINDOW + 1), -1, dtype=np.int64)
        for row, s in zip(rows, stories[start : start + 32], strict=False):
            row[: len(s)] = s
        loss, n = loss_sum(model, torch.from_numpy(rows).to(device))
        total, n_tokens = total + loss.item(), n_tokens + int(n)
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
    adam = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return [muon, adam]


def save(model: Llama, out: Path, info: dict) -> None:
    """Write a checkpoint in the transformers layout, half precision, with its training record."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(model.cfg.to_transformers(), indent=1) + "\n")
    state = {name: t.half().cpu() for name, t in to_transformers_state(model).items()}
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / "training.json").write_text(json.dumps(info, indent=1) + "\n")


def first_weights(rung: str, args: argparse.Namespace, tokenizer: Tokenizer) -> Llama:
    """The model that training starts from."""
    cfg = rung_config(rung, tokenizer.get_vocab_size())
    if args.rung.startswith("policy-"):
        return from_transformers_state(load_file(args.out / rung / "model.safetensors"), cfg)
    if rung in ("3m", "6m"):
        state = load_file(args.teacher / "model.safetensors")
        teacher = Tokenizer.from_file(str(args.teacher / "tokenizer.json")).get_vocab()
        kept = [teacher[tokenizer.id_to_token(i)] for i in range(cfg.vocab_size)]
        embed = "model.embed_tokens.weight"
        return from_transformers_state(state | {embed: state[embed][kept]}, cfg)
    model = Llama(cfg)
    model.init_weights(torch_generator(ROOT_SEED, "ladder", "init", rung))
    return model


def main() -> None:
    """Read the command line, train, validate, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rung", choices=[*SHAPES, "policy-0.8m"])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--stories", type=Path, required=True, help="their last ones validate")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, required=True, help="tokens to train on")
    parser.add_argument("--lr", type=float, help="peak learning rate, default by rung")
    parser.add_argument("--batch", type=int, default=BATCH, help="rows a step")
    parser.add_argument("--seconds", type=float, default=math.inf, help="train on what fits")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    started = time.time(), time.process_time()

    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    held_out = encode_stories(read_stories(args.stories)[-N_VALIDATION:], tokenizer)
    held_out = [ids[: WINDOW + 1] for ids in held_out]
    held_texts = [tokenizer.decode(ids.tolist()) for ids in held_out]
    corpus = load_corpus(args.corpus)

    sft = args.rung.startswith("policy-")
    rung = args.rung.removeprefix("policy-")
    lr = args.lr if args.lr is not None else SHAPES[rung][-1] * (0.1 if sft else 1)
    model = first_weights(rung, args, tokenizer).to(args.device)
    if sft:
        corpus = cut_corpus(corpus, sentence_ends(tokenizer), args.tokens)
    stream = batches(corpus, rows=args.batch, whole=sft, device=args.device)
    # A row is full, or its story ends: how many tokens a step has on average is known beforehand.
    length = np.minimum(np.diff(corpus.start) - 1, WINDOW)
    steps = math.ceil(args.tokens / (args.batch * length.mean()))
    optimizers = make_optimizers(model, lr)
    seen, curve = torch.zeros((), dtype=torch.int64, device=args.device), []
    began, step = time.time(), 0
    while step < steps:
        rows = next(stream)
        if step == PROBE:  # the speed is known now
            steps = int(min(steps, PROBE * args.seconds / (time.time() - began)))
        # Hold after the warm-up, then decay linearly over the last 60 %.
        scale = min(1.0, (step + 1) / min(WARM_UP, steps / 10), (1 - step / steps) / 0.6)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * scale
        loss, n = loss_sum(model, rows)
        (loss / n).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seen, step = seen + n, step + 1
        if step % PROBE == 0 or step == steps:
            mean = float(loss.detach() / n)
            if not math.isfinite(mean):
                raise SystemExit(f"loss is {mean} at step {step}")
            curve.append([int(seen), round(mean, 4)])
            print(f"{args.rung} step {step}/{steps} loss {mean:.4f}", flush=True)

    info = {
        "rung": args.rung,
        "tokens": int(seen),
        "steps": steps,
        "rows_a_step": args.batch,
        "peak_learning_rate": lr,
        "n_params": sum(p.numel() for n, p in model.named_parameters() if n != "embed.weight"),
        "n_params_total": sum(p.numel() for p in model.parameters()),
        "validation": validation(model, held_out, held_texts, args.device),
        "wall_s": round(time.time() - started[0]),
        "cpu_s": round(time.process_time() - started[1]),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else args.device,
        "torch": torch.__version__,
        "loss_curve": curve,
    }
    save(model, args.out / args.rung, info)
    print(json.dumps({k: v for k, v in info.items() if k != "loss_curve"}))


if __name__ == "__main__":
    main()
