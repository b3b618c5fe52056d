"""Any sequence classifier of transformers, with one label or several; also as a LoRA adapter, and a
language model with a head for a score.

It reads the dialogue in its chat template; without one, prompt and response as a pair (encoders) or
with a line break between them (decoders). Each text gets the score that transformers gives it alone.
Several labels are weighted, as the attributes of HelpSteer2 are; with two and no weights the score is
the second minus the first, which is the log-odds of the second.

A Llama or Qwen2 is computed by `overopt.nets.llama` instead, where responses to one prompt share what
they have in common; others by transformers, in batches of similar length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from overopt.base.config import check_types, require
from overopt.base.errors import CheckpointError, ConfigError, DataError
from overopt.base.lazy import lazy
from overopt.evals.model import Answers, Model, ModelSettings, flat, grouped
from overopt.evals.question import Outcome, Question
from overopt.nets import adapters, examine
from overopt.nets.sources import (
    auto_tokenizer,
    context_tokens,
    read_config,
    source_dir,
    tokenizer_dir,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from overopt.base import datatypes
    from overopt.evals import shared
    from overopt.nets import checkpoints
    from overopt.rewards.kinds import classifier
else:
    torch, datatypes = lazy("torch"), lazy("overopt.base.datatypes")
    checkpoints, shared = lazy("overopt.nets.checkpoints"), lazy("overopt.evals.shared")
    classifier = lazy("overopt.rewards.kinds.classifier")

BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings):
    """A sequence classifier.

    Attributes
    ----------
    weights : tuple of float
        Weight of each label in the score; empty: the only label, or the second of two minus the first.
    max_tokens : int
        Longer texts are cut, as reward-bench does at 2,048; 0: they are an error.
    cut : "end" or "start"
        Where they are cut.
    shared : bool
        Compute what the responses to one prompt have in common once, where the architecture allows.
    """

    weights: tuple[float, ...] = ()
    max_tokens: int = 0
    cut: Literal["end", "start"] = "end"
    shared: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        require(self.max_tokens >= 0, "model.max_tokens", self.max_tokens, "must be at least 0")


def is_classifier(path: Path) -> bool:
    """Whether a checkpoint's folder holds a sequence classifier, or a head for a score."""
    return examine.is_classifier(read_config(path)) or examine.read_value_head(path) is not None


def label_names(source: str) -> list[str]:
    """The labels of a classifier, in the order of its outputs."""
    path = source_dir(source)
    spec = read_config(path)
    if not examine.is_classifier(spec) and (head := examine.read_value_head(path)):
        return [f"LABEL_{i}" for i in range(head.labels)]
    if "id2label" in spec:
        return [str(spec["id2label"][key]) for key in sorted(spec["id2label"], key=int)]
    return [f"LABEL_{i}" for i in range(spec.get("num_labels", 2))]


def weights_of(settings: Settings) -> tuple[float, ...]:
    """The weight of each label.

    Raises
    ------
    ConfigError
        As many weights as labels are needed, or were not given.
    """
    labels, given = label_names(settings.source), settings.weights
    if given and len(given) != len(labels):
        raise ConfigError(
            f"model.weights = {given}: {settings.source!r} has {len(labels)} labels,"
            f" {', '.join(labels)}: give a weight for each"
        )
    if given:
        return given
    if len(labels) > 2:
        raise ConfigError(
            f"{settings.source!r} has {len(labels)} labels, {', '.join(labels)}: say how they make a"
            f" score, such as model.weights={','.join(['1', *'0' * (len(labels) - 1)])}"
        )
    return (1.0,) if len(labels) == 1 else (-1.0, 1.0)


