"""Mixtures over attributes: ridge, debiasing and gate against other ways to the same, and a toy."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from overopt.base.datatypes import Prompts, Responses
from overopt.base.errors import CheckpointError, ConfigError
from overopt.base.seeding import numpy_rng, torch_generator
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.kind import Place, Unit
from overopt.rewards.kinds import mixture
from overopt.rewards.load import load_scorer
from overopt.rewards.training import mixture as parts


def normal(*shape, name="x"):
    return torch.randn(shape, generator=torch_generator(0, name))


def responses(n, seed=0):
    asked = Prompts(
        torch.randint(2, 48, (n, 2), generator=torch_generator(seed, "asked")),
        torch.ones(n, 2).bool(),
        torch.arange(n) // 4,
    )
    ids = torch.randint(2, 48, (n, 4), generator=torch_generator(seed, "ids"))
    length = torch.randint(1, 5, (n, 1), generator=torch_generator(seed, "length"))
    mask = torch.arange(4) < length
    return Responses(asked, ids * mask, mask, torch.zeros(ids.shape), torch.ones(n).bool())


def test_ridge_is_least_squares_with_rows_for_the_penalty():
    """An augmented system, solved by another routine."""
    x, y, alpha = normal(50, 6), normal(50, 2, name="y"), 3.0
    found = parts.ridge(x, y, alpha)
    more = np.concatenate([x.double().numpy(), alpha**0.5 * np.eye(6)])
    wanted = np.concatenate([y.double().numpy(), np.zeros((6, 2))])
    expected = np.linalg.lstsq(more, wanted, rcond=None)[0].T
    assert np.allclose(found.numpy(), expected, atol=1e-10)


def test_the_penalty_is_chosen_on_held_out_prompts():
    """A true linear attribute takes a small one, pure noise the largest; weights are recovered."""
    x, prompt = normal(160, 60), torch.arange(160) // 4
    w = normal(60, name="w")
    y = torch.stack([x @ w, normal(160, name="noise")], 1)
    weights, alphas = parts.fit_attributes(x, y, prompt, seed=0)
    assert alphas[0] <= 1e-2 and alphas[1] >= 1e3
    assert torch.allclose(weights[0].float(), w, atol=1e-2) and weights[1].norm() < 0.1
    one, _ = parts.fit_attributes(x, y, torch.zeros(160).long(), seed=0)  # a single prompt
    assert torch.isfinite(one).all()


def test_spearman_is_scipys():
    rng = numpy_rng(0, "ranks")
    a, b = rng.integers(0, 6, 80).astype(float), rng.normal(size=80)
    assert parts.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert parts.spearman(np.ones(80), b) == 0


@pytest.mark.parametrize("share", [0.2, 1.0, 3.0])
def test_debiasing_is_the_smallest_on_a_grid(share):
    rng = numpy_rng(1, "rewards")
    verbosity = rng.normal(size=300)
    rewards = share * verbosity + rng.normal(size=300)
    found = parts.debiasing(rewards, verbosity, 0.03)
    assert parts.spearman(rewards - found * verbosity, verbosity) <= 0.03
    grid = np.arange(0, found + 0.2, 0.01)
    passing = [s for s in grid if parts.spearman(rewards - s * verbosity, verbosity) <= 0.03]
    assert found <= passing[0] < found + 0.02


def test_what_needs_no_debiasing_gets_none():
    rng = numpy_rng(2, "rewards")
    verbosity = rng.normal(size=300)
    assert parts.debiasing(-verbosity + rng.normal(size=300), verbosity, 0.03) == 0
    assert parts.debiasing(verbosity, verbosity, 0.03) == 1


def test_correlation_falls_in_the_strength():
    """What bisection rests on, on numbers with ties."""
    rng = numpy_rng(3, "rewards")
    verbosity = rng.integers(0, 5, 100).astype(float)
    rewards = rng.integers(0, 4, 100) + 0.7 * verbosity
    found = [parts.spearman(rewards - s * verbosity, verbosity) for s in np.arange(0, 3, 0.037)]
    assert (np.diff(found) <= 1e-12).all()


def test_two_kinds_of_prompts_are_recovered():
    """Prompts of one kind want attribute 0, those of the other attribute 1, nobody attribute 2."""
    n = 3000
    is_first = torch.rand(n, generator=torch_generator(0, "types")) < 0.5
    centre = torch.where(is_first[:, None], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    prompts = torch.cat([centre, torch.zeros(n, 2)], 1) + 0.1 * normal(n, 4, name="prompts")
    margin = normal(n, 3, name="margin")
    wanted = torch.where(is_first, margin[:, 0], margin[:, 1])
    gate = parts.Gate(4, 3, width=16, layers=1)
    gate.init_weights(torch_generator(0, "gate"))
    with torch.no_grad():
        start = gate(prompts[:2])
    assert torch.allclose(start, torch.full((2, 3), 1 / 3))
    parts.train_gate(
        gate, prompts, margin, (wanted > 0).float(), steps=600, lr=2e-2, batch=256, seed=0
    )
    with torch.no_grad():
        found = gate(torch.eye(4)[:2])
    found = found / found.sum(1, keepdim=True)
    assert found[0, 0] > 0.9 and found[1, 1] > 0.9


def test_a_constant_gate_is_ridge_on_the_mean_rating(tiny_llama):
    """With one α, the mean of the attributes' ridges is the ridge of their mean."""
    asked = responses(40)
    model = ScalarHeadModel(tiny_llama(1, scale=4.0))
    _, x = mixture.features(model, asked)
    rated = normal(40, 3, name="ratings")
    weights = parts.ridge(x, rated, 0.1)
    gate = parts.Gate(16, 3, width=8, layers=2)
    gate.init_weights(torch_generator(0, "gate"))
    made = mixture.MixtureScorer(mixture._with_heads(model, weights), gate)
    alone = parts.ridge(x, rated.mean(1, keepdim=True), 0.1)
    assert torch.allclose(made.raw(asked), (x.double() @ alone.T)[:, 0].float(), atol=1e-4)


