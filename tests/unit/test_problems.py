"""A world of one's own problems: layouts, checkers, steps, and what is refused."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hf_checkpoints import make_tokenizer, write_checkpoint

from overopt.base.errors import ConfigError, DataError
from overopt.cli.main import main
from overopt.records.curves import load_curves
from overopt.worlds import answers, problems, rows
from overopt.worlds.problems import Problem

GSM8K = {
    "question": "A baker sells 9 rolls at 2 dollars. How much is that?",
    "answer": "She makes 9 * 2 = $<<9*2=18>>18 a day.\n#### 18",
}


@pytest.mark.parametrize(
    ("checker", "answer", "response", "expected"),
    [
        ("numeric", "18", "so it is 18.", (True, True, 1)),
        ("numeric", "18", "20 - 2 = 18 and 5 are left", (False, False, 1)),
        ("numeric", "18", "#### 18\n5 are left", (True, True, 1)),
        ("numeric", "18", "The answer is 17. Or the answer is 18", (False, True, 2)),
        ("numeric", "18", "#### 18 #### 18.0", (True, True, 1)),
        ("numeric", "1800", "a total of $1,800.00", (True, True, 1)),
        ("numeric", "-3", r"\boxed{-3}", (True, True, 1)),
        ("numeric", "0.5", "it is 0.25", (False, False, 1)),
        ("numeric", "0.5", "The answer is .5", (True, True, 1)),
        ("numeric", "1/2", "#### 1/2", (True, True, 1)),
        ("numeric", "1/2", "#### 2", (False, False, 1)),
        ("numeric", r"\frac{1}{2}", r"\boxed{\frac{1}{2}}", (True, True, 1)),
        ("numeric", "1e-05", "#### 0.00001", (True, True, 1)),
        ("numeric", "5", "The answer is: 2 + 3 = 5", (True, True, 1)),
        ("numeric", "5", "9" * 5000, (False, False, 0)),
        ("numeric", "5", "I do not know", (False, False, 0)),
        ("exact", "Paris", " paris. ", (True, True, 1)),
        ("exact", "Paris", "It is far.\n#### Paris", (True, True, 1)),
        ("exact", "Paris", "It is Paris", (False, False, 1)),
        ("exact", "Paris", "#### Rome\n#### Paris", (False, True, 2)),
        ("exact", "Paris", "", (False, False, 0)),
        ("pattern", r"\bPar[iy]s\b", "I say Parys", (True, True, 1)),
        ("pattern", r"\bParis\b", "Parisian", (False, False, 1)),
    ],
)
def test_checkers_by_hand(checker, answer, response, expected):
    assert answers.CHECKERS[checker]("", response, answer) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9 * 2 = $18 a day", "T"),
        ("48/2 = 24; 48+24=73", "TF"),
        ("(2 + 3) x 4 = 20", "T"),
        ("She has 5 (2 + 3 = 5) apples.", "T"),
        ("10/3 = 3.33 and 10/3 = 3", "TF"),
        ("1/2 + 1/4 = 3/4", "T"),
        ("$80,000+50,000 = $130,000", "T"),
        ("007 + 1 = 8, 2.5 * 4 = 10", "TT"),
        ("16 - 3 - 4 = <<16-3-4=9>>9", "T"),
        ("- 2 + 3 = 5", "T"),
        ("12 * 3 = 30 + 6 = 36", "TT"),
        ("3 * 2 = 6 + 1 = 7", "TT"),
        ("5 * 3 = 15 + 2 = 99", "TF"),
        ("2 + 3 = 10/2", "T"),
        ("1 / 0 = 4", "F"),
        ("x = 5, 2 apples = 3 pears, 5 % of 20 = 1", ""),
        ("2x - 3 = 7, y - 5 - 3 = 7, 3 hours * 4 - 2 = 10", ""),
        ("20% * 50 + 5 = 15, 2^3 * 2 = 16, 4 * 5 = 20%", ""),
    ],
)
def test_equations_by_hand(text, expected):
    assert "".join("FT"[e.holds] for e in answers.equations(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "(" * 30_000,
        "1 +" + " " * 30_000,
        "1+" * 10_000,
        "1 + " * 2500,
        "1 - - - " * 2500,
        "9" * 9000,
    ],
)
def test_no_text_takes_long(text):
    before = time.process_time()
    found = list(answers.equations(text + "=" + text))
    assert len(found) <= 1 and len(answers.numbers_given(text)) <= 1
    assert time.process_time() - before < 2


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (GSM8K, Problem("18", ("She makes 9 * 2 = $18 a day.",))),
        ({"prompt": "2 + 2?", "answer": 4}, Problem("4")),
        ({"problem": "2 + 2?", "answer": "4", "steps": ["2+2=4"]}, Problem("4", ("2+2=4",))),
        ({"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4"}, Problem("4")),
    ],
)
def test_layouts(row, expected):
    text, found = problems.read_problem(row, "numeric", "line 1")
    assert found == expected and text.endswith("?")


@pytest.mark.parametrize(
    ("row", "checker", "message"),
    [
        ("2 + 2?", "numeric", "line 7: .* is no object"),
        ({"answer": "4"}, "numeric", "line 7: no problem"),
        ({"prompt": [], "answer": "4"}, "numeric", "line 7: an empty list of messages"),
        ({"prompt": "2 + 2?"}, "numeric", "line 7: answer = None: give"),
        ({"prompt": "2 + 2?", "answer": True}, "numeric", "line 7: answer = True: give"),
        ({"prompt": "2 + 2?", "answer": "four"}, "numeric", "world.checker to exact or pattern"),
        ({"prompt": "2 + 2?", "answer": "4 or 5"}, "numeric", "'4 or 5' is not one number"),
        ({"prompt": "2 + 2?", "answer": "(4"}, "pattern", "is no regular expression"),
        ({"prompt": "2 + 2?", "answer": "4", "steps": "2+2=4"}, "numeric", "line 7: steps = "),
    ],
)
def test_a_wrong_line_is_named(row, checker, message):
    with pytest.raises(DataError, match=message):
        problems.read_problem(row, checker, "problems 'p.jsonl', line 7")


def test_two_answers_to_one_problem_are_an_error_and_a_pattern_may_have_marks(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a?", "answer": "1"}\n\n{"prompt": "a?", "answer": "2"}\n')
    with pytest.raises(DataError, match="line 3: answer = '2', but line 1 has"):
        problems.read_problems(str(file), "numeric")
    row = {"prompt": "a?", "answer": r"####\s*18\b"}
    assert problems.read_problem(row, "pattern", "")[1].answer == r"####\s*18\b"


def test_a_wrong_checker_is_named(tmp_path):
    with pytest.raises(ConfigError, match="world.checker = 'numerical'"):
        problems.Settings(checker="numerical")
    own = tmp_path / "own.py"
    own.write_text("def check(prompt, response, answer):\n    return len(response)\n")
    with pytest.raises(DataError, match="must return True or False"):
        problems.load_checker(str(own))("", "abc", "")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    tokenizer = make_tokenizer()
    return write_checkpoint(tmp_path_factory.mktemp("policy"), "llama", tokenizer=tokenizer)


def answered(world, texts):
    """Responses with these texts, to the first problem."""
    (asked,) = world.rows("gold", 1)
    end = world.codec.eos
    encode = world.tokenizer.encode
    pairs = [(asked, [*encode(text, add_special_tokens=False).ids, end]) for text in texts]
    made = rows.as_responses(pairs, pad=world.pad, eos=end)
    made.prompts.prompt_id.zero_()
    return made


def test_verdicts_and_steps(policy):
    world = problems.load(problems.Settings(policy=str(policy), max_response_tokens=64))
    # The first of the shipped problems: 8 and 6 bags of 18.
    texts = [
        "6 * 18 = 108\n8 + 108 = 116",
        "6 * 18 = 108\n\n8 + 108 = 116\n",
        "6 * 18 = 118\n8 + 108 = 116",
        "6 * 18 = 108\n8 + 108 = 117",
        "116",
        "6 * 18 = 108\n8 + 108 = 116\n8 + 108 = 116\n#### 116",
    ]
    made = answered(world, texts)
    found = world.verdicts(made)
    assert [v.right for v in found] == [True, True, True, False, True, True]
    assert [v.valid for v in found] == [True, True, False, False, False, True]
    assert [v.first_error for v in found] == [-1, -1, 0, 1, -1, -1]
    assert [v.n_checks for v in found] == [0, 0, 0, 0, 0, 1]
    ends, said = world.step_ends(made), world.step_texts(made)
    assert [len(v.step_ok) for v in found] == list(map(len, ends)) == list(map(len, said))
    assert said[1] == ["6 * 18 = 108", "8 + 108 = 116"]
    assert [e[-1] for e in ends] == (made.length - 1).tolist()
    yes, no = world.verdict_tokens
    critique = world.tokenizer.decode(world.critiques(made)[2])
    assert yes != no and "6 * 18 is 108, not 118." in critique and "answer is 116" in critique
    assert world.intent({"mean": 0.5, "std": 0.5}, made).tolist() == [1, 1, 1, -1, 1, 1]


def test_problems_are_asked_as_they_are_numbered(policy):
    settings = problems.Settings(
        policy=str(policy), max_response_tokens=64, instruction="Mark the answer with ####."
    )
    world = problems.load(settings)
    assert all(text.endswith("\nMark the answer with ####.") for text in world.texts)
    other = world.asking(world.texts[5:7])
    assert other.problems == world.problems[5:7]
    with pytest.raises(DataError, match="its answer is not known"):
        world.asking(["How many?"])


def test_a_run_is_judged_by_a_file_of_the_users(policy, tmp_path, monkeypatch, capsys):
    """Problems, checker and rule from the command line to records; a broken line before any work."""
    monkeypatch.chdir(tmp_path)
    lines = [{"prompt": f"What is {i} + 1?", "answer": "[aeiou]"} for i in range(120)]
    own = tmp_path / "mine.jsonl"
    own.write_text("\n".join(map(json.dumps, lines)))
    checker = tmp_path / "vowels.py"
    checker.write_text(
        "def check(prompt, response, answer):\n    return sum(map(response.count, 'aeiou')) > 3\n"
    )
    settings = [
        *("world.kind=problems", f"world.policy={policy}", f"world.prompts_file={own}"),
        *("world.max_response_tokens=16", f"world.checker={checker}", "gold.kind=rubric"),
        *("proxy.kind=rule", "labels.n_pairs=24", "labels.n_validation_prompts=4", "method=none"),
        *("bon.n_prompts=2", "bon.pool_size=16", "bon.ns=1,4,16", "--workers=1", "--quiet"),
        "--results=out",
    ]
    assert main(["run", "smoke", *settings]) == 0, capsys.readouterr().err
    for curve in load_curves(Path("out")):
        assert (curve.gain("gold").mean(1)[-1] > 0) and np.isfinite(curve.gain("gold")).all()
    own.write_text(own.read_text() + '\n{"prompt": "What?"}\n')
    assert main(["plan", "smoke", *settings[:-3]]) == 2
    assert "line 121: answer = None" in capsys.readouterr().err
