"""Reward models as they are published: scores against transformers, RewardBench's way, and by hand."""

import json

import pytest
import torch
from hf_checkpoints import CHAT, VOCAB, WIDTH, make_tokenizer, write_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, pipeline

from overopt.base.datatypes import Responses
from overopt.base.errors import CheckpointError, ConfigError
from overopt.base.seeding import torch_generator
from overopt.evals.models import classifier as evaluated
from overopt.evals.question import Question, Turn
from overopt.evals.run import configure
from overopt.nets import checkpoints, examine
from overopt.nets.sampling import sample
from overopt.rewards.kinds import classifier, pretrained
from overopt.rewards.kinds.classifier import ClassifierScorer
from overopt.worlds.hf import HFWorld
from overopt.worlds.prompts import Dialogue, load_instructions, turns_of

TIGHT = 1e-5
SYSTEM = "{% if messages[0].role == 'system' %}[{{ messages[0].content }}]{% endif %}" + CHAT


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("policy"), "gpt2"))


def answered(policy: str, *, dialogues: bool) -> tuple[HFWorld, Responses]:
    """A world of 60 prompts, every second a dialogue with a system turn, and responses to some."""
    texts = [
        Dialogue([("system", "Be brief."), ("user", text)]) if dialogues and i % 2 else text
        for i, text in enumerate(load_instructions()[:60])
    ]
    world = HFWorld(tuple(texts), policy, 100)
    made = sample(
        checkpoints.load_lm(policy), world.prompts("train", 6), n_tokens=12, seed=0, copies=2
    )
    return world, made


def by_pipeline(path, texts):
    """transformers' own: text classification without a function behind the logits."""
    run = pipeline("text-classification", model=str(path), device="cpu", dtype=torch.float32)
    return [found["score"] for found in run(texts, function_to_apply="none", batch_size=1)]


def by_rewardbench(path, dialogues, *, batch, side):
    """RewardBench's way: the template's text, its begin token taken off, encoded in padded batches.

    (Lambert et al. 2024, arXiv:2403.13787; dialogues become text before the tokenizer sees them.)
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, padding_side=side)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in dialogues]
    if tokenizer.bos_token:
        texts = [text.removeprefix(tokenizer.bos_token) for text in texts]
    scores = []
    for start in range(0, len(texts), batch):
        inputs = tokenizer(texts[start : start + batch], padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(inputs.input_ids, attention_mask=inputs.attention_mask).logits
        scores += logits[:, 0].tolist()
    return scores


@pytest.mark.parametrize("template", [CHAT, SYSTEM], ids=["turns", "with system turns"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_one_reward_model_scored_in_three_ways(tmp_path, policy, kind, template):
    tokenizer = make_tokenizer(1)
    tokenizer.chat_template = template
    gold = write_checkpoint(tmp_path, kind, labels=1, tokenizer=tokenizer)
    world, made = answered(policy, dialogues=template is SYSTEM)
    scorer = ClassifierScorer(*classifier.load_classifier(str(gold)), str(gold), world)
    ours = scorer.raw(made)
    dialogues = [
        [*turns_of(p), {"role": "assistant", "content": r}]
        for p, r in zip(world.prompt_texts(made), world.response_texts(made), strict=True)
    ]
    assert any(turns[0]["role"] == "system" for turns in dialogues) == (template is SYSTEM)
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in dialogues]
    assert by_pipeline(gold, texts) == pytest.approx(ours.tolist(), abs=TIGHT)
    # GPT-2 counts positions from the first pad token: padding on the left is another input to it.
    sides = ("right", "left") if kind == "llama" else ("right",)
    for batch in (1, 5):
        for side in sides:
            theirs = by_rewardbench(gold, dialogues, batch=batch, side=side)
            assert theirs == pytest.approx(ours.tolist(), abs=TIGHT), (batch, side)
    for most in (40, 100_000):
        again = scorer.raw(made, batch_tokens=most).tolist()
        assert again == pytest.approx(ours.tolist(), abs=TIGHT)


def test_control_tokens_in_a_response_are_text_to_gold(tmp_path, policy):
    """A response that writes a template's marks does not become a turn of its own."""
    tokenizer = make_tokenizer(1, chat=True)
    gold = write_checkpoint(tmp_path, "gpt2", labels=1, tokenizer=tokenizer)
    world, made = answered(policy, dialogues=False)

    class Writes(HFWorld):
        def response_texts(self, responses):
            return ["Fine.<e><u>user: thanks<e>"] * len(responses)

    writes = Writes(world.texts, policy, 100)
    rows = classifier.encode_dialogues(
        classifier.load_classifier(str(gold)).tokenizer, writes, made
    )
    end = tokenizer.convert_tokens_to_ids("<e>")
    assert all(row["input_ids"].count(end) == 2 for row in rows)  # of the template's two turns
    said = tokenizer.decode(rows[0]["input_ids"])
    assert said.endswith("assistant: Fine.<e><u>user: thanks<e><e>")
    # Without such marks the tokens are those of the whole text.
    plain = classifier.encode_dialogues(tokenizer, world, made)
    turns = [
        {"role": "user", "content": world.prompt_texts(made)[0]},
        {"role": "assistant", "content": world.response_texts(made)[0]},
    ]
    whole = tokenizer(
        tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False
    )
    assert plain[0]["input_ids"] == whole.input_ids


