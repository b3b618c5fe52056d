"""Stacked members against members trained and scored alone."""

import pytest
import torch
from tolerances import FP32
from torch.autograd import gradcheck
from training_data import reward_model, training_pairs

from overopt.base.errors import ConfigError, DivergenceError
from overopt.nets import fused
from overopt.rewards.scorer import raw_scores
from overopt.rewards.training import stacked
from overopt.rewards.training.stacked import raw_scores_stacked, train_reward_models_stacked
from overopt.rewards.training.train import train_reward_model

SETTINGS = dict(
    epochs=2, lr=1e-2, batch_prompts=4, weight_decay=0.01, progress=lambda done, total: None
)


def test_members_equal_those_trained_alone():
    """Members differ in head, order and data; the third has fewer prompts and so fewer steps."""
    data = [training_pairs(12), training_pairs(12, seed=1), training_pairs(7, copies=4)]
    seeds = [3, 4, 5]
    alone, logs = [], []
    for m, (pairs, seed) in enumerate(zip(data, seeds, strict=True)):
        model = reward_model(m)
        logs.append(
            train_reward_model(model, pairs, seed=seed, validate=lambda: {"x": 1.0}, **SETTINGS)
        )
        alone.append(model)
    members = [reward_model(m) for m in range(3)]
    found = train_reward_models_stacked(
        members, data, seeds=seeds, validate=lambda model: {"x": 1.0}, **SETTINGS
    )
    assert [log.steps for log in found] == [6, 6, 4]
    for a, b in zip(logs, found, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=FP32)
        assert (b.steps, b.pairs_seen, b.validation) == (a.steps, a.pairs_seen, a.validation)
    for a, b in zip(alone, members, strict=True):
        for name, p in a.named_parameters():
            if name == "head.bias":  # cancels in every margin: its gradient is rounding only
                continue
            # A step of Adam is lr·g/|g|: where a gradient is almost 0, the gap may be as large.
            off = (dict(b.named_parameters())[name] - p).detach().abs()
            assert off.quantile(0.99) <= 1e-3 * SETTINGS["lr"], name


def test_members_own_their_weights_afterwards():
    members = [reward_model(m) for m in range(2)]
    train_reward_models_stacked(
        members, [training_pairs()] * 2, seeds=[0, 1], validate=lambda model: {}, **SETTINGS
    )
    p, q = (next(m.parameters()) for m in members)
    assert p.untyped_storage().nbytes() == p.numel() * 4
    assert p.data_ptr() != q.data_ptr()
    assert all(x.grad is None for x in members[0].parameters())


def test_scores_equal_those_of_each_alone():
    responses = training_pairs(20).responses
    members = [reward_model(m, num_hidden_layers=3) for m in range(3)]
    expected = torch.stack([raw_scores(m, responses) for m in members])
    found = raw_scores_stacked(members, responses, batch_tokens=300)
    torch.testing.assert_close(found, expected, rtol=FP32, atol=FP32)


def test_handwritten_gradients():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    x, w, angle = random(2, 3, 8), random(2, 12, 8), random(3, 1, 1, 1).detach()
    assert gradcheck(lambda x: fused.Normalise.apply(x, 1e-5), x)
    assert gradcheck(fused.SwiGlu.apply, x)
    turn = torch.polar(torch.ones(3, 3, 3).double(), random(3, 3, 3).detach())
    assert gradcheck(lambda x: fused.RotateHeads.apply(x, turn, (2, 1, 1)), random(2, 3, 4, 6))
    assert gradcheck(
        lambda x, w: stacked._Rotated.apply(x, w, angle.cos(), angle.sin(), (2, 3, 3, 2, 2), 2),
        (x, w),
    )


def test_members_that_cannot_be_stacked_are_named():
    with pytest.raises(ConfigError, match=r"models\[1\] has shape"):
        raw_scores_stacked(
            [reward_model(), reward_model(num_hidden_layers=3)], training_pairs().responses
        )
    with pytest.raises(ConfigError, match="2 models, 1 pairs_per_member"):
        train_reward_models_stacked(
            [reward_model(), reward_model(1)], [training_pairs()], seeds=[0, 1],
            validate=lambda model: {}, **SETTINGS,
        )  # fmt: skip


def test_divergence_names_the_member():
    members = [reward_model(m) for m in range(2)]
    with torch.no_grad():
        members[1].head.bias.fill_(torch.nan)
    with pytest.raises(DivergenceError, match="member 1 is nan at step 0"):
        train_reward_models_stacked(
            members, [training_pairs()] * 2, seeds=[0, 1], validate=lambda model: {}, **SETTINGS
        )
