"""Any sequence classifier of transformers: a published reward model, which reads text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from overopt.base.config import require
from overopt.base.errors import CheckpointError
from overopt.base.lazy import lazy
from overopt.nets.sources import auto_tokenizer, read_config, source_dir
from overopt.rewards.kind import Job, RewardSettings, Trained

if TYPE_CHECKING:
    from overopt.rewards.kinds import classifier
else:
    classifier = lazy("overopt.rewards.kinds.classifier")


WRITES = ("classifier",)


@dataclass(frozen=True, kw_only=True)
class Settings(RewardSettings):
    """Any sequence classifier of transformers with one label or two, which reads text.

    Attributes
    ----------
    source : str
        The checkpoint: a path, or a hub name ``org/name``.
    """

    source: str = ""

    @property
    def title(self) -> str:
        """Kind and checkpoint."""
        return f"pretrained {self.source.removeprefix('ladder:')}"

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
    check_classifier(settings.source)


def check_classifier(source: str) -> None:
    """Raise CheckpointError unless ``source`` looks like what `load_classifier` can load."""
    path = source_dir(source)
    spec = read_config(path)
    n_labels = len(spec["id2label"]) if "id2label" in spec else spec.get("num_labels", 2)
    if n_labels not in (1, 2):
        raise CheckpointError(
            f"checkpoint {source!r} has {n_labels} labels: a reward model has one score, or two labels"
            " whose logit difference is the score"
        )
    kinds = spec.get("architectures") or []
    if kinds and not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise CheckpointError(
            f"checkpoint {source!r} is a {kinds[0]}: kind=pretrained needs a sequence classifier;"
            " kind=learned and kind=bradley_terry put a score on a language model"
        )
    auto_tokenizer(source, path)


def train(settings: Settings, job: Job) -> Trained:
    """The classifier on the device; nothing is trained."""
    check(settings)
    model, tokenizer = classifier.load_classifier(settings.source)
    model.to(job.device)
    return Trained(classifier.ClassifierScorer(model, tokenizer, settings.source, job.world))