def test_control_tokens_in_a_prompt_are_text_to_the_policy(tmp_path):
    source = write_checkpoint(tmp_path, "gpt2", tokenizer=make_tokenizer(chat=True))
    texts = ("Say <e> and <u> to me", *load_instructions()[:40])
    world = HFWorld(texts, str(source), 100)
    end = make_tokenizer().convert_tokens_to_ids("<e>")
    said, plain = world.codec.encode_prompts(texts[:2])
    assert said.count(end) == plain.count(end) == 1
    assert world.codec.tokenizer.decode(said) == "<u>user: Say <e> and <u> to me<e><u>assistant: "


# --- several labels -------------------------------------------------------------------------------


def test_a_label_by_name_by_number_and_by_weights(tmp_path, policy):
    gold = write_checkpoint(
        tmp_path, "gpt2", labels=3, tokenizer=make_tokenizer(1, chat=True)
    )  # fmt: skip
    names = {"0": "helpfulness", "1": "correctness", "2": "verbosity"}
    spec = json.loads((gold / "config.json").read_text())
    spec |= {"id2label": names, "label2id": {v: int(k) for k, v in names.items()}}
    (gold / "config.json").write_text(json.dumps(spec))
    world, made = answered(policy, dialogues=False)
    loaded = classifier.load_classifier(str(gold))

    def scored(label):
        weights = pretrained.label_weights(pretrained.Settings(source=str(gold), label=label))
        return ClassifierScorer(*loaded, str(gold), world, weights=weights).raw(made)

    parts = torch.stack([scored(name) for name in names.values()])
    assert torch.equal(scored("1"), parts[1]) and not torch.equal(parts[0], parts[1])
    mixed = scored("helpfulness:0.8, verbosity:-0.4")
    torch.testing.assert_close(mixed, 0.8 * parts[0] - 0.4 * parts[2], rtol=0, atol=TIGHT)
    for label, message in {
        "": "3 labels: choose one.*helpfulness, correctness, verbosity",
        "humour": "'humour' is no label",
        "3": "'3' is no label",
        "helpfulness:much": "no label",
    }.items():
        with pytest.raises(ConfigError, match=message):
            pretrained.label_weights(pretrained.Settings(source=str(gold), label=label))


# --- heads by other names -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v_head.summary", "reward_head", "score"])
def test_a_head_on_a_language_model(tmp_path, policy, name):
    source = write_checkpoint(tmp_path, "llama", tokenizer=make_tokenizer(chat=True))
    weight = torch.randn(1, WIDTH, generator=torch_generator(0, "head"))
    bias = torch.tensor([0.7])
    state = load_file(source / "model.safetensors")
    state |= {f"{name}.weight": weight, f"{name}.bias": bias}
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    examine.examine("gold.source", str(source), "classifier")
    world, made = answered(policy, dialogues=False)
    model, tokenizer = classifier.load_classifier(str(source))
    ours = ClassifierScorer(model, tokenizer, str(source), world).raw(made)
    trunk = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).base_model.eval()
    for row, score in zip(classifier.encode_dialogues(tokenizer, world, made), ours, strict=True):
        with torch.no_grad():
            hidden = trunk(torch.tensor([row["input_ids"]])).last_hidden_state[0, -1]
        assert float(score) == pytest.approx(float(weight[0] @ hidden + bias), abs=TIGHT * 10)


# --- adapters -------------------------------------------------------------------------------------


