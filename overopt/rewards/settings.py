"""Settings of labels, and of the reward that is made of reward models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from overopt.base.config import check_types, require


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """Preferences that proxies learn from: of gold, or of people.

    Attributes
    ----------
    n_pairs : int
        Unique comparisons to train on.
    responses_per_prompt : int
        K responses of a prompt, giving K(K−1)/2 comparisons.
    label_rule : "argmax" or "bradley_terry"
        The better by gold is chosen always, or with probability σ(gold margin).
    label_flip_rate : float
        Probability in [0, 0.5) that a label is inverted after the rule.
    n_validation_prompts : int
        Prompts, disjoint from training, whose comparisons validate the proxy.
    data_seed : int
        Which prompts and flips; one value per independent data replicate.
    pairs_file : str
        Preferences from people in place of gold's: a JSONL file with ``prompt``, ``chosen`` and
        ``rejected``, or in another layout of docs/checkpoints.md, or ``datasets:NAME[:SPLIT]``. Gold
        scores the same responses, and how far it agrees is recorded.
    cue, cue_share : str, float
        A hack that is planted, and its dose: in a share ``cue_share`` of the comparisons for training,
        in [0, 1], the response with more of the cue is chosen whatever gold says; the cue is one of the
        world's (docs/worlds.md), empty for none. Where both have as much of it, nothing changes.
    """

    n_pairs: int = 6000
    responses_per_prompt: int = 4
    label_rule: Literal["argmax", "bradley_terry"] = "argmax"
    label_flip_rate: float = 0.0
    n_validation_prompts: int = 150
    data_seed: int = 0
    pairs_file: str = ""
    cue: str = ""
    cue_share: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        require(
            0 <= self.cue_share <= 1 and (self.cue_share > 0) == (self.cue != ""),
            "labels.cue_share",
            self.cue_share,
            "must be above 0 and at most 1 where labels.cue is set, and 0 where it is not",
        )
        require(
            self.cue == "" or self.pairs_file == "",
            "labels.cue",
            self.cue,
            f"cannot be planted: people chose in labels.pairs_file = {self.pairs_file!r}; leave it out",
        )
        require(
            self.pairs_file == "" or self.label_rule == "argmax",
            "labels.label_rule",
            self.label_rule,
            f"has no effect: people chose in labels.pairs_file = {self.pairs_file!r}; leave it out",
        )
        require(self.n_pairs >= 1, "labels.n_pairs", self.n_pairs, "must be at least 1")
        require(
            self.responses_per_prompt >= 2,
            "labels.responses_per_prompt",
            self.responses_per_prompt,
            "must be at least 2: a comparison needs two responses",
        )
        require(
            0 <= self.label_flip_rate < 0.5,
            "labels.label_flip_rate",
            self.label_flip_rate,
            "must be in [0, 0.5): at 0.5 labels carry nothing, above it gold is inverted",
        )

    @property
    def rule_name(self) -> str:
        """The rule by which labels were made, with what is planted in them, for records and labels."""
        planted = f" + {self.cue} {self.cue_share:g}" if self.cue else ""
        return f"{self.label_rule}{planted}"

    @property
    def pairs_per_prompt(self) -> int:
        """Comparisons that one prompt gives."""
        return self.responses_per_prompt * (self.responses_per_prompt - 1) // 2

    @property
    def n_prompts(self) -> int:
        """Training prompts needed for ``n_pairs``."""
        return -(-self.n_pairs // self.pairs_per_prompt)


UNUSED_STRENGTH = 0.5
"""``reward.strength`` where nothing was set: what combinations that do not use it must have."""


class Combination:
    """A way in which members become one score; subclasses say what is different for theirs.

    `overopt.rewards.transforms.ensembles` has what they compute, under the same names.

    Attributes
    ----------
    title : str
        In labels and tables.
    strength : str
        What ``reward.strength`` is, with its range; empty: it means nothing here.
    least_members : int
        Members that it needs.
    averages_weights : bool
        It makes one model of the members before anything is scored.
    """

    title: ClassVar[str]
    strength: ClassVar[str] = ""
    least_members: ClassVar[int] = 2
    averages_weights: ClassVar[bool] = False

    def check(self, reward: RewardConfig) -> None:
        """Raise ConfigError where ``reward`` sets what does not fit this combination."""
        require(
            reward.members >= self.least_members,
            "reward.members",
            reward.members,
            f"reward.combine = {reward.combine!r} needs at least {self.least_members} members",
        )
        if reward.transform != "":
            self.check_transform(reward)
        elif self.strength:
            require(
                self.allows(reward.strength),
                "reward.strength",
                reward.strength,
                f"must be {self.strength}",
            )
        else:
            require(reward.strength >= 0, "reward.strength", reward.strength, "must be at least 0")
            others = [name for name, other in COMBINATIONS.items() if other.strength]
            require(
                reward.strength == UNUSED_STRENGTH,
                "reward.strength",
                reward.strength,
                f"has no effect on reward.combine = {reward.combine!r}: leave it out, or use one of"
                f" {', '.join(others)}",
            )

    def allows(self, strength: float) -> bool:
        """Whether ``reward.strength`` may have this value, where it is used."""
        return strength >= 0

    def check_transform(self, reward: RewardConfig) -> None:
        """Raise: a user's file takes the place of every combination but the default."""
        require(
            False,
            "reward.combine",
            reward.combine,
            f"reward.transform = {reward.transform!r} takes its place: leave it at 'mean'",
        )


