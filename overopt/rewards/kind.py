"""What a reward model is: a scorer, and the settings of its kind.

A kind is one file in ``kinds/`` (or a user's own) that defines

    Settings                           what can be set; inherit `RewardSettings`
    train(settings, job) -> Trained    the scorer, from what `Job` offers

and, where nothing else in ``kinds/`` writes such a scorer, ``load(folder, info, place) -> Scorer`` for
what the scorer's ``save`` wrote; else ``WRITES``, the files in ``kinds/`` that load what it makes.
Gold and proxies are made alike; what a kind serves as, its settings say. The stage around it fixes
zero and unit on the initial policy, measures and writes.

This file is read in order to plan, so it does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, Self, runtime_checkable

from overopt.base.errors import StoreError
from overopt.base.kinds import Kind, kind_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from overopt.base.datatypes import Responses
    from overopt.nets.backbone import Backbone
    from overopt.nets.compute import Compute
    from overopt.rewards.training.pairs import TrainingPairs
    from overopt.worlds.world import World, WorldSettings


class Unit(NamedTuple):
    """Zero and unit of a score: mean and standard deviation of the raw score, initial policy."""

    mean: float
    std: float


@runtime_checkable
class ReadsSteps(Protocol):
    """A scorer that also says of each step of a response how likely it is right."""

    def step_logits(self, responses: Responses) -> tuple[Tensor, Tensor]:
        """Log-odds (R, S) that each step is right, and where there is one, (R, S)."""
        ...


class Scorer(Protocol):
    """Gold, a proxy, an ensemble, an intent: whatever scores whole responses. R responses, M members.

    No caller asks for the class of one; what a kind can do beyond ``score`` it says here.
    """

    @property
    def unit(self) -> Unit:
        """Zero and unit: ``raw = score · std + mean``."""
        ...

    @property
    def units(self) -> tuple[Unit, ...]:
        """Zero and unit of each member."""
        return (self.unit,)

    @property
    def n_members(self) -> int:
        """M, how many models have a say; 1 for a single one."""
        return 1

    @property
    def sizes(self) -> dict[str, int]:
        """``n_params`` (non-embedding) and ``n_params_total``; 0 where nothing was trained."""
        return {"n_params": 0, "n_params_total": 0}

    @property
    def trained(self) -> nn.Module | None:
        """The network that training it further goes on with; None where nothing was trained."""
        return None

    def score(self, responses: Responses) -> Tensor:
        """Scores (R,) float32: mean 0, standard deviation 1 under the initial policy."""
        ...

    def raw(self, responses: Responses) -> Tensor:
        """Scores (R,) before normalisation; of a Bradley-Terry model, differences are log-odds."""
        return self.score(responses) * self.unit.std + self.unit.mean

    def member_scores(self, responses: Responses) -> Tensor:
        """Scores (M, R) float32 of each member, normalised one by one."""
        return self.score(responses)[None]

    def combine(self, member_scores: Tensor, n_tokens: Tensor) -> Tensor:
        """Score (R,) from member scores (M, R) and response tokens (R,)."""
        return member_scores[0]

    def with_unit(self, unit: Unit) -> Scorer:
        """The same with another zero and unit; a scorer that is standardised already stays."""
        return self

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Write ``scorer.json`` and whatever ``load`` of the same file needs; ``info`` is added."""
        ...


class Standardised(Scorer):
    """A scorer that keeps zero and unit of its raw score as ``mean`` and ``std``; a dataclass each."""

    mean: float
    std: float

    @property
    def unit(self) -> Unit:
        """Zero and unit of the score."""
        return Unit(self.mean, self.std)

    def score(self, responses: Responses) -> Tensor:
        """Normalised scores (R,) float32."""
        return (self.raw(responses) - self.mean) / self.std

    def with_unit(self, unit: Unit) -> Self:
        """The same with another zero and unit."""
        return replace(self, mean=unit.mean, std=unit.std)  # type: ignore[type-var]


