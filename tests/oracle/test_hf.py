"""Real architectures against transformers itself: states, log-probabilities, scores, and a whole run."""

import copy
import json

import pytest
import torch
from hf_checkpoints import LAYERS, VOCAB, make_tokenizer, write_checkpoint, write_prompts
from tolerances import FP32
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from overopt.base import files
from overopt.base.datatypes import Prompts, Responses
from overopt.base.seeding import torch_generator
from overopt.cli.main import main
from overopt.measure.kl import exact_token_kl
from overopt.methods import losses
from overopt.nets import checkpoints
from overopt.nets.checkpoints import backbone_state
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.hf import HFBackbone, from_spec
from overopt.nets.llama import Llama
from overopt.nets.sampling import entropy, sample, score_logprobs
from overopt.records.curves import load_curves, load_records
from overopt.rewards.kind import Place
from overopt.rewards.kinds import classifier
from overopt.rewards.kinds.classifier import ClassifierScorer
from overopt.rewards.kinds.reward_model import RewardModelScorer
from overopt.rewards.load import load_scorer
from overopt.rewards.scorer import raw_scores
from overopt.rewards.training.pairs import load_backbone
from overopt.worlds import codecs, tokenizers
from overopt.worlds.codecs import TextReader, retokenize
from overopt.worlds.hf import HFWorld
from overopt.worlds.prompts import load_instructions

KINDS = ("llama", "mistral", "gpt2", "gpt_neox", "qwen2")
FAST = ("llama", "qwen2")
NAMED = VOCAB - 8  # tokens that the tokenizer has; the embedding has VOCAB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function kind -> checkpoint directory, each written once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def get(kind):
        path = root / kind
        return str(path if path.exists() else write_checkpoint(path, kind))

    return get


def _theirs(path, **options):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options).eval()


def _ids(shape, seed=0):
    return torch.randint(3, NAMED, shape, generator=torch_generator(seed, "ids"))