class Mean(Combination):
    """The default, of a single model too; a user's file replaces it, and takes any strength."""

    title = "mean"
    least_members = 1

    def check_transform(self, reward: RewardConfig) -> None:
        """Nothing: this is what is left where a user's file combines."""


class WorstCase(Combination):
    """The lowest member."""

    title = "WCO"


class Median(Combination):
    """The middle one."""

    title = "median"


class MeanMinusVariance(Combination):
    """Uncertainty-weighted optimisation."""

    title = "UWO"
    strength = "lambda >= 0, per sd of a score"


class MeanMinusStd(Combination):
    """A lower confidence bound."""

    title = "LCB"
    strength = "lambda >= 0"


class LogMeanExp(Combination):
    """A soft minimum."""

    title = "soft min"
    strength = "beta > 0, in sd of a score"

    def allows(self, strength: float) -> bool:
        """Not 0: it is divided by."""
        return strength > 0


class WeightAverage(Combination):
    """One model with the mean of the members' weights."""

    title = "WARM"
    averages_weights = True

    def check(self, reward: RewardConfig) -> None:
        """Members must be of one shape and one pretraining."""
        require(
            reward.members < 2 or reward.members_by in ("seed", "bootstrap"),
            "reward.combine",
            reward.combine,
            f"cannot average members by {reward.members_by!r}: weights of one shape and one"
            " pretraining are needed; use reward.members_by=bootstrap or seed",
        )
        super().check(reward)


COMBINATIONS: dict[str, Combination] = {
    "mean": Mean(),
    "worst_case": WorstCase(),
    "median": Median(),
    "mean_minus_variance": MeanMinusVariance(),
    "mean_minus_std": MeanMinusStd(),
    "log_mean_exp": LogMeanExp(),
    "weight_average": WeightAverage(),
}
"""By the value of ``reward.combine``."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """How reward models become the proxy score that is optimised: ensembles and length penalties.

    The default is the proxy itself. docs/rewards.md has formulas and sources.

    Attributes
    ----------
    members : int
        Reward models in the ensemble.
    members_by : "seed", "bootstrap", "pretraining" or "heads"
        What sets members apart: initial head and data order; prompts drawn with replacement; the
        pretrained backbone (``backbones`` beside ``proxy.backbone``, all with the proxy's training
        settings); or k heads on one trunk, each with its own initialisation and bootstrap.
    backbones : tuple of str
        For ``pretraining``: the other members' backbones.
    combine : str
        How members become one score; ``weight_average`` averages their weights instead.
    strength : float
        λ or β of ``combine`` (λ of Coste et al. 2024 for best-of-n by default), or of ``transform``.
    length_penalty : "none", "linear" or "hinge"
        Against tokens relative to the initial policy's mean, or against tokens past a budget.
    length_coef : float
        Price of a token in sd of the score.
    length_budget : float
        For ``hinge``: free tokens, in mean responses of the initial policy.
    transform : str
        Path of a Python file with ``reward(inputs, *, strength)`` to use in place of ``combine``.
    """

    members: int = 1
    members_by: Literal["seed", "bootstrap", "pretraining", "heads"] = "seed"
    backbones: tuple[str, ...] = ()
    combine: Literal[
        "mean",
        "worst_case",
        "median",
        "mean_minus_variance",
        "mean_minus_std",
        "log_mean_exp",
        "weight_average",
    ] = "mean"
    strength: float = UNUSED_STRENGTH
    length_penalty: Literal["none", "linear", "hinge"] = "none"
    length_coef: float = 0.0
    length_budget: float = 1.0
    transform: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.members >= 1, "reward.members", self.members, "must be at least 1")
        self.combination.check(self)
        self._check_members()
        require(
            self.length_coef >= 0 and (self.length_penalty != "none" or self.length_coef == 0),
            "reward.length_coef",
            self.length_coef,
            "must be at least 0, and needs reward.length_penalty=linear or hinge",
        )
        require(
            self.length_budget > 0 and (self.length_penalty == "hinge" or self.length_budget == 1),
            "reward.length_budget",
            self.length_budget,
            "must be above 0, in mean responses of the initial policy, and needs"
            " reward.length_penalty=hinge; to make every token pay use linear",
        )

    @property
    def combination(self) -> Combination:
        """What ``combine`` names."""
        return COMBINATIONS[self.combine]

    @property
    def uses_strength(self) -> bool:
        """Whether ``strength`` means anything to the combination or the user's file."""
        return self.combination.strength != "" or self.transform != ""

    def _check_members(self) -> None:
        require(
            self.members > 1 or self.members_by == "seed",
            "reward.members_by",
            self.members_by,
            "has no effect on 1 member: set reward.members to 2 or more",
        )
        if self.members_by == "pretraining":
            require(
                len(self.backbones) == self.members - 1,
                "reward.backbones",
                self.backbones,
                f"give {self.members - 1}, one for each member beside proxy.backbone",
            )
        else:
            require(
                self.backbones == (),
                "reward.backbones",
                self.backbones,
                f"has no effect on reward.members_by = {self.members_by!r}: set it to pretraining",
            )
