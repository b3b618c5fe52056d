"""Sample stories from the teacher and write the ladder's corpus. For a GPU.

    python experiments/ladder/make_stories.py --teacher DIR --stories FILE --tokenizer DIR \\
        --out corpus.npz --tokens 50e6 [--device cuda]

The corpus is the given stories, without the last 500, followed by the new ones. New stories are
sampled at temperature 1 from the pieces that occur in the given ones, at most 255 tokens each; those
that do not end by then are kept as they are, without an end token.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from corpus import (
    BOS,
    EOS,
    N_VALIDATION,
    ROOT_SEED,
    encode_stories,
    make_corpus,
    read_stories,
    save_corpus,
)
from tokenizers import Tokenizer

from overopt.base.datatypes import Prompts, Responses
from overopt.base.seeding import derive_seed
from overopt.nets.checkpoints import load_lm
from overopt.nets.sampling import sample

LENGTH = 255  # with the start token the teacher's context
ROWS = 8192  # stories sampled at once


def used_pieces(stories: list[str], tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Ids that occur in ``stories``, with the end token and those a context must hold."""
    used = np.zeros(vocab_size, dtype=bool)
    for encoding in tokenizer.encode_batch_fast(stories, add_special_tokens=False):
        used[encoding.ids] = True
    used[: EOS + 1] = True
    return np.flatnonzero(used)


def main() -> None:
    """Read the command line, sample until there are enough tokens, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--stories", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, required=True, help="new tokens to sample")
    parser.add_argument("--rows", type=int, default=ROWS, help="stories sampled at once")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop sampling then")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    started = time.time()
    torch.set_float32_matmul_precision("high")  # a corpus needs no exact products

    given = read_stories(args.stories)[:-N_VALIDATION]
    own = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    reader = Tokenizer.from_file(str(args.teacher / "tokenizer.json"))
    teacher = load_lm(str(args.teacher))
    pieces = used_pieces(given, reader, teacher.cfg.vocab_size)
    with torch.no_grad():  # a smaller table of embeddings is a smaller output matrix
        teacher.embed.weight = torch.nn.Parameter(teacher.embed.weight[torch.from_numpy(pieces)])
    teacher.to(args.device)
    start = Prompts(
        torch.full((args.rows, 1), BOS),
        torch.ones(args.rows, 1, dtype=torch.bool),
        torch.zeros(args.rows, dtype=torch.int64),
    )

    def retokenized(made: Responses) -> list[np.ndarray]:
        """Stories in the ladder's own tokens; the end token stays only where there was one."""
        ids = pieces[made.ids.numpy()]
        n_text = (made.length - made.ended.long()).tolist()
        rows = [row[:n].tolist() for row, n in zip(ids, n_text, strict=True)]
        encoded = encode_stories(reader.decode_batch(rows), own)
        ends = made.ended.tolist()
        return [e if end else e[:-1] for e, end in zip(encoded, ends, strict=True)]

    stories, n_new, k = [], 0, 0
    with ThreadPoolExecutor(
        1
    ) as background:  # text is turned into tokens while the next is sampled
        given_encoded = background.submit(encode_stories, given, own)
        waiting = []
        while n_new < args.tokens and time.time() - started < args.seconds:
            seed = derive_seed(ROOT_SEED, "ladder", "stories", k)
            made = sample(teacher, start, n_tokens=LENGTH, seed=seed)
            waiting.append(background.submit(retokenized, made))
            n_new, k = n_new + int(made.mask.sum()), k + 1
            print(f"{n_new / 1e6:.1f}M tokens, {time.time() - started:.0f} s", flush=True)
        stories = [*given_encoded.result(), *(s for w in waiting for s in w.result())]
    corpus = make_corpus(stories)
    save_corpus(args.out, corpus)
    print(f"{len(stories)} stories, {len(corpus.ids)} tokens, {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
