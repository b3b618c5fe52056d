"""The judge of the world of sums against a second one, which reads texts; the world around it."""

import os
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overopt.base.datatypes import Prompts, Responses
from overopt.base.errors import ConfigError, DataError
from overopt.nets.checkpoints import load_lm
from overopt.nets.sampling import sample
from overopt.nets.sources import ladder_dir
from overopt.worlds import sums, sums_text
from overopt.worlds.splits import SPLITS
from overopt.worlds.sums_text import VOCABULARY, judge, make_problem, write_solution
from overopt.worlds.tokenizers import shares_vocabulary

N_SOLUTIONS = int(os.environ.get("OVEROPT_SOLUTIONS", "1500"))  # 100,000 in the long mode


# --- a second judge, from the texts alone: regular expressions and arithmetic on strings ------------


def plan_from_text(text):
    """Start and steps of a problem, read from its words."""
    start = int(re.match(r"\w+ has (\d+) \w+ \.", text)[1])
    found = re.findall(r"gets (\d+) more|loses (\d+) \.|has (\d+) times|shared by (\d+) left", text)
    steps = [
        next((op, int(n)) for op, n in zip("+-*%", groups, strict=True) if n) for groups in found
    ]
    return start, steps


def second_judge(prompt, response):
    """(right, valid, listed, formatted, first error, answers, checks, steps) of two texts."""
    x, todo = plan_from_text(prompt)
    before, mark, _ = f" {response} ".partition(" # ")
    *steps, tail = re.split(r" ;(?= )", before + " ")
    ends = f" {response} "[len(before) :] if mark else ""
    first, n_checks, has_failed = -1, 0, False
    for i, step in enumerate(steps):
        parts = re.fullmatch(r" (\d+) ([-+*%]) (\d+) = (\d+)", step)
        good = False
        if parts:
            a, op, b, c = int(parts[1]), parts[2], int(parts[3]), int(parts[4])
            is_check = op == "+" and b == 0 and a == c
            n_checks += is_check
            if is_check:
                good = a == x
            elif todo and op == todo[0][0]:
                commutes = op in "+*" and (b, a) == (x, todo[0][1])
                if (a, b) == (x, todo[0][1]) or commutes:
                    good = c == {"+": a + b, "-": a - b, "*": a * b, "%": a % max(b, 1)}[op]
        if good and not has_failed and not is_check:
            x, todo = c, todo[1:]
        if not good and not has_failed:
            has_failed, first = True, i
    answer = plan_answer(prompt)
    formatted = re.fullmatch(r"( # \d+)+ ", ends) is not None
    answers = [int(n) for n in re.findall(r"\d+", ends)] if formatted else []
    right, valid = answers == [answer], not has_failed and not todo
    if first < 0 and not (right and valid and tail.strip() == ""):
        first = len(steps)
    return right, valid, answer in answers, formatted, first, len(answers), n_checks, len(steps) + 1


def plan_answer(prompt):
    x, steps = plan_from_text(prompt)
    for op, n in steps:
        x = eval(f"{x} {op} {n}")
    return x


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "double", "cut", "swap", "loose"]),
        st.integers(0, 99),
        st.integers(2, len(VOCABULARY) - 1),
    ),
    max_size=3,
)


def edited(words, edits):
    words = list(words)
    for kind, at, token in edits:
        i = at % max(1, len(words))
        match kind:
            case "replace" if words:
                words[i] = VOCABULARY[token]
            case "insert":
                words.insert(i, VOCABULARY[token] if token % 3 else ";#"[token % 2])
            case "delete" if words:
                del words[i]
            case "double":
                words[i:i] = words[i : i + 6]
            case "loose" if "#" in words:
                words.insert(words.index("#"), VOCABULARY[token])
            case "cut":
                words = words[:i]
            case "swap" if len(words) > 3:
                j = min(i + 2, len(words) - 1)
                words[i], words[j] = words[j], words[i]
    return words


@settings(max_examples=N_SOLUTIONS, deadline=None)
@given(seed=st.integers(0, 2**32), n_steps=st.integers(2, 9), edits=EDITS)
def test_two_judges_agree(seed, n_steps, edits):
    rng = random.Random(seed)
    problem = make_problem(rng, n_steps)
    words = edited(write_solution(problem, rng).split(), edits)
    v = judge(problem, words)
    found = (v.right, v.valid, v.listed, v.formatted, v.first_error, v.n_answers, v.n_checks)
    assert (*found, len(v.step_ok)) == second_judge(problem.text, " ".join(words))
    assert plan_from_text(problem.text) == (problem.states[0], list(problem.plan))


