"""Process reward models: labels of steps, Monte-Carlo values, aggregation, training, saving."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from overopt.base.datatypes import Prompts, Responses
from overopt.base.errors import CheckpointError, ConfigError
from overopt.nets.checkpoints import load_trunk
from overopt.nets.compute import Compute
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.kind import Place, Scorer, Unit
from overopt.rewards.kinds import process, reward_model
from overopt.rewards.kinds.ensemble import average_weights
from overopt.rewards.labels.rollouts import roll_out, step_values
from overopt.rewards.load import load_scorer
from overopt.rewards.training.steps import step_logits, step_table, train_on_steps
from overopt.worlds import sums, sums_text
from overopt.worlds.world import Verdict

EOS, STEP, RIGHT = 1, 2, 3
N_TOKENS = 4


class TinyWorld:
    """Four tokens: end, end of a step, and two words; an answer is right if its last word is 3."""

    def words(self, r):
        return [row[:n] for row, n in zip(r.ids.tolist(), r.length.tolist(), strict=True)]

    def is_right(self, row):
        words = [t for t in row if t > STEP]
        return bool(words) and words[-1] == RIGHT and row[-1] == EOS

    def verdicts(self, r):
        return [
            Verdict(self.is_right(row), True, False, True, -1, 1, 0, (True,))
            for row in self.words(r)
        ]

    def step_ends(self, r):
        return [
            (*(i for i, t in enumerate(row) if t == STEP), len(row) - 1) for row in self.words(r)
        ]


def responses(rows, n_prompt=2):
    width = max(map(len, rows))
    ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
    mask = torch.arange(width) < torch.tensor([len(r) for r in rows])[:, None]
    asked = torch.tensor([[4, 3][:n_prompt]] * len(rows))
    prompts = Prompts(
        asked, torch.ones_like(asked, dtype=torch.bool), torch.zeros(len(rows)).long()
    )
    return Responses(prompts, ids, mask, torch.zeros(ids.shape), ids.eq(EOS).any(1))


def exact_value(policy, world, prompt, prefix):
    """P(right | prefix) by enumeration of every continuation of at most ``N_TOKENS`` tokens."""
    if len(prefix) == N_TOKENS or (prefix and prefix[-1] == EOS):
        return float(world.is_right(prefix))
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *prefix]])
        p = policy.logits(policy(ids)[0, -1]).softmax(-1).tolist()
    branches = enumerate(p)
    return sum(q * exact_value(policy, world, prompt, [*prefix, t]) for t, q in branches)


def test_rollouts_are_unbiased(tiny_llama):
    """Their mean over 4,000 is within four standard errors of the enumerated value, at every step."""
    world = TinyWorld()
    policy = tiny_llama(3, scale=4.0, vocab_size=5)
    rows = [[STEP, 3, STEP, EOS], [3, STEP, 3, EOS], [4, EOS], [STEP, 3, EOS]]
    asked = responses(rows)
    steps = step_table(world.step_ends(asked))
    found = step_values(policy, world, asked, steps, n_rollouts=4000, n_tokens=N_TOKENS, seed=1)
    inner = 0
    for i, j in steps.mask.nonzero().tolist():
        end = int(steps.position[i, j])
        if j == int(steps.mask[i].sum()) - 1:
            assert found.value[i, j] == float(world.is_right(rows[i]))
            continue
        inner += 1
        exact = exact_value(policy, world, [4, 3], rows[i][: end + 1])
        error = math.sqrt(exact * (1 - exact) / 4000)
        assert abs(float(found.value[i, j]) - exact) < 4 * error + 1e-6, (i, j, exact)
        assert 0.02 < exact < 0.98  # or the test would say little
    assert inner == 4 and found.rollouts == 4 * 4000
    assert found.value[~steps.mask].eq(0).all()


def test_a_rollout_keeps_its_prefix(tiny_llama):
    asked = responses([[4, STEP, 3, EOS], [3, STEP, 4, EOS]])
    found = roll_out(tiny_llama(3, vocab_size=5), asked, n_prefix=2, n_tokens=6, copies=3, seed=0)
    assert found.ids.shape == (6, 6)
    assert found.ids[:, :2].tolist() == [[4, STEP]] * 3 + [[3, STEP]] * 3
    assert found.prompts.ids.shape == (6, 2)
    assert found.length.ge(3).all()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("min", [-1.0, 3.0]),
        (
            "product",
            [
                sum(map(lambda z: -math.log1p(math.exp(-z)), (2, -1, 0.5))),
                -math.log1p(math.exp(-3)),
            ],
        ),
        ("mean", [sum(1 / (1 + math.exp(-z)) for z in (2, -1, 0.5)) / 3, 1 / (1 + math.exp(-3))]),
        ("sum", [sum(1 / (1 + math.exp(-z)) for z in (2, -1, 0.5)), 1 / (1 + math.exp(-3))]),
        ("last", [0.5, 3.0]),
    ],
)
def test_aggregation_by_hand(how, expected):
    logits = torch.tensor([[2.0, -1.0, 0.5], [3.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert process.aggregate(logits, mask, how).tolist() == pytest.approx(expected)


def test_a_sum_grows_with_every_step_and_no_other_does():
    one, more = torch.tensor([[2.0]]), torch.tensor([[2.0] * 5])
    for how in ("min", "product", "mean", "sum", "last"):
        few = process.aggregate(one, torch.ones_like(one, dtype=torch.bool), how)
        many = process.aggregate(more, torch.ones_like(more, dtype=torch.bool), how)
        assert (many > few + 1e-6).all() == (how == "sum"), how


def test_exact_labels_are_the_judges():
    """Token by token: each label stands at the end of its step."""
    world = sums.load(sums.Settings(n_problems=60))
    problem, vocabulary = world.problems[0], world.tokenizer.get_vocab()
    steps = list(zip(problem.plan, problem.states, problem.states[1:], strict=False))
    texts = [f"{x} {op} {n} = {y} ;" for (op, n), x, y in steps]
    wrong = texts[1].split()
    wrong[4] = str((int(wrong[4]) + 1) % 50)
    good = " ".join([*texts, f"# {problem.answer}"])
    bad = " ".join([texts[0], " ".join(wrong), *texts[2:], f"# {problem.answer}"])
    rows = [[*(vocabulary[w] for w in text.split()), EOS] for text in (good, bad)]
    asked = responses(rows)
    table = step_table(world.step_ends(asked))
    job = SimpleNamespace(world=world, seed=0)
    labels, costs = process.step_labels(process.Settings(), job, asked, table)
    n = len(texts)
    assert labels.tolist() == [[1.0] * (n + 1), [1.0] + [0.0] * n] and costs == {}
    for i, j in table.mask.nonzero().tolist():
        token = sums_text.VOCABULARY[rows[i][int(table.position[i, j])]]
        assert token == (";" if j < n else "<s>")


def test_logits_are_those_of_whole_sequences(tiny_llama):
    """Batched and padded: the head's output where a step ends, as if each response were alone."""
    model = ScalarHeadModel(tiny_llama(1))
    model.init_head(torch.Generator().manual_seed(0))
    rows = [[5, STEP, 6, STEP, 9, EOS], [7, EOS], [STEP, 8, 8, 8, EOS]]
    asked = responses(rows)
    table = step_table(TinyWorld().step_ends(asked))
    found = step_logits(model, asked, table)
    for i, row in enumerate(rows):
        with torch.no_grad():
            whole = model.head(model.backbone(torch.tensor([[4, 3, *row]])))[0, :, 0]
        ends = TinyWorld().step_ends(asked)[i]
        assert found[i, : len(ends)].tolist() == pytest.approx(
            [float(whole[2 + e]) for e in ends], abs=1e-5
        )
    assert found[~table.mask].eq(0).all()


