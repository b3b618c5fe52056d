"""A reward model that predicts ratings of several attributes, and weighs them into one score.

HelpSteer2 (Wang et al. 2024) fits one head an attribute by squared error and takes a weighted sum as
the reward, with a negative weight on verbosity. Here attributes are what the world's judge counts.
The sum of linear heads is a linear head, so what is kept is an ordinary reward model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from overopt.base.config import require
from overopt.base.lazy import lazy
from overopt.base.seeding import torch_generator
from overopt.rewards.kind import Job, Trained
from overopt.rewards.rated import Rated

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from overopt.nets import heads
    from overopt.nets.heads import ScalarHeadModel
    from overopt.rewards import scorer
    from overopt.rewards.kinds import outcome, reward_model
    from overopt.rewards.labels import ratings
    from overopt.rewards.training import pairs
    from overopt.rewards.training import train as training
    from overopt.rewards.training.pairs import PairBatch
    from overopt.worlds import codecs
else:
    torch, heads = lazy("torch"), lazy("overopt.nets.heads")
    scorer, reward_model = (
        lazy("overopt.rewards.scorer"),
        lazy("overopt.rewards.kinds.reward_model"),
    )
    pairs, training = lazy("overopt.rewards.training.pairs"), lazy("overopt.rewards.training.train")
    ratings = lazy("overopt.rewards.labels.ratings")
    outcome, codecs = lazy("overopt.rewards.kinds.outcome"), lazy("overopt.worlds.codecs")

WRITES = ("reward_model",)


@dataclass(frozen=True, kw_only=True)
class Settings(Rated):
    """A linear head an attribute, fitted to the judge's ratings, and the weights that make a score.

    Backbone, training and seed are those of `Fitted`, attributes and noise those of `Rated`.

    Attributes
    ----------
    weights : tuple of float
        Of each attribute in the score, per standard deviation of its ratings. The weight of
        ``tokens`` is the one on verbosity.
    """

    weights: tuple[float, ...] = (0.8, 0.4, 0.2, -0.2)

    def __post_init__(self) -> None:
        Rated.__post_init__(self)
        require(
            len(self.weights) == len(self.attributes),
            "proxy.weights",
            self.weights,
            f"give {len(self.attributes)}, one for each of proxy.attributes",
        )

    @property
    def title(self) -> str:
        """Kind, weights and size."""
        weighed = zip(self.weights, self.attributes, strict=True)
        score = " ".join(f"{weight:+g} {name}" for weight, name in weighed)
        noise = f" noise {self.noise:g}" if self.noise else ""
        return f"regression {score} {self.size}{noise}"


def train(settings: Settings, job: Job) -> Trained:
    """Fit to the ratings of the responses of the comparisons, then weigh the heads."""
    n = len(settings.attributes)
    model = heads.ScalarHeadModel(
        pairs.load_backbone(settings.backbone, job.world, layers=settings.layers), n
    )
    model.init_head(torch_generator(job.seed, "head"))
    model.to(job.device)
    assert job.responses is not None and job.validate is not None
    responses, validate = job.responses(), job.validate
    rated = ratings.ratings(
        job.world, responses, settings.attributes, noise=settings.noise, seed=job.seed
    )
    read = codecs.in_own_tokens(model.backbone, responses)

    def loss(scores: Tensor, batch: PairBatch) -> Tensor:
        """Mean squared error over responses and attributes."""
        wanted = rated[batch.pairs].to(scores.device)
        found = scores[batch.first.to(scores.device)].view(-1, n)
        return (found - wanted).square().mean()

    def validation() -> dict[str, float]:
        one = weighed(model, settings.weights)
        return validate(lambda some: scorer.raw_scores(one, some))

    with job.keep(model):
        log = training.train_reward_model(
            model,
            outcome.single_responses(read, torch.zeros(len(read))),
            epochs=settings.epochs,
            lr=settings.lr,
            batch_prompts=settings.batch_prompts,
            weight_decay=settings.weight_decay,
            seed=job.seed,
            validate=validation,
            progress=job.progress,
            compute=job.compute,
            pair_loss=loss,
        )
    history = {"train_loss": log.loss, "validation": log.validation, "responses": len(read)}
    one = weighed(model, settings.weights)
    return Trained(reward_model.RewardModelScorer(one.eval(), 0.0, 1.0), history)


def weighed(model: ScalarHeadModel, weights: tuple[float, ...]) -> ScalarHeadModel:
    """A model with one head, the weighted sum of the heads of ``model``, on the same trunk."""
    one = heads.ScalarHeadModel(model.backbone)
    weight = torch.tensor(weights)[None].to(model.head.weight)
    state = {"weight": weight @ model.head.weight, "bias": weight[0] @ model.head.bias[:, None]}
    one.head.load_state_dict({name: value.detach() for name, value in state.items()})
    return one.to(model.head.weight.device)
