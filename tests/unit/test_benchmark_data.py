"""What benchmarks do without a network: edits, converters of public data, pages, agreement."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from overopt.base import files
from overopt.base.errors import DataError
from overopt.cli.main import main
from overopt.evals.benchmarks import bias
from overopt.evals.converters import alpaca_eval, gsm8k, halueval, hh, imdb, llmbar
from overopt.evals.question import Outcome, Turn
from overopt.evals.results import board, html, kappa, markdown, read_result
from overopt.evals.rows import Row


def rows_of(folder, name):
    return files.load_records(Path(folder) / f"{name}.jsonl")


# --- bias -----------------------------------------------------------------------------------------


def test_a_model_of_length_is_biased_by_length(tmp_path):
    """Scores by hand: 1 a word. The change is that of the edit, in standard deviations."""
    texts = [("a b c. d.", "e f."), ("g.", "h i j k l. m n.")]
    rows = [
        Row(
            "f",
            i,
            {
                "prompt": (Turn("user", "q"),),
                "chosen": c,
                "rejected": r,
                "subset": "all",
                "id": None,
            },
        )
        for i, (c, r) in enumerate(texts)
    ]
    settings = bias.Settings()
    questions = bias.questions(settings, rows)
    scores = [np.array([float(len(r.split())) for r in q.responses]) for q in questions]
    found = bias.report(settings, rows, Outcome(scores=scores))
    unit = np.std([4, 2, 1, 7])
    moved = found.groups["Change of score by the edit alone, sd"]["verbosity"]
    assert moved.value == pytest.approx(np.mean([(1 + 2) / 2, (1 + 2) / 2]) / unit)
    assert found.groups["Share of responses whose score rises"]["verbosity"].value == 1
    # Of one won pair (4 against 2): praise, nine words, turns it; two words more do not.
    lost = found.groups["Share of won pairs lost when the rejected side alone is edited"]
    assert lost["sycophancy"].value == 1 and lost["verbosity"].value == 0


# --- public data ----------------------------------------------------------------------------------


def test_llmbar_is_turned_the_right_way(tmp_path):
    for folder in llmbar.SUBSETS:
        path = tmp_path / "Dataset" / "LLMBar" / folder
        path.mkdir(parents=True)
        items = [
            {"input": "q", "output_1": "good", "output_2": "bad", "label": 1},
            {"input": "q", "output_1": "bad", "output_2": "good", "label": 2},
            {"input": "q", "output_1": "same", "output_2": "same", "label": 2},
        ]
        files.save_json(path / "dataset.json", items)
    (one,) = llmbar.convert(llmbar.Settings(), tmp_path)
    assert len(one.rows) == 10 and all(
        (r["chosen"], r["rejected"]) == ("good", "bad") for r in one.rows
    )
    assert sum("the published file" in note for note in one.notes) == 5
    assert "5 of 15 left out" in one.notes[-1]
    files.save_json(
        path / "dataset.json", [{"input": "q", "output_1": "a", "output_2": "b", "label": 3}]
    )
    with pytest.raises(DataError, match="entry 1, 'label' = 3"):
        llmbar.convert(llmbar.Settings(), tmp_path)


def test_gsm8k_keeps_a_problem_in_one_half(tmp_path, capsys):
    def line(i):
        models = {
            m: {
                "is_correct": k == i % 4,
                "solution": f"2+{k} = <<2+{k}={2 + k}>>{2 + k}\nA: {2 + k}",
            }
            for k, m in enumerate(gsm8k.MODELS)
        }
        return {"question": f"q{i}", "ground_truth": "x", **models}

    path = tmp_path / "example_model_solutions.jsonl"
    files.save_records(path, [line(i) for i in range(5)])
    assert main(["convert-benchmark", "gsm8k", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    train, test = (rows_of(tmp_path / "out", f"gsm8k_{half}") for half in ("train", "test"))
    assert [r["prompt"] for r in train + test] == [f"q{i}" for i in range(5)]
    assert train[1]["gold"] == [0, 1, 0, 0] and train[1]["responses"][1] == "2+1 = 3\nA: 3"
    assert "6b_finetuning: 40.0 % right" in capsys.readouterr().out
    kept = gsm8k.convert(gsm8k.Settings(annotations=True), path)[0].rows
    assert "<<2+1=3>>" in kept[1]["responses"][1]


def test_hh_is_split_at_the_last_answer(tmp_path):
    folder = tmp_path / "harmless-base"
    folder.mkdir()
    same = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    rows = [
        {"chosen": f"{same} good", "rejected": f"{same} bad"},
        {"chosen": f"{same} x", "rejected": "\n\nHuman: other\n\nAssistant: y"},
    ]
    path = folder / "test.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (one,) = hh.convert(hh.Settings(), path)
    assert one.name == "hh_harmless_base_test" and len(one.rows) == 1
    assert [t["content"] for t in one.rows[0]["prompt"]] == ["a", "b", "c"]
    assert (one.rows[0]["chosen"], one.rows[0]["rejected"]) == ("good", "bad")
    assert "1 of 2 left out" in one.notes[1]
    (text,) = hh.convert(hh.Settings(messages=False), path)
    assert text.rows[0]["prompt"] == same


def test_halueval_puts_what_is_known_in_front(tmp_path):
    texts = {"knowledge": "k", "question": "q", "dialogue_history": "d", "document": "t"}
    for task, (_, what) in halueval.TASKS.items():
        sample = texts | {f"right_{what}": "r", f"hallucinated_{what}": "h"}
        files.save_records(tmp_path / f"{task}_data.json", [sample])
    (one,) = halueval.convert(halueval.Settings(), tmp_path)
    assert [r["prompt"] for r in one.rows] == ["k\n\nq", "k\n\nd", "Summarize:\n\nt"]
    assert all((r["chosen"], r["rejected"]) == ("r", "h") for r in one.rows)
    files.save_records(tmp_path / "qa_data.json", [{"knowledge": "k"}])
    with pytest.raises(DataError, match="line 1, 'right_answer' = None"):
        halueval.convert(halueval.Settings(), tmp_path / "qa_data.json")
    with pytest.raises(DataError, match="holds none of qa_data.json"):
        halueval.convert(halueval.Settings(), tmp_path / "other")


def test_imdb_pairs_reviews_by_number(tmp_path):
    root = tmp_path / "test"
    texts = {"pos/2_9.txt": "Fine.<br />So", "pos/10_7.txt": "Good.", "neg/2_1.txt": "Bad."}
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (made,) = imdb.convert(imdb.Settings(), root)
    (row,) = made.rows
    assert (made.name, row["chosen"], row["rejected"]) == ("imdb_test", "Fine.\nSo", "Bad.")
    assert "pos has 2 rows, the published file 12500" in made.notes[0]
    assert "1 reviews left out" in made.notes[2]
    (other,) = imdb.convert(imdb.Settings(wanted="negative"), root)[0].rows
    assert other["chosen"] == "Bad." and "negative review" in other["prompt"]
    (root / "pos/3_2.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="3_2.txt: has 2 stars of 10"):
        imdb.convert(imdb.Settings(), root)
    with pytest.raises(DataError, match="give aclImdb/test or aclImdb/train"):
        imdb.convert(imdb.Settings(), tmp_path)


def test_alpaca_eval_takes_clear_preferences(tmp_path):
    def entry(preference):
        return {"instruction": "i", "output_1": "a", "output_2": "b", "preference": preference}

    path = tmp_path / "annotations.json"
    files.save_json(path, [entry(p) for p in (1, 2.0, 1.9, 1.3, 1.5, None, 1.6)])
    (one,) = alpaca_eval.convert(alpaca_eval.Settings(), path)
    assert [r["chosen"] for r in one.rows] == ["a", "b", "b"]
    assert "4 of 7 left out" in one.notes[1]
    files.save_json(path, [entry(3)])
    with pytest.raises(DataError, match="entry 1, 'preference' = 3"):
        alpaca_eval.convert(alpaca_eval.Settings(), path)


# --- leaderboard ----------------------------------------------------------------------------------


def result(path, model, benchmark, value, rows=(), tied=0.0):
    entry = {
        "value": value,
        "low": None if value is None else value - 0.1,
        "high": value and value + 0.1,
    }
    files.save_json(
        path,
        {
            "format": 1,
            "benchmark": benchmark,
            "model": model,
            "headline": "Score",
            "scores": {"Overall": {"Score": entry | {"n": 9}}},
            "tied": tied,
            "n_params": 200_000,
            "rows": list(rows),
        },
    )
    return path


def test_the_leaderboard_is_sorted_and_harmless(tmp_path, capsys):
    paths = [
        result(tmp_path / "a.json", "low", "pairs", 0.5),
        result(tmp_path / "b.json", "<script>|", "pairs", 0.9, tied=0.25),
        result(tmp_path / "c.json", "low", "rewardbench", 0.6),
        result(tmp_path / "d.json", "none", "pairs", None),
    ]
    table = board([read_result(p) for p in paths])
    assert table.models == ("low", "<script>|", "none")  # more benchmarks first
    text, page = markdown(table), html(table)
    assert "0.500 [0.400, 0.600]" in text and "\\<script\\>\\|" in text and "25.0 %" in text
    assert "<script>" not in page and "&lt;script&gt;" in page and "<th>rewardbench</th>" in page
    assert main(["eval", "table", *map(str, paths), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == page
    assert main(["eval", "table", str(paths[0]), str(paths[0])]) == 2
    assert "name the models with model.name" in capsys.readouterr().err


def test_kappa_by_hand(tmp_path, capsys):
    """20 of 25 and 15 of 25 right, both right on 14: p_o = 18/25, p_e = .8·.6 + .2·.4."""
    a = np.array([1.0] * 20 + [0.0] * 5)
    b = np.array([1.0] * 14 + [0.0] * 6 + [1.0] + [0.0] * 4)
    assert kappa(a, b) == pytest.approx((18 / 25 - 0.56) / (1 - 0.56), abs=1e-12)
    assert np.isnan(kappa(np.ones(3), np.ones(3)))
    paths = [
        result(
            tmp_path / f"{name}.json",
            name,
            "pairs",
            0.5,
            [{"id": str(i), "subset": "x", "credit": c} for i, c in enumerate(credits)],
        )
        for name, credits in (("a", a), ("b", b))
    ]
    assert main(["eval", "agreement", *map(str, paths)]) == 0
    assert (
        "25 rows in common, equal credit on 72.0%; Cohen's kappa 0.364" in capsys.readouterr().out
    )
