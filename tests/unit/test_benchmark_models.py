"""Models of every make answer benchmarks: against transformers, against torch, by hand."""

import json
import math

import numpy as np
import pytest
import torch
from hf_checkpoints import make_tokenizer, write_checkpoint
from tolerances import FP32
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from overopt.base.errors import CheckpointError, ConfigError, DataError
from overopt.evals.benchmarks import candidates, pairs
from overopt.evals.model import ask
from overopt.evals.models import classifier, judge, policy
from overopt.evals.question import Question, Turn
from overopt.evals.run import configure

SHARED = "Name three animals that live in the sea and say what they eat."


def asked(*turns):
    return tuple(
        Turn("user" if i % 2 == 0 else "assistant", t) for i, t in enumerate(turns or (SHARED,))
    )


QUESTIONS = [
    Question(asked(), ("Whales eat krill.", "I will not.", "A shark, and a crab, and a fish.")),
    Question(asked("Why?"), ("Because.", "It is so")),
    Question(asked("Hi", "Hello", "Go on"), ("No.",)),
]


@pytest.fixture(scope="module")
def tokenizers():
    return {"plain": make_tokenizer(), "chat": make_tokenizer(chat=True)}


@torch.no_grad()
def transformers_logits(folder, texts):
    """Each text alone through the sequence classifier."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = [make_tokenizer()(t, add_special_tokens=False).input_ids for t in texts]
    return torch.stack([model(torch.tensor([row])).logits[0] for row in ids])


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("way", ["plain", "chat"])
@pytest.mark.parametrize("labels", [1, 2, 3])
def test_a_classifier_is_that_of_transformers(tmp_path, tokenizers, kind, way, labels):
    folder = write_checkpoint(tmp_path, kind, labels=labels, tokenizer=tokenizers[way])
    given = {"weights": (0.5, -2.0, 1.0)} if labels == 3 else {}
    settings = classifier.Settings(source=str(folder), **given)
    model = classifier.load(settings, "cpu")
    # A compact Llama computes what the responses share once; gpt2 is left to transformers.
    assert hasattr(model.network, "at_last_token") == (kind != "gpt2")
    found = model.answer(QUESTIONS).outcome.scores
    texts = []
    for q in QUESTIONS:
        for r in q.responses:
            said = "".join(f"<u>{t.role}: {t.content}<e>" for t in q.dialogue)
            texts.append(f"{said}<u>assistant: {r}<e>" if way == "chat" else f"{q.prompt}\n{r}")
    logits = transformers_logits(folder, texts)
    weights = {1: (1.0,), 2: (-1.0, 1.0), 3: (0.5, -2.0, 1.0)}[labels]
    expected = logits @ torch.tensor(weights)
    assert [len(s) for s in found] == [3, 2, 1]
    assert np.concatenate(found) == pytest.approx(expected.numpy(), abs=10 * FP32)


def test_labels_need_weights_and_texts_must_fit(tmp_path):
    three = write_checkpoint(tmp_path / "three", "llama", labels=3)
    with pytest.raises(ConfigError, match="3 labels.*model.weights=1,0,0"):
        classifier.load(classifier.Settings(source=str(three)), "cpu")
    with pytest.raises(ConfigError, match="give a weight for each"):
        classifier.load(classifier.Settings(source=str(three), weights=(1.0,)), "cpu")
    one = write_checkpoint(tmp_path / "one", "llama", labels=1)
    long = [Question(asked("word " * 200), ("a", "b"))]
    with pytest.raises(DataError, match="whose context is 160.*model.max_tokens=160"):
        classifier.load(classifier.Settings(source=str(one)), "cpu").answer(long)
    cut = classifier.load(classifier.Settings(source=str(one), max_tokens=50), "cpu")
    (scores,) = cut.answer(long).outcome.scores
    assert scores[0] == pytest.approx(scores[1], abs=FP32)  # both are the prompt's first 50 tokens
    kept = classifier.Settings(source=str(one), max_tokens=50, cut="start")
    (other,) = classifier.load(kept, "cpu").answer(long).outcome.scores
    assert abs(other[0] - other[1]) > 100 * FP32  # the responses are what is kept
    lm = write_checkpoint(tmp_path / "lm", "llama")
    with pytest.raises(CheckpointError, match="no sequence classifier: take model.kind=policy"):
        classifier.load(classifier.Settings(source=str(lm)), "cpu")
    (one / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds a model and an adapter"):
        classifier.load(classifier.Settings(source=str(one)), "cpu")


def test_the_score_is_read_where_transformers_reads_it():
    """At the last token that is not the pad token, even where the text itself ends with it."""
    assert classifier.up_to_last_real([5, 0, 6, 0, 0], 0) == [5, 0, 6]
    assert classifier.up_to_last_real([5, 6], 0) == [5, 6]
    assert classifier.up_to_last_real([0, 0], 0) == [0]
    assert classifier.up_to_last_real([5, 0], None) == [5, 0]


@torch.no_grad()
def token_logprobs(folder, prompt, answer):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([prompt + answer])
    logp = model(ids).logits[0].log_softmax(-1)
    at = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return torch.stack([logp[t, ids[0, t + 1]] for t in at]).double()


@pytest.mark.parametrize("way", ["plain", "chat"])
def test_a_policy_is_read_as_reward_bench_reads_it(tmp_path, tokenizers, way):
    tokenizer = tokenizers[way]
    folders = [
        str(write_checkpoint(tmp_path / str(i), "llama", seed=i, tokenizer=tokenizer))
        for i in (0, 1)
    ]

    def by_hand(folder, q, r):
        said = "".join(f"<u>{t.role}: {t.content}<e>" for t in q.dialogue)
        front = f"{said}<u>assistant: " if way == "chat" else q.prompt
        prompt = tokenizer(front, add_special_tokens=False).input_ids
        answer = tokenizer(r, add_special_tokens=False).input_ids
        return token_logprobs(folder, prompt, [*answer, tokenizer.eos_token_id])

    answers = [(q, r) for q in QUESTIONS for r in q.responses]
    ours = [by_hand(folders[0], q, r) for q, r in answers]
    theirs = [by_hand(folders[1], q, r) for q, r in answers]
    expected = {
        "sum": [float(x.sum()) for x in ours],
        "mean": [float(x.mean()) for x in ours],
        "norm": [-math.sqrt(float((x**2).sum())) for x in ours],
    }
    for read, values in expected.items():
        model = policy.load(policy.Settings(source=folders[0], read=read), "cpu")
        found = np.concatenate(model.answer(QUESTIONS).outcome.scores)
        assert found == pytest.approx(values, rel=10 * FP32)
    model = policy.load(policy.Settings(source=folders[0], reference=folders[1]), "cpu")
    found = np.concatenate(model.answer(QUESTIONS).outcome.scores)
    ratio = [float((a - b).sum()) for a, b in zip(ours, theirs, strict=True)]
    assert found == pytest.approx(ratio, abs=1e-3)


def test_a_reference_of_another_vocabulary_is_refused(tmp_path):
    one = write_checkpoint(tmp_path / "one", "llama")
    other = write_checkpoint(tmp_path / "other", "llama", tokenizer=make_tokenizer(3))
    with pytest.raises(DataError, match="another vocabulary"):
        policy.load(policy.Settings(source=str(one), reference=str(other)), "cpu")
    with pytest.raises(ConfigError, match="no effect with a reference"):
        policy.Settings(source="a", reference="b", read="mean")


# --- judges ---------------------------------------------------------------------------------------


def template(path, text):
    path.write_text(text)
    return str(path)


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """A judge of which the words are given: (template, words of each text) -> judge, texts seen."""
    source = str(write_checkpoint(tmp_path / "lm", "llama"))

    def make(text, say, **settings):
        file = template(tmp_path / "t.txt", text)
        model = judge.load(judge.Settings(source=source, template=file, **settings), "cpu")
        seen = []

        def verdicts(self, asked, letters):
            seen.extend(asked)
            return [say(a) for a in asked], 0

        monkeypatch.setattr(judge.Judge, "_verdicts", verdicts)
        return model, seen

    return make


def test_a_judge_picks_whatever_the_order(judged):
    """It finds the word "sea" wherever it stands; the places are drawn for each question."""
    questions = [Question(asked(f"q{i}"), ("the sea", "a {prompt} hill")) for i in range(12)]

    def say(text):
        return "So [[A]]" if "A: the sea" in text else "[[B]] wins"

    model, seen = judged("{prompt}\nA: {answer_a}\nB: {answer_b}", say)
    found = model.answer(questions).outcome
    assert found.choices == [0] * 12
    stood = [0 if "A: the sea" in text else 1 for text in seen]
    assert 0 < sum(stood) < 12 and found.places == stood
    assert "a {prompt} hill" in seen[0]  # braces of a response are not filled
    silent, _ = judged("{prompt} {answer_a} {answer_b}", lambda text: "none")
    assert silent.answer(questions).outcome.choices == [-1] * 12
    with pytest.raises(ConfigError, match="2 answers, question 0 has 3"):
        silent.answer(QUESTIONS[:1])


def test_a_judge_rates_one_by_one(judged):
    model, _ = judged(
        "{prompt} / {response}", lambda text: "fine.\n\n9" if "krill" in text else "8 of ten"
    )
    found = model.answer(QUESTIONS[:1]).outcome
    assert found.is_judge and found.scores[0].tolist() == [9, -1, -1]


def test_a_benchmark_of_scores_has_no_use_for_a_pick(judged):
    model, _ = judged("{prompt} {answer_a} {answer_b}", lambda text: "[[A]]")
    questions = [Question(asked("q"), ("a", "b"))]
    with pytest.raises(ConfigError, match="the judge picks one"):
        ask(model, model.settings, candidates.Settings(), questions)
    assert ask(model, model.settings, pairs.Settings(), questions).cost["responses"] == 2


def test_what_judges_say_is_read_as_published():
    assert [judge.parse_rating(s) for s in ("9", "x 10 ", "0", "11", "7.", "a\n\n3")] == [
        *(9, 10, -1, -1, -1, 3),
    ]
    assert judge.parse_letter("[[B]] or [[A]]", 2) == 0
    assert judge.parse_letter("[[D]]", 2) == -1 and judge.parse_letter("[[D]]", 4) == 3
    assert judge.parse_boxed(r"\boxed{1} then \boxed{ 2 }") == 2
    assert judge.parse_boxed(r"\boxed{-1}") == -1
    assert [judge.parse_boxed(s) for s in ("", r"\boxed{x}", r"\boxed{-7}")] == [-2] * 3


def test_a_judge_names_a_step(judged):
    model, seen = judged("{problem}\n{tagged_response}", lambda text: r"\boxed{1}")
    question = Question(asked("2+2"), ("a\n\nb",), (("a", "b"),))
    assert model.first_errors([question], 0.0).outcome.first_errors == [1]
    assert "<paragraph_1>\nb\n</paragraph_1>" in seen[0]
    with pytest.raises(ConfigError, match="asks for a wrong step"):
        model.answer(QUESTIONS)


@torch.no_grad()
def test_verdicts_by_logits_are_those_of_transformers(tmp_path):
    folder = write_checkpoint(tmp_path / "lm", "llama")
    file = template(tmp_path / "t.txt", "{prompt} A {answer_a} B {answer_b} best: ")
    settings = judge.Settings(source=str(folder), template=file, read="logits")
    model = judge.load(settings, "cpu")
    questions = [Question(asked(f"q{i}"), ("x " * i, "yes")) for i in range(1, 7)]
    found = model.answer(questions).outcome.choices
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), make_tokenizer()
    a, b = (tokenizer(x, add_special_tokens=False).input_ids[0] for x in "AB")
    for i, q in enumerate(questions):
        for order in ((0, 1), (1, 0)):
            text = f"{q.prompt} A {q.responses[order[0]]} B {q.responses[order[1]]} best: "
            logits = theirs(torch.tensor([tokenizer(text).input_ids])).logits[0, -1]
            picked = order[0] if logits[a] > logits[b] else order[1]
            if list(order) == order_of(i):
                assert found[i] == picked


def order_of(i):
    from overopt.base.seeding import numpy_rng

    return [0, 1] if int(numpy_rng(0, "order", i).integers(2)) == 0 else [1, 0]


def test_a_judge_really_writes(tmp_path):
    """A random model's words hold no verdict; they are sampled, decoded and counted."""
    folder = write_checkpoint(tmp_path / "lm", "llama")
    file = template(tmp_path / "t.txt", "{prompt} {answer_a} {answer_b}")
    settings = judge.Settings(source=str(folder), template=file, max_new_tokens=5)
    found = judge.load(settings, "cpu").answer([Question(asked("q"), ("a", "b"))])
    assert found.outcome.choices == [-1] and found.n_tokens > 5


