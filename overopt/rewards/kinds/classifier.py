"""Gold from any sequence classifier of transformers: a published reward model as the truth.

Such a model has a tokenizer and a chat template of its own, so responses are scored by their text:
the policy's tokens are decoded and encoded again. What it reads is prompt and response in its own
format: its chat template; or else, for a policy that answers in a turn of its own, the pair of both
(encoders) or both with a line break between them (decoders); or the continued text.

Scores are those of transformers itself on each text alone. transformers looks for the last token
that is not the pad token, and refuses batches where a model has none; then a pad token is picked
for each batch that no text in it ends with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from overopt.base import files
from overopt.base.datatypes import Responses, length_sorted
from overopt.base.errors import DataError
from overopt.nets import examine
from overopt.nets.checkpoints import from_pretrained, n_params, read_weights
from overopt.nets.sources import (
    auto_tokenizer,
    context_tokens,
    read_config,
    source_dir,
    tokenizer_dir,
)
from overopt.rewards.kind import Place, Standardised
from overopt.worlds.codecs import controls_as_text, encode_pieces, in_template, whole_texts
from overopt.worlds.prompts import turns_of
from overopt.worlds.world import World

Encoded = Mapping[str, list[int]]
"""Token ids of one text, and segment ids for models that have them."""


@dataclass(frozen=True)
class ClassifierScorer(Standardised):
    """A sequence classifier with the mean and std of its raw score under the initial policy.

    Attributes
    ----------
    model : a ``...ForSequenceClassification``.
    tokenizer : its own.
    source : where it came from.
    world : decodes responses.
    mean, std : of the raw score under the initial policy.
    weights : of each label in the score; empty for the one label, or the second minus the first of two.
    """

    model: Any
    tokenizer: Any
    source: str
    world: World
    mean: float = 0.0
    std: float = 1.0
    weights: tuple[float, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the network."""
        return n_params(self.model)

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Its name, not its weights: they may be large, and every identity has their checksum."""
        source = {"kind": "classifier", "source": self.source, "scored_by": "text"}
        own = {"weights": list(self.weights)} if self.weights else {}
        info = info | {"mean": self.mean, "std": self.std} | own | source
        files.save_json(folder / "scorer.json", info)

    @torch.no_grad()
    def raw(self, responses: Responses, *, batch_tokens: int = 8192) -> Tensor:
        """The one logit (R,), the second minus the first of two, or their weighted sum; not normalised.

        Raises
        ------
        DataError
            A text is longer than the classifier's context.
        """
        rows = encode_dialogues(self.tokenizer, self.world, responses)
        length = torch.tensor([len(row["input_ids"]) for row in rows])
        context = context_tokens(self.source)
        if context and int(length.max()) > context:
            raise DataError(
                f"response {int(length.argmax())} makes {int(length.max())} tokens for gold.source "
                f"{self.source!r}, whose context is {context}: lower world.max_response_tokens or "
                "shorten prompts"
            )
        out = torch.zeros(len(rows))
        for at in length_sorted(length, batch_tokens):
            logits = label_logits(self.model, [rows[i] for i in at.tolist()])
            out[at] = one_score(logits, self.weights)
        return out


def encode_dialogues(tokenizer: Any, world: World, responses: Responses) -> list[Encoded]:
    """Token ids (and segment ids, for models that have them) of prompt and response, R rows."""
    if tokenizer.chat_template:
        texts = zip(world.prompt_texts(responses), world.response_texts(responses), strict=True)
        said = [[*turns_of(p), {"role": "assistant", "content": r}] for p, r in texts]
        return encode_turns(tokenizer, said)
    if not world.is_chat:
        with controls_as_text(tokenizer):
            return _rows(tokenizer(whole_texts(world.tokenizer, responses)))
    return encode_pairs(tokenizer, world.prompt_texts(responses), world.response_texts(responses))


def encode_turns(tokenizer: Any, dialogues: Sequence[list[dict[str, str]]]) -> list[Encoded]:
    """Whole dialogues, their last message the response, in the tokenizer's chat template."""
    ids = encode_pieces(tokenizer, [in_template(tokenizer, t, answer=False) for t in dialogues])
    return [{"input_ids": row} for row in ids]


def encode_pairs(tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> list[Encoded]:
    """Prompts and answers as pairs, for encoders; for decoders with a line break between them."""
    added = tokenizer.num_special_tokens_to_add
    with controls_as_text(tokenizer):
        if added(pair=True) > added(pair=False):
            return _rows(tokenizer(list(prompts), list(answers)))
        both = zip(prompts, answers, strict=True)
        return _rows(tokenizer([f"{p}\n{r}" for p, r in both]))


def _rows(found: Any) -> list[Encoded]:
    names = [n for n in ("input_ids", "token_type_ids") if n in found]
    return [{n: found[n][i] for n in names} for i in range(len(found["input_ids"]))]


def label_logits(model: Any, rows: Sequence[Encoded]) -> Tensor:
    """Logits (R, labels) float32 of each encoded text, as if it were alone in its batch."""
    given = model.config.pad_token_id
    ends = {row["input_ids"][-1] for row in rows}
    free = next(i for i in range(len(ends) + 1) if i not in ends)
    pad = free if given is None else given
    length = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = torch.arange(int(length.max())) < length[:, None]
    inputs = {"attention_mask": mask.long()}
    for name in rows[0]:
        table = torch.full(mask.shape, pad if name == "input_ids" else 0)
        table[mask] = torch.tensor([x for row in rows for x in row[name]])
        inputs[name] = table
    model.config.pad_token_id = pad
    try:
        return model(**{k: v.to(model.device) for k, v in inputs.items()}).logits.float().cpu()
    finally:
        model.config.pad_token_id = given


def one_score(logits: Tensor, weights: Sequence[float]) -> Tensor:
    """Score (R,) from logits (R, labels)."""
    if weights:
        return logits @ torch.tensor(weights, dtype=logits.dtype)
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


class Classifier(NamedTuple):
    """A sequence classifier of transformers and its tokenizer."""

    model: nn.Module
    tokenizer: Any


def load_classifier(source: str) -> Classifier:
    """A pretrained reward model: a sequence classifier, or a language model with a head on it.

    Raises
    ------
    CheckpointError
        It is a language model without a trained score, or has no tokenizer.
    """
    from transformers import AutoModelForSequenceClassification

    path = source_dir(source)
    tokenizer = auto_tokenizer(source, tokenizer_dir(source))
    found = None if examine.is_classifier(read_config(path)) else examine.read_value_head(path)
    auto = AutoModelForSequenceClassification
    if found is None:
        return Classifier(from_pretrained(auto, source, path), tokenizer)
    head = {
        f"score.{kind}": weight
        for kind in ("weight", "bias")
        if (weight := read_weights(path).get(f"{found.name}.{kind}")) is not None
    }
    model = from_pretrained(auto, source, path, head=head, num_labels=found.labels)
    return Classifier(model, tokenizer)


def load(folder: Path, info: dict[str, Any], place: Place) -> ClassifierScorer:
    """What `ClassifierScorer.save` wrote, the classifier read from its source."""
    place.check_source(folder, info["source"])
    classifier, tokenizer = load_classifier(info["source"])
    return ClassifierScorer(
        classifier.to(place.device),
        tokenizer,
        info["source"],
        place.world,
        info["mean"],
        info["std"],
        tuple(info.get("weights", ())),
    )
