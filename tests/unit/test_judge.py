"""Generative judges: verdicts against the softmax, critiques against enumeration, what they learn."""

import contextlib
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from overopt.base.datatypes import Prompts, Responses
from overopt.base.errors import CheckpointError, ConfigError
from overopt.nets.compute import Compute
from overopt.rewards.kind import Place, Unit
from overopt.rewards.kinds import judge
from overopt.rewards.load import load_scorer
from overopt.rewards.training.verdicts import train_to_write, written_behind
from overopt.worlds import sums_text

EOS, YES, NO = 1, 4, 5
WORLD = SimpleNamespace(verdict_tokens=(YES, NO))


def responses(rows, prompt_ids=None):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    number = torch.zeros(len(rows)).long() if prompt_ids is None else torch.tensor(prompt_ids)
    prompts = Prompts(torch.full((len(rows), 1), 3), torch.ones(len(rows), 1).bool(), number)
    return Responses(prompts, ids, mask, torch.zeros(ids.shape), ids.eq(EOS).any(1))


def made_on(tiny_llama, seed=3, **settings):
    policy = tiny_llama(seed, vocab_size=6, scale=4.0)
    return judge.JudgeScorer(policy, judge.Settings(**settings), WORLD, 7)


def split(text):
    return text.split()


def softmax_behind(policy, row):
    with torch.no_grad():
        return policy.logits(policy(torch.tensor([row]))[0, -1]).softmax(-1)


def test_a_verdict_is_the_log_odds_of_two_tokens(tiny_llama):
    """Behind prompt, response and an end token, which a truncated response is given."""
    made = made_on(tiny_llama)
    found = made.raw(responses([[2, 3, EOS], [2, 2, 3]]))
    for value, row in zip(found, ([3, 2, 3, EOS], [3, 2, 2, 3, EOS]), strict=True):
        p = softmax_behind(made.policy, row)
        assert float(value) == pytest.approx(float((p[YES] / p[NO]).log()), abs=1e-4)


def test_critiques_stand_before_the_verdict(tiny_llama):
    made = made_on(tiny_llama, critique=True, samples=3)
    asked = responses([[2, 3, EOS], [2, 2, 3]])
    form = made.form(asked)
    written = made.critiques(form.fronts, asked)
    assert len(written) == 6 and len({tuple(row) for row in written}) > 1
    assert all(EOS not in row for row in written)
    for i, value in enumerate(made.raw(asked)):
        odds = []
        for row in written[3 * i : 3 * i + 3]:
            p = softmax_behind(made.policy, [*form.fronts[i], *row, EOS])
            odds.append(p[YES] / (p[YES] + p[NO]))
        mean = torch.stack(odds).mean()
        assert float(value) == pytest.approx(float((mean / (1 - mean)).log()), abs=1e-4)


def test_many_critiques_come_to_the_sum_over_all(tiny_llama, monkeypatch):
    """Of one token: Σ_c P(c) P(yes | c) by enumeration."""
    made = made_on(tiny_llama, critique=True, samples=4000)
    monkeypatch.setattr(judge.JudgeScorer, "critique_tokens", lambda self, r: 1)
    front = [3, 2, 3, EOS]
    share = softmax_behind(made.policy, front)
    yes = []
    for token in range(6):
        p = softmax_behind(made.policy, [*front, *([] if token == EOS else [token]), EOS])
        yes.append(float(p[YES] / (p[YES] + p[NO])))
    yes = torch.tensor(yes)
    exact = float((share * yes).sum())
    spread = float((share * (yes - exact) ** 2).sum()) ** 0.5
    found = float(made.raw(responses([[2, 3, EOS]])).sigmoid())
    assert spread > 1e-3 and abs(found - exact) < 4 * spread / 4000**0.5


def test_mean_log_odds():
    found = judge.mean_log_odds(torch.tensor([[0.0, 2.0], [60.0, 60.0], [-3.0, -3.0]]))
    p = (0.5 + float(torch.tensor(2.0).sigmoid())) / 2
    assert found.tolist() == pytest.approx([float(torch.tensor(p).logit()), 60.0, -3.0], abs=1e-4)


def test_a_score_depends_on_the_response_alone(tiny_llama):
    """Not on the batch: random numbers of a critique follow from what is judged."""
    made = made_on(tiny_llama, critique=True, samples=2)
    rows = [[2, 3, EOS], [2, 2, EOS], [3, 2, EOS]]
    together = made.raw(responses(rows, [0, 1, 2]))
    turned = made.raw(responses(rows[::-1], [2, 1, 0])).flip(0)
    assert turned.tolist() == pytest.approx(together.tolist(), abs=1e-5)
    alone = [float(made.raw(responses([row], [i]))) for i, row in enumerate(rows)]
    assert alone == pytest.approx(together.tolist(), abs=1e-5)


@pytest.mark.parametrize("critique", [False, True])
def test_it_learns_to_say_what_it_is_shown(tiny_llama, critique):
    """Yes behind a 2, no behind a 3; with a critique that names the token it has read."""
    made = made_on(tiny_llama, critique=critique)
    asked = responses([[2, EOS], [3, EOS]])
    form = made.form(asked)
    said = [[*([2] if critique else []), *form.behind, YES]]
    said += [[*([3] if critique else []), *form.behind, NO]]
    log = train_to_write(
        made.policy, written_behind(form.fronts, said),
        epochs=150, lr=1e-2, batch=2, weight_decay=0.0, seed=0,
        validate=dict, progress=lambda k, n: None, compute=Compute(),
    )  # fmt: skip
    found = made.raw(asked)
    assert log.loss[-1] < 0.1 < log.loss[0] and found[0] > 2 and found[1] < -2


