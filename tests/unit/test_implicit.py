"""The implicit reward of DPO: against the tilt, by hand, and back from its folder."""

import math
from pathlib import Path

import pytest
import torch

from overopt.base.datatypes import Prompts, Responses
from overopt.base.errors import ConfigError
from overopt.nets.compute import Compute
from overopt.rewards.kind import Place, Unit
from overopt.rewards.kinds import implicit
from overopt.rewards.load import load_scorer
from overopt.rewards.training.dpo import response_logprob, train_dpo
from overopt.rewards.training.pairs import TrainingPairs


def words(n):
    """All responses of one token, to one prompt."""
    asked = Prompts(
        torch.tensor([[3, 4]] * n), torch.ones(n, 2, dtype=torch.bool), torch.zeros(n).long()
    )
    ids = torch.arange(n)[:, None]
    return Responses(
        asked, ids, torch.ones_like(ids).bool(), torch.zeros(n, 1), torch.zeros(n).bool()
    )


def test_dpo_on_exact_preferences_is_the_tilt(tiny_llama):
    """π ∝ π_ref exp(r/β): β times the log-ratio is r, up to a constant of the prompt."""
    shape = {"vocab_size": 5, "scale": 4.0}
    policy, reference = tiny_llama(3, **shape), tiny_llama(3, **shape)
    reward = torch.tensor([0.0, 1.0, -0.5, 0.3, 0.8])
    asked, beta = words(5), 0.5
    first, second = torch.triu_indices(5, 5, offset=1)
    pairs = TrainingPairs(asked, first, second, torch.sigmoid(reward[first] - reward[second]))
    train_dpo(
        policy, reference, pairs,
        beta=beta, epochs=400, lr=1e-2, batch_prompts=1, seed=0,
        validate=dict, progress=lambda k, n: None, compute=Compute(),
    )  # fmt: skip
    scorer = implicit.ImplicitScorer(policy, reference, "log_ratio")
    rest = beta * scorer.raw(asked) - reward
    assert rest.std() < 0.01
    tilt = (response_logprob(reference, asked.sequences()) + reward / beta).softmax(0)
    found = response_logprob(policy, asked.sequences()).exp()
    assert torch.allclose(found, tilt, atol=0.01)


def test_what_is_read(tiny_llama):
    policy, reference = tiny_llama(1), tiny_llama(2)
    asked = Prompts(torch.tensor([[3, 4]] * 2), torch.ones(2, 2).bool(), torch.zeros(2).long())
    ids, mask = torch.tensor([[5, 6, 1], [7, 1, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    made = Responses(asked, ids, mask, torch.zeros(2, 3), torch.ones(2).bool())

    def summed(model, row):
        logp = model.logits(model(torch.tensor([[3, 4, *row]])))[0].log_softmax(-1)
        return sum(float(logp[1 + t, token]) for t, token in enumerate(row))

    with torch.no_grad():
        own = [summed(policy, row) for row in ([5, 6, 1], [7, 1])]
        ref = [summed(reference, row) for row in ([5, 6, 1], [7, 1])]
    ratio = [a - b for a, b in zip(own, ref, strict=True)]
    for read, expected in (
        ("log_ratio", ratio),
        ("log_prob", own),
        ("mean_log_prob", [own[0] / 3, own[1] / 2]),
    ):
        found = implicit.ImplicitScorer(policy, reference, read).raw(made)
        assert found.tolist() == pytest.approx(expected, abs=1e-4), read


def test_before_training_it_ranks_nothing(tiny_llama):
    scorer = implicit.ImplicitScorer(tiny_llama(1), tiny_llama(1), "log_ratio")
    assert scorer.raw(words(6)).abs().max() < 1e-5


def test_a_scorer_comes_back_from_its_folder(tiny_llama, tmp_path):
    scorer = implicit.ImplicitScorer(tiny_llama(1), tiny_llama(2), "log_ratio")
    scorer = scorer.with_unit(Unit(0.5, 2.0))
    scorer.save(tmp_path, scorer.sizes)
    again = load_scorer(tmp_path, Place(Path(), None, "cpu"), kinds=["implicit"])
    assert again.score(words(6)).equal(scorer.score(words(6)))
    assert math.isfinite(float(scorer.score(words(6)).sum()))


def test_settings_are_checked():
    for wrong in ({"beta": 0.0}, {"epochs": 0}, {"lr": 0.0}):
        with pytest.raises(ConfigError, match=r"proxy\."):
            implicit.Settings(**wrong)
