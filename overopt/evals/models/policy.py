"""A language model as a reward model: by the log-probability that it gives to a response.

With a reference it is the implicit reward of DPO up to the factor β, which changes no order:
Σ log π − Σ log π_ref over the tokens of the response (Rafailov et al. 2023). Without one it is Σ log π
("sum"), its mean over tokens ("mean"), or minus the Euclidean norm of the tokens' log-probabilities
("norm"): the three of allenai/reward-bench (commit 05a9005, rewardbench/dpo.py, as avg, sum, norm).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from overopt.base.config import check_types, require
from overopt.base.errors import DataError
from overopt.base.lazy import lazy
from overopt.evals.model import Answers, Model, ModelSettings, flat, grouped
from overopt.evals.question import Outcome, Question
from overopt.nets.sources import context_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from overopt.evals import shared
    from overopt.nets import checkpoints, sampling
    from overopt.nets.backbone import Backbone
    from overopt.worlds import codecs
    from overopt.worlds import rows as row_tables
    from overopt.worlds.codecs import Piece, TextCodec
else:
    shared = lazy("overopt.evals.shared")
    codecs, row_tables = lazy("overopt.worlds.codecs"), lazy("overopt.worlds.rows")
    checkpoints, sampling = lazy("overopt.nets.checkpoints"), lazy("overopt.nets.sampling")


@dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings):
    """A policy, and perhaps the policy that it was trained from.

    Attributes
    ----------
    reference : str
        What the policy was trained from; empty: without a reference.
    read : "sum", "mean" or "norm"
        Without a reference: what is made of the tokens' log-probabilities.
    end : bool
        The end token follows a response and counts as one of its tokens.
    """

    reference: str = ""
    read: Literal["sum", "mean", "norm"] = "sum"
    end: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        require(
            not (self.reference and self.read != "sum"),
            "model.read",
            self.read,
            "has no effect with a reference, whose log-ratio is a sum: leave one of the two out",
        )

    @property
    def title(self) -> str:
        """Its name, or source and how it is read."""
        how = f"against {self.reference}" if self.reference else f"log-probability, {self.read}"
        return self.name or f"{self.source} ({how})"


def load(settings: Settings, device: str) -> Model:
    """Policy and reference on the device.

    Raises
    ------
    CheckpointError
        One is no causal language model.
    DataError
        They have different vocabularies, so a token is not the same to both.
    """
    policy, codec = (
        checkpoints.load_lm(settings.source, masked=False),
        codecs.load_codec(settings.source),
    )
    reference = None
    if settings.reference:
        theirs = codecs.load_codec(settings.reference)
        if theirs.tokenizer.get_vocab() != codec.tokenizer.get_vocab():
            raise DataError(
                f"model.reference = {settings.reference!r}: has another vocabulary than"
                f" {settings.source!r}: give the model that this one was trained from"
            )
        reference = checkpoints.load_lm(settings.reference, masked=False).to(device)
    return Policy(settings, policy.to(device), reference, codec)


@dataclass(frozen=True)
class Policy(Model):
    """A policy ready to score."""

    settings: Settings
    policy: Backbone
    reference: Backbone | None
    codec: TextCodec

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the policy."""
        return checkpoints.n_params(self.policy)

    def answer(self, questions: Sequence[Question]) -> Answers:
        """A score of each response, in nats."""
        fronts = flat(questions, lambda q, r: dressed(self.codec, q))
        rows = self.codec.continued(
            fronts,
            flat(questions, lambda q, r: r),
            end=self.settings.end,
        )
        check_rows(rows, self.settings.source)
        scores = in_tables(rows, questions, lambda at: self._scores([rows[i] for i in at]))
        n_tokens = sum(len(prompt) + len(answer) for prompt, answer in rows)
        return Answers(Outcome(scores=grouped(scores, questions)), n_tokens)

    def _scores(self, rows: Sequence[Row]) -> Tensor:
        """Scores (R,) float64 in nats."""
        responses = row_tables.as_responses(rows, pad=self.codec.pad, eos=self.codec.eos)
        logp = sampling.score_logprobs(self.policy, responses, by_length=True).double()
        if self.reference is not None:
            logp -= sampling.score_logprobs(self.reference, responses, by_length=True)
        match self.settings.read:
            case "mean":
                return logp.sum(1) / responses.length
            case "norm":
                return -logp.norm(dim=1)
            case _:
                return logp.sum(1)


Row = tuple[list[int], list[int]]
"""Token ids of a prompt and of an answer to it."""


def in_tables(
    rows: Sequence[Row], questions: Sequence[Question], score: Callable[[list[int]], Tensor]
) -> NDArray[np.float64]:
    """Scores (R,) of all rows, by ``score`` of their numbers, some questions at a time.

    A network keeps keys and values of all prompts of a table: those of a whole benchmark do not fit
    in memory.
    """
    of_question = grouped(np.arange(len(rows)), questions)
    members = [[int(i) for i in part] for part in of_question]
    beginning = [len(rows[part[0]][0]) for part in members]
    n_tokens = [sum(len(half) for i in part for half in rows[i]) for part in members]
    out = np.zeros(len(rows))
    for batch in shared.batches(beginning, n_tokens):
        at = [i for q in batch for i in members[q]]
        out[at] = score(at).double().numpy()
    return out


def dressed(codec: TextCodec, question: Question) -> list[Piece]:
    """The dialogue up to where the answer begins: in the chat template, or as it stands."""
    if not codec.is_chat:
        return [codecs.Piece(question.prompt)]
    turns: Any = [turn._asdict() for turn in question.dialogue]
    return codecs.in_template(codec.tokenizer, turns, answer=True)


def check_rows(rows: Sequence[Row], source: str) -> None:
    """Raise DataError where a row has no prompt or does not fit the context of ``source``."""
    context = context_tokens(source)
    for i, (prompt, answer) in enumerate(rows):
        if not prompt:
            raise DataError(
                f"response {i} of the benchmark has a prompt without tokens for {source!r}: its"
                " tokenizer places no begin token, so a prompt must not be empty"
            )
        if context and len(prompt) + len(answer) > context:
            raise DataError(
                f"response {i} of the benchmark makes {len(prompt) + len(answer)} tokens for"
                f" {source!r}, whose context is {context}: leave the row out or take another model"
            )