def test_what_it_is_trained_on(tiny_llama, monkeypatch):
    """Critique, end token, verdict; verdicts by the label; a long critique is cut to what is sampled."""
    seen = {}

    def train_to_write(model, seq, **rest):
        n = zip(seq.ids.tolist(), seq.n_prompt.tolist(), seq.length.tolist(), strict=True)
        seen["said"] = [row[a:b] for row, a, b in n]
        return SimpleNamespace(loss=[], validation=[])

    monkeypatch.setattr(judge.verdicts, "train_to_write", train_to_write)
    monkeypatch.setattr(judge, "_fresh", lambda s, j: tiny_llama(3, vocab_size=6))
    verdicts = [SimpleNamespace(right=True, valid=False), SimpleNamespace(right=False, valid=True)]
    world = SimpleNamespace(
        verdict_tokens=(YES, NO),
        verdicts=lambda r: verdicts,
        critiques=lambda r: [[2], [3] * 40],
    )
    job = SimpleNamespace(
        world=world, start=None, seed=0, validate=dict, progress=None, compute=None,
        responses=lambda: responses([[2, 3, EOS], [2, 2, EOS]]),
        keep=lambda model: contextlib.nullcontext(),
    )  # fmt: skip
    judge.train(judge.Settings(critique=True), job)
    assert seen["said"] == [[2, EOS, YES], [3] * 4 + [EOS, NO]]
    judge.train(judge.Settings(label="right_and_valid"), job)
    assert seen["said"] == [[NO], [NO]]


def test_a_critique_of_sums_by_hand():
    """Plan: 3 + 4, times 3, left over by 4; a check, a slip, and what follows it."""
    text = "Sue has 3 eggs . gets 4 more . then has 3 times . shared by 4 left over ?"
    problem = sums_text.Problem(text, (("+", 4), ("*", 3), ("%", 4)), (3, 7, 21, 1), 0)
    words = split("3 + 4 = 7 ; 7 + 0 = 7 ; 7 * 3 = 20 ; 20 % 4 = 0 ; # 0")
    said = " ".join(sums_text.critique(problem, words))
    assert said == "? 7 all ? 7 all ? 21 over ? 21 over"
    right = split("3 + 4 = 7 ; 7 * 3 = 21 ; 21 % 4 = 1 ; 1 + 0 = 1 ; # 1")
    assert " ".join(sums_text.critique(problem, right)) == "? 7 all ? 21 all ? 1 all ? 1 all"
    assert sums_text.critique(problem, ["#", "1"]) == []


def test_critiques_agree_with_the_judge():
    """One verdict a step, as the judge has it; no solution has the words of verdicts."""
    rng = random.Random(0)
    for problem in sums_text.make_problems(60, seed=3, min_steps=3, max_steps=7):
        words = sums_text.write_solution(problem, rng).split()
        said = sums_text.critique(problem, words)
        ok = sums_text.judge(problem, words).step_ok[:-1]
        assert said[2::3] == [sums_text.YES if x else sums_text.NO for x in ok]
        assert not {sums_text.YES, sums_text.NO, "?"} & set(words)


def test_a_model_is_asked_in_words():
    """The template's text, then the verdict; read in the model's own tokens."""
    settings = judge.Settings(
        backbone="ladder:0.05m", template="Story: {prompt} {response} Is it good?", verdict="I say"
    )
    world = SimpleNamespace(
        prompt_texts=lambda r: ["Once upon a time"], response_texts=lambda r: ["a cat slept."]
    )
    codec = judge.codecs.load_codec("ladder:0.05m")
    form = judge.asked_form(settings, world, None, codec)
    # The ladder's tokenizer begins every text with a space.
    assert [text.replace(" \n", "\n") for text in codec.decode(form.fronts)] == [
        "Story: Once upon a time a cat slept. Is it good?\nI say"
    ]
    assert codec.decode([[form.yes], [form.no]]) == ["yes", "no"]
    apart = judge.asked_form(replace(settings, critique=True), world, None, codec)
    assert [*apart.fronts[0], *apart.behind] == form.fronts[0]
    with pytest.raises(CheckpointError, match="same tokens"):
        judge.check(replace(settings, yes="no, never"))


def test_a_scorer_comes_back_from_its_folder(tiny_llama, tmp_path):
    made = made_on(tiny_llama, critique=True, samples=2, temperature=0.7)
    made, asked = made.with_unit(Unit(0.5, 2.0)), responses([[2, 3, EOS], [2, 2, 3]])
    made.save(tmp_path, made.sizes)
    again = load_scorer(tmp_path, Place(Path(), WORLD, "cpu"), kinds=["judge"])
    assert again.score(asked).equal(made.score(asked))


def test_another_kind_is_not_trained_further():
    with pytest.raises(CheckpointError, match="writes no verdicts"):
        judge.train(judge.Settings(), SimpleNamespace(start=SimpleNamespace()))


def test_settings_are_checked():
    for wrong in (
        {"samples": 2},
        {"samples": 0, "critique": True},
        {"temperature": 0.0},
        {"flip_rate": 0.5},
        {"template": "Is {response} good?"},
        {"template": "{prompt} {response} {"},
        {"yes": "no"},
    ):
        with pytest.raises(ConfigError, match=r"proxy\."):
            judge.Settings(**wrong)
    asked = judge.Settings(template="{prompt} {response} Good?")
    assert asked.serves == ("gold", "proxy") and asked.seed is None and not asked.needs_judge