def _close(a, b):
    scale = max(1.0, float(b.detach().abs().max()))
    torch.testing.assert_close(a, b, rtol=0, atol=FP32 * scale)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_logits_equal_transformers(folder, kind):
    model, theirs, ids = checkpoints.load_lm(folder(kind)), _theirs(folder(kind)), _ids((3, 20))
    assert isinstance(model, Llama if kind in FAST else HFBackbone)
    hidden = model(ids)
    _close(hidden, theirs.base_model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state)
    expected = theirs(ids, attention_mask=torch.ones_like(ids)).logits
    _close(model.logits(hidden)[..., :NAMED], expected[..., :NAMED])
    length = torch.tensor([20, 7, 1])
    _close(model.at_last_token(ids, length), hidden[torch.arange(3), length - 1])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_first_layers_equal_a_truncated_model(folder, kind):
    config = AutoConfig.from_pretrained(folder(kind))
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    ids = _ids((2, 9))
    theirs = _theirs(folder(kind), config=config).base_model
    expected = theirs(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    _close(checkpoints.load_trunk(folder(kind), layers=1)(ids), expected)
    full = checkpoints.load_trunk(folder(kind))(ids)
    assert not torch.allclose(full, expected, atol=1e-2)
    assert torch.equal(checkpoints.load_trunk(folder(kind), layers=LAYERS)(ids), full)


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_logprobs_are_teacher_forced_ones_under_padding(folder, ragged_prompts, kind):
    policy = checkpoints.load_lm(folder(kind))
    prompts = ragged_prompts(1, [3, 9, 1, 5], vocab=NAMED)
    made = sample(policy, prompts, n_tokens=24, seed=1, copies=40)
    assert bool(made.ended.any()) and not bool(made.ended.all())
    _close(made.logprobs, score_logprobs(policy, made))
    # One row by transformers alone: no padding, no batch mates.
    theirs = _theirs(folder(kind))
    named = VOCAB - len(policy.cfg.masked_ids)  # transformers' class for Qwen2 adds a piece
    with torch.no_grad():
        for r in (0, 45, 90, 159):
            n_prompt, n = int(made.prompts.mask[r].sum()), int(made.length[r])
            ids = torch.cat([made.prompts.ids[r][made.prompts.mask[r]], made.ids[r, :n]])[None]
            logits = theirs(ids, attention_mask=torch.ones_like(ids)).logits[0, n_prompt - 1 : -1]
            expected = logits[:, :named].log_softmax(-1).gather(1, ids[0, n_prompt:, None])[:, 0]
            _close(made.logprobs[r, :n], expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_tokens_that_the_tokenizer_lacks_have_no_mass_anywhere(
    folder, tmp_path, ragged_prompts, kind
):
    """As if their rows were not there: what is sampled, its KL, entropy and gradients."""
    policy, other = (checkpoints.load_lm(folder(kind)) for _ in range(2))
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.02 * torch.randn(p.shape, generator=torch_generator(1, str(p.shape)))
    prompts = ragged_prompts(1, [3, 5], vocab=NAMED)
    made = sample(policy, prompts, n_tokens=24, seed=1, copies=100)
    assert int(made.ids.max()) < NAMED
    bare, bare_ref = copy.deepcopy(policy), copy.deepcopy(other)
    for model in (bare, bare_ref):
        model._masked = None
    assert int(sample(bare, prompts, n_tokens=24, seed=1, copies=100).ids.max()) >= NAMED
    seq = made.select(slice(0, 20)).sequences()
    cut = [m.logits(m(seq.ids))[..., :NAMED] for m in (bare, bare_ref)]
    whole = [m.logits(m(seq.ids)) for m in (policy, other)]
    _close(exact_token_kl(*whole), exact_token_kl(*cut))
    _close(entropy(whole[0]), entropy(cut[0]))
    for logits in (whole, cut):
        (losses.vocabulary_kl(*logits) - 0.1 * entropy(logits[0])).sum().backward()
    for p, q in zip(policy.parameters(), bare.parameters(), strict=True):
        _close(p.grad, q.grad)
    # What a method saved goes on without them.
    files.save_tensors(tmp_path / "policy.safetensors", backbone_state(policy))
    again = checkpoints.load_policy(folder(kind), tmp_path / "policy.safetensors")
    assert torch.equal(sample(again, prompts, n_tokens=24, seed=1, copies=100).ids, made.ids)


def test_lanes_do_not_sample_what_the_tokenizer_lacks(folder, ragged_prompts):
    policy, prompts = checkpoints.load_lm(folder("llama")), ragged_prompts(1, [3], vocab=NAMED)
    bias = torch.zeros(VOCAB)
    bias[0] = 1.0
    for more in (None, bias):
        options = dict(n_tokens=12, seed=3, copies=200, logit_bias=more)
        made = sample(policy, prompts, precision="bf16", **options)
        assert int(made.ids.max()) < NAMED
        alike = made.ids == sample(policy, prompts, **options).ids
        assert float(alike[:, 0].float().mean()) > 0.8  # up to rounding


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "mistral"])
def test_decoder_with_left_padding_and_dropped_rows_equals_the_full_forward(folder, kind):
    model, ids = checkpoints.load_lm(folder(kind)), _ids((2, 8))
    full = model(ids)
    prompts = torch.stack([ids[0, :5], torch.cat([torch.zeros(2, dtype=torch.long), ids[1, :3]])])
    mask = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    decoder = model.decoder(prompts, mask, torch.tensor([0, 0, 1]), 3)
    _close(decoder.hidden, torch.stack([full[0, 4], full[0, 4], full[1, 2]]))
    _close(decoder.step(ids[[0, 0, 1], [5, 6, 3]])[[0, 2]], torch.stack([full[0, 5], full[1, 3]]))
    decoder.keep(torch.tensor([2, 0]))
    _close(decoder.hidden, torch.stack([full[1, 3], full[0, 5]]))
    _close(decoder.step(ids[[1, 0], [4, 6]]), torch.stack([full[1, 4], full[0, 6]]))


