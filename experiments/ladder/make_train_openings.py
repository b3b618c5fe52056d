"""Sample more openings for training comparisons, so that data seeds need not share prompts.

    python experiments/ladder/make_train_openings.py overopt/ladder/openings_train.json.xz

The 6m rung writes the beginnings of stories, which are cut as `make_openings.py` cuts those of the
corpus. Openings that are shipped already, repeated ones and those that name no hero are dropped. Ten
minutes of a CPU.
"""

import argparse
import json
import lzma
from pathlib import Path

import torch
from make_openings import cut_opening

from overopt.base.datatypes import Prompts
from overopt.base.seeding import derive_seed, numpy_rng
from overopt.nets.checkpoints import load_lm
from overopt.nets.sampling import sample
from overopt.worlds.prompts import load_openings
from overopt.worlds.stories import BOS
from overopt.worlds.tokenizers import load_tokenizer

LONGEST, AT_ONCE = 23, 2048  # tokens of an opening, stories a call


def main() -> None:
    """Sample until there are enough, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--openings", type=int, default=9600)
    args = parser.parse_args()
    torch.set_num_threads(1)
    writer, tokenizer = load_lm("ladder:6m"), load_tokenizer()
    begin = Prompts(
        torch.tensor([[BOS]]), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    )
    rng = numpy_rng(0, "ladder", "train openings")
    shipped, found, n_sampled = set(load_openings()), dict[str, None](), 0
    while len(found) < args.openings:
        seed = derive_seed(0, "train openings", n_sampled)
        rows = sample(writer, begin, n_tokens=LONGEST, seed=seed, copies=AT_ONCE)
        for ids, n in zip(rows.ids.tolist(), rows.length.tolist(), strict=True):
            text = cut_opening(ids[:n], tokenizer, rng)
            if text is not None and text not in shipped:
                found.setdefault(text)
        n_sampled += AT_ONCE
        print(f"{n_sampled} stories begun, {len(found)} new openings", flush=True)
    chosen = list(found)[: args.openings]
    with lzma.open(args.out, "wt", encoding="utf-8") as f:
        json.dump(chosen, f, ensure_ascii=False)
    print("\n".join(chosen[:12]))


if __name__ == "__main__":
    main()
