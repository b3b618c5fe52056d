"""The settings of every stage, as frozen dataclasses; presets and experiments are made of these.

Everything here is semantic: it changes numbers and therefore enters fingerprints. How a stage is
run (device, threads, batch that fits memory) is `overopt.config.RuntimeConfig`.
"""

from dataclasses import dataclass, field
from typing import Literal

from overopt.config import check_types, require
from overopt.gold.rubric import RubricConfig

SPLITS = ("gold", "train", "validation", "rl", "eval")


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Where prompts and the initial policy come from.

    Attributes
    ----------
    kind : "stories"
        The embedded world: openings of stories and the ladder's policy.
    policy : str
        Initial policy: ``ladder:NAME`` or the path of a Llama checkpoint.
    max_response_tokens : int
        Longest response, end token included.
    prompts_file : str
        JSONL file of prompts (strings, or objects with a field "prompt") to use instead of the
        embedded openings; empty for none.
    """

    kind: Literal["stories"] = "stories"
    policy: str = "ladder:policy-0.8m"
    max_response_tokens: int = 48
    prompts_file: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            2 <= self.max_response_tokens <= 200,
            "world.max_response_tokens",
            self.max_response_tokens,
            "must be 2 to 200 (the policy's context is 256 tokens)",
        )


@dataclass(frozen=True, kw_only=True)
class GoldConfig:
    """The fixed gold model.

    Attributes
    ----------
    kind : "frozen", "learned" or "rubric"
        ``frozen``: a reward model checkpoint, loaded as it is; ``learned``: a reward model fitted
        here to pairs that the rubric labels, then frozen; ``rubric``: the rubric itself.
    source : str
        For ``frozen``: the checkpoint. For ``learned``: the backbone.
    n_prompts, copies, epochs, lr : int, int, int, float
        Training of ``learned``: prompts, responses a prompt, passes, peak learning rate.
    rubric : RubricConfig
        Human intent: recorded as a score of its own, and the teacher of ``learned``.
    """

    kind: Literal["frozen", "learned", "rubric"] = "frozen"
    source: str = "ladder:gold-3m"
    n_prompts: int = 1500
    copies: int = 12
    epochs: int = 2
    lr: float = 5e-4
    rubric: RubricConfig = field(default_factory=RubricConfig)

    def __post_init__(self) -> None:
        check_types(self)
        require(self.n_prompts >= 2, "gold.n_prompts", self.n_prompts, "must be at least 2")
        require(
            self.copies >= 2, "gold.copies", self.copies, "must be at least 2: pairs are needed"
        )


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
        require(
            self.n_prompts <= 2400,
            "labels.n_pairs",
            self.n_pairs,
            f"needs {self.n_prompts} training prompts of {self.responses_per_prompt} responses, the "
            "world has 2400: use fewer pairs or more responses_per_prompt",
        )

    @property
    def pairs_per_prompt(self) -> int:
        """Comparisons that one prompt gives."""
        return self.responses_per_prompt * (self.responses_per_prompt - 1) // 2

    @property
    def n_prompts(self) -> int:
        """Training prompts needed for ``n_pairs``."""
        return -(-self.n_pairs // self.pairs_per_prompt)


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """A proxy reward model and its training.

    Attributes
    ----------
    kind : "learned" or "gold"
        ``gold`` uses the gold model itself: the perfect proxy, for tests of the pipe.
    backbone : str
        Pretrained causal LM under the scalar head: ``ladder:NAME`` or a path.
    epochs, lr, batch_prompts, weight_decay : int, float, int, float
        Passes over the pairs, peak AdamW learning rate (linear decay), prompts a step.
    rm_seed : int
        Head initialisation and data order.
    """

    kind: Literal["learned", "gold"] = "learned"
    backbone: str = "ladder:0.2m"
    epochs: int = 2
    lr: float = 3e-3
    batch_prompts: int = 4
    weight_decay: float = 0.01
    rm_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.epochs >= 1, "proxy.epochs", self.epochs, "must be at least 1")
        require(self.lr > 0, "proxy.lr", self.lr, "must be positive")
        require(self.batch_prompts >= 1, "proxy.batch_prompts", self.batch_prompts, "at least 1")


@dataclass(frozen=True, kw_only=True)
class BonConfig:
    """Best-of-n from one pool that all proxies share.

    Attributes
    ----------
    n_prompts, pool_size : int
        P prompts of the eval split and N responses to each.
    ns : tuple of int
        Values of n, increasing, none above ``pool_size``.
    """

    n_prompts: int = 24
    pool_size: int = 1024
    ns: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

    def __post_init__(self) -> None:
        check_types(self)
        require(
            2 <= self.n_prompts <= 400,
            "bon.n_prompts",
            self.n_prompts,
            "must be 2 to 400 (eval split)",
        )
        require(
            len(self.ns) > 0 and list(self.ns) == sorted(set(self.ns)) and self.ns[0] == 1,
            "bon.ns",
            self.ns,
            "must be increasing whole numbers that start at 1: gains are relative to n = 1",
        )
        require(
            self.ns[-1] <= self.pool_size,
            "bon.ns",
            self.ns[-1],
            f"n is larger than the pool of {self.pool_size}: raise bon.pool_size or drop this n",
        )


@dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """PPO against the proxy, in the form of Ziegler et al. 2019.

    Attributes
    ----------
    steps, batch : int
        PPO steps (one rollout batch each) and responses a batch.
    ppo_epochs, minibatches : int
        Passes over a batch and optimizer steps a pass.
    lr, value_lr : float
        Peak Adam learning rates (eps 1e-5), decayed linearly to a tenth.
    kl_coef : float
        Weight of the per-token KL penalty in the reward; 0 as in Gao et al. 2022.
    value_backbone : str
        Pretrained trunk of the value model; a small one costs a third of a step less.
    gamma, lam, clip, value_clip, grad_clip : float
        Discount, GAE λ, ratio clip, value clip (units of the normalised score), gradient norm.
    max_update_kl_token_nats : float
        A pass stops for this step once the k3 estimate of KL(π_old‖π_new) per token exceeds it.
    eval_every, eval_prompts, eval_copies : int
        Evaluation on fixed prompts with random numbers of its own.
    ppo_seed : int
        Rollouts and data order.
    """

    steps: int = 54
    batch: int = 128
    ppo_epochs: int = 1
    minibatches: int = 4
    lr: float = 6e-4
    value_lr: float = 1e-3
    kl_coef: float = 0.0
    value_backbone: str = "ladder:0.2m"
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    grad_clip: float = 1.0
    max_update_kl_token_nats: float = 0.05
    eval_every: int = 3
    eval_prompts: int = 96
    eval_copies: int = 2
    ppo_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("steps", "batch", "ppo_epochs", "minibatches", "eval_every", "eval_copies"):
            require(getattr(self, name) >= 1, f"ppo.{name}", getattr(self, name), "at least 1")
        require(
            self.batch % self.minibatches == 0, "ppo.batch", self.batch, "a multiple of minibatches"
        )
        require(self.kl_coef >= 0, "ppo.kl_coef", self.kl_coef, "must be at least 0")
        require(
            2 <= self.eval_prompts <= 400,
            "ppo.eval_prompts",
            self.eval_prompts,
            "2 to 400 (eval split)",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One end-to-end run: one proxy, optimised against with best-of-n, PPO or both."""

    world: WorldConfig = field(default_factory=WorldConfig)
    gold: GoldConfig = field(default_factory=GoldConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    bon: BonConfig | None = field(default_factory=BonConfig)
    ppo: PpoConfig | None = field(default_factory=PpoConfig)
    root_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A named set of runs that are collected and drawn together."""

    name: str
    runs: tuple[RunConfig, ...]
    description: str = ""

    def __post_init__(self) -> None:
        require(len(self.runs) > 0, "runs", self.runs, "an experiment needs at least one run")
