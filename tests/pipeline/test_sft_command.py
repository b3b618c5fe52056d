"""``overopt sft``: from a JSONL file to a checkpoint that the pipe and transformers can load."""

import json

import pytest
import torch

from overopt.base.errors import ConfigError, DataError
from overopt.cli.main import main
from overopt.nets import checkpoints
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
