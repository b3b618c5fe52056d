"""A verifier: a scalar head that learns from single responses whether their outcome is right.

Cobbe et al. 2021 train one by cross-entropy on sampled solutions. Such a model is calibrated over all
prompts together, and may rank the responses to one prompt badly: it also learns which problems are
easy, and prefers solutions of an easier one. The loss ``within_prompt`` compares a right with a wrong
response to the same prompt, so that this gains nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from overopt.base.errors import DataError
from overopt.base.lazy import lazy
from overopt.base.seeding import torch_generator
from overopt.rewards.judged import Verifying
from overopt.rewards.kind import Job, Trained
from overopt.worlds.world import Verdict

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from overopt.base.datatypes import Responses
    from overopt.nets.heads import ScalarHeadModel
    from overopt.rewards import scorer
    from overopt.rewards.kinds import reward_model
    from overopt.rewards.training import pairs
    from overopt.rewards.training import train as training
    from overopt.rewards.training.pairs import PairBatch, TrainingPairs
    from overopt.worlds import codecs
else:
    torch, F = lazy("torch"), lazy("torch.nn.functional")
    scorer, reward_model = (
        lazy("overopt.rewards.scorer"),
        lazy("overopt.rewards.kinds.reward_model"),
    )
    pairs, training = lazy("overopt.rewards.training.pairs"), lazy("overopt.rewards.training.train")
    codecs = lazy("overopt.worlds.codecs")


WRITES = ("reward_model",)


@dataclass(frozen=True, kw_only=True)
class Settings(Verifying):
    """A scalar head fitted to whether single responses are right, by the world's judge.

    Backbone, training and seed are those of `Fitted`, loss and flips those of `Verifying`.

    Attributes
    ----------
    label : "right" or "right_and_valid"
        What counts as right: the answer, or the answer by right steps.
    """

    label: Literal["right", "right_and_valid"] = "right"

    @property
    def title(self) -> str:
        """Kind, size, and what is not the default."""
        strict = "right and valid " if self.label == "right_and_valid" else ""
        return f"outcome {strict}{self.treated}"


def train(settings: Settings, job: Job) -> Trained:
    """Fit to the judge's verdicts on the responses of the comparisons; a job's start goes on.

    Raises
    ------
    DataError
        No prompt has both a right and a wrong response, and the loss compares within prompts.
    """
    if job.start is not None:
        model = reward_model.network(job.start).to(job.device)
    else:
        model = reward_model.fresh(settings.backbone, job, layers=settings.layers)
    is_strict = settings.label == "right_and_valid"
    history = fit(settings, job, model, lambda v: v.right and (v.valid or not is_strict))
    return Trained(reward_model.RewardModelScorer(model.eval(), 0.0, 1.0), history)


def fit(
    settings: Verifying, job: Job, model: ScalarHeadModel, holds: Callable[[Verdict], bool]
) -> dict[str, Any]:
    """Fit a head, in place, to what holds of the comparisons' responses; what it is remembered by.

    Raises
    ------
    DataError
        No prompt has both kinds of responses, and the loss compares within prompts.
    """
    assert job.responses is not None and job.validate is not None
    responses, validate = job.responses(), job.validate
    target = outcomes(settings, job, responses, holds)
    read = codecs.in_own_tokens(model.backbone, responses)
    is_pointwise = settings.loss == "pointwise"
    labelled = single_responses(read, target) if is_pointwise else right_over_wrong(read, target)
    with job.keep(model):
        log = training.train_reward_model(
            model,
            labelled,
            epochs=settings.epochs,
            lr=settings.lr,
            batch_prompts=settings.batch_prompts,
            weight_decay=settings.weight_decay,
            seed=job.seed,
            validate=lambda: validate(lambda some: scorer.raw_scores(model, some)),
            progress=job.progress,
            compute=job.compute,
            pair_loss=outcome_loss if is_pointwise else training.preference_loss,
        )
    return {
        "train_loss": log.loss,
        "validation": log.validation,
        "responses": len(responses),
        "share_right": float(target.mean()),
    }


class Flipping(Protocol):
    """Settings by which labels are inverted."""

    @property
    def flip_rate(self) -> float:
        """Probability that a label is inverted."""
        ...


def outcomes(
    settings: Flipping, job: Job, responses: Responses, holds: Callable[[Verdict], bool]
) -> Tensor:
    """Labels (R,) float32: 1 for a response of which it holds, 0 for others; some inverted."""
    target = torch.tensor([float(holds(v)) for v in job.world.verdicts(responses)])
    generator = torch_generator(job.seed, "flips")
    is_flipped = torch.rand(len(target), generator=generator) < settings.flip_rate
    return torch.where(is_flipped, 1 - target, target)


def single_responses(responses: Responses, target: Tensor) -> TrainingPairs:
    """Responses as a training set of pairs, each a pair with itself, for `outcome_loss`."""
    rows = torch.arange(len(responses))
    return pairs.TrainingPairs(responses, rows, rows, target)


def outcome_loss(scores: Tensor, batch: PairBatch) -> Tensor:
    """Mean cross-entropy in nats of a batch of `single_responses`; the scores (R,) are log-odds."""
    first, target = (t.to(scores.device) for t in (batch.first, batch.target))
    return F.binary_cross_entropy_with_logits(scores[first], target)


def right_over_wrong(responses: Responses, target: Tensor) -> TrainingPairs:
    """All pairs of a right and a wrong response to the same prompt.

    Raises
    ------
    DataError
        There are none.
    """
    prompt = responses.prompts.prompt_id
    found = []
    for number in prompt.unique():
        right, wrong = (((prompt == number) & (target == y)).nonzero()[:, 0] for y in (1, 0))
        found.append(torch.cartesian_prod(right, wrong))
    first, second = torch.cat(found).T
    if len(first) == 0:
        raise DataError(
            f"none of {len(prompt.unique())} prompts has both a right and a wrong response: use"
            " proxy.loss=pointwise, or more labels.responses_per_prompt"
        )
    return pairs.TrainingPairs(responses, first, second, torch.ones(len(first)))
