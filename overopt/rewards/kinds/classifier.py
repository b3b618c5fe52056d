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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from overopt.base import files
from overopt.base.datatypes import Responses, length_sorted
from overopt.base.errors import DataError
from overopt.nets.checkpoints import from_pretrained, n_params
from overopt.nets.sources import auto_tokenizer, source_dir
from overopt.rewards.kind import Place, Scorer, Unit
from overopt.worlds.codecs import whole_texts
from overopt.worlds.world import World


@dataclass(frozen=True)
class ClassifierScorer(Scorer):
    """A sequence classifier with the mean and std of its raw score under the initial policy.

    Attributes
    ----------
    model : a ``...ForSequenceClassification`` with one label, or two.
    tokenizer : its own.
    source : where it came from.
    world : decodes responses.
    """

    model: Any
    tokenizer: Any
    source: str
    world: World
    mean: float = 0.0
    std: float = 1.0

    @property
    def unit(self) -> Unit:
        """Zero and unit of the score."""
        return Unit(self.mean, self.std)

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the network."""
        return n_params(self.model)

    def with_unit(self, unit: Unit) -> "ClassifierScorer":
        """The same classifier with another zero and unit."""
        return replace(self, mean=unit.mean, std=unit.std)

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Its name, not its weights: they may be large, and every identity has their checksum."""
        source = {"kind": "classifier", "source": self.source, "scored_by": "text"}
        info = info | {"mean": self.mean, "std": self.std} | source
        files.save_json(folder / "scorer.json", info)

    def score(self, responses: Responses) -> Tensor:
        """Normalised scores (R,) float32."""
        return (self.raw(responses) - self.mean) / self.std

    @torch.no_grad()
    def raw(self, responses: Responses, *, batch_tokens: int = 8192) -> Tensor:
        """The one logit (R,), or the second minus the first of two, before normalisation.

        Raises
        ------
        DataError
            A text is longer than the classifier's context.
        """
        rows = encode_dialogues(self.tokenizer, self.world, responses)
        length = torch.tensor([len(row["input_ids"]) for row in rows])
        context = getattr(self.model.config, "max_position_embeddings", None)
        if context and int(length.max()) > context:
            raise DataError(
                f"response {int(length.argmax())} makes {int(length.max())} tokens for gold.source "
                f"{self.source!r}, whose context is {context}: lower world.max_response_tokens or "
                "shorten prompts"
            )
        out = torch.zeros(len(rows))
        for at in length_sorted(length, batch_tokens):
            out[at] = classifier_logits(self.model, [rows[i] for i in at.tolist()])
        return out


def encode_dialogues(
    tokenizer: Any, world: World, responses: Responses
) -> list[Mapping[str, list[int]]]:
    """Token ids (and segment ids, for models that have them) of prompt and response, R rows."""
    if tokenizer.chat_template:
        pairs = zip(world.prompt_texts(responses), world.response_texts(responses), strict=True)
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": p}, {"role": "assistant", "content": r}],
                tokenize=False,
            )
            for p, r in pairs
        ]
        found = tokenizer(texts, add_special_tokens=False)
    elif not world.is_chat:
        found = tokenizer(whole_texts(world.tokenizer, responses))
    else:
        prompts, answers = world.prompt_texts(responses), world.response_texts(responses)
        added = tokenizer.num_special_tokens_to_add
        if added(pair=True) > added(pair=False):
            found = tokenizer(prompts, answers)
        else:
            both = zip(prompts, answers, strict=True)
            found = tokenizer([f"{p}\n{r}" for p, r in both])
    names = [n for n in ("input_ids", "token_type_ids") if n in found]
    return [{name: found[name][i] for name in names} for i in range(len(responses))]


def classifier_logits(model: Any, rows: Sequence[Mapping[str, list[int]]]) -> Tensor:
    """Score (R,) float32 of each encoded text, as if it were alone in its batch."""
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
        logits = model(**{k: v.to(model.device) for k, v in inputs.items()}).logits.float().cpu()
    finally:
        model.config.pad_token_id = given
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


class Classifier(NamedTuple):
    """A sequence classifier of transformers and its tokenizer."""

    model: nn.Module
    tokenizer: Any


def load_classifier(source: str) -> Classifier:
    """A pretrained reward model: a sequence classifier with one label, or with two.

    Raises
    ------
    CheckpointError
        It is a language model without a trained score, has more labels, or no tokenizer.
    """
    from transformers import AutoModelForSequenceClassification

    path = source_dir(source)
    tokenizer = auto_tokenizer(source, path)
    model = from_pretrained(AutoModelForSequenceClassification, source, path)
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
    )
