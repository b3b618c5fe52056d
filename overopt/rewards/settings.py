"""Settings of gold, of proxies and of the reward made of them."""

from dataclasses import dataclass, field
from typing import Literal

from overopt.base.config import check_types, require


@dataclass(frozen=True, kw_only=True)
class RubricConfig:
    """Weights and doses of the rubric.

    Attributes
    ----------
    joy, dialogue, hero, variety, sentences, ending : float
        Weight of each feature; unit: score per standard deviation of the feature.
    dose : float
        Curvature of the dominant feature, joy: its sweet spot is at z = 1/sqrt(3·dose).
    minor_dose : float
        Curvature of the other features.
    trap : str
        A word that costs ``trap_cost`` each time it occurs; empty for none.
    trap_cost : float
        Score lost per occurrence of the trap.
    """

    joy: float = 1.0
    dialogue: float = 0.35
    hero: float = 0.35
    variety: float = 0.3
    sentences: float = 0.0
    ending: float = 0.25
    dose: float = 0.1
    minor_dose: float = 0.05
    trap: str = ""
    trap_cost: float = 3.0

    def __post_init__(self) -> None:
        require(self.dose >= 0, "dose", self.dose, "must be at least 0 (0: more is always better)")
        require(self.minor_dose >= 0, "minor_dose", self.minor_dose, "must be at least 0")
        require(any(self.weights), "weights", self.weights, "at least one must differ from 0")

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights in the order of FEATURES."""
        return tuple(float(getattr(self, name)) for name in FEATURES)


@dataclass(frozen=True, kw_only=True)
class GoldConfig:
    """The fixed gold model.

    Attributes
    ----------
    kind : "frozen", "learned", "rubric" or "pretrained"
        ``frozen``: a reward model checkpoint of this package, loaded as it is; ``learned``: a reward
        model fitted here to pairs that the rubric labels, then frozen; ``rubric``: the rubric
        itself; ``pretrained``: any sequence classifier of transformers with one label or two,
        which reads text.
    source : str
        For ``frozen`` and ``pretrained``: the checkpoint. For ``learned``: the backbone.
    layers : int
        For ``learned``: how many of the backbone's first layers to keep; 0 for all.
    n_prompts, copies, epochs, lr : int, int, int, float
        Training of ``learned``: prompts, responses a prompt, passes, peak learning rate.
    precision : "fp32" or "bf16"
        Of matrix products in that training; gold scores in fp32.
    rubric : RubricConfig
        Human intent: recorded as a score of its own, and the teacher of ``learned``.
    """

    kind: Literal["frozen", "learned", "rubric", "pretrained"] = "frozen"
    source: str = "ladder:gold-3m"
    layers: int = 0
    n_prompts: int = 1500
    copies: int = 12
    epochs: int = 2
    lr: float = 5e-4
    precision: Literal["fp32", "bf16"] = "fp32"
    rubric: RubricConfig = field(default_factory=RubricConfig)

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.layers >= 0 and (self.kind == "learned" or self.layers == 0),
            "gold.layers",
            self.layers,
            "must be at least 0, and needs gold.kind=learned",
        )
        require(self.n_prompts >= 2, "gold.n_prompts", self.n_prompts, "must be at least 2")
        require(
            self.copies >= 2, "gold.copies", self.copies, "must be at least 2: pairs are needed"
        )


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """A proxy reward model and its training.

    Attributes
    ----------
    kind : "learned" or "gold"
        ``gold`` uses the gold model itself: the perfect proxy, for tests of the pipe.
    backbone : str
        Pretrained causal LM under the scalar head: any source that ``world.policy`` takes.
    layers : int
        How many of the backbone's first layers to keep, a size axis from one checkpoint; 0 for all.
    epochs, lr, batch_prompts, weight_decay : int, float, int, float
        Passes over the pairs, peak AdamW learning rate (linear decay), prompts a step.
    length_control : float
        λ_L of ODIN (Chen et al. 2024): a second head takes up what correlates with length and is
        dropped after training; 0 trains one head as usual.
    precision : "fp32" or "bf16"
        Of matrix products in training.
    rm_seed : int
        Head initialisation and data order.
    """

    kind: Literal["learned", "gold"] = "learned"
    backbone: str = "ladder:0.2m"
    layers: int = 0
    epochs: int = 2
    lr: float = 3e-3
    batch_prompts: int = 4
    weight_decay: float = 0.01
    length_control: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    rm_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.layers >= 0, "proxy.layers", self.layers, "must be at least 0 (0: all)")
        require(self.epochs >= 1, "proxy.epochs", self.epochs, "must be at least 1")
        require(
            self.length_control >= 0 and (self.kind == "learned" or self.length_control == 0),
            "proxy.length_control",
            self.length_control,
            "must be at least 0, and needs proxy.kind=learned",
        )
        require(self.lr > 0, "proxy.lr", self.lr, "must be positive")
        require(self.batch_prompts >= 1, "proxy.batch_prompts", self.batch_prompts, "at least 1")


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


FEATURES = ("joy", "dialogue", "hero", "variety", "sentences", "ending")
