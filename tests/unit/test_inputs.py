"""Bad prompts, checkpoints and experiments: one clear error before any work."""

import json
import pickle

import pytest

from overopt.base.errors import CheckpointError, ConfigError, DataError
from overopt.cli.main import main
from overopt.nets.checkpoints import load_lm, load_reward_model
from overopt.nets.sources import checkpoint_dir
from overopt.study.presets import load_experiment
from overopt.worlds import stories
from overopt.worlds.load import load_world
from overopt.worlds.prompts import read_prompts_file, turns_of
from overopt.worlds.splits import SPLITS, split_bounds


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'"Once"\n"caf\xe9"\n', "line 2: byte 4 is not valid UTF-8"),
        (b'"Once"\n"  "\n', "line 2: no text"),
        (b'"Once"\n[{"role": "user"}]\n', "line 2: .*no message"),
        (b'[{"role": "tool", "content": "x"}]\n', "line 1: .*'role'"),
        (b'\xff\xfe"\x00', "is UTF-16"),
        (b"\x1f\x8bno gzip", "damaged gzip"),
        (b'{"text": "Once"}\n', "'prompt'"),
        (b"", "empty"),
    ],
)
def test_prompts_files(tmp_path, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts_file(str(path))


def test_prompts_as_they_come(tmp_path):
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    rows = ["Once", {"prompt": "Two"}, [turns[1]], {"messages": turns}, "Once"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Look"}]}]
    text = "\r\n\r\n".join(json.dumps(row) for row in [*rows, parts])
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    read = read_prompts_file(str(path))
    said = "System: Be kind.\n\nUser: Hi\n\nAssistant:"
    assert read.texts == ("Once", "Two", "Hi", said, "Look")
    assert read.lines == (1, 3, 5, 7, 11)
    assert [turns_of(t) for t in read.texts[2:4]] == [[turns[1]], turns]
    assert "1 of 6 lines repeat another and are left out (line 9 repeats line 1)" in read.notes[0]
    again = pickle.loads(pickle.dumps(read.texts[3]))
    assert again == said and turns_of(again) == turns


@pytest.mark.parametrize("too_long", ["refuse", "drop", "truncate"])
def test_prompts_that_are_too_long(tmp_path, too_long):
    path = tmp_path / "prompts.jsonl"
    long = "cat " * 200 + "The end"
    rows = ["dog " * 200 + "The end", *(f"Tim saw {i} cats" for i in range(60)), long]
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = stories.Settings(prompts_file=str(path), too_long=too_long)
    world = load_world(settings)
    if too_long == "refuse":
        with pytest.raises(DataError, match=r"\(line 1\) has .* at most .*world.too_long to drop"):
            world.prompts("gold", 2)
        return
    (note,) = world.notes
    assert "2 of 62 prompts have more than" in note and "first: line 1" in note
    assert len(world.texts) == (60 if too_long == "drop" else 62)
    if too_long == "truncate":
        assert world.texts[-1].endswith("cat The end") and long.endswith(world.texts[-1])
    assert world.longest_prompt <= stories.MAX_PROMPT_TOKENS


def test_prompts_file_that_is_absent():
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts_file("absent.jsonl")


def test_a_good_prompts_file_becomes_a_world(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        "\n".join(json.dumps({"prompt": f"One day, Tim saw {i} cats"}) for i in range(60))
    )
    world = load_world(stories.Settings(prompts_file=str(path)))
    prompts = world.prompts("eval", 4)
    assert (
        world.tokenizer.decode(prompts.ids[0][prompts.mask[0]].tolist())
        == world.texts[int(prompts.prompt_id[0])]
    )
    with pytest.raises(DataError, match="ask for fewer"):
        world.prompts("eval", 5)


def test_splits_are_disjoint_and_cover_the_world():
    world = load_world(stories.Settings())
    assert len(world.texts) == len(set(world.texts)) == 15_600
    for bounds in (split_bounds(6000), {s: world.bounds(s) for s in SPLITS}):
        in_order = sorted(bounds.values())
        assert in_order[0][0] == 0
        assert all(a[1] == b[0] for a, b in zip(in_order, in_order[1:], strict=False))
    assert in_order[-1][1] == 15_600
    plain, more = split_bounds(6000), split_bounds(6000, more_train=9600)
    sizes = {split: stop - start for split, (start, stop) in plain.items()}
    assert {s: b - a for s, (a, b) in more.items()} == sizes | {"train": sizes["train"] + 9600}


def test_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint_dir("no/such/place")
    with pytest.raises(CheckpointError, match="not shipped"):
        checkpoint_dir("ladder:7b")
    (tmp_path / "model.safetensors").write_bytes(b"xx")
    with pytest.raises(CheckpointError, match="no config.json"):
        checkpoint_dir(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(CheckpointError, match="'resnet'"):
        checkpoint_dir(str(tmp_path))
    spec = json.loads((checkpoint_dir("ladder:0.05m") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(spec))
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load_lm(str(tmp_path))
    with pytest.raises(CheckpointError, match="no reward model"):
        load_reward_model("ladder:0.05m")


def test_unknown_experiment_and_override():
    with pytest.raises(ConfigError, match="smoke, quick"):
        load_experiment("qick")
    with pytest.raises(ConfigError, match="labels.n_pairs"):
        load_experiment("smoke", ["labels.n_pair=10"])
    assert load_experiment("smoke", ["labels.n_pairs=60"]).runs[0].labels.n_pairs == 60


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labels.label_flip_rate=0.7", "label_flip_rate"),
        ("labels.n_pairs=-3", "n_pairs"),
        ("bon.ns=1,2000", "larger than the pool"),
        ("world.policy=no/such/model", "does not exist"),
        ("world.prompts_file=absent.jsonl", "cannot be read"),
    ],
)
def test_command_line_says_it_in_one_line(tmp_path, capsys, override, message):
    store = tmp_path / "store"
    assert main(["run", "smoke", override, "--store", str(store), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(error) < 1000
    assert not list(store.glob("calibration/*"))