@pytest.mark.parametrize("text", ["{prompt} alone", "nothing", "{problem} {response}"])
def test_a_template_must_ask_something(tmp_path, text):
    settings = judge.Settings(source="ladder:0.2m", template=template(tmp_path / "t", text))
    with pytest.raises(ConfigError, match="placeholders"):
        judge.read_template(settings)


# --- what a source is taken for -------------------------------------------------------------------


def test_a_source_is_taken_for_what_it_is(tmp_path):
    lm = str(write_checkpoint(tmp_path / "lm", "llama"))
    rm = str(write_checkpoint(tmp_path / "rm", "llama", labels=1))
    (tmp_path / "artefact").mkdir()
    (tmp_path / "artefact" / "scorer.json").write_text(json.dumps({"kind": "reward_model"}))

    def kind(source, *overrides, **kwargs):
        config = configure("pairs", source, overrides, **kwargs)
        return type(config.model).__module__.split(".")[-1]

    assert kind(rm) == "classifier"
    assert kind(str(tmp_path / "artefact")) == "reward"
    assert kind(lm, reference=lm) == "policy"
    assert kind(lm, template="t.txt") == "judge"
    assert kind(lm, "model.kind=policy", "model.read=mean") == "policy"
    with pytest.raises(ConfigError, match="is a language model: give --reference"):
        kind(lm)