def test_training_learns_labels_of_steps(tiny_llama):
    """A step is right if the word before its end is 5: the loss falls from chance to almost none."""
    rows = [
        [*itertools.chain(*((w, STEP) for w in words)), EOS]
        for words in itertools.product((5, 6), repeat=4)
    ]
    asked = responses(rows)
    table = step_table([[i for i, t in enumerate(row) if t == STEP] for row in rows])
    target = torch.tensor(
        [[float(row[i - 1] == 5) for i, t in enumerate(row) if t == STEP] for row in rows]
    )
    model = ScalarHeadModel(tiny_llama(2, scale=1.0))
    log = train_on_steps(
        model, asked, table, target,
        epochs=25, lr=2e-2, batch_responses=8, weight_decay=0.0, seed=0,
        validate=dict, progress=lambda k, n: None, compute=Compute(),
    )  # fmt: skip
    assert log.loss[0] == pytest.approx(math.log(2), abs=1e-3)
    assert log.loss[-1] < 0.1 and log.steps == 50


def test_micro_batches_change_nothing(tiny_llama):
    rows = [[5, STEP, 6, STEP, 9, EOS], [7, EOS], [STEP, 8, 8, 8, EOS], [5, STEP, EOS]]
    asked = responses(rows)
    table = step_table(TinyWorld().step_ends(asked))
    target = torch.rand(table.mask.shape, generator=torch.Generator().manual_seed(1))
    made = []
    for micro_batch in (None, 1):
        model = ScalarHeadModel(tiny_llama(2))
        train_on_steps(
            model, asked, table, target,
            epochs=1, lr=1e-3, batch_responses=4, weight_decay=0.0, seed=0,
            validate=dict, progress=lambda k, n: None, compute=Compute(micro_batch=micro_batch),
        )  # fmt: skip
        made.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(made[0], made[1], atol=1e-5)


