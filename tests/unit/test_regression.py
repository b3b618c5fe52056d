"""Regression on attributes: ratings, weights, and what a linear world lets it recover."""

from types import SimpleNamespace

import pytest
import torch

from overopt.base.datatypes import Prompts, Responses
from overopt.base.errors import ConfigError, DataError
from overopt.base.seeding import torch_generator
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.kinds import outcome, regression
from overopt.rewards.labels import ratings
from overopt.rewards.training.train import train_reward_model
from overopt.worlds.world import Verdict


def responses(n, n_tokens=4, seed=0):
    asked = Prompts(torch.full((n, 1), 3), torch.ones(n, 1).bool(), torch.arange(n) // 4)
    generator = torch_generator(seed, "responses")
    ids = torch.randint(2, 48, (n, n_tokens), generator=generator)
    length = torch.randint(1, n_tokens + 1, (n, 1), generator=generator)
    mask = torch.arange(n_tokens) < length
    return Responses(asked, ids * mask, mask, torch.zeros(ids.shape), torch.ones(n).bool())


def verdict(i):
    right, valid = i % 2 == 0, i % 3 == 0
    return Verdict(right, valid, right, True, -1, 1 + i % 2, i % 5, (True,) * (i % 4 + 1))


def rated(settings, n, seed=0):
    world = SimpleNamespace(verdicts=lambda r: [verdict(i) for i in range(n)])
    return ratings.ratings(
        world, responses(n), settings.attributes, noise=settings.noise, seed=seed
    )


def test_ratings_are_standardised_counts():
    asked = responses(60)
    settings = regression.Settings(
        attributes=("right", "checks", "steps", "tokens"), weights=(1, 0, 0, 0)
    )
    found = rated(settings, 60)
    assert found.shape == (60, 4)
    assert found.mean(0).abs().max() < 1e-6 and (found.std(0, correction=0) - 1).abs().max() < 1e-6
    assert (found[::2, 0] > 0).all() and (found[1::2, 0] < 0).all()
    for column, count in ((1, torch.arange(60) % 5), (2, torch.arange(60) % 4), (3, asked.length)):
        assert torch.corrcoef(torch.stack([found[:, column], count.float()]))[0, 1] > 0.999


def test_noise_is_added_to_each_rating():
    settings = regression.Settings(noise=0.5)
    plain = rated(regression.Settings(), 4000)
    noisy = rated(settings, 4000)
    assert (noisy - plain).std() == pytest.approx(0.5, rel=0.05)
    assert not noisy.equal(rated(settings, 4000, seed=1))


def test_an_attribute_without_spread_is_an_error():
    settings = regression.Settings(attributes=("formatted",), weights=(1.0,))
    with pytest.raises(DataError, match="formatted.*same for all 8"):
        rated(settings, 8)


def test_the_weighted_head_is_the_weighted_sum(tiny_llama):
    model = ScalarHeadModel(tiny_llama(1), 3)
    model.init_head(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([1.0, -2.0, 0.5]))
    one = regression.weighed(model, (2.0, -1.0, 0.3))
    seq = responses(8).sequences()
    with torch.no_grad():
        each, score = (
            model.at_last_token(seq.ids, seq.length),
            one.at_last_token(seq.ids, seq.length),
        )
    assert torch.allclose(score, each @ torch.tensor([2.0, -1.0, 0.3]), atol=1e-5)


def test_heads_recover_planted_attributes(tiny_llama):
    """Ratings that are linear in what the backbone says: the heads find them, the sum its weights."""
    backbone, asked = tiny_llama(1, scale=4.0), responses(240)
    planted = ScalarHeadModel(backbone, 2)
    planted.init_head(torch.Generator().manual_seed(5))
    seq = asked.sequences()
    with torch.no_grad():
        wanted = planted.at_last_token(seq.ids, seq.length)
    wanted = (wanted - wanted.mean(0)) / wanted.std(0)
    for p in backbone.parameters():
        p.requires_grad_(False)
    model = ScalarHeadModel(backbone, 2)

    def loss(scores, batch):
        return (scores[batch.first] - wanted[batch.pairs]).square().mean()

    train_reward_model(
        model, outcome.single_responses(asked, torch.zeros(240)), epochs=30, lr=0.1, batch_prompts=20,
        weight_decay=0.0, seed=0, validate=dict, progress=lambda k, n: None, pair_loss=loss,
    )  # fmt: skip
    one = regression.weighed(model, (1.0, -0.5))
    with torch.no_grad():
        score = one.at_last_token(seq.ids, seq.length)
    assert torch.corrcoef(torch.stack([score, wanted @ torch.tensor([1.0, -0.5])]))[0, 1] > 0.99


def test_settings_are_checked():
    for wrong in (
        {"weights": (1.0,)},
        {"attributes": ("right", "right"), "weights": (1.0, 1.0)},
        {"attributes": (), "weights": ()},
        {"noise": -1.0},
    ):
        with pytest.raises(ConfigError, match=r"proxy\."):
            regression.Settings(**wrong)