@pytest.mark.parametrize(
    ("solution", "right", "valid", "first_error", "checks"),
    [
        ("3 + 4 = 7 ; 7 * 3 = 21 ; 21 % 4 = 1 ; # 1", True, True, -1, 0),
        (
            "4 + 3 = 7 ; 3 * 7 = 21 ; 21 % 4 = 1 ; # 1",
            True,
            True,
            -1,
            0,
        ),  # sums and products commute
        ("3 + 4 = 7 ; 7 + 0 = 7 ; 7 * 3 = 21 ; 21 % 4 = 1 ; # 1", True, True, -1, 1),
        ("3 + 4 = 7 ; 7 * 3 = 25 ; 25 % 4 = 1 ; # 1", True, False, 1, 0),  # luck
        ("3 + 4 = 7 ; 7 % 4 = 3 ; # 3", False, False, 1, 0),  # a step is left out
        (
            "3 + 4 = 7 ; 7 * 3 = 21 ; 21 % 4 = 1 ; # 2",
            False,
            True,
            3,
            0,
        ),  # the answer is the last step
        ("3 + 4 = 7 ; 7 * 3 = 21 ; 21 % 4 = 1 ; # 1 # 2", False, True, 3, 0),  # a hedge
        ("3 + 4 = 7 ; 7 * 3 = 21 ; # 1", True, False, 2, 0),
        ("3 + 4 = 7 ; 7 * 3 = 21 ; 21 % 4 = 1 ;", False, True, 3, 0),  # no answer
        ("3 + 4 = 7 ; 7 * 3 = 21 ; 21 % 4 = 1 ; 9 # 1", True, True, 3, 0),  # a loose word
        ("# 1", True, False, 0, 0),
        ("", False, False, 0, 0),
    ],
)
def test_verdicts_by_hand(solution, right, valid, first_error, checks):
    plan, states = (("+", 4), ("*", 3), ("%", 4)), (3, 7, 21, 1)
    v = judge(sums_text.Problem("", plan, states, 5), solution.split())
    assert (v.right, v.valid, v.first_error, v.n_checks) == (right, valid, first_error, checks)
    assert (v.first_error == -1) == all(v.step_ok)


def test_the_crowd_is_what_it_is_said_to_be():
    rng, verdicts = random.Random(1), []
    for problem in sums_text.make_problems(1500, seed=1, min_steps=3, max_steps=7):
        verdicts += [judge(problem, write_solution(problem, rng).split()) for _ in range(4)]
    right = np.array([v.right for v in verdicts])
    valid = np.array([v.valid for v in verdicts])
    assert 0.3 < right.mean() < 0.42
    assert 0.15 < (right & ~valid).sum() / right.sum() < 0.3  # luck
    assert 0.02 < np.mean([v.n_answers > 1 for v in verdicts]) < 0.04
    checked = np.array([v.n_checks > 0 for v in verdicts])
    assert valid[checked].mean() > valid.mean() + 0.05  # a cue of who writes


# --- the world ------------------------------------------------------------------------------------


WORLD = sums.load(sums.Settings(n_problems=300))


def answered(world, solutions, *, prompt=0):
    """Responses with these texts to one prompt; they have ended."""
    vocabulary = world.tokenizer.get_vocab()
    rows = [[*(vocabulary[w] for w in text.split()), 1] for text in solutions]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    asked = torch.tensor(world.rows("gold", prompt + 1)[prompt])[None].expand(len(rows), -1)
    prompts = Prompts(
        asked, torch.ones_like(asked, dtype=torch.bool), torch.full((len(rows),), prompt)
    )
    return Responses(
        prompts, ids, mask, torch.zeros(ids.shape), torch.ones(len(rows), dtype=torch.bool)
    )


def solved(problem):
    steps = zip(problem.plan, problem.states, problem.states[1:], strict=False)
    return " ".join([*(f"{x} {op} {n} = {y} ;" for (op, n), x, y in steps), f"# {problem.answer}"])