def test_features_are_those_of_each_text_alone(tiny_llama):
    asked, backbone = responses(6), tiny_llama(1)
    prompts, ends = mixture.features(ScalarHeadModel(backbone), asked)
    for i in range(6):
        row = asked.prompts.ids[i].tolist()
        whole = row + asked.ids[i, : int(asked.length[i])].tolist()
        with torch.no_grad():
            assert torch.allclose(backbone(torch.tensor([row]))[0, -1], prompts[i], atol=1e-4)
            assert torch.allclose(backbone(torch.tensor([whole]))[0, -1], ends[i], atol=1e-4)


def test_debiased_heads_are_debiased_rewards():
    settings = mixture.Settings(attributes=("tokens", "right"))
    x = normal(200, 4)
    weights = torch.tensor([[1.0, 0, 0, 0], [0.8, 1, 0, 0]], dtype=torch.float64)
    found = mixture.debiased(settings, weights, x)
    assert found[0].abs().max() == 0  # nothing pays for length itself
    rewards, verbosity = (x.double() @ found[1]).numpy(), x[:, 0].double().numpy()
    assert spearmanr(rewards, verbosity).statistic <= 0.03
    assert found[1, 1] == 1 and 0.5 < float(0.8 - found[1, 0]) < 1.1
    same = mixture.Settings(attributes=("tokens", "right"), order="no_debiasing")
    assert mixture.debiased(same, weights, x) is weights


def test_the_published_order_learns_from_what_it_is_not_applied_to(tiny_llama, monkeypatch):
    """Which weights the gate is fitted on; what is kept is debiased in both orders."""
    asked = responses(40)
    labelled = SimpleNamespace(
        responses=asked, first=torch.arange(20), second=torch.arange(20, 40), target=torch.ones(20)
    )
    world = SimpleNamespace(
        verdicts=lambda r: [
            SimpleNamespace(
                right=i % 2 == 0, valid=i % 3 == 0, listed=True, formatted=True,
                n_checks=i % 4, n_answers=1, step_ok=(True,),
            )
            for i in range(len(r))
        ]
    )  # fmt: skip
    seen = {}
    real = mixture._fit_gate

    def watched(settings, gate, model, labelled, weights, seed):
        seen[settings.order] = weights
        return real(settings, gate, model, labelled, weights, seed)

    monkeypatch.setattr(mixture, "_fit_gate", watched)
    backbone = tiny_llama(1, scale=4.0)
    monkeypatch.setattr(mixture.reward_model, "fresh", lambda *a, **k: ScalarHeadModel(backbone))
    job = SimpleNamespace(
        world=world, seed=0, base=asked, start=None, device="cpu", responses=lambda: asked,
        pairs=lambda model: labelled, validate=lambda raw: {"accuracy": float(raw(asked).mean())},
    )  # fmt: skip
    kept = {}
    for order in ("gate_first", "debias_first"):
        settings = mixture.Settings(
            trunk="pretrained", order=order, gate_steps=3, gate_width=4, gate_layers=1
        )
        kept[order] = mixture.train(settings, job).scorer.network.head.weight
    assert torch.allclose(kept["gate_first"], kept["debias_first"])
    assert torch.allclose(seen["debias_first"].float(), kept["debias_first"], atol=1e-6)
    assert not torch.allclose(seen["gate_first"].float(), kept["gate_first"], atol=1e-3)


def test_a_scorer_comes_back_from_its_folder(tiny_llama, tmp_path):
    model = ScalarHeadModel(tiny_llama(1))
    gate = parts.Gate(16, 3, width=8, layers=2)
    gate.init_weights(torch_generator(0, "gate"))
    with torch.no_grad():
        gate.net[-1].weight.normal_(generator=torch_generator(0, "last"))
    made = mixture.MixtureScorer(mixture._with_heads(model, normal(3, 16)), gate)
    made = made.with_unit(Unit(0.5, 2.0))
    made.save(tmp_path, made.sizes)
    again = load_scorer(tmp_path, Place(Path(), None, "cpu"), kinds=["mixture"])
    assert again.score(responses(8)).equal(made.score(responses(8)))


def test_another_kind_is_not_trained_further():
    with pytest.raises(CheckpointError, match="no mixture"):
        mixture._trunk(mixture.Settings(), SimpleNamespace(start=SimpleNamespace()))


def test_settings_are_checked():
    for wrong in (
        {"attributes": ("right", "valid")},
        {"max_correlation": 1.0},
        {"gate_steps": 0},
        {"gate_layers": 0},
        {"gate_lr": 0.0},
        {"noise": -1.0},
    ):
        with pytest.raises(ConfigError, match=r"proxy\."):
            mixture.Settings(**wrong)
    mixture.Settings(attributes=("right", "valid"), order="no_debiasing")
