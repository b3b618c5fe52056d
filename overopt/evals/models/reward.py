"""A reward model of this package: the artefact of a gold, a proxy or an ensemble in a store.

``model.source`` is its folder, such as ``runs/proxy/0123456789abcdef``. The artefact's manifest says in
which world it lives; the prompts and responses of a benchmark become tokens of that world's policy, as
if the policy had written them. Scores are those before normalisation: of Bradley-Terry models,
differences are log-odds.

A store may come from anywhere, so an artefact loads shipped models alone; another checkpoint that its
settings name must be allowed by name (``model.allow``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from overopt.base.config import check_types, from_dict, require
from overopt.base.errors import ConfigError, DataError
from overopt.base.kinds import names
from overopt.base.lazy import lazy
from overopt.engine.store import Store
from overopt.evals.model import Answers, Model, ModelSettings, first_below, flat, grouped
from overopt.evals.models.policy import Row, check_rows, dressed, in_tables
from overopt.evals.question import Outcome, Question
from overopt.rewards.kind import Place, ReadsSteps, Scorer
from overopt.worlds.load import load_world
from overopt.worlds.world import AnyWorld, World

if TYPE_CHECKING:
    import torch

    from overopt.base.datatypes import Responses
    from overopt.rewards import load as loading
    from overopt.worlds import codecs
    from overopt.worlds import rows as row_tables
    from overopt.worlds.codecs import TextCodec
else:
    torch = lazy("torch")
    loading, codecs = lazy("overopt.rewards.load"), lazy("overopt.worlds.codecs")
    row_tables = lazy("overopt.worlds.rows")


@dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings):
    """An artefact of a store.

    Attributes
    ----------
    end : bool
        The end token follows a response, as one that its policy finished has it.
    allow : tuple of str
        Checkpoints beside the shipped ones that the artefact may load.
    """

    end: bool = True
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        require(self.source != "", "model.source", self.source, "give the artefact's folder")


@dataclass(frozen=True, kw_only=True)
class _OfWorld:
    """The part of every stage's config that says which world it lives in."""

    world: AnyWorld


def load(settings: Settings, device: str) -> Model:
    """The scorer of the artefact, its files compared with their checksums.

    Raises
    ------
    StoreError
        The artefact is absent or damaged, or names a checkpoint that is not allowed.
    ConfigError
        It is no reward model, or its world is a user's own.
    """
    path = Path(settings.source)
    store = Store(path.parent.parent)
    manifest = store.open(path.parent.name, path.name).manifest
    config = manifest["config"]
    if not (path / "scorer.json").is_file() or "world" not in config:
        raise ConfigError(
            f"model.source = {settings.source!r}: is a {manifest['stage']}, no reward model: give the"
            " folder of a gold, proxy or reward"
        )
    named = _texts(config)
    world_settings: Any = from_dict(_OfWorld, {"world": config["world"]}).world
    policy = world_settings.policy
    for source in (policy, *world_settings.sources.values()):
        if not is_allowed(source, settings):
            raise ConfigError(
                f"{settings.source}: its world reads {source!r}, which is not loaded unasked: allow it"
                f" with model.allow={source}"
            )
    # The prompts are those of the benchmark, so the file that the run had is not needed.
    world = load_world(replace(world_settings, prompts_file=""))
    place = Place(
        path.parent.parent / "calibration" / manifest["upstream"].get("calibration", "none"),
        world,
        device,
        frozenset(text for text in named if is_allowed(text, settings)),
        members=(*loading.MEMBERS, *names("overopt.rewards.kinds")),
    )
    return Reward(settings, path, place, policy, codecs.load_codec(policy))


def is_allowed(source: str, settings: Settings) -> bool:
    """Whether an artefact may load a checkpoint."""
    return source.startswith("ladder:") or source in settings.allow


def _texts(config: Any) -> set[str]:
    """Every text in a config."""
    if isinstance(config, dict):
        return set().union(*map(_texts, config.values()))
    if isinstance(config, list | tuple):
        return set().union(*map(_texts, config))
    return {config} if isinstance(config, str) else set()


@dataclass(frozen=True)
class Reward(Model):
    """An artefact's scorer; it is loaded for the prompts that it is asked about."""

    settings: Settings
    folder: Path
    place: Place
    policy: str
    codec: TextCodec

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the scorer's network."""
        return self._scorer(self.place.world).sizes

    def _scorer(self, world: World) -> Scorer:
        return loading.load_scorer(self.folder, self.place._replace(world=world))

    def _read(self, questions: Sequence[Question]) -> _Asked:
        """The scorer in a world that asks these prompts, and the responses in tokens."""
        rows = self.codec.continued(
            flat(questions, lambda q, r: dressed(self.codec, q)),
            flat(questions, lambda q, r: r),
            end=self.settings.end,
        )
        check_rows(rows, self.policy)
        self._check_words(rows)
        world = self.place.world.asking(flat(questions, lambda q, r: q.prompt))
        responses = row_tables.as_responses(rows, pad=self.codec.pad, eos=self.codec.eos)
        return _Asked(self._scorer(world), rows, responses)

    def _check_words(self, rows: Sequence[Row]) -> None:
        unknown = self.codec.tokenizer.unk_token_id
        for i, row in enumerate(rows):
            if unknown is not None and any(unknown in part for part in row):
                raise DataError(
                    f"response {i} of the benchmark, or its prompt, has words that the world of"
                    f" {self.folder} does not know: it can score texts of its own world alone"
                )

    def answer(self, questions: Sequence[Question]) -> Answers:
        """The raw score of each response."""
        asked = self._read(questions)
        scores = in_tables(
            asked.rows,
            questions,
            lambda at: asked.scorer.raw(asked.responses.select(torch.tensor(at))),
        )
        return Answers(Outcome(scores=grouped(scores, questions)), asked.n_tokens)

    def first_errors(self, questions: Sequence[Question], threshold: float) -> Answers:
        """The first step below the threshold by a process reward model's own log-odds of each step.

        Raises
        ------
        DataError
            It finds another number of steps in a response than the benchmark has.
        """
        asked = self._read(questions)
        if not isinstance(asked.scorer, ReadsSteps):
            return super().first_errors(questions, threshold)
        logits, mask = asked.scorer.step_logits(asked.responses)
        found = []
        for i, question in enumerate(questions):
            of_steps = logits[i][mask[i]].double().numpy()
            if len(of_steps) != len(question.steps[0]):
                raise DataError(
                    f"row {i + 1}: {len(of_steps)} steps end in the response as the reward model reads"
                    f" it, {len(question.steps[0])} are given: set what joins them (benchmark.joint)"
                )
            found.append(first_below(of_steps, threshold))
        return Answers(Outcome(first_errors=found), asked.n_tokens)


class _Asked(NamedTuple):
    """A scorer, and what it is asked about: token ids, and the same as a table."""

    scorer: Scorer
    rows: list[Row]
    responses: Responses

    @property
    def n_tokens(self) -> int:
        """Tokens of prompts and answers."""
        return sum(len(part) for row in self.rows for part in row)
