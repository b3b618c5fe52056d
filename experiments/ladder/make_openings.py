"""Cut story openings that serve as prompts: a few words to two sentences, each with a named hero.

    python experiments/ladder/make_openings.py STORIES.jsonl.xz TOKENIZER_DIR OUT.json.xz

Each story is cut after a uniform draw of 9 to 22 tokens, at a word boundary. Openings that name no
hero and repeated openings are dropped, so that splits by opening are disjoint.
"""

import argparse
import json
import lzma
from pathlib import Path

from tokenizers import Tokenizer

from overopt.base.seeding import numpy_rng
from overopt.rewards.kinds.rubric import find_hero


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
            ids = tokenizer.encode(json.loads(line)).ids
            stop = int(rng.integers(9, 23))
            while stop < len(ids) and not tokenizer.id_to_token(ids[stop]).startswith("▁"):
                stop -= 1
            text = tokenizer.decode(ids[:stop])
            if stop >= 6 and "\n" not in text and find_hero(text) is not None:
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
