"""Models that compare two responses: readings, antisymmetry, intransitive preferences, the score."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from overopt.base.datatypes import Prompts, Responses
from overopt.base.errors import CheckpointError, ConfigError
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.kind import Place, Unit
from overopt.rewards.kinds import pairwise, reward_model
from overopt.rewards.load import load_scorer
from overopt.rewards.training.pairs import TrainingPairs
from overopt.rewards.training.train import train_reward_model

EOS = 1


def responses(rows, prompt_ids=None, asked=(3, 4)):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    prompt = torch.tensor([asked] * len(rows))
    number = torch.zeros(len(rows)).long() if prompt_ids is None else torch.tensor(prompt_ids)
    prompts = Prompts(prompt, torch.ones_like(prompt).bool(), number)
    return Responses(prompts, ids, mask, torch.zeros(ids.shape), ids.eq(EOS).any(1))


def headed(backbone, seed=5):
    model = ScalarHeadModel(backbone)
    model.init_head(torch.Generator().manual_seed(seed))
    return model.eval()


def scorer_on(tiny_llama, *, opponents=3, read="log_odds", **shape):
    shape = {"vocab_size": 6, "scale": 4.0} | shape
    model = headed(tiny_llama(3, **shape))
    return pairwise.PairwiseScorer(model, tiny_llama(4, **shape), 3, 7, opponents, read)


def f_by_hand(model, prompt, a, b):
    """The head at the last token of prompt, a, end token, b."""
    row = torch.tensor([[*prompt, *a, EOS, *b]])
    with torch.no_grad():
        return float(model.head(model.backbone(row)[0, -1]))


def test_two_responses_side_by_side():
    a, b = responses([[5, 1], [2, 3, 4]]), responses([[4], [5, 1]])
    found = pairwise.side_by_side(a, b, EOS)
    rows = [r[m].tolist() for r, m in zip(found.ids, found.mask, strict=True)]
    assert rows == [[5, 1, EOS, 4], [2, 3, 4, EOS, 5, 1]]
    assert found.ids[~found.mask].eq(0).all() and found.prompts is a.prompts


def test_preference_by_hand_and_antisymmetric(tiny_llama):
    made = scorer_on(tiny_llama)
    a, b = [[5, 1], [2, 3, 4], [2]], [[4], [5, 1], [2]]
    found = made.preference(responses(a), responses(b))
    by_hand = [
        f_by_hand(made.network, (3, 4), x, y) - f_by_hand(made.network, (3, 4), y, x)
        for x, y in zip(a, b, strict=True)
    ]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-4)
    assert made.preference(responses(b), responses(a)).tolist() == pytest.approx(
        [-x for x in by_hand], abs=1e-4
    )
    assert found[2] == 0 and abs(float(found[0])) > 1e-3


def test_a_model_of_another_tokenizer_reads_both_in_its_own_tokens(tiny_llama):
    """Once: what stands side by side is its own already."""
    made = scorer_on(tiny_llama)
    swap = torch.tensor([0, 1, 3, 2, 5, 4])

    def reader(r):
        return replace(r, prompts=replace(r.prompts, ids=swap[r.prompts.ids]), ids=swap[r.ids])

    plain = made.preference(reader(responses([[5, 1]])), reader(responses([[2, 3]])))
    made.network.backbone.reader = reader
    assert made.preference(responses([[5, 1]]), responses([[2, 3]])).equal(plain)


def test_the_loss_is_that_of_the_comparison(tiny_llama):
    made = scorer_on(tiny_llama)
    labelled = TrainingPairs(
        responses([[5, 1], [2, 3], [4]]), torch.tensor([0, 2]), torch.tensor([1, 0]), torch.ones(2)
    )
    read = pairwise.both_orders(labelled, EOS)
    scores = pairwise.scorer.raw_scores(made.network, read.responses)
    loss = F.softplus(scores[read.second] - scores[read.first])
    a, b = (labelled.responses.select(rows) for rows in (labelled.first, labelled.second))
    assert torch.allclose(loss, F.softplus(-made.preference(a, b)), atol=1e-5)
    assert read.responses.prompts.prompt_id.tolist() == [0] * 4


def test_it_learns_preferences_that_no_score_has(tiny_llama):
    """Rock, paper and scissors, each preferred to the next with probability 0.9: log-odds found."""
    backbone = tiny_llama(3, vocab_size=6, scale=4.0)
    made = replace(scorer_on(tiny_llama), network=headed(backbone))
    asked = responses([[2], [3], [4]])
    first, second = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    labelled = TrainingPairs(asked, first, second, torch.full((3,), 0.9))
    train_reward_model(
        made.network, pairwise.both_orders(labelled, EOS), epochs=100, lr=1e-2, batch_prompts=1,
        weight_decay=0.0, seed=0, validate=dict, progress=lambda k, n: None,
    )  # fmt: skip
    found = made.preference(asked.select(first), asked.select(second))
    assert found.tolist() == pytest.approx([float(torch.tensor(0.9).logit())] * 3, abs=0.05)


@pytest.mark.parametrize("read", ["log_odds", "win_rate"])
def test_a_score_is_the_mean_over_opponents(tiny_llama, read):
    made = scorer_on(tiny_llama, read=read)
    asked = responses([[5, 1], [2, 3, 4]])
    against = made.opponents_of(asked)
    assert len(against) == 6 and against.prompts.prompt_id.tolist() == [0] * 6
    by_hand = []
    for row in ([5, 1], [2, 3, 4]):
        odds = [
            f_by_hand(made.network, (3, 4), row, z[m].tolist())
            - f_by_hand(made.network, (3, 4), z[m].tolist(), row)
            for z, m in zip(against.ids[:3], against.mask[:3], strict=True)
        ]
        odds = torch.tensor(odds)
        by_hand.append(float((odds if read == "log_odds" else odds.sigmoid()).mean()))
    assert made.raw(asked).tolist() == pytest.approx(by_hand, abs=1e-4)


def test_with_many_opponents_it_is_the_expectation_under_the_initial_policy(tiny_llama):
    """One token a response: Σ_z π(z) g(y, z) by enumeration."""
    made = replace(scorer_on(tiny_llama, opponents=4000), n_tokens=1)
    asked = responses([[4]])
    each = responses([[z] for z in range(6)])
    odds = made.preference(responses([[4]] * 6), each)
    with torch.no_grad():
        hidden = made.policy(torch.tensor([[3, 4]]))[0, -1]
        share = made.policy.logits(hidden).softmax(-1)
    spread = float((share * odds**2).sum() - (share * odds).sum() ** 2) ** 0.5
    error = abs(float(made.raw(asked)[0] - (share * odds).sum()))
    assert spread > 0.01 and error < 4 * spread / 4000**0.5


def test_opponents_depend_on_the_prompt_alone(tiny_llama):
    """Not on the batch, nor on what was scored before."""
    rows = [[5, 1], [2, 3, 4], [4]]
    alone = [float(scorer_on(tiny_llama).raw(responses([row], [i]))) for i, row in enumerate(rows)]
    together = scorer_on(tiny_llama).raw(responses(rows, [0, 1, 2]))
    turned = scorer_on(tiny_llama).raw(responses(rows[::-1], [2, 1, 0])).flip(0)
    assert together.tolist() == pytest.approx(alone, abs=1e-5)
    assert turned.tolist() == pytest.approx(alone, abs=1e-5)
    made = scorer_on(tiny_llama)
    drawn = made.opponents_of(responses(rows, [0, 1, 2]))
    assert not drawn.ids[:3].equal(drawn.ids[3:6])


def test_a_scorer_comes_back_from_its_folder(tiny_llama, tmp_path):
    made = scorer_on(tiny_llama, read="win_rate").with_unit(Unit(0.5, 2.0))
    asked = responses([[5, 1], [2, 3, 4]], [0, 9])
    made.save(tmp_path, made.sizes)
    again = load_scorer(tmp_path, Place(Path(), None, "cpu"), kinds=["pairwise"])
    assert again.score(asked).equal(made.score(asked)) and again.opponents == 3


def test_a_context_is_lengthened_and_nothing_else(tiny_llama):
    short = tiny_llama(3)
    longer = reward_model.with_room(short, 200, "x")
    ids = torch.randint(2, 48, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(longer(ids), short(ids), atol=1e-6)
        assert longer(ids.repeat(1, 3)).shape == (2, 192, 16)
    assert reward_model.with_room(short, 64, "x") is short
    fixed = SimpleNamespace(cfg=SimpleNamespace(max_position_embeddings=64), reader=None)
    with pytest.raises(CheckpointError, match=r"max_response_tokens"):
        reward_model.with_room(fixed, 65, "x")


def test_another_kind_is_not_trained_further():
    job = SimpleNamespace(start=SimpleNamespace())
    with pytest.raises(CheckpointError, match="compares no two responses"):
        pairwise._network(pairwise.Settings(), job)


def test_settings_are_checked():
    for wrong in ({"opponents": 0}, {"epochs": 0}, {"lr": 0.0}, {"batch_prompts": 0}):
        with pytest.raises(ConfigError, match=r"proxy\."):
            pairwise.Settings(**wrong)