@torch.no_grad()
@pytest.mark.parametrize("output", [True, False])
def test_weights_survive_saving_and_load_into_transformers(folder, output):
    load = checkpoints.load_lm if output else checkpoints.load_trunk
    for kind in ("gpt2", "gpt_neox"):
        model, ids = load(folder(kind)), _ids((2, 6))
        spec = json.loads(json.dumps(model.spec()))
        before = torch.get_rng_state()
        again = from_spec(spec, backbone_state(model))
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(again(ids), model(ids)) and again.cfg == model.cfg
        missing, unknown = _theirs(folder(kind)).load_state_dict(
            backbone_state(model), strict=False
        )
        assert not unknown
        assert (output and kind == "gpt_neox") == (
            "embed_out.weight" in backbone_state(model) or "lm_head.weight" in backbone_state(model)
        )


def test_gradients_reach_every_weight(folder):
    model = ScalarHeadModel(checkpoints.load_trunk(folder("gpt2")))
    model.init_head(torch_generator(0, "head"))
    scores = [model.at_last_token(_ids((2, 6)), torch.tensor([6, 4])) for _ in range(2)]
    assert torch.equal(*scores)  # no dropout, although the checkpoint's config asks for it
    scores[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# --- scoring by text ------------------------------------------------------------------------------


def _world(source, n=60, **options):
    texts = tuple(load_instructions()[:n])
    return HFWorld(texts, source, 100, **options)


def _made(world, source, copies=3):
    policy = checkpoints.load_lm(source)
    return sample(policy, world.prompts("train", 4), n_tokens=16, seed=0, copies=copies)


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("pad", [None, "<p>"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_classifier_scores_are_those_of_each_text_alone(folder, tmp_path, kind, pad, labels):
    tokenizer = make_tokenizer(1, chat=kind == "llama", pad_token=pad)
    gold = write_checkpoint(
        tmp_path,
        kind,
        labels=labels,
        tokenizer=tokenizer,
        **({"pad_token_id": None} if not pad else {}),
    )
    world = _world(folder("gpt_neox"))
    made = _made(world, folder("gpt_neox"))
    scorer = ClassifierScorer(*classifier.load_classifier(str(gold)), str(gold), world)
    scores = scorer.raw(made)
    theirs = AutoModelForSequenceClassification.from_pretrained(gold).eval()
    for r, (prompt, answer) in enumerate(
        zip(world.prompt_texts(made), world.response_texts(made), strict=True)
    ):
        if kind == "llama":
            turns = [("user", prompt), ("assistant", answer)]
            turns = [{"role": role, "content": text} for role, text in turns]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        else:
            ids = tokenizer(prompt + answer, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = theirs(ids, attention_mask=torch.ones_like(ids)).logits[0]
        expected = logits[0] if labels == 1 else logits[1] - logits[0]
        assert float(scores[r]) == pytest.approx(float(expected), abs=FP32 * 10)
    some = torch.tensor([7, 2])
    _close(scorer.raw(made.select(some)), scores[some])
    assert theirs.config.pad_token_id == scorer.model.config.pad_token_id


def test_retokenized_responses_say_the_same(folder, tmp_path):
    other = write_checkpoint(tmp_path, "gpt2", tokenizer=make_tokenizer(1))
    world = _world(folder("gpt_neox"))
    assert not tokenizers.shares_vocabulary(str(other), world.tokenizer)
    assert tokenizers.shares_vocabulary(folder("gpt2"), world.tokenizer)
    made = _made(world, folder("gpt_neox"), copies=50)
    assert bool(made.ended.any())
    codec = codecs.load_codec(str(other))
    read = retokenize(world, codec, made)
    seq = read.sequences()
    texts = zip(world.prompt_texts(made), world.response_texts(made), strict=True)
    for r, (prompt, answer) in enumerate(texts):
        ids = seq.ids[r, : int(seq.length[r])].tolist()
        assert codec.decode([ids]) == [prompt + answer]
        assert (ids[-1] == codec.eos) == bool(made.ended[r])
    # A model that reads text scores as one that is handed its own tokens.
    model = ScalarHeadModel(load_backbone(str(other), world))
    model.init_head(torch_generator(0, "head"))
    assert isinstance(model.backbone.reader, TextReader)
    by_text = raw_scores(model, made)
    RewardModelScorer(model, 0.5, 2.0).save(tmp_path, {})
    info = json.loads((tmp_path / "scorer.json").read_text())
    assert info["scored_by"] == "text" and info["tokenizer"] == str(other)
    named = Place(tmp_path, world, "cpu", sources=frozenset({str(other)}))
    again = load_scorer(tmp_path, named).score(made)
    torch.testing.assert_close(again, (by_text - 0.5) / 2)
    model.backbone.reader = None
    assert torch.equal(raw_scores(model, read), by_text)


def test_chat_prompts_are_dressed_and_responses_are_turns(tmp_path):
    tokenizer = make_tokenizer(chat=True)
    source = str(write_checkpoint(tmp_path, "gpt2", tokenizer=tokenizer))
    world = _world(source)
    prompts = world.prompts("eval", 2)
    start = tokenizer.convert_tokens_to_ids("<u>")
    for ids, mask, i in zip(prompts.ids, prompts.mask, prompts.prompt_id, strict=True):
        turns = [{"role": "user", "content": world.texts[i]}]
        expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        assert tokenizer.decode(ids[mask]) == expected
        assert int((ids[mask] == start).sum()) == 2
    answer = tokenizer(" Yes<e>", add_special_tokens=False).input_ids
    row = torch.tensor([answer])
    one = Prompts(prompts.ids[:1], prompts.mask[:1], prompts.prompt_id[:1])
    made = Responses(one, row, row >= 0, torch.zeros(row.shape), torch.tensor([True]))
    assert world.response_texts(made) == [" Yes"]
    plain = codecs.load_codec(str(write_checkpoint(tmp_path / "plain", "gpt2")))
    whole = retokenize(world, plain, made).sequences()
    assert plain.decode(whole.ids.tolist()) == [world.prompt_texts(made)[0] + "\n Yes"]


# --- the whole pipe -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_with_a_gpt2_world_a_foreign_proxy_and_a_pretrained_gold(folder, tmp_path):
    gold = write_checkpoint(
        tmp_path / "gold", "llama", labels=1, tokenizer=make_tokenizer(1, chat=True)
    )
    foreign = write_checkpoint(tmp_path / "foreign", "qwen2", tokenizer=make_tokenizer(2))
    prompts = write_prompts(tmp_path / "prompts.jsonl", 90)

    def run(name, *more):
        settings = [
            "world.kind=hf", "world.intent=rubric",
            f"world.policy={folder('gpt2')}", f"world.prompts_file={prompts}",
            "world.max_response_tokens=12", "gold.kind=pretrained", f"gold.source={gold}",
            "labels.n_pairs=40", "labels.n_validation_prompts=5", "bon.n_prompts=3",
            "bon.pool_size=16", "bon.ns=1,2,4,8,16", "method.steps=2", "method.eval_prompts=4",
            f"method.value_backbone={folder('gpt2')}", "method.lr=1e-3", *more,
        ]  # fmt: skip
        out = tmp_path / name
        place = ["--store", str(tmp_path / "store"), "--results", str(out), "--workers", "1"]
        assert main(["run", "smoke", *settings, *place, "--quiet"]) == 0
        return out

    small = run("small", f"proxy.backbone={folder('gpt2')}", "proxy.layers=1")
    table = load_records(small)
    assert set(table.method) == {"bon", "ppo"} and len(table) == 5 + 3
    for curve in load_curves(small):
        assert curve.rows[0]["kl_seq_nats"] == 0.0
        if curve.meta["method"] == "ppo":
            assert curve.rows[-1]["kl_seq_nats"] > 0
    by_text = load_records(run("foreign", f"proxy.backbone={foreign}"))
    assert (by_text.gold_score.to_numpy()[:1] == table.gold_score.to_numpy()[:1]).all()
    assert set(table.backbone) == {f"{folder('gpt2')}[:1]"}
    assert table.n_params.iloc[0] < by_text.n_params.iloc[0]
    scorers = [json.loads(f.read_text()) for f in (tmp_path / "store").glob("proxy/*/scorer.json")]
    assert sorted(s["scored_by"] for s in scorers) == ["text", "tokens"]
