"""Bad prompts, checkpoints and experiments: one clear error before any work."""

import json

import pytest

from overopt.base.errors import CheckpointError, ConfigError, DataError
from overopt.cli.main import main
from overopt.nets.checkpoints import load_lm, load_reward_model
from overopt.nets.sources import checkpoint_dir
from overopt.study.presets import load_experiment
from overopt.worlds import stories
from overopt.worlds.load import load_world
from overopt.worlds.prompts import read_prompts_file
from overopt.worlds.splits import SPLITS, split_bounds


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'"Once"\n\n"Two"\n', "line 2"),
        (b'"Once"\n"caf\xe9"\n', "line 2: byte 4 is not valid UTF-8"),
        (b'"Once"\n"  "\n', "line 2: no text"),
        (b'"Once"\n"Once"\n', "repeats line 1"),
        (b'{"text": "Once"}\n', "'prompt'"),
        (b"", "empty"),
    ],
)
def test_prompts_files(tmp_path, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts_file(str(path))


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
    with pytest.raises(CheckpointError, match="cannot be read"):
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
