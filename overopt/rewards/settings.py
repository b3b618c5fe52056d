"""Settings of labels, and of the reward that is made of reward models."""

from dataclasses import dataclass
from typing import Literal

from overopt.base.config import check_types, require


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """Synthetic preferences.

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
    """

    n_pairs: int = 6000
    responses_per_prompt: int = 4
    label_rule: Literal["argmax", "bradley_terry"] = "argmax"
    label_flip_rate: float = 0.0
    n_validation_prompts: int = 150
    data_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
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
    def pairs_per_prompt(self) -> int:
        """Comparisons that one prompt gives."""
        return self.responses_per_prompt * (self.responses_per_prompt - 1) // 2

    @property
    def n_prompts(self) -> int:
        """Training prompts needed for ``n_pairs``."""
        return -(-self.n_pairs // self.pairs_per_prompt)


COMBINE_STRENGTH = {
    "mean_minus_variance": "lambda >= 0, per sd of a score",
    "mean_minus_std": "lambda >= 0",
    "log_mean_exp": "beta > 0, in sd of a score",
}
"""What ``reward.strength`` means to the combinations that use it."""


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
    strength: float = 0.5
    length_penalty: Literal["none", "linear", "hinge"] = "none"
    length_coef: float = 0.0
    length_budget: float = 1.0
    transform: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.members >= 1, "reward.members", self.members, "must be at least 1")
        self._check_combine()
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
    def uses_strength(self) -> bool:
        """Whether ``strength`` means anything to the combination or the user's file."""
        return self.combine in COMBINE_STRENGTH or self.transform != ""

    def _check_combine(self) -> None:
        name = self.combine
        require(
            self.members > 1 or name == "mean",
            "reward.members",
            self.members,
            f"reward.combine = {name!r} needs at least 2 members",
        )
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
        require(
            name != "weight_average" or self.members_by in ("seed", "bootstrap"),
            "reward.combine",
            name,
            f"cannot average members by {self.members_by!r}: weights of one shape and one"
            " pretraining are needed; use reward.members_by=bootstrap or seed",
        )
        require(
            self.transform == "" or name == "mean",
            "reward.combine",
            name,
            f"reward.transform = {self.transform!r} takes its place: leave it at 'mean'",
        )
        if self.transform == "":
            require(
                self.strength >= 0 and (self.strength > 0 or name != "log_mean_exp"),
                "reward.strength",
                self.strength,
                f"must be {COMBINE_STRENGTH.get(name, 'at least 0')}",
            )
            require(
                name in COMBINE_STRENGTH or self.strength == 0.5,
                "reward.strength",
                self.strength,
                f"has no effect on reward.combine = {name!r}: leave it out, or use one of"
                f" {', '.join(COMBINE_STRENGTH)}",
            )
