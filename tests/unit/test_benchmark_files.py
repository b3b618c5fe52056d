"""Wrong files are refused with file, row and column, before any model is loaded."""

import json
import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from overopt.base.errors import ConfigError, DataError
from overopt.cli.main import main
from overopt.evals.benchmarks import candidates, pairs, processbench, rewardbench, rewardbench2
from overopt.evals.question import Turn

PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad", "subset": "math-prm", "id": 7}
FOUR = {
    "id": "3",
    "prompt": "q",
    "chosen": ["r"],
    "rejected": ["a", "b", "c"],
    "num_correct": 1,
    "total_completions": 4,
    "subset": "Math",
}
STEPS = {"id": "gsm8k-0", "problem": "q", "steps": ["a", "b"], "label": 1}
MANY = {"prompt": "q", "responses": ["a", "b"], "gold": [0, 1]}
LAYOUTS = {
    rewardbench: PAIR,
    pairs: PAIR,
    rewardbench2: FOUR,
    processbench: STEPS,
    candidates: MANY,
}


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("benchmark", LAYOUTS, ids=lambda m: m.__name__.split(".")[-1])
def test_both_formats_give_the_same_rows(tmp_path, benchmark, suffix):
    layout = LAYOUTS[benchmark]
    found = benchmark.read(
        benchmark.Settings(), [write(tmp_path / f"x.{suffix}", [layout] * 3)][:1]
    )
    assert [r.number for r in found] == [1, 2, 3]
    for name, cell in layout.items():
        value = found[1][name]
        if name in ("prompt", "problem"):
            assert value == (Turn("user", "q"),)
        elif isinstance(cell, list):
            assert list(value) == cell
        else:
            assert value == (str(cell) if name == "id" else cell)


def test_a_prompt_may_be_messages(tmp_path):
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "why"},
    ]
    for suffix in ("parquet", "jsonl"):
        path = write(tmp_path / f"x.{suffix}", [PAIR | {"prompt": turns}])
        (found,) = pairs.read(pairs.Settings(), [path])
        (question,) = pairs.questions(pairs.Settings(), [found])
        assert [t.role for t in found["prompt"]] == ["user", "assistant", "user"]
        assert question.prompt == "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: why"


def test_a_data_set_of_a_hub_has_the_same_door(monkeypatch, tmp_path):
    class Table(list):
        column_names = [*PAIR]

    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return Table([PAIR, PAIR | {"chosen": ""}])

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match="datasets:org/set:filtered: row 2, column 'chosen'"):
        rewardbench.read(rewardbench.Settings(), ["datasets:org/set:filtered"])
    assert asked == [("org/set", "filtered")]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'overopt\[datasets\]'"):
        rewardbench.read(rewardbench.Settings(), ["datasets:org/set"])


def without(layout, name):
    return {k: v for k, v in layout.items() if k != name}


