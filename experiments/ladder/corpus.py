"""The corpus of the ladder: stories as token ids, and the batches that every rung sees in one order.

Written by `make_stories.py`, read by `make_ladder.py`. Token ids of all stories lie one behind the
other, each with the start token before and the end token behind it.
"""

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from overopt.base.seeding import numpy_rng

BOS = EOS = 1
ROOT_SEED = 0
WINDOW = 128  # tokens a row; prompts plus responses of the sandbox stay below 96
N_VALIDATION = 500  # last stories of the given file, which no rung is trained on


class Corpus(NamedTuple):
    """Stories: ids (n_tokens,) uint16, and where each starts in them, (n_stories + 1,) int64."""

    ids: np.ndarray
    start: np.ndarray


def read_stories(path: Path) -> list[str]:
    """All stories of an xz-compressed JSONL file, one JSON string a line."""
    with lzma.open(path, "rt", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def encode_stories(stories: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Token ids of each story with the start token before and the end token behind it."""
    encoded = tokenizer.encode_batch_fast(stories, add_special_tokens=False)
    return [np.array([BOS, *e.ids, EOS], dtype=np.uint16) for e in encoded]


def make_corpus(stories: list[np.ndarray]) -> Corpus:
    """Stories one behind the other."""
    start = np.cumsum([0, *map(len, stories)], dtype=np.int64)
    return Corpus(np.concatenate(stories), start)


def save_corpus(path: Path, corpus: Corpus) -> None:
    """Write a corpus as ``.npz``."""
    np.savez(path, **corpus._asdict())


def load_corpus(path: Path) -> Corpus:
    """Read what `save_corpus` wrote."""
    with np.load(path) as f:
        return Corpus(f["ids"], f["start"])


def sentence_ends(tokenizer: Tokenizer) -> np.ndarray:
    """Ids of the pieces that close a sentence."""
    closing = {".", "!", "?", '."', '!"', '?"'}
    return np.array([i for p, i in tokenizer.get_vocab().items() if p.strip("▁") in closing])


def cut_corpus(corpus: Corpus, ends: np.ndarray, n_tokens: float) -> Corpus:
    """The first stories, each ended behind its first sentence that closes after 16 to 96 tokens.

    The least length of each is a uniform draw; ``n_tokens``: when to stop.
    """
    rng = numpy_rng(ROOT_SEED, "ladder", "order-cut")
    stories, total = [], 0
    for first, stop in zip(corpus.start[:-1], corpus.start[1:], strict=True):
        if total >= n_tokens:
            break
        ids = corpus.ids[first:stop]
        closes = np.flatnonzero(np.isin(ids, ends))
        later = closes[closes >= rng.integers(16, 97)]
        if later.size > 0:
            ids = np.append(ids[: later[0] + 1], np.uint16(EOS))
        stories.append(ids)
        total += len(ids)
    return make_corpus(stories)


def batches(corpus: Corpus, *, rows: int, whole: bool, device: str) -> Iterator[torch.Tensor]:
    """Endless batches (rows, WINDOW + 1) of token ids on ``device``, -1 behind the end of a story.

    Each epoch visits every story once. Two rows in three begin with the story, the third at a
    uniform position, so that openings, which the sandbox uses as prompts, are seen most. With
    ``whole`` every row begins with its story.
    """
    rng = numpy_rng(ROOT_SEED, "ladder", "order")
    ids = torch.from_numpy(corpus.ids.astype(np.int32)).to(device)
    column = torch.arange(WINDOW + 1, device=device)
    length = np.diff(corpus.start)
    while True:
        shift = rng.integers(0, np.maximum(length - WINDOW, 1))
        shift[(rng.random(len(length)) >= 1 / 3) | whole] = 0
        order = rng.permutation(len(length))
        first = torch.from_numpy((corpus.start[:-1] + shift)[order]).to(device)
        stop = torch.from_numpy(corpus.start[1:][order]).to(device)
        for k in range(0, len(order) - rows + 1, rows):
            at = first[k : k + rows, None] + column
            past = at >= stop[k : k + rows, None]
            yield ids[at.clamp_max(len(ids) - 1)].long().masked_fill(past, -1)