def test_a_scorer_comes_back_from_its_folder(tiny_llama, tmp_path):
    world = TinyWorld()
    model = ScalarHeadModel(tiny_llama(1))
    model.init_head(torch.Generator().manual_seed(0))
    scorer = process.ProcessScorer(model, world, "min").with_unit(Unit(0.5, 2.0))
    scorer.save(tmp_path, {"n_params": 1})
    again = load_scorer(tmp_path, Place(Path(), world, "cpu"), kinds=["process"])
    asked = responses([[5, STEP, 6, STEP, 9, EOS], [7, EOS]])
    assert again.score(asked).equal(scorer.score(asked))
    assert scorer.score(asked).tolist() == pytest.approx(((scorer.raw(asked) - 0.5) / 2).tolist())
    assert scorer.sizes["n_params_total"] > 0
    with pytest.raises(CheckpointError, match="cannot be averaged"):
        average_weights([scorer, scorer], asked)


def test_training_goes_on_with_what_a_scorer_says_was_trained():
    model = ScalarHeadModel(load_trunk("ladder:0.05m"))
    assert reward_model.network(process.ProcessScorer(model, None, "min")) is model
    assert reward_model.network(reward_model.RewardModelScorer(model, 0.0, 1.0)) is model

    class Counted(Scorer):
        pass

    assert Counted().trained is None
    with pytest.raises(CheckpointError, match="a Counted has no network with a scalar head"):
        reward_model.network(Counted())


def test_a_backbone_of_another_tokenizer_is_refused():
    world = sums.load(sums.Settings(n_problems=60))
    job = SimpleNamespace(world=world, seed=0, device="cpu", start=None)
    with pytest.raises(CheckpointError, match="another tokenizer"):
        process.train(process.Settings(backbone="ladder:0.05m"), job)


def test_settings_are_checked():
    for wrong in ({"rollouts": 0}, {"epochs": 0}, {"lr": 0.0}, {"batch_responses": 0}):
        with pytest.raises(ConfigError, match=r"proxy\."):
            process.Settings(**wrong)
