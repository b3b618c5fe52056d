"""Settings of learning control from preferences; the groups bear the names that they have elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from overopt.base.config import check_types, require

PENDULUM = "pendulum"


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """An environment, what the human wants in it, and the policy that one starts from.

    Attributes
    ----------
    env : str
        "pendulum", computed here for all trajectories at once, or the name of any Gymnasium
        environment with vectors of numbers for observations and actions.
    horizon : int
        Steps of a trajectory at most.
    n_starts : int
        Initial states on which policies are measured; they take the place of prompts.
    exploration : float
        Standard deviation of the initial policy's actions, in half ranges of an action.
    careful : float
        For the pendulum: price of (speed − 3)² in the human's reward above 3 rad/s, which the initial
        policy hardly ever reaches. 0: the environment's own reward.
    n_trajectories : int
        Trajectories of the initial policy: half are shown to the human, the others fix zero and unit
        of every score.
    """

    env: str = PENDULUM
    horizon: int = 100
    n_starts: int = 16
    exploration: float = 0.5
    careful: float = 1.0
    n_trajectories: int = 400

    def __post_init__(self) -> None:
        check_types(self)
        require(self.horizon >= 2, "world.horizon", self.horizon, "must be at least 2")
        require(self.n_starts >= 2, "world.n_starts", self.n_starts, "must be at least 2")
        require(self.exploration > 0, "world.exploration", self.exploration, "must be positive")
        require(self.careful >= 0, "world.careful", self.careful, "must not be negative")
        require(
            self.env == PENDULUM or self.careful == WorldSettings.careful,
            "world.careful",
            self.careful,
            f"has no effect on world.env = {self.env!r}: only the human of {PENDULUM!r} minds speed",
        )
        require(self.n_trajectories >= 8, "world.n_trajectories", self.n_trajectories, "at least 8")


@dataclass(frozen=True, kw_only=True)
class LabelsSettings:
    """Comparisons of segments by a human who errs.

    Attributes
    ----------
    n_pairs : int
        Comparisons in all rounds together, divided equally.
    segment : int
        Steps of a segment.
    label_flip_rate : float
        Probability in [0, 0.5) that the human names the worse segment.
    data_seed : int
        Which segments and flips.
    """

    n_pairs: int = 160
    segment: int = 25
    label_flip_rate: float = 0.1
    data_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.n_pairs >= 1, "labels.n_pairs", self.n_pairs, "must be at least 1")
        require(self.segment >= 1, "labels.segment", self.segment, "must be at least 1")
        require(
            0 <= self.label_flip_rate < 0.5,
            "labels.label_flip_rate",
            self.label_flip_rate,
            "must be in [0, 0.5)",
        )


@dataclass(frozen=True, kw_only=True)
class ProxySettings:
    """The reward that is learned: networks of observation and action, summed over steps.

    Attributes
    ----------
    members : int
        Networks in the ensemble; each is trained on its own bootstrap of the comparisons.
    combine : "mean" or "worst_case"
        How their normalised returns become one score.
    hidden : int
        Units in each of two hidden layers.
    steps, batch_pairs, lr, weight_decay : int, int, float, float
        AdamW.
    assumed_random : float
        Share of answers that the loss takes for random ones: P(first better) is
        (1 − a)·σ(difference of returns) + a/2.
    rm_seed : int
        Initial weights, bootstrap and batches.
    """

    members: int = 3
    combine: Literal["mean", "worst_case"] = "mean"
    hidden: int = 32
    steps: int = 200
    batch_pairs: int = 128
    lr: float = 3e-3
    weight_decay: float = 1e-3
    assumed_random: float = 0.1
    rm_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("members", "hidden", "steps", "batch_pairs"):
            value = getattr(self, name)
            require(value >= 1, f"proxy.{name}", value, "must be at least 1")
        require(self.lr > 0, "proxy.lr", self.lr, "must be positive")
        require(self.weight_decay >= 0, "proxy.weight_decay", self.weight_decay, "at least 0")
        require(
            0 <= self.assumed_random < 1,
            "proxy.assumed_random",
            self.assumed_random,
            "must be in [0, 1)",
        )
        require(
            self.members > 1 or self.combine == "mean",
            "proxy.combine",
            self.combine,
            "needs at least 2 members: set proxy.members",
        )


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """The cross-entropy method on an open-loop Gaussian policy, apart for each initial state.

    Attributes
    ----------
    iterations : int
        Updates.
    population : int
        Trajectories sampled from each initial state in an iteration.
    elite : float
        Share of them with the highest proxy score, which the new policy is fitted to.
    rate : float
        Step from the old mean and standard deviation to those of the elite, in (0, 1].
    least_std : float
        Floor of the elite's standard deviation, in those of the initial policy: KL stays finite.
    seed : int
        Of the samples.
    """

    iterations: int = 24
    population: int = 100
    elite: float = 0.2
    rate: float = 0.5
    least_std: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.iterations >= 1, "method.iterations", self.iterations, "at least 1")
        require(self.population >= 4, "method.population", self.population, "at least 4")
        require(
            2 <= self.n_elite <= self.population,
            "method.elite",
            self.elite,
            f"must keep 2 to {self.population} of method.population = {self.population}",
        )
        require(0 < self.rate <= 1, "method.rate", self.rate, "must be in (0, 1]")
        require(self.least_std > 0, "method.least_std", self.least_std, "must be positive")

    @property
    def n_elite(self) -> int:
        """Trajectories that the new policy is fitted to."""
        return int(self.population * self.elite)


@dataclass(frozen=True, kw_only=True)
class RoundsSettings:
    """Fresh preferences on the optimised policy.

    Attributes
    ----------
    k : int
        Rounds. The first compares segments of the initial policy; each later one segments of the
        policy that was optimised in the round before, beside all comparisons so far. The policy is
        optimised anew in each.
    """

    k: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        require(self.k >= 1, "rounds.k", self.k, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ControlRun:
    """One run: preferences, a reward model, a policy optimised against it, gold measured along.

    Attributes
    ----------
    world, labels, proxy, method, rounds : settings
        One for each part.
    root_seed : int
        What all other random streams are derived from, initial states included.
    """

    world: WorldSettings = field(default_factory=WorldSettings)
    labels: LabelsSettings = field(default_factory=LabelsSettings)
    proxy: ProxySettings = field(default_factory=ProxySettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    rounds: RoundsSettings = field(default_factory=RoundsSettings)
    root_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.labels.segment <= self.world.horizon,
            "labels.segment",
            self.labels.segment,
            f"is longer than a trajectory, world.horizon = {self.world.horizon}",
        )
        require(
            self.labels.n_pairs % self.rounds.k == 0,
            "labels.n_pairs",
            self.labels.n_pairs,
            f"must be a multiple of rounds.k = {self.rounds.k}",
        )

    @property
    def mitigation(self) -> str:
        """What the run does against overoptimization, in a few words; "none" for nothing."""
        words = []
        if self.rounds.k > 1:
            words.append(f"{self.rounds.k} rounds")
        if self.proxy.members > 1:
            name = {"mean": "mean", "worst_case": "WCO"}[self.proxy.combine]
            words.append(f"{name} of {self.proxy.members}")
        return ", ".join(words) or "none"


@dataclass(frozen=True, kw_only=True)
class ControlExperiment:
    """A named set of runs that are collected and drawn together."""

    name: str
    runs: tuple[ControlRun, ...]
    description: str = ""

    def __post_init__(self) -> None:
        require(len(self.runs) > 0, "runs", self.runs, "an experiment needs at least one run")
