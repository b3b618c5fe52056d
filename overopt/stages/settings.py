"""The settings of every stage, as frozen dataclasses; presets and experiments are made of these.

Everything here is semantic: it changes numbers and therefore enters fingerprints. How a stage is
run (device, threads, batch that fits memory) is `overopt.base.config.RuntimeConfig`.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from overopt.base.config import check_types, require
from overopt.base.kinds import kind_of
from overopt.methods.method import AnyMethod
from overopt.pools import selection
from overopt.rewards.kind import AnyGold, AnyProxy
from overopt.rewards.kinds import bradley_terry, frozen, rubric
from overopt.rewards.settings import LabelsConfig, RewardConfig
from overopt.worlds import stories
from overopt.worlds.world import AnyWorld


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
    also : tuple of str
        Other ways to choose from the pool, each with a curve of its own: tilt, soft, poisson,
        pessimism, tails, hedged; majority and weighted_majority where answers can be compared.
    strength : float
        λ of ``soft`` best-of-n, per sd of the proxy.
    precision : "fp32" or "tf32"
        Of matrix products where proxies score the pool: TF32 rounds their inputs to 11 bits, on
        GPUs that have it. Gold is always scored in fp32.
    """

    n_prompts: int = 24
    pool_size: int = 1024
    ns: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    eval_offset: int = 0
    also: tuple[str, ...] = ()
    strength: float = 3.0
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
        for name in self.also:
            selection.selector(name)
        require(len(set(self.also)) == len(self.also), "bon.also", self.also, "repeats a name")
        require(
            self.strength > 0 and ("soft" in self.also or self.strength == BonConfig.strength),
            "bon.strength",
            self.strength,
            "must be above 0, and needs soft among bon.also",
        )


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Beam search over the steps of responses, guided by the proxy, in a world that has steps.

    Attributes
    ----------
    candidates : tuple of int
        Beginnings that compete after each step, increasing from 1, which is the policy itself; empty
        for no search.
    expansions : int
        M continuations of each beginning that is kept; N = candidates / M are.
    lookahead : int
        Further steps behind which a beginning is scored.
    n_prompts : int
        Prompts of the eval split, one response to each.
    """

    candidates: tuple[int, ...] = ()
    expansions: int = 4
    lookahead: int = 0
    n_prompts: int = 48

    def __post_init__(self) -> None:
        check_types(self)
        require(self.expansions >= 2, "search.expansions", self.expansions, "must be at least 2")
        require(self.lookahead >= 0, "search.lookahead", self.lookahead, "must be at least 0")
        require(self.n_prompts >= 2, "search.n_prompts", self.n_prompts, "must be at least 2")
        given = self.candidates
        require(
            given[:1] in ((), (1,)) and list(given) == sorted(set(given)),
            "search.candidates",
            given,
            "must be increasing whole numbers that start at 1: gains are over the policy",
        )
        for n in given:
            require(
                n < self.expansions or n % self.expansions == 0,
                "search.candidates",
                n,
                f"must be below search.expansions = {self.expansions}, or a multiple of it",
            )

    def shape(self, n: int) -> dict[str, int]:
        """Beams N and expansions M of ``n`` candidates, N · M = n."""
        expansions = min(n, self.expansions)
        return {"beams": n // expansions, "expansions": expansions}

    @property
    def title(self) -> str:
        """Expansions, and lookahead where there is any."""
        ahead = f" lookahead {self.lookahead}" if self.lookahead else ""
        return f"{self.expansions} expansions{ahead}"


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """Retraining the proxy on responses of the optimised policy (iterated RLHF, Wolf et al. 2025).

    All rounds share the budget ``labels.n_pairs``, a k-th each. docs/methods.md has the details.

    Attributes
    ----------
    k : int
        Rounds of labelling, proxy training and optimisation; 1 for no retraining.
    data : "concatenate" or "take_last"
        A round's proxy is trained on the comparisons of all rounds so far, or on the newest.
    rm : "restart" or "carry_on"
        From the pretrained backbone, or from the last round's proxy.
    policy : "restart" or "carry_on"
        Each round runs the method in full from the initial policy; or one run goes on through all
        rounds, ``method.steps`` in total, and only its proxy is replaced.
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
    """One end-to-end run: one proxy, optimised against with best-of-n, a method or both.

    Attributes
    ----------
    world, gold, labels, proxy, reward, bon, method, rounds, search : configs
        One for each part; ``bon`` and ``method`` may be none. ``world``, ``gold``, ``proxy`` and
        ``method`` hold the settings of a kind.
    start_policy : str
        Policy that best-of-n, searches and methods start from, where it is another than
        ``world.policy``, whose tokenizer it shares: policies of several sizes against one proxy (Gao et
        al. 2022, figure 7). Comparisons, and zero and unit of every score, stay those of
        ``world.policy``; gains and KL are over this one.
    root_seed : int
        What all other random streams are derived from, pool and evaluation included.
    """

    world: AnyWorld = field(default_factory=stories.Settings)
    gold: AnyGold = field(default_factory=rubric.Settings)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    proxy: AnyProxy = field(default_factory=bradley_terry.Settings)
    reward: RewardConfig = field(default_factory=RewardConfig)
    bon: BonConfig | None = field(default_factory=BonConfig)
    method: AnyMethod | None = None
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    start_policy: str = ""
    root_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        self._check_pairs()
        self._check_roles()
        backbone = self.proxy.sources.get("backbone")
        backbones = (backbone, *self.reward.backbones)
        require(
            len(set(backbones)) == len(backbones),
            "reward.backbones",
            self.reward.backbones,
            f"repeats a backbone (proxy.backbone = {backbone!r}): members would be equal",
        )
        voted = [n for n in (self.bon.also if self.bon else ()) if selection.reads_answers(n)]
        require(
            not voted or self.world.has_judge,
            "bon.also",
            ",".join(voted),
            f"counts answers, and responses of world.kind = {kind_of(self.world)!r} give none: use"
            " world.kind=sums or problems, or leave it out",
        )
        require(
            not self.search.candidates or self.world.has_judge,
            "search.candidates",
            self.search.candidates,
            f"a search goes step by step, and responses of world.kind = {kind_of(self.world)!r} have no"
            " steps: use world.kind=sums or problems, or leave it out",
        )
        if self.rounds.k > 1:
            self._check_rounds()

    def _check_roles(self) -> None:
        for role, settings in (("gold", self.gold), ("proxy", self.proxy)):
            require(
                role in settings.serves,
                f"{role}.kind",
                kind_of(settings),
                f"cannot be the {role}; it serves as {' or '.join(settings.serves)}",
            )
        require(
            self.world.has_intent or not (self.gold.needs_intent or self.proxy.needs_intent),
            "gold.kind" if self.gold.needs_intent else "proxy.kind",
            kind_of(self.gold if self.gold.needs_intent else self.proxy),
            f"needs what is wanted in the world, and world.kind = {kind_of(self.world)!r} does not"
            " say it: set world.intent=rubric, or choose another kind",
        )
        for role, settings in (("gold", self.gold), ("proxy", self.proxy)):
            require(
                self.world.has_judge or not settings.needs_judge,
                f"{role}.kind",
                kind_of(settings),
                f"needs a world that knows right from wrong, and world.kind = {kind_of(self.world)!r}"
                " does not: use world.kind=sums or problems, or choose another kind",
            )
        require(
            self.reward.members_by != "pretraining" or "backbone" in self.proxy.sources,
            "reward.members_by",
            self.reward.members_by,
            f"needs a proxy with a backbone, and proxy.kind = {kind_of(self.proxy)!r} has none: use"
            " seed or bootstrap",
        )
        require(
            not (self.world.has_judge and self.gold == frozen.Settings()),
            "gold.kind",
            "frozen",
            f"{frozen.Settings().source} is a judge of stories, and world.kind = "
            f"{kind_of(self.world)!r} tells none: set gold.kind=rubric, or gold.source",
        )
        is_trained = self.proxy.seed is not None
        require(
            is_trained or self.reward.members == 1,
            "reward.members",
            self.reward.members,
            f"a proxy of kind {kind_of(self.proxy)!r} has no other members: its training has no seed;"
            " use proxy.kind=bradley_terry",
        )
        require(
            self.reward.members_by != "heads" or type(self.proxy) is bradley_terry.Settings,
            "reward.members_by",
            self.reward.members_by,
            f"needs proxy.kind=bradley_terry, not {kind_of(self.proxy)!r}: use seed or bootstrap",
        )
        require(
            getattr(self.proxy, "length_control", 0) == 0 or self.reward.members_by != "heads",
            "reward.members_by",
            self.reward.members_by,
            "heads on one trunk cannot be trained with proxy.length_control: use seed or bootstrap",
        )

    def _check_pairs(self) -> None:
        file, cues = self.labels.pairs_file, self.world.cues
        require(
            self.labels.cue == "" or self.labels.cue in cues,
            "labels.cue",
            self.labels.cue,
            f"is no cue of world.kind = {kind_of(self.world)!r}, which has {', '.join(sorted(cues))}"
            " (sycophancy in sums needs prompts with claims: world.claim_share=0.5)",
        )
        require(
            file == "" or self.rounds.k == 1,
            "rounds.k",
            self.rounds.k,
            f"rounds are labelled by gold, labels.pairs_file = {file!r} by people: use one of them",
        )
        require(
            file == "" or file != getattr(self.gold, "pairs_file", ""),
            "gold.pairs_file",
            file,
            "is labels.pairs_file: gold would have seen what proxies learn from; divide the file in two",
        )
        require(
            file == "" or not self.world.has_judge,
            "labels.pairs_file",
            file,
            f"world.kind = {kind_of(self.world)!r} knows the answers to its own prompts only: use"
            " world.kind=hf",
        )

    @property
    def optimised_world(self) -> AnyWorld:
        """The world with the policy that is optimised for its own."""
        return replace(self.world, policy=self.start_policy) if self.start_policy else self.world

    @property
    def labels_per_round(self) -> LabelsConfig:
        """The labels of one round: its share of the budget, whole pairs."""
        return replace(self.labels, n_pairs=self.labels.n_pairs // self.rounds.k)

    def _check_rounds(self) -> None:
        k, labels = self.rounds.k, self.labels
        require(
            self.method is not None,
            "rounds.k",
            k,
            "retraining labels the policy of a method, and method is none: set method.kind, or"
            " rounds.k=1",
        )
        require(
            self.proxy.seed is not None,
            "rounds.k",
            k,
            f"a proxy of kind {kind_of(self.proxy)!r} is not trained: use proxy.kind=bradley_terry,"
            " or rounds.k=1",
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
            self.rounds.policy == "restart" or (self.method is not None and self.method.steps >= k),
            "rounds.k",
            k,
            "rounds.policy=carry_on divides method.steps among the rounds: use at least one step a"
            " round, or rounds.policy=restart",
        )
        require(
            self.rounds.rm == "restart" or getattr(self.proxy, "length_control", 0) == 0,
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
