"""Preferences from people: every layout gives the pairs that it means, and no other."""

import gzip
import json

import numpy as np
import pytest

from overopt.base.errors import ConfigError, DataError
from overopt.rewards.labels.people import read_pairs
from overopt.stages.people import agreement_with
from overopt.stages.settings import RunConfig
from overopt.study.presets import load_experiment
from overopt.worlds.prompts import Dialogue, turns_of

USER = {"role": "user", "content": "Why?"}


def said(role, text):
    return {"role": role, "content": text}


def pairs_of(path, *rows):
    """(prompt, chosen, rejected) of each pair in a file of these rows."""
    path.write_text("\n".join(json.dumps(row) for row in rows))
    read = read_pairs(str(path))
    return [
        (read.prompts[read.prompt[c]], read.responses[c], read.responses[r])
        for c, r in zip(read.chosen, read.rejected, strict=True)
    ]


GOOD, BAD = said("assistant", "Because."), said("assistant", "No.")
HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: "
DIALOGUE = Dialogue([("user", "Hi"), ("assistant", "Hello."), ("user", "Why?")])
LAYOUTS = {
    "prompt, chosen, rejected": (
        [{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}],
        [("Why?", "Because.", "No.")],
    ),
    "the same in messages": (
        [{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}],
        [("Why?", "Because.", "No.")],
    ),
    "implicit prompt in messages": (
        [{"chosen": [USER, GOOD], "rejected": [USER, BAD]}],
        [("Why?", "Because.", "No.")],
    ),
    "implicit prompt in text": (
        [{"chosen": "The sky is blue.", "rejected": "The sky is black."}],
        [("The sky is", " blue.", " black.")],
    ),
    "HH-RLHF": (
        [{"chosen": HH + "Because.", "rejected": HH + "No."}],
        [(DIALOGUE, "Because.", "No.")],
    ),
    "UltraFeedback binarized": (
        [
            {
                "prompt": "Why?",
                "prompt_id": "0",
                "chosen": [USER, GOOD],
                "rejected": [USER, BAD],
                "score_chosen": 8.0,
                "score_rejected": 3.0,
            }
        ],
        [("Why?", "Because.", "No.")],
    ),
    "UltraFeedback": (
        [
            {
                "instruction": "Why?",
                "completions": [
                    {"model": "a", "response": "No.", "overall_score": 2},
                    {"model": "b", "response": "Because.", "overall_score": 8.5},
                    {"model": "c", "response": "So.", "overall_score": 2},
                ],
            }
        ],
        [("Why?", "Because.", "No."), ("Why?", "Because.", "So.")],
    ),
    "Nectar": (
        [
            {
                "prompt": "\n\nHuman: Why?\n\nAssistant: ",
                "answers": [
                    {"answer": "No.", "rank": 3.0},
                    {"answer": "Because.", "rank": 1.0},
                    {"answer": "So.", "rank": 2.0},
                ],
            }
        ],
        [("Why?", "Because.", "No."), ("Why?", "So.", "No."), ("Why?", "Because.", "So.")],
    ),
    "HelpSteer2": (
        [
            {"prompt": "Why?", "response": "No.", "helpfulness": 1, "verbosity": 0},
            {"prompt": "Why?", "response": "Because.", "helpfulness": 4, "verbosity": 2},
            {"prompt": "How?", "response": "So.", "helpfulness": 2, "verbosity": 2},
        ],
        [("Why?", "Because.", "No.")],
    ),
    "RewardBench 2": (
        [{"prompt": "Why?", "chosen": ["Because."], "rejected": ["No.", "So."], "id": "1"}],
        [("Why?", "Because.", "No."), ("Why?", "Because.", "So.")],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    rows, expected = LAYOUTS[layout]
    found = pairs_of(tmp_path / "pairs.jsonl", *rows)
    assert sorted(found) == sorted(expected)
    prompts = [turns_of(prompt) for prompt, _, _ in found]
    assert sorted(prompts, key=str) == sorted((turns_of(p) for p, _, _ in expected), key=str)


def test_what_decides_nothing_is_left_out_and_said(tmp_path):
    other = HH.replace("Why?", "When?")
    path = tmp_path / "pairs.jsonl"
    pair = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    tied = pair | {"score_chosen": 5, "score_rejected": 5}
    rows = [pair, pair, pair | {"rejected": "Because."}, tied]
    rows += [{"chosen": HH + "Because.", "rejected": other + "No."}]
    assert len(pairs_of(path, *rows)) == 1
    (note,) = read_pairs(str(path)).notes
    assert "1 pairs; left out: 2 ties, 1 repeated pairs, 1 pairs whose two sides" in note
    path.write_bytes(gzip.compress(json.dumps(pair).encode()))
    assert len(read_pairs(str(path)).chosen) == 1


def test_responses_to_one_prompt_are_rows_of_it(tmp_path):
    path = tmp_path / "pairs.jsonl"
    answers = [{"answer": f"Answer {i}.", "rank": i} for i in range(1, 8)]
    pairs_of(path, {"prompt": "Why?", "answers": answers})
    read = read_pairs(str(path))
    assert (len(read.prompts), len(read.responses), len(read.chosen)) == (1, 7, 21)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Why?", "line 1: no object"),
        ({"question": "Why?", "answer": "No."}, "line 1: fields answer, question: no layout"),
        (
            {"prompt": "Why?", "chosen": "Yes", "rejected": 3},
            "line 1: 'chosen' and 'rejected' must be",
        ),
        (
            {"prompt": " ", "chosen": "Yes", "rejected": "No"},
            "line 1: 'prompt' is ' ', which is no",
        ),
        ({"chosen": "Yes", "rejected": "No"}, "line 1: has no 'prompt'"),
        ({"chosen": [USER], "rejected": [USER, BAD]}, "end in an assistant's"),
        ({"prompt": "How?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "are not those of"),
        ({"prompt": "Why?", "answers": [{"answer": "Yes", "rank": "first"}]}, "'rank' is 'first'"),
        ({"prompt": "Why?", "chosen": "Yes", "rejected": "Yes"}, "holds no pair"),
    ],
)
def test_rows_that_are_no_pairs(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        pairs_of(tmp_path / "pairs.jsonl", row)


def test_agreement_counts_ties_half():
    found = agreement_with(np.array([1.0, 0.5, -2.0, 0.0]))
    assert found["share"] == 0.625 and found["pairs"] == 4
    assert found["stderr"] == pytest.approx(np.std([1, 1, 0, 0.5], ddof=1) / 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["labels.label_rule=bradley_terry"], "labels.label_rule.*people chose"),
        (["rounds.k=2"], "rounds.k.*by people"),
        (["gold.pairs_file=p.jsonl"], "gold.pairs_file.*divide the file in two"),
    ],
)
def test_settings_that_contradict_people(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_experiment("smoke", ["labels.pairs_file=p.jsonl", *overrides])


def test_a_learned_gold_of_people_needs_no_intent():
    run = load_experiment("smoke", ["world.kind=hf", "gold.pairs_file=p.jsonl"]).runs[0]
    assert isinstance(run, RunConfig) and not run.gold.needs_intent and run.gold.prompts == 0
