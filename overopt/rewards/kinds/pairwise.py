"""A model that compares two responses: it reads both, one behind the other, and says which is better.

Jiang et al. 2023 (PairRM) and Zhao et al. 2023 (the ranking model of SLiC-HF) train one. Here the head
gives f(a, b) for prompt, a and b in this order, and the log-odds that a is preferred are

    g(a, b) = f(a, b) − f(b, a),

so that g(b, a) = −g(a, b) whatever the network prefers about a place. It is fitted by −log σ(g) to the
labelled pairs. Nothing makes g a difference of two scores: preferences may be intransitive.

A single response y gets its score from comparisons with k responses z_1 … z_k of the initial policy to
the same prompt, its opponents:

    score(y) = (1/k) Σ_j g(y, z_j),        or with ``score=win_rate``   (1/k) Σ_j σ(g(y, z_j)).

The second is an estimate of the probability to beat the initial policy, the quantity of Azar et al.
2024 (ΨPO). Opponents depend on the prompt and the seed alone, so a response always has the same score.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from overopt.base import files
from overopt.base.config import require
from overopt.base.errors import CheckpointError
from overopt.base.lazy import lazy
from overopt.base.seeding import torch_generator
from overopt.rewards.fitted import Fitted
from overopt.rewards.kind import Job, Place, Standardised, Trained

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from overopt.base import datatypes
    from overopt.base.datatypes import Responses
    from overopt.nets import checkpoints, sampling
    from overopt.nets.backbone import Backbone
    from overopt.nets.heads import ScalarHeadModel
    from overopt.rewards import scorer
    from overopt.rewards.kinds import reward_model
    from overopt.rewards.training import pairs
    from overopt.rewards.training import train as training
    from overopt.rewards.training.pairs import TrainingPairs
    from overopt.worlds import codecs
else:
    torch, datatypes = lazy("torch"), lazy("overopt.base.datatypes")
    checkpoints, sampling = lazy("overopt.nets.checkpoints"), lazy("overopt.nets.sampling")
    scorer = lazy("overopt.rewards.scorer")
    reward_model = lazy("overopt.rewards.kinds.reward_model")
    pairs, training = lazy("overopt.rewards.training.pairs"), lazy("overopt.rewards.training.train")
    codecs = lazy("overopt.worlds.codecs")

Read = Literal["log_odds", "win_rate"]
_RESPONSES_AT_ONCE = 256  # of a table that is scored: each is read 2k times


@dataclass(frozen=True, kw_only=True)
class Settings(Fitted):
    """A model that compares two responses; a score is the mean over opponents of the initial policy.

    Backbone, training and seed are those of `Fitted`. The backbone reads both responses: a compact
    Llama's context is lengthened for them.

    Attributes
    ----------
    opponents : int
        k responses of the initial policy to the same prompt that each response is compared with.
    score : "log_odds" or "win_rate"
        What is averaged over opponents: the log-odds to be preferred, or the probability.
    batch_prompts : int
        Prompts a step.
    """

    opponents: int = 4
    score: Read = "log_odds"
    batch_prompts: int = 4

    def __post_init__(self) -> None:
        Fitted.__post_init__(self)
        require(self.opponents >= 1, "proxy.opponents", self.opponents, "must be at least 1")
        require(self.batch_prompts >= 1, "proxy.batch_prompts", self.batch_prompts, "at least 1")

    @property
    def title(self) -> str:
        """Kind, size, opponents, and what is averaged where not log-odds."""
        read = "" if self.score == "log_odds" else " win rate"
        return f"pairwise {self.size} {self.opponents} opponents{read}"

    @property
    def rate(self) -> float:
        """CPU seconds to score 2,000 pairs of responses on the default backbone."""
        return 8.0 * self.opponents

    def cost_s(self, n_pairs: int) -> float:
        """Estimated CPU seconds of training on the default backbone."""
        return 8 + 0.008 * self.epochs * n_pairs


def train(settings: Settings, job: Job) -> Trained:
    """Fit to the labelled pairs, each read in both orders; a job's start goes on.

    Raises
    ------
    CheckpointError
        The backbone's context does not hold a prompt and two responses.
    """
    model = _network(settings, job)
    assert job.pairs is not None and job.validate is not None
    validate = job.validate
    made = PairwiseScorer(
        model, job.policy(), job.n_tokens, job.seed, settings.opponents, settings.score
    )
    with job.keep(model):
        log = training.train_reward_model(
            model,
            both_orders(job.pairs(model), separator_of(model)),
            epochs=settings.epochs,
            lr=settings.lr,
            batch_prompts=settings.batch_prompts,
            weight_decay=settings.weight_decay,
            seed=job.seed,
            validate=lambda: validate(made.raw),
            progress=job.progress,
            compute=job.compute,
        )
    model.eval()
    history = {
        "train_loss": log.loss,
        "validation": log.validation,
        "pairs_seen": log.pairs_seen,
    }
    return Trained(made, history)


def _network(settings: Settings, job: Job) -> ScalarHeadModel:
    """The untrained network on the device, or the one to train further."""
    if isinstance(job.start, PairwiseScorer):
        return job.start.network.to(job.device)
    if job.start is not None:
        raise CheckpointError(
            f"a {type(job.start).__name__} compares no two responses: cannot go on"
        )
    model = reward_model.fresh(settings.backbone, job, layers=settings.layers)
    longest = job.world.longest_prompt + 2 * job.n_tokens + 1
    if model.backbone.reader is not None:
        longest *= 2  # of its own tokens: unknown before they are read, and room costs nothing
    model.backbone = reward_model.with_room(model.backbone, longest, settings.backbone)
    return model


def separator_of(model: ScalarHeadModel) -> int:
    """The token between two responses: the one that ends a text."""
    return model.backbone.cfg.eos_token_id


def side_by_side(first: Responses, second: Responses, separator: int) -> Responses:
    """Responses (R,) that consist of the first (R,), ``separator``, and the second (R,).

    The end token of a response stays where it has one, so that a truncated response can be told.
    """
    between = torch.full((len(first), 1), separator)
    ids = torch.cat([first.ids, between, second.ids], 1)
    mask = torch.cat([first.mask, torch.ones_like(between, dtype=torch.bool), second.mask], 1)
    order = torch.argsort((~mask).byte(), dim=1, stable=True)[:, : int(mask.sum(1).max())]
    ids, mask = ids.gather(1, order), mask.gather(1, order)
    return datatypes.Responses(
        first.prompts, ids * mask, mask, torch.zeros(ids.shape), second.ended
    )


def both_orders(labelled: TrainingPairs, separator: int) -> TrainingPairs:
    """Each pair (C) read in both orders: as a pair of readings, (a, b) against (b, a).

    −log σ(f(a, b) − f(b, a)), the loss of a comparison, is then Bradley-Terry's between the two.
    """
    a, b = (labelled.responses.select(rows) for rows in (labelled.first, labelled.second))
    read = datatypes.concat_responses(
        _widened([side_by_side(a, b, separator), side_by_side(b, a, separator)])
    )
    row, n = torch.arange(len(a)), len(a)
    return pairs.TrainingPairs(read, row, row + n, labelled.target)


def _widened(parts: list[Responses]) -> list[Responses]:
    """The same, all as wide as the widest."""
    width = max(part.ids.shape[1] for part in parts)

    def wide(part: Responses) -> Responses:
        more = (0, width - part.ids.shape[1])
        tables = (torch.nn.functional.pad(t, more) for t in (part.ids, part.mask, part.logprobs))
        ids, mask, logprobs = tables
        return datatypes.Responses(part.prompts, ids, mask, logprobs, part.ended)

    return [wide(part) for part in parts]


@dataclass(frozen=True)
class PairwiseScorer(Standardised):
    """A model that compares, as a scorer, with the mean and std of its score under the initial policy.

    network : gives f(a, b) at the last token of prompt, a, separator, b; policy, n_tokens, seed : what
    ``opponents`` responses to each prompt are sampled from, and how; read : what is averaged over them.
    """

    network: ScalarHeadModel
    policy: Backbone
    n_tokens: int
    seed: int
    opponents: int
    read: Read
    mean: float = 0.0
    std: float = 1.0
    _sampled: dict[int, tuple[Tensor, ...]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of the network that compares."""
        return checkpoints.n_params(self.network)

    def preference(self, first: Responses, second: Responses) -> Tensor:
        """Log-odds g (R,) in nats that each first response is preferred to the second."""
        first, second = (codecs.in_own_tokens(self.network.backbone, r) for r in (first, second))
        separator = separator_of(self.network)
        forth = scorer.head_outputs(self.network, side_by_side(first, second, separator))
        return forth - scorer.head_outputs(self.network, side_by_side(second, first, separator))

    def opponents_of(self, responses: Responses) -> Responses:
        """k responses of the initial policy to the prompt of each response, (R·k) rows, k adjacent."""
        asked, k = responses.prompts.prompt_id.tolist(), self.opponents
        new = {number: row for row, number in enumerate(asked) if number not in self._sampled}
        if new:
            generators = [torch_generator(self.seed, "opponents", number) for number in new]
            drawn = [
                torch.rand((k, self.n_tokens), generator=generator, dtype=torch.float64)
                for generator in generators
            ]
            found = sampling.sample(
                self.policy,
                responses.prompts.select(torch.tensor([*new.values()])),
                n_tokens=self.n_tokens,
                seed=self.seed,
                copies=k,
                uniform=torch.cat(drawn),
            )
            tables = (found.ids, found.mask, found.logprobs, found.ended)
            for i, number in enumerate(new):
                self._sampled[number] = tuple(t[i * k : (i + 1) * k] for t in tables)
        kept = zip(*(self._sampled[number] for number in asked), strict=True)
        return datatypes.Responses(responses.prompts.repeat(k), *map(torch.cat, kept))

    def raw(self, responses: Responses) -> Tensor:
        """Mean over opponents (R,) of the log-odds, or of the probability, to be preferred."""
        parts = [torch.zeros(0)]
        for rows in torch.arange(len(responses)).split(_RESPONSES_AT_ONCE):
            some = responses.select(rows)
            mine = some.select(torch.arange(len(some)).repeat_interleave(self.opponents))
            odds = self.preference(mine, self.opponents_of(some)).view(-1, self.opponents)
            parts.append((odds if self.read == "log_odds" else odds.sigmoid()).mean(1))
        return torch.cat(parts)

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Weights of both networks, their shapes, how opponents are sampled, and the unit."""
        files.save_tensors(folder / "policy.safetensors", checkpoints.backbone_state(self.policy))
        drawn = {"n_tokens": self.n_tokens, "seed": self.seed, "opponents": self.opponents}
        here = {"kind": "pairwise", "read": self.read, "policy": reward_model.shape_of(self.policy)}
        unit = {"mean": self.mean, "std": self.std}
        reward_model.save_network(self.network, folder, info | here | drawn | unit)


def load(folder: Path, info: dict[str, Any], place: Place) -> PairwiseScorer:
    """What `PairwiseScorer.save` wrote."""
    network = reward_model.load_network(folder, info, place)
    weights = files.load_tensors(folder / "policy.safetensors")
    policy = reward_model.backbone_of(info["policy"], weights, folder / "scorer.json")
    drawn = (info[name] for name in ("n_tokens", "seed", "opponents", "read", "mean", "std"))
    return PairwiseScorer(network, policy.to(place.device).eval(), *drawn)
