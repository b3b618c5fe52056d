"""The embedded world: openings of stories as prompts, a policy from the ladder, its tokenizer.

Prompts are split once and for all into disjoint sets for the training of gold, of proxies, for
validation, for policy optimisation and for evaluation. A user's own prompts file is split in the
same proportions.
"""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from overopt.base.datatypes import Prompts, Responses
from overopt.base.errors import DataError
from overopt.worlds.splits import split_bounds

PAD, BOS, EOS = 0, 1, 1


MAX_PROMPT_TOKENS = 48


@dataclass(frozen=True)
class StoriesWorld:
    """Prompts of every split as text, and how to turn tokens into text and back."""

    texts: tuple[str, ...]
    tokenizer: Tokenizer

    @property
    def is_chat(self) -> bool:
        """Whether a response is a turn of its own; here it continues the prompt."""
        return False

    def prompts(self, split: str, n: int) -> Prompts:
        """The first ``n`` prompts of a split, left-padded, each with its id in the world.

        Raises
        ------
        DataError
            The split has fewer prompts.
        """
        start, stop = split_bounds(len(self.texts))[split]
        if n > stop - start:
            raise DataError(
                f"{n} prompts of split {split!r} were asked for, it has {stop - start}: ask for fewer"
                " or give a longer prompts_file"
            )
        rows = [[BOS, *self.tokenizer.encode(t).ids] for t in self.texts[start : start + n]]
        for i, row in enumerate(rows):
            if len(row) > MAX_PROMPT_TOKENS:
                raise DataError(
                    f"prompt {start + i} has {len(row)} tokens, at most {MAX_PROMPT_TOKENS} fit: "
                    f"shorten {self.texts[start + i][:60]!r}"
                )
        width = max(map(len, rows))
        ids = torch.tensor([[PAD] * (width - len(r)) + r for r in rows])
        mask = torch.tensor([[False] * (width - len(r)) + [True] * len(r) for r in rows])
        return Prompts(ids, mask, torch.arange(start, start + n))

    def prompt_texts(self, responses: Responses) -> list[str]:
        """Text of the prompt of each response."""
        return [self.texts[i] for i in responses.prompts.prompt_id.tolist()]

    def response_texts(self, responses: Responses) -> list[str]:
        """Text of each response, without its end token."""
        rows = responses.ids.tolist()
        kept = [r[:n] for r, n in zip(rows, responses.length.tolist(), strict=True)]
        return self.tokenizer.decode_batch(kept, skip_special_tokens=True)