WRONG = [
    (rewardbench, without(PAIR, "chosen"), "has no column 'chosen'"),
    (rewardbench, PAIR | {"chosen": "bad"}, "row 2, column 'rejected' = 'bad': is the same as"),
    (rewardbench, PAIR | {"chosen": 3}, "row 2, column 'chosen' = 3: must be a text"),
    (rewardbench, PAIR | {"rejected": " "}, "row 2, column 'rejected' = ' ': must be a text that"),
    (rewardbench, PAIR | {"prompt": []}, "row 2, column 'prompt'"),
    (
        pairs,
        PAIR | {"prompt": [{"role": "robot", "content": "x"}]},
        "row 2, column 'prompt'.*roles system, user, assistant",
    ),
    (
        pairs,
        PAIR | {"prompt": [{"role": "assistant", "content": "x"}]},
        "row 2, column 'prompt'.*end before the assistant",
    ),
    (rewardbench2, FOUR | {"rejected": []}, "row 2, column 'rejected'.*one text or more"),
    (rewardbench2, FOUR | {"rejected": ["a", 1]}, "row 2, column 'rejected'.*without anything"),
    (rewardbench2, FOUR | {"rejected": "abc"}, "row 2, column 'rejected' = 'abc'"),
    (
        rewardbench2,
        FOUR | {"rejected": ["a", "r", "c"]},
        "row 2.*'rejected' = 'r': stands in chosen",
    ),
    (rewardbench2, FOUR | {"num_correct": 2}, "row 2, column 'num_correct' = 2: must be 1"),
    (rewardbench2, FOUR | {"total_completions": 5}, "'total_completions' = 5: must be 4"),
    (rewardbench2, FOUR | {"num_correct": 1.5}, "'num_correct' = 1.5: must be a whole number"),
    (rewardbench2, FOUR | {"subset": "Ties"}, "column 'id' = '3': must be ref:NUMBER or tied"),
    (
        rewardbench2,
        FOUR | {"subset": "Ties", "id": "tied:1"},
        "'num_correct' = 1: must be at least 2",
    ),
    (processbench, STEPS | {"label": 2}, "row 2, column 'label' = 2: is past the last of 2 steps"),
    (processbench, STEPS | {"label": -2}, "row 2, column 'label' = -2"),
    (processbench, STEPS | {"label": True}, "row 2, column 'label' = True: must be a whole number"),
    (processbench, STEPS | {"steps": []}, "row 2, column 'steps'"),
    (candidates, MANY | {"gold": [1]}, "row 2, column 'gold'.*must have 2 numbers"),
    (candidates, MANY | {"gold": [1, None]}, "row 2, column 'gold'.*a finite number"),
]


@pytest.mark.parametrize(("benchmark", "wrong", "message"), WRONG)
def test_a_wrong_row_is_named(tmp_path, benchmark, wrong, message):
    rows = [LAYOUTS[benchmark], wrong]
    if "has no column" in message:
        rows = [wrong]
    path = write(tmp_path / "x.jsonl", rows)
    with pytest.raises(DataError, match=message) as error:
        benchmark.read(benchmark.Settings(), [path])
    assert str(error.value).startswith(path)


def test_an_id_of_ties_comes_once(tmp_path):
    rows = [FOUR | {"subset": "ties", "id": "ref:1"}] * 2
    with pytest.raises(DataError, match="row 2, column 'id' = 'ref:1': comes twice"):
        rewardbench2.read(rewardbench2.Settings(), [write(tmp_path / "x.jsonl", rows)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ("[1]\n", "line 1 is a list"),
        ('{"prompt": \n', "line 1 is not valid JSON"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, message):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        pairs.read(pairs.Settings(), [str(path)])


def test_the_file_is_read_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    """Every model's load would fail here; the file's error comes first."""
    from overopt.evals.models import classifier, judge, policy, reward

    def load(settings, device):
        raise AssertionError("a model was loaded")

    for kind in (classifier, judge, policy, reward):
        monkeypatch.setattr(kind, "load", load)
    path = write(tmp_path / "x.jsonl", [PAIR | {"chosen": "bad"}])
    for kind in ("classifier", "judge", "policy", "reward"):
        given = ["--model", "ladder:0.2m", f"model.kind={kind}", "--data", path]
        assert main(["eval", "rewardbench", *given]) == 2
        said = capsys.readouterr().err
        assert f"{path}: row 1, column 'rejected'" in said


def test_a_command_without_model_or_data_says_so(tmp_path, capsys):
    assert main(["eval", "pairs", "--data", "x.jsonl"]) == 2
    assert "--model is missing" in capsys.readouterr().err
    assert main(["eval", "pairs", "--model", "ladder:0.2m"]) == 2
    assert "--data is missing" in capsys.readouterr().err


def test_settings_are_checked():
    for make in (
        lambda: pairs.Settings(bins=0),
        lambda: pairs.Settings(scale=-1.0),
        lambda: rewardbench.Settings(counts="other"),
        lambda: candidates.Settings(best_of=1),
    ):
        with pytest.raises(ConfigError):
            make()
