"""Any sequence classifier of transformers: a published reward model, which reads text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from overopt.base.config import require
from overopt.base.errors import CheckpointError
from overopt.base.lazy import lazy
from overopt.nets import examine, sources
from overopt.rewards.kind import Job, RewardSettings, Trained
from overopt.worlds.prompts import turns_of

if TYPE_CHECKING:
    from overopt.rewards.kinds import classifier
else:
    classifier = lazy("overopt.rewards.kinds.classifier")


WRITES = ("classifier",)
_LONGEST = 64  # texts of most characters, among which is the one of most tokens


@dataclass(frozen=True, kw_only=True)
class Settings(RewardSettings):
    """Any sequence classifier of transformers, or language model with a trained head; it reads text.

    Attributes
    ----------
    source : str
        The checkpoint: a path, or a hub name ``org/name``; a LoRA adapter is merged into its base.
    label : str
        Which of several labels is the score, by name or number from 0; or weights of their sum, such as
        ``helpfulness:0.8,verbosity:-0.4``. Empty for one label, or the second minus the first of two.
    """

    source: str = ""
    label: str = ""

    @property
    def title(self) -> str:
        """Kind and checkpoint."""
        label = f" {self.label}" if self.label else ""
        return f"pretrained {self.source.removeprefix('ladder:')}{label}"

    @property
    def sources(self) -> dict[str, str]:
        """The checkpoint."""
        return {"source": self.source} if self.source else {}

    @property
    def reads_tokens(self) -> bool:
        """It has a tokenizer of its own."""
        return False


def check(settings: Settings) -> None:
    """Raise ConfigError or CheckpointError unless the source can be what `train` makes of it."""
    require(settings.source != "", "source", settings.source, "name the classifier's checkpoint")
    examine.examine("source", settings.source, "classifier")
    if sources.tokenizer_dir(settings.source) is None:
        raise CheckpointError(
            f"source = {settings.source!r}: has no tokenizer: put its tokenizer.json beside config.json"
        )
    label_weights(settings)
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    examine.render("source", settings.source, turns, answer=False)


def label_weights(settings: Settings) -> tuple[float, ...]:
    """Weights of the labels in the score; empty for the one label, or the difference of two.

    Raises
    ------
    ConfigError
        There are more than two labels and none is chosen, or one that there is not.
    """
    path = sources.source_dir(settings.source)
    spec = sources.read_config(path)
    head = None if examine.is_classifier(spec) else examine.read_value_head(path)
    named = (
        {int(k): str(v) for k, v in (spec.get("id2label") or {}).items()} if head is None else {}
    )
    n = examine.n_labels(spec) if head is None else head.labels
    names = [named.get(i, f"LABEL_{i}") for i in range(n)]
    require(
        settings.label != "" or n <= 2,
        "label",
        settings.label,
        f"{settings.source!r} has {n} labels: choose one, or weights as NAME:WEIGHT,NAME:WEIGHT, of"
        f" {', '.join(names)}",
    )
    if settings.label == "":
        return ()
    weights = [0.0] * n
    for part in settings.label.split(","):
        name, _, weight = part.strip().rpartition(":")
        if not name or part.strip() in names:
            name, weight = part.strip(), "1"
        at = names.index(name) if name in names else int(name) if name.isdecimal() else n
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        require(
            at < n and math.isfinite(value),
            "label",
            settings.label,
            f"{part.strip()!r} is no label of {settings.source!r} with a weight: it has"
            f" {', '.join(names)}",
        )
        weights[at] += value
    return tuple(weights)


def check_texts(settings: Settings, texts: Sequence[str], n_tokens: int) -> None:
    """Raise ConfigError unless the longest of ``texts`` with ``n_tokens`` behind it fits the context.

    A response has another number of tokens here than in the policy's tokenizer; it is taken for the
    same, and the rest is checked when it is scored.
    """
    context = sources.context_tokens(settings.source)
    folder = sources.tokenizer_dir(settings.source)
    tokenizer = None if folder is None else examine.quick_tokenizer(folder)
    if context is None or tokenizer is None:
        return
    empty = {"role": "assistant", "content": ""}
    longest = 0
    for text in sorted(texts, key=len)[-_LONGEST:]:
        turns = [*turns_of(text), empty]
        dressed = examine.render("source", settings.source, turns, answer=False)
        ids = tokenizer(dressed or text, add_special_tokens=dressed is None).input_ids
        longest = max(longest, len(ids))
    require(
        longest + n_tokens <= context,
        "source",
        settings.source,
        f"takes {context} tokens; the longest prompt makes {longest}, with world.max_response_tokens"
        f" = {n_tokens} too many: shorten them",
    )


def train(settings: Settings, job: Job) -> Trained:
    """The classifier on the device; nothing is trained."""
    check(settings)
    model, tokenizer = classifier.load_classifier(settings.source)
    model.to(job.device)
    scorer = classifier.ClassifierScorer(model, tokenizer, settings.source, job.world)
    return Trained(replace(scorer, weights=label_weights(settings)))
