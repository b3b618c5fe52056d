"""Cut story openings that serve as prompts: a few words to two sentences, each with a named hero.

    python experiments/ladder/make_openings.py STORIES.jsonl.xz TOKENIZER_DIR OUT.json.xz

Each story is cut after a uniform draw of 9 to 22 tokens, at a word boundary. Openings that name no
hero and repeated openings are dropped, so that splits by opening are disjoint.
"""

import argparse
import json
import lzma
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from overopt.base.seeding import numpy_rng
from overopt.worlds.rubric import find_hero


def cut_opening(ids: list[int], tokenizer: Tokenizer, rng: np.random.Generator) -> str | None:
    """The first 9 to 22 tokens of a story, to a word boundary; None where no hero is named."""
    stop = min(int(rng.integers(9, 23)), len(ids))
    while 0 < stop < len(ids) and not tokenizer.id_to_token(ids[stop]).startswith("▁"):
        stop -= 1
    text = tokenizer.decode(ids[:stop])
    return text if stop >= 6 and "\n" not in text and find_hero(text) is not None else None


def main() -> None:
    """Read the command line and write the openings in a fixed random order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stories", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    rng = numpy_rng(0, "ladder", "openings")
    openings: dict[str, None] = {}
    with lzma.open(args.stories, "rt", encoding="utf-8") as f:
        for line in f:
            text = cut_opening(tokenizer.encode(json.loads(line)).ids, tokenizer, rng)
            if text is not None:
                openings.setdefault(text)
    order = rng.permutation(len(openings))
    texts = list(openings)
    chosen = [texts[i] for i in order[:6000]]
    with lzma.open(args.out, "wt", encoding="utf-8") as f:
        json.dump(chosen, f, ensure_ascii=False)
    print(f"{len(openings)} distinct openings, {len(chosen)} written; for example:")
    print("\n".join(chosen[:12]))


if __name__ == "__main__":
    main()