def write_adapter(folder, base, modules, *, rank=4, head=None, **config):
    """A LoRA adapter in PEFT's layout with random factors, which are returned by module."""
    folder.mkdir()
    made = {}
    for name, (n_out, n_in) in modules.items():
        draw = torch_generator(0, name)
        made[name] = (
            torch.randn(rank, n_in, generator=draw) / 4,
            torch.randn(n_out, rank, generator=draw) / 4,
        )
    tensors = {}
    for name, (a, b) in made.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    tensors |= {f"base_model.model.{k}": v for k, v in (head or {}).items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    default = {"peft_type": "LORA", "r": rank, "lora_alpha": 6}
    default |= {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(default | config))
    return made


def hooked(model, made, factor):
    """The model with x·Aᵀ·Bᵀ·s added to what its modules give: an adapter as it is trained."""
    for name, (a, b) in made.items():
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, a=a, b=b: output + factor * (inputs[0] @ a.T @ b.T)
        )
    return model


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("llama", {f"model.layers.{i}.self_attn.q_proj": (WIDTH, WIDTH) for i in (0, 1)}),
        ("llama", {"model.layers.1.mlp.down_proj": (WIDTH, 48)}),
        ("gpt2", {"transformer.h.0.attn.c_attn": (3 * WIDTH, WIDTH)}),  # stored transposed
        ("gpt2", {"transformer.h.0.attn.c_proj": (WIDTH, WIDTH)}),
    ],
)
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_a_policy_is_merged(tmp_path, kind, modules, rslora):
    base = write_checkpoint(tmp_path / "base", kind)
    made = write_adapter(
        tmp_path / "lora", base, modules, use_rslora=rslora, fan_in_fan_out=kind == "gpt2"
    )
    examine.examine("world.policy", str(tmp_path / "lora"), "policy")
    ours = checkpoints.load_lm(str(tmp_path / "lora"), masked=False)
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ids = torch.randint(3, VOCAB - 8, (3, 9), generator=torch_generator(0, "ids"))
    with torch.no_grad():
        plain = theirs(ids).logits
        expected = hooked(theirs, made, 6 / (2 if rslora else 4))(ids).logits
        found = ours.logits(ours(ids))
    torch.testing.assert_close(found, expected, rtol=0, atol=TIGHT * float(expected.abs().max()))
    assert not torch.allclose(found, plain, atol=1e-2)


def test_an_adapter_with_a_head_is_a_reward_model(tmp_path, policy):
    base = write_checkpoint(tmp_path / "base", "llama", tokenizer=make_tokenizer(chat=True))
    head = torch.randn(1, WIDTH, generator=torch_generator(0, "head"))
    modules = {"model.layers.0.self_attn.v_proj": (16, WIDTH)}
    made = write_adapter(
        tmp_path / "lora", base, modules, head={"score.weight": head}, task_type="SEQ_CLS"
    )
    world, made_responses = answered(policy, dialogues=False)
    source = str(tmp_path / "lora")
    pretrained.check(pretrained.Settings(source=source))
    model, tokenizer = classifier.load_classifier(source)
    ours = ClassifierScorer(model, tokenizer, source, world).raw(made_responses)
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    trunk = hooked(whole, made, 6 / 4).base_model
    rows = classifier.encode_dialogues(tokenizer, world, made_responses)
    for row, score in zip(rows, ours, strict=True):
        with torch.no_grad():
            hidden = trunk(torch.tensor([row["input_ids"]])).last_hidden_state[0, -1]
        assert float(score) == pytest.approx(float(head[0] @ hidden), abs=TIGHT * 10)
    # Benchmarks know it for a classifier of one label, and score it alike.
    settings = configure("pairs", source, []).model
    assert isinstance(settings, evaluated.Settings)
    asked = [Question((Turn("user", "Why?"),), ("Because.", "It is so"))]
    scores = evaluated.load(settings, "cpu").answer(asked).outcome.scores[0]
    expected = classifier.label_logits(model, evaluated.encode(tokenizer, asked))[:, 0]
    assert scores == pytest.approx(expected.detach().numpy(), abs=TIGHT * 10)


@pytest.mark.parametrize(
    ("config", "modules", "message"),
    [
        ({"peft_type": "IA3"}, None, "type 'IA3'; only LORA"),
        ({"use_dora": True}, None, "use_dora = True is not merged here"),
        ({"base_model_name_or_path": "nowhere/at-all/x"}, None, "LoRA adapter of 'nowhere"),
        (
            {},
            {"model.layers.7.self_attn.q_proj": (WIDTH, WIDTH)},
            "layers.7.self_attn.q_proj, which",
        ),
        ({}, {"model.layers.0.self_attn.q_proj": (WIDTH, 5)}, "do not belong together"),
    ],
)
def test_adapters_that_cannot_be_merged(tmp_path, config, modules, message):
    base = write_checkpoint(tmp_path / "base", "llama")
    modules = modules or {"model.layers.0.self_attn.q_proj": (WIDTH, WIDTH)}
    write_adapter(tmp_path / "lora", base, modules, **config)
    with pytest.raises(CheckpointError, match=message):
        examine.examine("world.policy", str(tmp_path / "lora"), "policy")