def test_problems_are_distinct_and_keep_their_place():
    """A world of more problems begins with the same ones; splits share none."""
    more = sums.load(sums.Settings(n_problems=400))
    assert more.texts[:300] == WORLD.texts and len(set(more.texts)) == 400
    rows = {
        split: {tuple(r) for r in WORLD.rows(split, WORLD.n_prompts(split))} for split in SPLITS
    }
    assert sum(map(len, rows.values())) == len(set().union(*rows.values())) == 300
    assert sums.load(sums.Settings(n_problems=300, problems_seed=1)).texts[0] != WORLD.texts[0]
    assert {len(p.plan) for p in WORLD.problems} == {3, 4, 5, 6, 7}
    assert WORLD.longest_prompt == max(
        len(r) for s in SPLITS for r in WORLD.rows(s, WORLD.n_prompts(s))
    )
    assert all(0 <= x <= sums_text.TOP for p in WORLD.problems for x in p.states)


def test_tokens_and_texts_are_the_same_thing():
    text = WORLD.texts[0]
    assert WORLD.tokenizer.encode(text).ids == WORLD.rows("gold", 1)[0][1:]
    assert tuple(WORLD.tokenizer.id_to_token(i) for i in range(len(VOCABULARY))) == VOCABULARY
    responses = answered(WORLD, ["3 + 4 = 7 ; # 7", "# 1"])
    assert WORLD.response_texts(responses) == ["3 + 4 = 7 ; # 7", "# 1"]
    assert WORLD.prompt_texts(responses) == [text, text]


def test_steps_end_where_the_judge_says():
    good = solved(WORLD.problems[0])
    responses = answered(WORLD, [good, "3 + 4", "# 1 ; ; # 2", "; 3 ; #"])
    ends, verdicts = WORLD.step_ends(responses), WORLD.verdicts(responses)
    assert [len(e) for e in ends] == [len(v.step_ok) for v in verdicts]
    assert ends[0] == (*range(5, 6 * len(WORLD.problems[0].plan), 6), len(good.split()))
    assert ends[1:] == [(3,), (6,), (0, 2, 4)]


@pytest.mark.parametrize("wants", ["right", "right_and_valid"])
def test_intent_is_standardised_truth(wants):
    world = sums.load(sums.Settings(n_problems=300, wants=wants))
    good = solved(WORLD.problems[0])
    lucky = f"# {WORLD.problems[0].answer}"
    base = answered(world, [good, lucky, "# 49", "# 48", "3 + 4 = 7 ;"])
    spec = world.calibrate(base)
    scores = world.intent(spec, base)
    assert scores.mean() == pytest.approx(0, abs=1e-12) and scores.std() == pytest.approx(1)
    assert (scores[0] == scores[1]) == (wants == "right")
    assert scores[0] > 0 > scores[2] == scores[3] == scores[4]


def test_settings_are_checked():
    for wrong in (
        {"prompts_file": "mine.jsonl"},
        {"n_problems": 20},
        {"min_steps": 5, "max_steps": 4},
        {"max_response_tokens": 130},
    ):
        with pytest.raises(ConfigError, match=r"world\."):
            sums.Settings(**wrong)
    with pytest.raises(DataError, match="raise world.n_problems"):
        WORLD.rows("eval", 1000)


def test_the_shipped_policy_can_do_some_of_it():
    """Between a fifth and six in ten are right, about a quarter of these with a wrong step."""
    prompts = WORLD.prompts("train", 64)
    found = sample(load_lm(sums.POLICY), prompts, n_tokens=64, seed=5, copies=8)
    verdicts = WORLD.verdicts(found)
    right = np.array([v.right for v in verdicts])
    valid = np.array([v.valid for v in verdicts])
    assert 0.2 < right.mean() < 0.6
    assert 0.1 < (right & ~valid).sum() / right.sum() < 0.45
    assert found.ended.float().mean() > 0.9


@pytest.mark.parametrize("rung", ["sums-0.05m", "sums-0.2m", "sums-0.4m"])
def test_shipped_models_are_small_and_read_this_world(rung):
    model, folder = load_lm(f"ladder:{rung}"), ladder_dir("ladder:sums-")
    assert model.cfg.vocab_size == len(VOCABULARY)
    assert WORLD.longest_prompt + sums.Settings().max_response_tokens <= 160
    assert shares_vocabulary(f"ladder:{rung}", WORLD.tokenizer)
    assert not shares_vocabulary("ladder:0.2m", WORLD.tokenizer)
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 1.5e6