def load(settings: Settings, device: str) -> Model:
    """The classifier on the device; CheckpointError where the source is none."""
    path = source_dir(settings.source)
    if (path / adapters.CONFIG).is_file() and not adapters.is_adapter(path):
        raise CheckpointError(
            f"{settings.source!r} holds a model and an adapter, {adapters.CONFIG}: give each a folder of"
            " its own"
        )
    kinds = read_config(path).get("architectures") or []
    if kinds and not is_classifier(path):
        raise CheckpointError(
            f"{settings.source!r} is a {kinds[0]}, no sequence classifier: take model.kind=policy for"
            " the log-probabilities of a language model, or model.kind=judge to let it judge"
        )
    weights, tokenizer = (
        weights_of(settings),
        auto_tokenizer(settings.source, tokenizer_dir(settings.source)),
    )
    network: torch.nn.Module | None = None
    if settings.shared:
        network = checkpoints.load_labelled_llama(settings.source)
    if network is None:
        network = classifier.load_classifier(settings.source).model
    return Classifier(settings, network.to(device), tokenizer, torch.tensor(weights))


@dataclass(frozen=True)
class Classifier(Model):
    """A classifier ready to score; ``network``: a `ScalarHeadModel`, or a model of transformers."""

    settings: Settings
    network: Any
    tokenizer: Any
    weights: Tensor

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the network."""
        return checkpoints.n_params(self.network)

    def answer(self, questions: Sequence[Question]) -> Answers:
        """A score of each response."""
        encoded = encode(self.tokenizer, questions)
        rows = [self._fitting(row, i) for i, row in enumerate(encoded)]
        if hasattr(self.network, "at_last_token"):
            labels = self._shared(questions, rows)
        else:
            labels = self._alone(rows)
        scores = labels.double() @ self.weights.double()
        n_tokens = sum(len(row["input_ids"]) for row in rows)
        return Answers(Outcome(scores=grouped(scores.numpy(), questions)), n_tokens)

    def _fitting(self, row: Mapping[str, list[int]], i: int) -> Mapping[str, list[int]]:
        n, most = len(row["input_ids"]), self.settings.max_tokens
        if most and n > most:
            kept = slice(-most, None) if self.settings.cut == "start" else slice(most)
            row = {name: ids[kept] for name, ids in row.items()}
        context = context_tokens(self.settings.source)
        if context and len(row["input_ids"]) > context:
            raise DataError(
                f"response {i} of the benchmark makes {n} tokens for {self.settings.source!r}, whose"
                f" context is {context}: cut long texts with model.max_tokens={context}"
            )
        return row

    def _alone(self, rows: list[Mapping[str, list[int]]]) -> Tensor:
        """Label logits (R, L) by transformers."""
        length = torch.tensor([len(row["input_ids"]) for row in rows])
        out: list[Tensor] = [torch.zeros(0)] * len(rows)
        with torch.no_grad():
            for at in datatypes.length_sorted(length, BATCH_TOKENS):
                some = classifier.label_logits(self.network, [rows[i] for i in at.tolist()])
                for i, logits in zip(at.tolist(), some, strict=True):
                    out[i] = logits
        return torch.stack(out)

    def _shared(self, questions: Sequence[Question], rows: list[Mapping[str, list[int]]]) -> Tensor:
        """Label logits (R, L), what the responses to a question begin with computed once."""
        pad = read_config(source_dir(self.settings.source)).get("pad_token_id")
        ids = [up_to_last_real(row["input_ids"], pad) for row in rows]
        groups, start = [], 0
        for q in questions:
            groups.append(list(range(start, start + len(q.responses))))
            start += len(q.responses)
        return shared.shared_scores(self.network, ids, groups)


def up_to_last_real(ids: list[int], pad: int | None) -> list[int]:
    """``ids`` up to the last that is not the pad token, where transformers reads the score."""
    end = len(ids)
    while pad is not None and end > 1 and ids[end - 1] == pad:
        end -= 1
    return ids[:end]


def encode(tokenizer: Any, questions: Sequence[Question]) -> list[Mapping[str, list[int]]]:
    """Token ids (and segment ids, for models that have them) of each response with what it answers."""
    if tokenizer.chat_template:
        dialogues = flat(
            questions,
            lambda q, r: (
                [turn._asdict() for turn in q.dialogue] + [{"role": "assistant", "content": r}]
            ),
        )
        return classifier.encode_turns(tokenizer, dialogues)
    prompts, responses = flat(questions, lambda q, r: q.prompt), flat(questions, lambda q, r: r)
    return classifier.encode_pairs(tokenizer, prompts, responses)
