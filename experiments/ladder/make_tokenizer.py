"""Cut the teacher's tokenizer and output layer down to the pieces that its stories use.

The ladder shares one vocabulary with its teacher, so that a token id means the same everywhere and
the teacher's logits can be used directly. A byte-pair tokenizer stays correct only if every
intermediate piece on the way to a kept one is kept as well. Ancestors that no real merge path
visits are left out: they would cost a tenth of the vocabulary.

    python experiments/ladder/make_tokenizer.py TEACHER_DIR STORIES.jsonl.xz OUT_DIR --pieces 4096

Writes OUT_DIR/tokenizer.json, and tokenizer_config.json.
"""

import argparse
import collections
import json
from itertools import pairwise
from pathlib import Path

from corpus import read_stories
from tokenizers import Tokenizer

N_SPECIAL = 3  # <unk>/pad, <s>, </s>
N_BYTES = 256


def merge_path(piece: str, rank: dict[tuple[str, str], int]) -> set[str]:
    """Every piece that byte-pair encoding passes through on its way from letters to ``piece``."""
    parts = list(piece)
    passed = set(parts)
    while len(parts) > 1:
        best, at = min((rank.get(pair, len(rank)), i) for i, pair in enumerate(pairwise(parts)))
        if best == len(rank):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        passed.add(parts[at])
    return passed


def keep_pieces(model: dict, counts: collections.Counter, n_pieces: int) -> list[int]:
    """Teacher ids to keep: specials, bytes, then the most frequent pieces with their merge paths."""
    vocab, names = model["vocab"], {i: p for p, i in model["vocab"].items()}
    rank = {(left, right): i for i, (left, right) in enumerate(model["merges"])}
    kept = set(range(N_SPECIAL + N_BYTES))
    for token_id, _ in counts.most_common():
        if token_id in kept:
            continue
        family = {vocab[p] for p in merge_path(names[token_id], rank)} - kept
        if len(kept) + len(family) <= n_pieces:
            kept |= family
    return sorted(kept)


def main() -> None:
    """Read the command line, cut the tokenizer and say what it costs in tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("stories", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pieces", type=int, default=4096)
    args = parser.parse_args()

    spec = json.loads((args.teacher / "tokenizer.json").read_text())
    teacher_tokenizer = Tokenizer.from_file(str(args.teacher / "tokenizer.json"))
    stories = read_stories(args.stories)
    counts: collections.Counter[int] = collections.Counter()
    for encoding in teacher_tokenizer.encode_batch(stories, add_special_tokens=False):
        counts.update(encoding.ids)

    model = spec["model"]
    kept = keep_pieces(model, counts, args.pieces)
    new_id = {old: new for new, old in enumerate(kept)}
    model["vocab"] = {p: new_id[i] for p, i in model["vocab"].items() if i in new_id}
    model["merges"] = [
        [left, right]
        for left, right in model["merges"]
        if left in model["vocab"] and right in model["vocab"] and left + right in model["vocab"]
    ]
    spec["post_processor"] = None  # callers place <s> themselves
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False) + "\n")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<s>",
        "pad_token": "<unk>",
        "unk_token": "<unk>",
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
    }
    (args.out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")

    cut = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    sample = stories[:2000]
    before = sum(
        len(e.ids) for e in teacher_tokenizer.encode_batch(sample, add_special_tokens=False)
    )
    after = sum(len(e.ids) for e in cut.encode_batch(sample, add_special_tokens=False))
    for story in sample[:200]:
        assert cut.decode(cut.encode(story).ids) == story, story
    print(f"{len(kept)} pieces, {len(model['merges'])} merges; tokens {before} -> {after}")


if __name__ == "__main__":
    main()
