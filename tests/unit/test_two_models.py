"""Two models for two aims: each branch by hand, what each learns, and back from a folder."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from overopt.base.datatypes import Prompts, Responses
from overopt.base.errors import CheckpointError, ConfigError
from overopt.base.seeding import torch_generator
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.kind import Place, Unit
from overopt.rewards.kinds import two_models
from overopt.rewards.load import load_scorer
from overopt.rewards.scorer import raw_scores
from overopt.worlds.world import Verdict

TEXTS = ("Sue has 3 eggs .", "Sue has 3 eggs . a friend has 5 .")
WORLD = SimpleNamespace(prompt_texts=lambda r: [TEXTS[i] for i in r.prompts.prompt_id.tolist()])


def responses(prompt_ids):
    n = len(prompt_ids)
    prompts = Prompts(torch.full((n, 1), 2), torch.ones(n, 1).bool(), torch.tensor(prompt_ids))
    ids = torch.randint(2, 48, (n, 3), generator=torch_generator(0, "ids"))
    return Responses(
        prompts, ids, torch.ones_like(ids).bool(), torch.zeros(ids.shape), torch.zeros(n).bool()
    )


def scorer_on(tiny_llama, **changed):
    heads = []
    for seed in (1, 2):
        heads.append(ScalarHeadModel(tiny_llama(seed)))
        heads[-1].init_head(torch_generator(seed, "head"))
    settings = {"threshold": 0.15, "tagged": "friend"} | changed
    return two_models.TwoModelsScorer(*heads, settings["threshold"], settings["tagged"], WORLD)


@pytest.mark.parametrize(
    ("helpful", "safe", "is_tagged", "taken"),
    [
        (2.0, 1.0, False, 2.0),  # safe enough: helpfulness
        (2.0, -1.7, False, 2.0),  # σ(-1.7) = .154: just safe enough
        (2.0, -1.8, False, -1.8),  # σ(-1.8) = .142: not
        (-3.0, -2.5, False, -2.5),  # unsafe, and safety is the larger: it is taken all the same
        (2.0, 1.0, True, 1.0),  # a tagged prompt: safety, however safe
        (-4.0, 3.0, True, 3.0),
        (2.0, -5.0, True, -5.0),
    ],
)
def test_each_branch_by_hand(helpful, safe, is_tagged, taken):
    found = two_models.piecewise(
        torch.tensor([helpful]), torch.tensor([safe]), torch.tensor([is_tagged]), 0.15
    )
    assert found.tolist() == [pytest.approx(taken)]


def test_the_threshold_is_a_probability():
    safe = torch.tensor([-2.0, -0.01, 0.01, 2.0])
    found = two_models.piecewise(torch.full((4,), 9.0), safe, torch.zeros(4).bool(), 0.5)
    assert found.tolist() == pytest.approx([-2.0, -0.01, 9.0, 9.0])


def test_with_a_constant_safe_model_it_is_the_helpful_one(tiny_llama):
    made, asked = scorer_on(tiny_llama, tagged=""), responses([0, 1, 0, 1])
    with torch.no_grad():
        made.safe.head.weight.zero_()
    assert made.raw(asked).equal(raw_scores(made.helpful, asked))


def test_prompts_are_tagged_by_a_word(tiny_llama):
    made, asked = scorer_on(tiny_llama, threshold=1e-9), responses([0, 1, 1, 0])
    assert made.is_tagged(asked).tolist() == [False, True, True, False]
    helpful, safe = raw_scores(made.helpful, asked), raw_scores(made.safe, asked)
    wanted = [helpful[0], safe[1], safe[2], helpful[3]]
    assert made.raw(asked).tolist() == pytest.approx([float(x) for x in wanted])
    part = scorer_on(tiny_llama, tagged="end")  # a word, not a part of one
    assert not part.is_tagged(asked).any()


def test_whitened_it_has_the_unit_of_the_initial_policy(tiny_llama):
    made, asked = scorer_on(tiny_llama), responses([0, 1] * 8)
    raw = made.raw(asked)
    white = made.with_unit(Unit(float(raw.mean()), float(raw.std(correction=0)))).score(asked)
    assert abs(float(white.mean())) < 1e-5
    assert float(white.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_what_each_model_learns(tiny_llama, monkeypatch):
    """The labels that reach each training, and that the two draw other random numbers."""
    verdicts = [
        Verdict(True, False, True, True, 0, 1, 0, (False,)),
        Verdict(False, True, True, True, 0, 2, 3, (False,)),
    ]
    seen = []

    def fit(settings, job, model, holds):
        seen.append(([holds(v) for v in verdicts], job.seed))
        return {}

    monkeypatch.setattr(two_models.outcome, "fit", fit)
    monkeypatch.setattr(two_models, "replace", lambda job, seed: SimpleNamespace(seed=seed))
    monkeypatch.setattr(
        two_models, "_network", lambda settings, job, aim: ScalarHeadModel(tiny_llama(1))
    )
    job = SimpleNamespace(seed=0, world=WORLD)
    for changed, expected in (
        ({}, ([True, False], [False, True])),
        ({"helpful": "listed", "safe": "one_answer"}, ([True, True], [True, False])),
        ({"safe": "no_checks"}, ([True, False], [True, False])),
    ):
        seen.clear()
        two_models.train(two_models.Settings(**changed), job)
        assert tuple(labels for labels, _ in seen) == expected
        assert seen[0][1] != seen[1][1]


def test_a_scorer_comes_back_from_its_folder(tiny_llama, tmp_path):
    made, asked = scorer_on(tiny_llama).with_unit(Unit(0.5, 2.0)), responses([0, 1, 1])
    made.save(tmp_path, made.sizes)
    again = load_scorer(tmp_path, Place(Path(), WORLD, "cpu"), kinds=["two_models"])
    assert again.score(asked).equal(made.score(asked))
    assert (again.threshold, again.tagged) == (0.15, "friend")
    assert math.isfinite(float(again.score(asked).sum()))


def test_another_kind_is_not_trained_further():
    job = SimpleNamespace(start=SimpleNamespace())
    with pytest.raises(CheckpointError, match="no pair of models"):
        two_models._network(two_models.Settings(), job, "safe")


def test_settings_are_checked():
    for wrong in ({"threshold": 0.0}, {"threshold": 1.0}, {"flip_rate": 0.5}):
        with pytest.raises(ConfigError, match=r"proxy\."):
            two_models.Settings(**wrong)
