"""What a user may bring: every row of the table in docs/checkpoints.md, planned for real.

A row is a kind of checkpoint or file, and what `overopt plan` does with it: it takes it, or refuses it
in one line that names field, value and remedy.
"""

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hf_checkpoints import CHAT, make_tokenizer, write_checkpoint, write_prompts
from safetensors.torch import load_file, save_file

from overopt.cli.main import main
from overopt.worlds.prompts import load_instructions

DOCS = Path(__file__).parents[2] / "docs" / "checkpoints.md"
SMALL = ("labels.n_pairs=12", "labels.n_validation_prompts=2", "bon.n_prompts=2", "bon.pool_size=4",
         "bon.ns=1,4", "method.eval_prompts=2", "world.kind=hf", "gold.kind=pretrained")  # fmt: skip
TEXTS = load_instructions()[:60]


class Brought:
    """Good checkpoints and prompts in ``folder``, of which a case spoils one."""

    def __init__(self, folder: Path, good: Path):
        shutil.copytree(good, folder, dirs_exist_ok=True)
        self.folder = folder
        self.policy, self.gold = folder / "policy", folder / "gold"
        self.prompts = folder / "prompts.jsonl"
        self.more: list[str] = []

    @property
    def settings(self) -> list[str]:
        sources = [f"{name}={self.policy}" for name in ("world.policy", "method.value_backbone")]
        sources += [f"proxy.backbone={self.policy}", f"gold.source={self.gold}"]
        found = [*SMALL, *sources, f"world.prompts_file={self.prompts}", *self.more]
        return list({setting.split("=")[0]: setting for setting in found}.values())

    def lines(self, *values: object) -> None:
        """Prompts, ``values`` in front of good ones."""
        rows = [json.dumps(value) for value in (*values, *TEXTS)]
        self.prompts.write_text("\n".join(rows), encoding="utf-8")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    write_checkpoint(folder / "policy", "gpt2")
    tokenizer = make_tokenizer(1, chat=True)
    write_checkpoint(folder / "gold", "gpt2", labels=1, tokenizer=tokenizer)
    write_prompts(folder / "prompts.jsonl", 60)
    return folder


def edit(folder: Path, **values: object) -> None:
    """Other entries of config.json; None takes one out."""
    spec = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in spec.items() if v is not None})
    )