class Place(NamedTuple):
    """Where a scorer is brought back to life: what it may need beside its own folder.

    calibration: folder of the calibration artefact; world: decodes responses; device: of networks;
    sources: the checkpoints and tokenizers that the run's settings name, the only ones that are
    loaded; transform_sha256: of the user's file that they name, the only one that is run;
    members: what the members of an ensemble may be written as.
    """

    calibration: Path
    world: World
    device: str
    sources: frozenset[str] = frozenset()
    transform_sha256: str = ""
    members: tuple[str, ...] = ()

    def check_source(self, folder: Path, source: object) -> None:
        """Raise StoreError unless the settings name ``source``, which a file in ``folder`` names."""
        if source not in self.sources:
            raise StoreError(
                f"{folder / 'scorer.json'}: names {source!r}, which the settings of this run do not:"
                " it is not loaded; delete the artefact to have it computed again"
            )


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """What the settings of every reward kind answer; a kind overrides what is different for it."""

    @property
    def serves(self) -> tuple[str, ...]:
        """What this kind can be: "gold", "proxy" or both."""
        return ("gold", "proxy")

    @property
    def sources(self) -> dict[str, str]:
        """Checkpoints that the kind reads, by the name of the setting."""
        return {}

    @property
    def reads_tokens(self) -> bool:
        """Whether those with the policy's tokenizer read its tokens, and must have the context."""
        return True

    @property
    def prompts(self) -> int:
        """Prompts of the gold split that training takes."""
        return 0

    @property
    def needs_gold(self) -> bool:
        """Whether gold itself is an input of a proxy's stage."""
        return False

    @property
    def needs_intent(self) -> bool:
        """Whether the world's own intent is needed."""
        return False

    @property
    def needs_judge(self) -> bool:
        """Whether the world must say of responses, and of their steps, what is right."""
        return False

    @property
    def reads_comparisons(self) -> bool:
        """Whether training reads the comparisons that gold labelled; what is not trained does not."""
        return self.seed is not None

    @property
    def files(self) -> tuple[Path, ...]:
        """The user's own files that decide the score beside ``sources``."""
        return ()

    @property
    def seed(self) -> int | None:
        """Replicate of training; None: training has no seed, so there are no other members."""
        return None

    def with_seed(self, seed: int) -> RewardSettings:
        """The same as another replicate; a kind without a seed stays as it is."""
        return self if self.seed is None else replace(self, rm_seed=seed)  # type: ignore[call-arg]

    @property
    def title(self) -> str:
        """What sets the reward model apart, for labels."""
        return kind_of(self)

    @property
    def columns(self) -> dict[str, Any]:
        """Record columns: ``backbone`` and ``rm_seed`` always, and what the kind has besides."""
        return {"backbone": self.title, "rm_seed": self.seed or 0}

    @property
    def treatment(self) -> str:
        """What these settings do against overoptimization, in a few words; empty for nothing."""
        return ""

    @property
    def rate(self) -> float:
        """CPU seconds to score or train on 2,000 pairs once."""
        return 6.0

    def cost_s(self, n_pairs: int) -> float:
        """Estimated CPU seconds of training on ``n_pairs`` comparisons."""
        return 4.0

    def alike(self, n_pairs: int) -> str:
        """What proxies must share to be trained by one call of ``train_stacked``; empty: alone."""
        return ""


AnyProxy = Annotated[
    RewardSettings, Kind("overopt.rewards.kinds", "bradley_terry", needs=("train",))
]
"""A setting that holds the settings of a proxy's kind."""
AnyGold = Annotated[RewardSettings, Kind("overopt.rewards.kinds", "rubric", needs=("train",))]
"""A setting that holds the settings of gold's kind."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a kind may use to make its scorer.

    Attributes
    ----------
    world, device, compute : World, str, Compute
        The world; where networks go; how optimizer steps are carried out.
    n_tokens : int
        Longest response.
    seed : int
        Of this training.
    base : Responses
        Responses of the initial policy, on which zero and unit of every score are fixed.
    progress : callable
        ``progress(done, total)``.
    policy : callable
        Gives a fresh copy of the initial policy, on the device.
    intent : callable
        Scores (R,) of responses by the world's own intent.
    keep : callable
        ``keep(model)`` is a context: weights of a model that diverges inside it are kept.
    pairs : callable or None
        ``pairs(model)``: the labelled comparisons in the tokens that ``model`` reads; None for gold.
    responses : callable or None
        ``responses()``: the responses that the comparisons are between, each once, for kinds that
        learn from other labels; the world's ``verdicts`` gives them. None for gold.
    validate : callable or None
        ``validate(raw)``: accuracy and loss on held-out pairs from a function that scores (R,).
    gold : callable or None
        Gives gold as a scorer, where ``needs_gold``.
    start : Scorer or None
        The scorer to train further.
    place : Place
        For ``load``.
    world_settings : WorldSettings
        What the world was loaded from.
    """

    world: World
    device: str
    compute: Compute
    n_tokens: int
    seed: int
    base: Responses
    progress: Callable[[int, int], None]
    policy: Callable[[], Backbone]
    intent: Callable[[Responses], Tensor]
    keep: Callable[[Any], Any]
    place: Place
    world_settings: WorldSettings
    pairs: Callable[[Any], TrainingPairs] | None = None
    responses: Callable[[], Responses] | None = None
    validate: Callable[[Callable[[Responses], Tensor]], dict[str, float]] | None = None
    gold: Callable[[], Scorer] | None = None
    start: Scorer | None = None


class Trained(NamedTuple):
    """A scorer, and what its training is remembered by; ``is_final``: its unit is fixed already."""

    scorer: Scorer
    history: dict[str, Any] = {}
    is_final: bool = False
