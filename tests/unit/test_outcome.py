"""Outcome verifiers: their labels, their two losses, and what each learns."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from overopt.base.datatypes import Prompts, Responses
from overopt.base.errors import ConfigError, DataError
from overopt.nets import sources
from overopt.rewards.kinds import outcome, rubric
from overopt.rewards.training.pairs import PairBatches
from overopt.stages.settings import RunConfig
from overopt.worlds import hf, sums
from overopt.worlds.world import Verdict


def responses(prompt_ids):
    n = len(prompt_ids)
    asked = Prompts(
        torch.full((n, 1), 2), torch.ones(n, 1, dtype=torch.bool), torch.tensor(prompt_ids)
    )
    ids = torch.arange(3, 3 + n)[:, None]
    return Responses(
        asked, ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(n, 1), torch.ones(n).bool()
    )


def verdict(right, valid=True):
    return Verdict(
        right, valid, right, True, -1 if right and valid else 0, 1, 0, (right and valid,)
    )


def is_right(v):
    return v.right


def job(verdicts, seed=0):
    return SimpleNamespace(world=SimpleNamespace(verdicts=lambda r: verdicts), seed=seed)


@pytest.mark.parametrize(
    ("label", "expected"), [("right", [1, 1, 0]), ("right_and_valid", [1, 0, 0])]
)
def test_labels_are_the_judges(label, expected, monkeypatch):
    found = [verdict(True), verdict(True, valid=False), verdict(False)]
    seen = []

    def fit(settings, job, model, holds):
        seen.extend(outcome.outcomes(settings, job, responses([0, 0, 1]), holds).tolist())
        return {}

    monkeypatch.setattr(outcome, "fit", fit)
    monkeypatch.setattr(outcome.reward_model, "fresh", lambda *a, **k: torch.nn.Identity())
    asked = SimpleNamespace(**vars(job(found)), start=None)
    outcome.train(outcome.Settings(label=label), asked)
    assert seen == expected


def test_flips_are_as_many_as_asked_for_and_of_their_own_stream():
    found, asked = [verdict(True)] * 2000, responses([0] * 2000)
    settings = outcome.Settings(flip_rate=0.2)
    flipped = outcome.outcomes(settings, job(found), asked, is_right)
    assert 0.77 < flipped.mean() < 0.83
    again = outcome.outcomes(settings, job(found), asked, is_right)
    other = outcome.outcomes(settings, job(found, seed=1), asked, is_right)
    assert flipped.equal(again) and not flipped.equal(other)


def test_pointwise_loss_is_cross_entropy_of_each_response_once():
    """Whatever order the batches bring the responses in."""
    target = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])
    asked = responses([0, 0, 1, 1, 2])
    batches = PairBatches(outcome.single_responses(asked, target), batch_prompts=2, seed=3)
    raw = torch.tensor([0.3, -1.0, 2.0, 0.5, -0.7])
    total = 0.0
    for batch in batches.epoch(0):
        row = batch.seq.ids[:, 1] - 3  # the token names the response
        scores = raw[row]
        total += float(outcome.outcome_loss(scores, batch)) * len(row)
    assert total / 5 == pytest.approx(float(F.binary_cross_entropy_with_logits(raw, target)))


def test_within_a_prompt_every_right_response_meets_every_wrong_one():
    asked = responses([7, 7, 7, 8, 8, 9])
    target = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    found = outcome.right_over_wrong(asked, target)
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert pairs == {(0, 1), (0, 2), (4, 3)}
    assert found.target.tolist() == [1, 1, 1]


def test_no_prompt_with_both_is_an_error():
    with pytest.raises(DataError, match="pointwise"):
        outcome.right_over_wrong(responses([0, 0, 1]), torch.tensor([1.0, 1.0, 0.0]))


def test_how_easy_a_prompt_is_helps_only_the_pointwise_loss():
    """A score that knows the prompt alone lowers cross-entropy below chance, but orders no pair."""
    target = torch.tensor([1.0, 1.0, 1.0, 0.0] * 5 + [1.0, 0.0, 0.0, 0.0] * 5)
    asked = responses([i // 4 for i in range(40)])
    easy = torch.tensor([math.log(3)] * 20 + [-math.log(3)] * 20)
    (batch,) = PairBatches(outcome.single_responses(asked, target), batch_prompts=10, seed=0).epoch(
        0
    )
    assert outcome.outcome_loss(easy[batch.seq.ids[:, 1] - 3], batch) < math.log(2) - 0.1
    pairs = outcome.right_over_wrong(asked, target)
    assert (easy[pairs.first] == easy[pairs.second]).all()


def test_it_needs_a_world_with_a_judge():
    with pytest.raises(ConfigError, match="world.kind=sums"):
        RunConfig(proxy=outcome.Settings())
    with pytest.raises(ConfigError, match="world.kind=sums"):
        RunConfig(world=hf.Settings(intent="rubric"), proxy=outcome.Settings())
    RunConfig(world=sums.Settings(), gold=rubric.Settings(), proxy=outcome.Settings())


def test_settings_are_checked():
    for wrong in ({"flip_rate": 0.5}, {"epochs": 0}, {"lr": 0.0}, {"layers": -1}):
        with pytest.raises(ConfigError, match=r"proxy\."):
            outcome.Settings(**wrong)


def test_the_models_of_sums_are_a_family_of_their_own():
    """They share no files with the ladder of stories, so that neither enters the other's identity."""
    stories, own = sources.source_files("ladder:0.2m"), sources.source_files("ladder:sums-0.2m")
    assert len(own) >= 2 and not set(stories) & set(own)
    assert sources.tokenizer_dir("ladder:sums-0.2m") != sources.tokenizer_dir("ladder:0.2m")