def weights(folder: Path, change) -> None:
    """Other weights: what ``change`` makes of them."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def template(folder: Path, text: str) -> None:
    (folder / "chat_template.jinja").write_text(text)


# --- cases: one a row of the table ----------------------------------------------------------------


def as_it_is(b):
    """Nothing."""


def in_shards(b):
    from transformers import AutoModelForCausalLM

    b.policy = b.folder / "sharded"
    model = AutoModelForCausalLM.from_pretrained(b.folder / "policy")
    model.save_pretrained(b.policy, max_shard_size="30KB")
    make_tokenizer().save_pretrained(b.policy)
    assert len(list(b.policy.glob("model-*.safetensors"))) > 1


def without_a_shard(b):
    in_shards(b)
    sorted(b.policy.glob("model-*.safetensors"))[1].unlink()


def as_a_pickle(b):
    torch.save(load_file(b.gold / "model.safetensors"), b.gold / "pytorch_model.bin")
    (b.gold / "model.safetensors").unlink()


def in_half(b):
    weights(b.policy, lambda state: {k: v.half() for k, v in state.items()})
    weights(b.gold, lambda state: {k: v.bfloat16() for k, v in state.items()})


def quantized(b):
    edit(b.policy, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})


def in_eight_bits(b):
    weights(b.policy, lambda s: {k: v.to(torch.float8_e4m3fn) for k, v in s.items()})


def as_a_pointer(b):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (b.policy / "model.safetensors").write_text(text)


def cut_off(b):
    file = b.gold / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def with_nan(b):
    def change(state):
        state["transformer.h.1.mlp.c_fc.weight"][3, 5] = float("nan")
        return state

    weights(b.policy, change)


def with_infinity_in_bfloat16(b):
    def change(state):
        state["transformer.wte.weight"][0, 0] = float("inf")
        return {k: v.bfloat16() for k, v in state.items()}

    weights(b.gold, change)


def embedding_too_small(b):
    b.policy = write_checkpoint(b.folder / "small", "gpt2", vocab_size=200)


def embedding_larger(b):
    b.policy = write_checkpoint(b.folder / "large", "gpt2", vocab_size=400)


def config_of_another(b):
    edit(b.policy, vocab_size=999)


def config_adds_a_piece(b):
    rows = len(make_tokenizer())
    b.policy = write_checkpoint(b.folder / "exact", "gpt2", vocab_size=rows)
    file = b.policy / "tokenizer_config.json"
    added = {"extra_special_tokens": ["<new>"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | added))


def without_tokenizer(b):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (b.gold / name).unlink()


def without_pad(b):
    b.policy = write_checkpoint(b.folder / "p", "gpt2", tokenizer=make_tokenizer(pad_token=None))


def pad_beyond(b):
    edit(b.gold, pad_token_id=5000)


def classifier_as_policy(b):
    b.policy = write_checkpoint(b.folder / "c", "gpt2", labels=1)


def no_output_matrix(b):
    b.policy = write_checkpoint(b.folder / "neox", "gpt_neox", tie_word_embeddings=False)
    weights(
        b.policy, lambda s: {k: v for k, v in s.items() if "embed_out" not in k and "lm" not in k}
    )


def lm_as_gold(b):
    b.gold = b.policy


def without_score(b):
    weights(b.gold, lambda state: {k: v for k, v in state.items() if k != "score.weight"})


def three_labels(b):
    b.gold = write_checkpoint(b.folder / "three", "gpt2", labels=3)


def one_of_three(b):
    three_labels(b)
    b.more = ["gold.label=LABEL_1"]


def value_head(b):
    b.gold = write_checkpoint(b.folder / "v", "gpt2", tokenizer=make_tokenizer(1, chat=True))
    weights(b.gold, lambda s: s | {"v_head.summary.weight": torch.ones(1, 32)})


def adapter(b, **config):
    b.policy = b.folder / "lora"
    b.policy.mkdir()
    name = "base_model.model.transformer.h.0.attn.c_proj.lora_{}.weight"
    factors = {name.format("A"): torch.ones(2, 32), name.format("B"): torch.ones(32, 2)}
    save_file(factors, b.policy / "adapter_model.safetensors")
    default = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    default |= {"base_model_name_or_path": str(b.folder / "policy"), "fan_in_fan_out": True}
    (b.policy / "adapter_config.json").write_text(json.dumps(default | config))


def adapter_without_base(b):
    adapter(b, base_model_name_or_path="not/here/either")


def other_adapter(b):
    adapter(b, peft_type="IA3")


def short_gold(b):
    tokenizer = make_tokenizer(1, chat=True)
    b.gold = write_checkpoint(
        b.folder / "short", "gpt2", labels=1, tokenizer=tokenizer, max_position_embeddings=56
    )


def short_proxy(b):
    b.more = [
        f"proxy.backbone={write_checkpoint(b.folder / 's', 'gpt2', max_position_embeddings=24)}"
    ]


def roberta(b, room):
    tokenizer = make_tokenizer(1)
    longest = max(len(tokenizer(text).input_ids) for text in TEXTS)
    b.gold = write_checkpoint(
        *(b.folder / "roberta", "roberta"),
        labels=1,
        tokenizer=tokenizer,
        max_position_embeddings=longest + 48 + room,  # 48 for the response
    )


def template_that_raises(b):
    template(b.gold, "{{ raise_exception('only one turn') }}")


def template_with_an_error(b):
    template(b.gold, "{% for m in messages %}{{ m.content }}")


def template_without_the_answer(b):
    template(b.gold, "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}"
                     "{% endfor %}")  # fmt: skip


def template_without_system(b):
    template(b.gold, "{% if messages[0].role == 'system' %}{{ raise_exception('System role not"
                     " supported') }}{% endif %}" + CHAT)  # fmt: skip
    b.lines([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello there"}])


def code_of_its_own(b):
    edit(b.policy, model_type="my_model", auto_map={"AutoModelForCausalLM": "modeling.My"})


def unknown_architecture(b):
    edit(b.policy, model_type="resnet")


def texts_and_objects(b):
    b.lines({"prompt": "How are you?", "id": 3}, {"prompt": "Why is that?"})


def dialogues(b):
    system = {"role": "system", "content": "Be kind."}
    turns = [("user", "Hello."), ("assistant", "Hi."), ("user", "Who are you?")]
    several = [{"role": role, "content": text} for role, text in turns]
    b.lines([system, *several], {"prompt": several}, {"messages": several[2:]})


def from_windows(b):
    rows = [json.dumps(text) for text in TEXTS]
    text = "\r\n\r\n".join(rows) + "\r\n\r\n"
    b.prompts.write_bytes(b"\xef\xbb\xbf" + text.encode())


def in_utf16(b):
    b.prompts.write_text(b.prompts.read_text(), encoding="utf-16")


def latin1(b):
    b.prompts.write_bytes(b.prompts.read_bytes() + b'\n"caf\xe9"\n')


def not_json(b):
    b.prompts.write_text("Once upon a time\n" + b.prompts.read_text())


def empty_prompt(b):
    b.lines("First one", "  ")


def ends_with_an_answer(b):
    b.lines([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])


def repeats(b):
    b.lines(TEXTS[3], TEXTS[4])


def too_long(b, *more):
    b.gold = write_checkpoint(
        *(b.folder / "long", "gpt2"),
        labels=1,
        tokenizer=make_tokenizer(1, chat=True),
        max_position_embeddings=4000,
    )
    b.lines("word " * 400)
    b.more = [*more]


def control_tokens(b):
    b.lines("Say <e> to me, please <u>")


def pairs(b, n=40, answer="Gladly."):
    file = b.folder / "pairs.jsonl"
    rows = [
        {side: f"\n\nHuman: {text}\n\nAssistant: {said}" for side, said in sides}
        for text in TEXTS[:n]
        for sides in [(("chosen", answer), ("rejected", "No."))]
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    b.more = [f"labels.pairs_file={file}"]
    return file


def no_pair(b):
    file = pairs(b)
    file.write_text(file.read_text() + '\n{"question": "Why?"}')


def long_pairs(b, *more):
    file = pairs(b, 8, "word " * 400)
    long = file.read_text()
    pairs(b)
    file.write_text(long + "\n" + file.read_text())
    b.more += more


CASES = {
    "a directory with `model.safetensors`": (as_it_is, None),
    "shards with an index": (in_shards, None),
    "a shard is missing": (without_a_shard, r"has no model-0000\d-of"),
    "`pytorch_model.bin`": (
        as_a_pickle,
        r"gold.source = .*pickle.*convert it once with  python -c",
    ),
    "float16 or bfloat16": (in_half, None),
    "quantized, by its configuration": (quantized, "world.policy = .*quantized.*bitsandbytes"),
    "quantized, by its weights": (in_eight_bits, "world.policy = .*stored as F8_E4M3"),
    "a pointer of Git LFS": (as_a_pointer, "world.policy = .*pointer of Git LFS.*git lfs pull"),
    "a file that is cut off": (cut_off, "gold.source = .*cut off, 100 bytes are missing"),
    "weights with nan": (with_nan, r"world.policy = .*h\.1\.mlp\.c_fc\.weight are not finite"),
    "bfloat16 weights with infinity": (
        with_infinity_in_bfloat16,
        r"gold.source = .*wte\.weight are not finite",
    ),
    "a tokenizer larger than the embedding": (
        embedding_too_small,
        "world.policy = .*312 pieces, its embedding only 200.*has no row",
    ),
    "an embedding larger than the tokenizer": (embedding_larger, None),
    "`config.json` of another checkpoint": (
        config_of_another,
        "world.policy = .*vocab_size in config.json is 999.*has 320 rows",
    ),
    "a tokenizer configuration that adds a piece": (
        config_adds_a_piece,
        "world.policy = .*313 pieces, its embedding only 312.*'<new>'",
    ),
    "no tokenizer": (without_tokenizer, "gold.source = .*has no tokenizer"),
    "no pad token": (without_pad, None),
    "a pad token beyond the embedding": (pad_beyond, "gold.source = .*pad_token_id = 5000"),
    "a classifier as policy": (
        classifier_as_policy,
        "world.policy = .*GPT2ForSequenceClassification.*gold.kind=pretrained",
    ),
    "a policy without its output matrix": (no_output_matrix, "world.policy = .*no output matrix"),
    "a language model as published gold": (lm_as_gold, "gold.source = .*GPT2LMHeadModel"),
    "a classifier without `score.weight`": (
        without_score,
        r"gold.source = .*score\.weight is missing",
    ),
    "a classifier with three labels": (
        three_labels,
        "gold.label = .*3 labels: choose one.*LABEL_0, LABEL_1, LABEL_2",
    ),
    "one of three labels, `gold.label=LABEL_1`": (one_of_three, None),
    "a head by another name, such as `v_head`": (value_head, None),
    "a LoRA adapter": (adapter, None),
    "a LoRA adapter whose base is missing": (
        adapter_without_base,
        "world.policy = .*LoRA adapter of 'not/here/either'.*base_model_name_or_path",
    ),
    "an adapter of another type": (other_adapter, "world.policy = .*type 'IA3'; only LORA.*peft"),
    "gold with too small a context": (short_gold, r"gold.source = .*takes 56 tokens; the longest"),
    "a proxy with too small a context": (short_proxy, "proxy.backbone = .*context of 24 tokens"),
    "RoBERTa, whose positions begin behind the pad token": (
        lambda b: roberta(b, 0),
        "gold.source = .*tokens; the longest prompt",
    ),
    "RoBERTa with one position more": (lambda b: roberta(b, 1), None),
    "a chat template that raises": (
        template_that_raises,
        r"gold.source = .*turns user, assistant \(only one turn\)",
    ),
    "a chat template that is no template": (
        template_with_an_error,
        "gold.source = .*chat template",
    ),
    "a chat template that forgets the response": (
        template_without_the_answer,
        "gold.source = .*leaves out what the assistant says",
    ),
    "prompts with a system turn, a template without": (
        template_without_system,
        r"gold.source = .*turns system, user, assistant \(System role not supported\)",
    ),
    "code that comes with the checkpoint": (
        code_of_its_own,
        "world.policy = .*'my_model' is code that comes with the checkpoint.*never run",
    ),
    "an architecture without a language model": (unknown_architecture, "model_type 'resnet'"),
    "prompts: texts and objects": (texts_and_objects, None),
    "prompts: lists of messages": (dialogues, None),
    "prompts: byte-order mark, Windows line ends, blank lines": (from_windows, None),
    "prompts: UTF-16": (in_utf16, "prompts.jsonl' is UTF-16: save it as UTF-8"),
    "prompts: Latin-1": (latin1, r"line 61: byte 4 is not valid UTF-8"),
    "prompts: plain text": (not_json, "line 1: not valid JSON"),
    "prompts: an empty one": (empty_prompt, "line 2: no text"),
    "prompts: a dialogue that ends with an answer": (
        ends_with_an_answer,
        "line 1: the last message is assistant's",
    ),
    "prompts: repeated": (repeats, None),
    "prompts: too long": (too_long, r"\(line 1\) has \d+ tokens, 1 to 112 fit.*too_long"),
    "prompts: too long, `world.too_long=drop`": (
        lambda b: too_long(b, "world.too_long=drop"),
        None,
    ),
    "prompts: too long, `world.too_long=truncate`": (
        lambda b: too_long(b, "world.too_long=truncate"),
        None,
    ),
    "prompts: names of control tokens": (control_tokens, None),
    "pairs: HH-RLHF": (pairs, None),
    "pairs: a row that is no pair": (no_pair, "pairs.jsonl', line 41: fields question: no layout"),
    "pairs: too few": (lambda b: pairs(b, n=6), r"labels.n_pairs = 12: .*has 4 that fit"),
    "pairs: too long": (
        long_pairs,
        r"pairs.jsonl', line \d+: the prompt has .*the response \d+, 112 and 48",
    ),
    "pairs: too long, `world.too_long=drop`": (
        lambda b: long_pairs(b, "world.too_long=drop"),
        None,
    ),
}
SAID = {  # what is said beside a plan that is made
    "an embedding larger than the tokenizer": "has 400 rows, its tokenizer lacks 88 of them",
    "prompts: repeated": "2 of 62 lines repeat another and are left out (line 6 repeats line 1)",
    "prompts: too long, `world.too_long=drop`": "1 of 61 prompts have more than 112 tokens",
    "prompts: too long, `world.too_long=truncate`": "are cut at their beginning (first: line 1, ",
    "pairs: too long, `world.too_long=drop`": "left out, whose prompt or response is too long",
}


@pytest.mark.parametrize("kind", CASES)
def test_what_plan_says(tmp_path, good, capsys, caplog, kind):
    spoil, message = CASES[kind]
    brought = Brought(tmp_path, good)
    spoil(brought)
    status = main(["plan", "smoke", *brought.settings, "--store", str(tmp_path / "store")])
    error = capsys.readouterr().err
    if message is None:
        assert status == 0, error
        assert SAID.get(kind, "") in caplog.text
    else:
        assert status == 2
        assert re.search(message, error) and "Traceback" not in error, error


def test_the_table_has_these_rows():
    rows = re.findall(r"^\| ([^|]+?) \| (taken|refused)", DOCS.read_text(encoding="utf-8"), re.M)
    assert dict(rows) == {k: "refused" if m else "taken" for k, (_, m) in CASES.items()}
    assert len(rows) >= 25


@pytest.mark.parametrize("spoil", [short_gold, template_that_raises, with_nan])
def test_a_wrong_one_is_said_in_under_five_seconds(tmp_path, good, spoil):
    """Of CPU time, in a process of its own: how busy a machine is, is not the plan's doing."""
    brought = Brought(tmp_path, good)
    spoil(brought)
    command = [sys.executable, "-m", "overopt", "plan", "smoke", *brought.settings]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*command, "--store", str(tmp_path / "store")], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
