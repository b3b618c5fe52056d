"""Measure every rung on held-out stories and write the model card and samples of the ladder.

    python experiments/ladder/make_card.py --teacher DIR --stories FILE

The teacher is measured with its own tokenizer on the same text, so its column is in nats per
character; tokens differ.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from corpus import N_VALIDATION, WINDOW, encode_stories, read_stories
from make_ladder import validation
from safetensors.torch import load_file
from tokenizers import Tokenizer

from overopt.base.seeding import derive_seed
from overopt.nets.block import LlamaConfig
from overopt.nets.checkpoints import load_lm
from overopt.nets.layout import from_transformers_state
from overopt.nets.sampling import sample
from overopt.nets.sources import ladder_dir
from overopt.worlds.prompts import load_openings
from overopt.worlds.stories import StoriesWorld
from overopt.worlds.tokenizers import load_tokenizer

RUNGS = ("0.05m", "0.2m", "0.8m", "3m", "6m", "policy-0.8m")
N_SAMPLES = 20

HEAD = """# The ladder

Small Llama-architecture language models of simple English stories: one tokenizer (4,096 byte-pair
pieces), one corpus and data order (6m excepted, see below). They serve as initial policy, as
backbones of proxy reward models and as backbone of gold. All are in the transformers layout, float16.

| rung | non-embedding parameters | all parameters | tokens trained | nats/token | nats/character |
|---|---|---|---|---|---|
"""
TAIL = """
Validation: the first {window} tokens of {n} stories that no rung was trained on. The teacher is
measured on the same text with its own 32,000 pieces.

**Corpus and teacher.** 591,626 stories, 38.9 million tokens, sampled at temperature 1 from stories15M,
the 15.2M-parameter Llama that Andrej Karpathy trained on TinyStories (llama2.c, MIT; upstream card
`karpathy/tinyllamas`), at most 255 tokens each. TinyStories: Eldan and Li 2023, CDLA-Sharing-1.0.
Training on a teacher's samples is sequence-level distillation (Kim and Rush 2016).

**Training.** Rungs 0.05m to 0.8m start from random weights; 3m starts from the teacher's first three
layers, 6m from all six, both with the embedding rows of the 4,096 kept pieces. Muon for matrices, AdamW
for the rest, bfloat16 products, batches of 128 × 128 tokens, on one NVIDIA H200. The peak learning rate
of each rung is 0.6 times the best of two or three on 2.4M tokens; how many tokens a rung saw is what
fitted two minutes of five rungs side by side on the card (`training.json` of each has rate, steps,
seconds and loss curve). 6m is an exception: at 3e-4 and above it ended at 1.20 nats per token or more,
so the version that saw 0.8M tokens at a rate of 3e-5 on two CPU cores was kept.

**policy-0.8m** is 0.8m fine-tuned on 7.4M tokens of stories that are cut behind a sentence and
ended there, so that ending is a choice within 48 tokens. Its loss on whole stories is therefore
higher than that of 0.8m.

**gold-3m** is a reward model on 3m, fitted to 42,000 soft comparisons of 16,800 responses (a sixth
from the initial policy, the rest from tilted copies of it) that the rubric's preset `extremal` labelled,
then frozen. Held-out agreement with the rubric: {gold}.

**openings_train.json.xz** holds 9,600 openings that 6m wrote, cut like those of the corpus. Only the
split `train` has them.

**Made by**

    python experiments/ladder/make_tokenizer.py TEACHER STORIES OUT/tokenizer --pieces 4096
    python experiments/ladder/make_stories.py ... --tokens 50e6 --seconds 85
    python experiments/ladder/make_ladder.py 0.05m ... --lr 1.2e-2 --tokens 105e6 --seconds 125
        (0.2m: 1.2e-2, 0.8m: 4.8e-3, 3m: 6e-4; 6m on a CPU: --lr 3e-5 --tokens 8e5 --batch 16)
    python experiments/ladder/make_ladder.py policy-0.8m ... --lr 1e-3 --tokens 10e6 --seconds 25
    python experiments/ladder/make_openings.py STORIES TOKENIZER_DIR openings.json.xz
    python experiments/ladder/make_train_openings.py overopt/ladder/openings_train.json.xz
    python experiments/ladder/make_gold.py overopt/ladder/gold-3m --device cuda

No rung was chosen among several seeds. Rungs differ in tokens as well as in size, so the step from
one to the next is not the effect of size alone.

`samples.md` has {samples} continuations a rung.
"""


def main() -> None:
    """Measure, sample, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--stories", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ladder, tokenizer = ladder_dir(), load_tokenizer()
    texts = read_stories(args.stories)[-N_VALIDATION:]
    held = [ids[: WINDOW + 1] for ids in encode_stories(texts, tokenizer)]
    held_texts = [tokenizer.decode(ids.tolist()) for ids in held]
    world = StoriesWorld(tuple(load_openings()), tokenizer)
    prompts = world.prompts("eval", N_SAMPLES)

    table, samples = HEAD, "# Samples\n\nTemperature 1, at most 48 tokens; the prompt in bold.\n"
    for rung in RUNGS:
        model = load_lm(f"ladder:{rung}")
        file = ladder / rung / "training.json"
        info = json.loads(file.read_text())
        info["validation"] = validation(model, held, held_texts, "cpu")
        file.write_text(json.dumps(info, indent=1) + "\n")
        v = info["validation"]
        table += (
            f"| {rung} | {info['n_params']:,} | {info['n_params_total']:,} |"
            f" {info['tokens'] / 1e6:.1f}M | {v['nats_per_token']:.3f} |"
            f" {v['nats_per_char']:.3f} |\n"
        )
        print(rung, v, flush=True)
        r = sample(model, prompts, n_tokens=48, seed=derive_seed(0, "card", rung))
        samples += f"\n## {rung}\n\n"
        for prompt, text in zip(world.prompt_texts(r), world.response_texts(r), strict=True):
            samples += f"1. **{prompt}** {' '.join(text.split())}\n"

    spec = json.loads((args.teacher / "config.json").read_text())
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
    state = load_file(args.teacher / "model.safetensors")
    teacher = from_transformers_state(state, LlamaConfig(**{n: spec[n] for n in names}))
    own = Tokenizer.from_file(str(args.teacher / "tokenizer.json"))
    total, n_tokens = 0.0, 0
    for text in held_texts:
        ids = torch.tensor([[1, *own.encode(text, add_special_tokens=False).ids]])
        with torch.no_grad():
            logits = teacher.logits(teacher(ids[:, :-1]))[0]
        total += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        n_tokens += ids.shape[1] - 1
    n_chars = sum(map(len, held_texts))
    table += (
        f"| teacher | 5,972,256 | 15,191,712 | | {total / n_tokens:.3f} | {total / n_chars:.3f} |\n"
    )
    gold = json.loads((ladder / "gold-3m" / "training.json").read_text())["validation"][-1]
    agreement = ", ".join(f"{k.replace('_', ' ')} {v:.2f}" for k, v in gold.items())
    card = table + TAIL.format(window=WINDOW, n=len(held), gold=agreement, samples=N_SAMPLES)
    (ladder / "README.md").write_text(card)
    (ladder / "samples.md").write_text(samples)


if __name__ == "__main__":
    main()
