"""``overopt sft``: from a JSONL file to a checkpoint that the pipe and transformers can load."""

import json

import pytest
import torch

from overopt.base.errors import ConfigError, DataError
from overopt.cli.main import main
from overopt.nets import checkpoints
from overopt.study import fine_tune
from overopt.study.fine_tune import encode_examples, read_examples
from overopt.worlds import codecs, tokenizers

EXAMPLES = [
    {"prompt": f"Once upon a time, there were {i} cats", "response": " who were happy. They sat."}
    for i in range(24)
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, EXAMPLES)), encoding="utf-8")
    return path


def test_a_checkpoint_is_written_and_loads(data, tmp_path, capsys):
    out = tmp_path / "tuned"
    command = ["sft", "--model", "ladder:0.05m", "--data", str(data), "--out", str(out)]
    assert main([*command, "epochs=3", "batch=8", "lr=1e-3"]) == 0
    assert "22 examples, 2 held out" in capsys.readouterr().out
    told = json.loads((out / "training.json").read_text(encoding="utf-8"))
    assert told["validation_after"] < 0.7 * told["validation_before"]
    assert len(told["loss"]) == 9
    ours = checkpoints.load_lm(str(out))
    assert not torch.equal(ours.embed.weight, checkpoints.load_lm("ladder:0.05m").embed.weight)
    assert tokenizers.shares_vocabulary(str(out), tokenizers.load_tokenizer())
    # The tokenizer begins a prompt as in training.
    before, after = codecs.load_codec("ladder:0.05m"), codecs.load_codec(str(out))
    assert after.encode_prompts(["The cat"]) == before.encode_prompts(["The cat"])
    assert main(command) == 2  # the directory exists
    assert "exists: give a new directory" in capsys.readouterr().err


def test_examples_continue_their_prompt_and_end(data):
    codec = codecs.load_codec("ladder:0.05m")
    examples = encode_examples(read_examples(data), codec)
    for i, (prompt, response) in enumerate(zip(*examples, strict=True)):
        assert prompt == codec.encode_prompts([EXAMPLES[i]["prompt"]])[0]
        assert response[-1] == codec.eos
        assert codec.decode([prompt + response]) == [
            EXAMPLES[i]["prompt"] + EXAMPLES[i]["response"]
        ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"}', "line 2: response = None"),
        ('{"prompt": "", "response": "b"}', "line 2: prompt = ''"),
        ("[1]", r"line 2: \[1\]: must be an object"),
        ("{", "line 2 is not JSON"),
    ],
)
def test_lines_that_cannot_be_used_are_named(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(EXAMPLES[0]) + "\n" + line, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_examples(path)


def test_settings_are_validated():
    from overopt.methods.sft import SftConfig

    with pytest.raises(ConfigError, match="validation_share = 0.7"):
        SftConfig(validation_share=0.7)


# --- a reward model as filter ---------------------------------------------------------------------

POLICY = ["--reward", "ladder:0.05m", "reward.kind=policy"]


def trained(out):
    return checkpoints.load_lm(str(out)).state_dict()


def test_a_filter_that_keeps_everything_is_plain_sft(data, tmp_path):
    """Bit for bit, held-out examples and order included."""
    command = [
        "sft",
        "--model",
        "ladder:0.05m",
        "--data",
        str(data),
        "batch=8",
        "lr=1e-3",
        "--quiet",
    ]
    assert main([*command, "--out", str(tmp_path / "plain")]) == 0
    assert main([*command, "--out", str(tmp_path / "all"), *POLICY, "--keep", "100"]) == 0
    plain, everything = trained(tmp_path / "plain"), trained(tmp_path / "all")
    assert all(torch.equal(plain[name], everything[name]) for name in plain)
    told = json.loads((tmp_path / "all" / "training.json").read_text(encoding="utf-8"))
    assert told["filter"] == {
        "reward": "ladder:0.05m (log-probability, sum)",
        "percent": 100.0,
        "of": "all",
        "kept": 24,
        "examples": 24,
    }


def test_a_filter_keeps_the_examples_that_the_model_likes_best(data, tmp_path, capsys):
    """What is kept, by the log-probability of the model itself; then the same file learned plainly."""
    from overopt.evals import filtering

    pairs = read_examples(data)
    score = filtering.score_examples(filtering.settings_of("ladder:0.05m", ["kind=policy"]), pairs)
    best = sorted(sorted(range(24), key=lambda i: -score[i])[:6])
    kept = tmp_path / "kept.jsonl"
    kept.write_text("\n".join(json.dumps(EXAMPLES[i]) for i in best), encoding="utf-8")
    command = ["sft", "--model", "ladder:0.05m", "batch=4", "lr=1e-3", "--quiet"]
    filtered = ["--data", str(data), "--out", str(tmp_path / "a"), *POLICY, "--keep", "25"]
    assert main([*command, *filtered]) == 0
    assert "5 examples, 1 held out" in capsys.readouterr().out
    assert main([*command, "--data", str(kept), "--out", str(tmp_path / "b")]) == 0
    ours, theirs = trained(tmp_path / "a"), trained(tmp_path / "b")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_of_each_prompt_something_is_kept():
    pairs = [("a", "1"), ("b", "2"), ("a", "3"), ("b", "4"), ("a", "5")]
    scores = [9.0, 0.0, 8.0, 1.0, 7.0]
    by_prompt = fine_tune.Filter(lambda _: scores, 50.0, "prompt")
    assert by_prompt.kept(pairs) == [("a", "1"), ("a", "3"), ("b", "4")]
    assert fine_tune.Filter(lambda _: scores, 50.0).kept(pairs) == [
        ("a", "1"),
        ("a", "3"),
        ("a", "5"),
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--keep", "25"], "--keep = 25.0: needs --reward"),
        (["--keep-of", "prompt"], "--keep-of = 'prompt': needs --reward"),
        (["reward.kind=policy"], "reward = 'kind=policy': needs --reward"),
        (POLICY, "needs --keep PERCENT"),
        ([*POLICY, "--keep", "0"], "--keep = 0.0"),
        ([*POLICY, "--keep", "120"], "--keep = 120.0"),
        (["--reward", "ladder:0.05m", "--keep", "25"], "is a language model"),
        ([*POLICY, "reward.read=nothing", "--keep", "25"], "model.read = 'nothing'"),
    ],
)
def test_a_filter_says_what_is_wrong(more, message, data, tmp_path, capsys):
    command = ["sft", "--model", "ladder:0.05m", "--data", str(data), "--out", str(tmp_path / "x")]
    assert main([*command, *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
