"""The contract of docs/contract.md: known defects of RM training, PPO and KL accounting, kept out.

One run of the pipe over a small world, in which every sequence that any reward model reads is
recorded, and unit tests of what a run cannot show. The table says which point each test is for.
"""

import ast
import inspect
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from ppo_steps import ppo_step
from small_smoke import prompts_file
from tolerances import FP32, FP64
from torch import nn

import overopt
from overopt.base import files
from overopt.base.config import RuntimeConfig
from overopt.base.datatypes import Prompts, Responses, Sequences
from overopt.base.errors import DataError
from overopt.base.seeding import torch_generator
from overopt.engine.execute import execute
from overopt.engine.graph import topological
from overopt.engine.store import Store
from overopt.measure.evaluate import measure_kl
from overopt.methods import losses, ppo
from overopt.nets import checkpoints, sources
from overopt.nets.block import Prefix
from overopt.nets.compute import Compute
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.layout import from_transformers_state
from overopt.nets.llama import Llama
from overopt.nets.sampling import sample, score_logprobs, token_logprobs
from overopt.records.curves import load_curves
from overopt.rewards.kind import Place
from overopt.rewards.kinds.reward_model import RewardModelScorer
from overopt.rewards.labels.pairs import label_pairs
from overopt.rewards.load import load_scorer
from overopt.rewards.scorer import mean_std, raw_scores
from overopt.rewards.training import train
from overopt.rewards.training.pairs import TrainingPairs
from overopt.rewards.training.train import train_reward_model
from overopt.stages.common import load_responses
from overopt.study.chain import build_graph
from overopt.study.collect import collect
from overopt.study.presets import load_experiment
from overopt.worlds import stories
from overopt.worlds.load import load_world
from overopt.worlds.splits import SPLITS

PACKAGE = Path(overopt.__file__).parent
N_PAIRS, EPOCHS, N_VALIDATION = 100, 2, 10
OVERRIDES = [
    "proxy.backbone=ladder:0.05m", f"proxy.epochs={EPOCHS}", "gold.n_prompts=8",
    f"labels.n_pairs={N_PAIRS}", f"labels.n_validation_prompts={N_VALIDATION}",
    "bon.pool_size=32", "bon.ns=1,8,32", "method.steps=2", "method.eval_prompts=4",
]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run: artefact folders by stage, and the token rows reward models read there."""

    folders: dict[str, Path]
    read: dict[str, set[tuple[int, ...]]]
    world: stories.StoriesWorld
    run: object
    curves: list


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One small run, stage by stage, with every input of every reward model recorded."""
    root = tmp_path_factory.mktemp("contract")
    experiment = load_experiment("smoke", [prompts_file(root / "prompts.jsonl"), *OVERRIDES])
    artefacts, folders, read = Store(root / "store"), {}, {}
    at_last_token, forward_scores = ScalarHeadModel.at_last_token, train.forward_scores
    seen: set[tuple[int, ...]] = set()

    def record(ids, length):
        seen.update(tuple(row[:n]) for row, n in zip(ids.tolist(), length.tolist(), strict=True))

    # Tokens of each prefix by its lengths, which are kept so that no other tensor takes their id.
    prompts_of: dict[int, tuple[torch.Tensor, list[list[int]]]] = {}
    prefix, select, joined = Llama.prefix, Prefix.select, Prefix.joined

    def recording_prefix(model, ids, length):
        made = prefix(model, ids, length)
        rows = zip(ids.tolist(), length.tolist(), strict=True)
        prompts_of[id(made.length)] = (made.length, [row[:n] for row, n in rows])
        return made

    def recording_select(some, row):
        made = select(some, row)
        known = prompts_of[id(some.length)][1]
        prompts_of[id(made.length)] = (made.length, [known[i] for i in row.tolist()])
        return made

    def recording_joined(parts):
        made = joined(parts)
        known = [prompt for part in parts for prompt in prompts_of[id(part.length)][1]]
        prompts_of[id(made.length)] = (made.length, known)
        return made

    def recording(model, ids, length, before=None):
        if before is None:
            record(ids, length)
        elif id(before.length) in prompts_of:  # else of sequences that are recorded below
            rows = zip(prompts_of[id(before.length)][1], ids.tolist(), length.tolist(), strict=True)
            seen.update((*prompt, *row[:n]) for prompt, row, n in rows)
        return at_last_token(model, ids, length, before)

    def recording_training(model, seq, compute):
        record(seq.ids, seq.length)
        return forward_scores(model, seq, compute)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScalarHeadModel, "at_last_token", recording)
        patch.setattr(Llama, "prefix", recording_prefix)
        patch.setattr(Prefix, "select", recording_select)
        patch.setattr(Prefix, "joined", staticmethod(recording_joined))
        patch.setattr(train, "forward_scores", recording_training)
        for stage in topological(build_graph(experiment)):
            seen.clear()
            execute([stage], artefacts, RuntimeConfig(quiet=True))
            folders[stage.name] = artefacts.open(stage.name, stage.fingerprint).path
            read[stage.name] = set(seen)
    curves = load_curves(collect(experiment, artefacts, root / "results"))
    return Run(folders, read, load_world(experiment.runs[0].world), experiment.runs[0], curves)


@pytest.fixture
def reward_model(tiny_llama):
    """A random reward model over the tiny vocabulary."""
    model = ScalarHeadModel(tiny_llama(20))
    model.init_head(torch_generator(20, "head"))
    return model.eval()


@pytest.fixture
def responses(tiny_llama, ragged_prompts):
    """Responses of many lengths, some ended and some truncated."""
    made = sample(tiny_llama(5), ragged_prompts(5, [3, 9, 1, 5]), n_tokens=12, seed=1, copies=6)
    assert bool(made.ended.any()) and not bool(made.ended.all())
    return made


class LikesToken:
    """A proxy that counts one token."""

    def score(self, responses):
        return ((responses.ids == 9) & responses.mask).sum(1).float()


def ppo_state(tiny_llama, cfg, *, seed=5):
    return ppo.new_state(
        tiny_llama(seed, scale=4.0), ScalarHeadModel(tiny_llama(6, scale=4.0)), cfg
    )


def sequence(responses, row):
    """Prompt and response of a row without padding, by indexing alone."""
    p, r = responses.prompts, responses
    return [*p.ids[row][p.mask[row]].tolist(), *r.ids[row][r.mask[row]].tolist()]


# --- token ids, padding, ends ---------------------------------------------------------------------


def test_gold_and_proxy_read_the_same_tokens(run):
    pool = load_responses(run.folders["pool"] / "responses.npz")
    assert (
        run.read["pool"]
        == run.read["scores"]
        == {tuple(sequence(pool, i)) for i in range(len(pool))}
    )
    assert run.read["ppo_gold"] <= run.read["ppo"]
    labelled, base = (
        run.read["comparisons"],
        load_responses(run.folders["calibration"] / "responses.npz"),
    )
    assert run.read["proxy"] <= labelled | {tuple(sequence(base, i)) for i in range(len(base))}
    # Text does not bring the tokens back, so a detour through it would have shown.
    texts = run.world.response_texts(pool)
    again = [run.world.tokenizer.encode(text).ids for text in texts]
    kept = [row[mask].tolist() for row, mask in zip(pool.ids, pool.mask, strict=True)]
    assert sum(a != [t for t in k if t != stories.EOS] for a, k in zip(again, kept, strict=True))


def test_stored_tokens_are_those_that_were_sampled(run):
    pool = load_responses(run.folders["pool"] / "responses.npz").select(slice(0, None, 5))
    policy = checkpoints.load_lm(run.run.world.policy)
    torch.testing.assert_close(score_logprobs(policy, pool), pool.logprobs, rtol=0, atol=10 * FP32)


def test_only_worlds_turn_text_into_tokens():
    for folder in (
        "methods",
        "measure",
        "rewards/training",
        "rewards/labels",
        "rewards/scorer.py",
        "nets/sampling.py",
    ):
        path = PACKAGE / folder
        for file in [path] if path.suffix else path.rglob("*.py"):
            calls = {
                node.func.attr
                for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            }
            assert not calls & {"encode", "encode_batch", "token_to_id"}, file


def test_pad_is_not_the_end_token():
    assert stories.PAD != stories.EOS
    configs = sorted(sources.ladder_dir().glob("*/config.json"))
    assert configs
    for file in configs:
        spec = json.loads(file.read_text())
        assert spec["pad_token_id"] != spec["eos_token_id"], file


def test_the_mask_says_what_is_real_and_not_the_id(tiny_llama, ragged_prompts, reward_model):
    policy, prompts = tiny_llama(5), ragged_prompts(5, [3, 6, 4])
    # Real tokens that carry the pad id are read like any other.
    ids = prompts.ids.clone()
    ids[:, -2] = policy.cfg.pad_token_id
    made = sample(policy, Prompts(ids, prompts.mask, prompts.prompt_id), n_tokens=8, seed=1)
    made.ids[:, 0] = policy.cfg.pad_token_id
    for row in range(3):
        tokens = torch.tensor([sequence(made, row)])
        n_prompt, n = int(prompts.mask[row].sum()), int(made.length[row])
        assert tokens.shape[1] == n_prompt + n
        with torch.no_grad():
            logits = policy.logits(policy(tokens[:, :-1]))
            expected = token_logprobs(logits, tokens[:, 1:])[0, n_prompt - 1 :]
            score = reward_model.head(reward_model.backbone(tokens)[0, -1])
        torch.testing.assert_close(
            score_logprobs(policy, made)[row, :n], expected, rtol=FP32, atol=FP32
        )
        torch.testing.assert_close(raw_scores(reward_model, made)[row], score[0], rtol=0, atol=FP32)


def test_ids_behind_the_mask_change_nothing(tiny_llama, ragged_prompts, reward_model):
    policy, prompts = tiny_llama(5), ragged_prompts(5, [3, 6, 4])
    made = sample(policy, prompts, n_tokens=8, seed=1, copies=2)
    dirty = Prompts(prompts.ids.masked_fill(~prompts.mask, 7), prompts.mask, prompts.prompt_id)
    again = sample(policy, dirty, n_tokens=8, seed=1, copies=2)
    assert torch.equal(made.ids, again.ids) and torch.equal(made.logprobs, again.logprobs)
    assert not bool(made.mask.all())
    again = Responses(
        again.prompts,
        again.ids.masked_fill(~again.mask, 7),
        again.mask,
        again.logprobs,
        again.ended,
    )
    assert torch.equal(raw_scores(reward_model, made), raw_scores(reward_model, again))
    assert torch.equal(score_logprobs(policy, made), score_logprobs(policy, again))


def test_scores_do_not_depend_on_batch_mates_or_padding(reward_model, responses, monkeypatch):
    alone = torch.stack(
        [raw_scores(reward_model, responses.select(slice(i, i + 1)))[0] for i in range(24)]
    )
    assert float(alone.std()) > 0.1
    sequences = responses.sequences()
    rows = torch.argsort(sequences.length, stable=True)
    by_length = Sequences(*(part[rows] for part in sequences))
    for batch_tokens in (10_000, 60, 1):
        got = raw_scores(reward_model, responses, batch_tokens=batch_tokens)
        torch.testing.assert_close(got, alone, rtol=0, atol=FP32)
        monkeypatch.setattr(train, "FORWARD_TOKENS", batch_tokens)
        got = train.forward_scores(reward_model, by_length, Compute()).detach()
        torch.testing.assert_close(got, alone[rows], rtol=0, atol=FP32)
    order = torch.randperm(24, generator=torch_generator(0, "order"))
    got = raw_scores(reward_model, responses.select(order))
    torch.testing.assert_close(got, alone[order], rtol=0, atol=FP32)
    p, pad = responses.prompts, torch.zeros(24, 5, dtype=torch.int64)
    wider = Prompts(torch.cat([pad, p.ids], 1), torch.cat([pad.bool(), p.mask], 1), p.prompt_id)
    right = torch.zeros(24, 3, dtype=torch.int64)
    padded = Responses(
        wider,
        torch.cat([responses.ids, right], 1),
        torch.cat([responses.mask, right.bool()], 1),
        torch.cat([responses.logprobs, right.float()], 1),
        responses.ended,
    )
    torch.testing.assert_close(raw_scores(reward_model, padded), alone, rtol=0, atol=FP32)


@torch.no_grad()
def test_score_is_the_head_at_the_last_real_token_end_included(reward_model, responses):
    scores = raw_scores(reward_model, responses)
    moved = []
    for row in range(len(responses)):
        tokens = sequence(responses, row)
        assert (tokens[-1] == 1) == bool(responses.ended[row])
        hidden = reward_model.backbone(torch.tensor([tokens]))[0]
        at = reward_model.head(hidden)[:, 0]
        torch.testing.assert_close(scores[row], at[-1], rtol=0, atol=FP32)
        if responses.ended[row]:
            moved.append(float((at[-1] - at[-2]).abs()))
    assert min(moved) > 100 * FP32, "the end token makes no difference here: the test is blind"


def test_every_stage_reads_the_end_token_the_same_way(run):
    stages = ("gold", "comparisons", "proxy", "pool", "scores", "ppo", "ppo_gold")
    for stage in stages:
        ended = 0
        for tokens in run.read[stage]:
            # <s> in front has the id of the end token; behind it the end stands last or nowhere.
            assert stories.EOS not in tokens[1:-1], stage
            ended += tokens[-1] == stories.EOS
        assert 0 < ended < len(run.read[stage]), f"{stage}: {ended} of {len(run.read[stage])}"


def test_truncated_responses_are_scored_plain_and_counted(run):
    calibration = run.folders["calibration"]
    scorer = load_scorer(run.folders["proxy"], Place(calibration, run.world, "cpu"))
    bon, ppo_curve = sorted(run.curves, key=lambda curve: curve.meta["method"])
    pool = load_responses(run.folders["pool"] / "responses.npz")
    assert bon.rows[0]["ended_share"] == pytest.approx(float(pool.ended.double().mean()), abs=FP64)
    for row in ppo_curve.rows:
        made = load_responses(run.folders["ppo"] / f"eval-{row['value']:05d}.npz")
        assert row["ended_share"] == pytest.approx(float(made.ended.double().mean()), abs=1e-7)
    cut = pool.select(torch.nonzero(~pool.ended)[:, 0])
    assert 0 < len(cut) < len(pool)
    plain = (raw_scores(scorer.model, cut) - scorer.mean) / scorer.std
    torch.testing.assert_close(scorer.score(cut), plain, rtol=0, atol=0)


# --- log-probabilities and KL ---------------------------------------------------------------------


def test_logprobs_are_those_of_the_sampling_temperature(tiny_llama, ragged_prompts):
    policy, prompts = tiny_llama(5, scale=4.0), ragged_prompts(5, [3, 6, 4])
    made = sample(policy, prompts, n_tokens=10, seed=1, copies=4, temperature=0.7)
    for row in range(len(made)):
        tokens = torch.tensor([sequence(made, row)])
        n = int(made.length[row])
        with torch.no_grad():
            logits = policy.logits(policy(tokens[:, :-1]))[0, -n:]
        for temperature, same in ((0.7, True), (1.0, False)):
            expected = (logits.double() / temperature).log_softmax(-1)
            expected = expected.gather(1, tokens[0, -n:, None])[:, 0].float()
            got = made.logprobs[row, :n]
            assert torch.allclose(got, expected, rtol=0, atol=10 * FP32) is same
    assert not {"top_k", "top_p", "min_p"} & set(inspect.signature(sample).parameters)


def test_evaluation_responses_come_from_the_untruncated_policy(run):
    ref = checkpoints.load_lm(run.run.world.policy)
    state = files.load_tensors(run.folders["ppo"] / "policy.safetensors")
    last = from_transformers_state(state, ref.cfg).eval()
    for step, policy in ((0, ref), (2, last)):
        made = load_responses(run.folders["ppo"] / f"eval-{step:05d}.npz")
        torch.testing.assert_close(
            score_logprobs(policy, made), made.logprobs, rtol=0, atol=10 * FP32
        )


def test_models_have_no_dropout_and_the_reference_stays_fixed(tiny_llama, ragged_prompts):
    cfg = ppo.Settings(steps=2, batch=8, minibatches=2, kl_coef=0.1, lr=1e-3, eval_prompts=4)
    prompts, ref = ragged_prompts(5, [3, 6, 4, 2]), tiny_llama(5, scale=4.0)
    state = ppo_state(tiny_llama, cfg)
    for model in (state.policy, state.value, ref):
        assert not [m for m in model.modules() if isinstance(m, nn.Dropout)]
    ids = torch.randint(2, 48, (3, 9), generator=torch_generator(0, "ids"))
    with torch.no_grad():
        assert torch.equal(state.policy.train()(ids), state.policy.eval()(ids))
    responses = sample(state.policy, prompts, copies=2, n_tokens=8, seed=0)
    for estimate in measure_kl(state.policy, ref, responses):
        assert torch.equal(estimate, torch.zeros_like(estimate))
    before = [p.clone() for p in ref.parameters()]
    for _ in range(2):
        ppo_step(state, ref, LikesToken(), prompts, cfg, n_tokens=8, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, ref.parameters(), strict=True))
    assert all(p.grad is None for p in ref.parameters())
    assert not all(
        torch.equal(a, b) for a, b in zip(before, state.policy.parameters(), strict=True)
    )


@torch.no_grad()
def test_measured_kl_has_the_sign_and_direction_of_the_closed_form(tiny_llama, ragged_prompts):
    policy, ref = tiny_llama(10, scale=20.0), tiny_llama(11, scale=20.0)
    prompts = ragged_prompts(5, [3, 3, 3, 3])
    made = sample(policy, prompts, n_tokens=1, seed=0, copies=500)
    p, q = (m.logits(m(prompts.ids)[:, -1]).double().softmax(-1) for m in (policy, ref))
    forward, reverse = ((a * (a / b).log()).sum(-1) for a, b in ((p, q), (q, p)))
    assert bool(((forward - reverse).abs() > 0.1).any())
    table = measure_kl(policy, ref, made)
    torch.testing.assert_close(
        table.exact.view(4, 500)[:, 0], forward, rtol=10 * FP32, atol=10 * FP32
    )
    ratio = (p.log() - q.log()).repeat_interleave(500, 0).gather(1, made.ids)[:, 0]
    torch.testing.assert_close(table.k1, ratio, rtol=10 * FP32, atol=10 * FP32)
    torch.testing.assert_close(table.k2, ratio**2 / 2, rtol=100 * FP32, atol=10 * FP32)
    k3 = 1 / ratio.exp() - 1 + ratio
    torch.testing.assert_close(table.k3, k3, rtol=100 * FP32, atol=10 * FP32)
    # Over several tokens it is the sum and not the mean: the first token alone costs `forward`.
    longer = sample(policy, prompts, n_tokens=6, seed=0, copies=100)
    assert float(measure_kl(policy, ref, longer).exact.mean()) > 2 * float(forward.mean())


# --- PPO ------------------------------------------------------------------------------------------


def test_advantages_are_whitened_over_the_whole_batch(tiny_llama, ragged_prompts, monkeypatch):
    cfg = ppo.Settings(steps=2, batch=32, minibatches=4, eval_prompts=4)
    parts = []
    loss = losses.clipped_policy_loss

    def recording(new, old, advantages, mask, **settings):
        parts.append(advantages[mask].double())
        return loss(new, old, advantages, mask, **settings)

    monkeypatch.setattr(losses, "clipped_policy_loss", recording)
    state, ref = ppo_state(tiny_llama, cfg), tiny_llama(5, scale=4.0)
    ppo_step(state, ref, LikesToken(), ragged_prompts(5, [3, 6, 4, 2]), cfg, n_tokens=8, seed=0)
    assert len(parts) == 4
    whole = torch.cat(parts)
    assert float(whole.mean()) == pytest.approx(0, abs=FP32)
    assert float(whole.std(correction=0)) == pytest.approx(1, abs=10 * FP32)
    assert max(abs(float(part.mean())) for part in parts) > 0.01, "minibatches were whitened"


def test_values_and_their_clip_are_in_units_of_the_normalised_score(
    tiny_llama, ragged_prompts, reward_model
):
    prompts = ragged_prompts(5, [3, 6, 4, 2])
    base = sample(tiny_llama(5, scale=4.0), prompts, n_tokens=8, seed=9, copies=16)
    # The same ranking in other units: raw scores a hundred times as wide, around another zero.
    wide = ScalarHeadModel(tiny_llama(20)).eval()
    with torch.no_grad():
        wide.head.weight.copy_(100 * reward_model.head.weight)
        wide.head.bias.copy_(100 * reward_model.head.bias + 700)
    cfg = ppo.Settings(
        steps=2, batch=16, minibatches=4, ppo_epochs=2, value_lr=0.05, value_clip=0.1,
        eval_prompts=4, max_update_kl_token_nats=10.0,
    )  # fmt: skip

    def first_steps(scorer):
        state, ref = ppo_state(tiny_llama, cfg), tiny_llama(5, scale=4.0)
        return [ppo_step(state, ref, scorer, prompts, cfg, n_tokens=8, seed=0) for _ in range(2)]

    narrow, broad, raw = (
        first_steps(RewardModelScorer(model, *units))
        for model, units in (
            (reward_model, mean_std(raw_scores(reward_model, base))),
            (wide, mean_std(raw_scores(wide, base))),
            (wide, (0.0, 1.0)),
        )
    )
    for a, b in zip(narrow, broad, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    assert raw[0]["value_loss"] > 1e3 * narrow[0]["value_loss"], "without units it would matter"


def test_optimizers_have_the_documented_epsilon_and_linear_decay(
    tiny_llama, ragged_prompts, reward_model, responses, monkeypatch
):
    cfg = ppo.Settings(
        steps=5, batch=8, minibatches=2, lr=2e-3, value_lr=4e-3, warmup_steps=2, eval_prompts=4
    )
    state, ref = ppo_state(tiny_llama, cfg), tiny_llama(5, scale=4.0)
    rates = []
    for _ in range(cfg.steps):
        ppo_step(state, ref, LikesToken(), ragged_prompts(5, [3, 6, 4, 2]), cfg, n_tokens=6, seed=0)
        rates.append([o.param_groups[0]["lr"] for o in (state.policy_opt, state.value_opt)])
    assert [o.param_groups[0]["eps"] for o in (state.policy_opt, state.value_opt)] == [1e-5, 1e-5]
    # To a tenth, were there one step more; the first of two warm-up steps at half the rate.
    shares = np.linspace(1, 0.1, cfg.steps + 1)[:-1]
    shares[0] *= 0.5
    np.testing.assert_allclose(rates, shares[:, None] * [cfg.lr, cfg.value_lr], rtol=1e-12)

    made = []

    class Recording(torch.optim.AdamW):
        def __init__(self, parameters, **settings):
            super().__init__(parameters, **settings)
            self.rates: list[float] = []
            made.append(self)

        def step(self, closure=None):
            self.rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    first = torch.arange(0, 24, 6).repeat(5) + torch.arange(5).repeat_interleave(4)
    pairs = TrainingPairs(responses, first, first + 1, torch.ones(20))
    log = train_reward_model(
        reward_model.train(), pairs, epochs=10, lr=1e-3, batch_prompts=1, weight_decay=0.0, seed=0,
        validate=dict, progress=lambda done, total: None,
    )  # fmt: skip
    (optimizer,) = made
    assert optimizer.param_groups[0]["eps"] == 1e-5 and log.steps == 40
    decay = np.linspace(1, 0, 41)[:-1]
    decay[0] *= 0.5  # 5 % of 40 steps: the first of two warm-up steps
    np.testing.assert_allclose(optimizer.rates, 1e-3 * decay, rtol=1e-12)


def test_epsilon_is_outside_the_corrected_root_as_in_pytorch():
    # PyTorch: m̂ / (√v̂ + ε). TensorFlow's ε̂ adds to √v before the correction, which for small
    # gradients makes the first step √(1 − β₂) as large.
    p, g = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)), 1e-6
    p.grad = torch.full_like(p, g)
    torch.optim.Adam([p], lr=1.0, eps=1e-5).step()
    assert -float(p.detach()) == pytest.approx(g / (g + 1e-5), rel=1e-9)
    root = math.sqrt(1 - 0.999)
    assert -float(p.detach()) > 20 * root * g / (root * g + 1e-5)


# --- data: units, splits, sizes -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gold", "proxy"])
def test_scores_have_mean_0_and_std_1_under_the_initial_policy(run, name, tmp_path):
    calibration = run.folders["calibration"]
    base = load_responses(calibration / "responses.npz")
    policy = checkpoints.load_lm(run.run.world.policy)
    torch.testing.assert_close(score_logprobs(policy, base), base.logprobs, rtol=0, atol=10 * FP32)
    scorer = load_scorer(run.folders[name], Place(calibration, run.world, "cpu"))
    scores = scorer.score(base)
    assert float(scores.double().mean()) == pytest.approx(0, abs=FP32)
    assert float(scores.double().std(correction=0)) == pytest.approx(1, abs=FP32)
    # The units travel with the weights.
    scorer.save(tmp_path, {})
    again = load_scorer(tmp_path, Place(calibration, run.world, "cpu"))
    assert (again.mean, again.std) == (scorer.mean, scorer.std) != (0.0, 1.0)
    assert torch.equal(again.score(base), scores)


def test_every_stage_reads_prompts_of_its_own_splits(run):
    split_of = {}
    for split, (start, stop) in {s: run.world.bounds(s) for s in SPLITS}.items():
        prompts = run.world.prompts(split, stop - start)
        for ids, mask in zip(prompts.ids, prompts.mask, strict=True):
            split_of[tuple(ids[mask].tolist())] = split
    assert len(split_of) == len(run.world.texts)
    longest = max(map(len, split_of))

    def split(tokens):
        starts = (tokens[:n] for n in range(longest, 0, -1))
        return next(split_of[start] for start in starts if start in split_of)

    # The calibration responses answer prompts of the validation split.
    expected = {
        "gold": {"gold", "validation"}, "comparisons": {"train", "validation"},
        "proxy": {"train", "validation"}, "pool": {"eval"}, "scores": {"eval"},
        "ppo": {"rl", "eval"}, "ppo_gold": {"eval"},
    }  # fmt: skip
    for stage, splits in expected.items():
        assert {split(tokens) for tokens in run.read[stage]} == splits, stage


def test_validation_is_split_by_prompt(run):
    ids, texts = {}, {}
    for name in ("train", "validation"):
        made = load_responses(run.folders["comparisons"] / f"{name}.npz")
        pairs = files.load_arrays(run.folders["labels"] / f"{name}.npz")
        sides = [made.prompts.prompt_id[torch.from_numpy(pairs[s])] for s in ("chosen", "rejected")]
        assert torch.equal(*sides)
        ids[name] = set(sides[0].tolist())
        texts[name] = {run.world.texts[i] for i in ids[name]}
    assert not ids["train"] & ids["validation"] and not texts["train"] & texts["validation"]
    assert len(ids["validation"]) == N_VALIDATION


def test_no_pair_is_dropped_on_the_way(run):
    pairs = files.load_arrays(run.folders["labels"] / "train.npz")
    made = load_responses(run.folders["comparisons"] / "train.npz")
    assert all(len(pairs[name]) == N_PAIRS for name in ("chosen", "rejected", "flipped"))
    in_pairs = torch.from_numpy(np.union1d(pairs["chosen"], pairs["rejected"]))
    longest = made.length[in_pairs] == made.mask.shape[1]
    assert bool(longest.any()), "no response of the greatest length is among the pairs"
    training = files.load_json(run.folders["proxy"] / "training.json")
    assert training["pairs_seen"] == EPOCHS * N_PAIRS
    assert training["n_pairs"] == N_VALIDATION * 6
    trained_on = {tuple(sequence(made, i)) for i in in_pairs.tolist()}
    assert trained_on <= run.read["proxy"]


def test_what_does_not_fit_is_an_error_and_not_dropped(run, tmp_path):
    world = run.world
    start, _ = world.bounds("eval")
    long = list(world.texts)
    long[start] += " and then he saw a cat" * 12
    with pytest.raises(DataError, match=rf"\(line {start + 1}\) has \d+ tokens, at most 48 fit"):
        stories.StoriesWorld(tuple(long), world.tokenizer).prompts("eval", 1)
    made = load_responses(run.folders["comparisons"] / "validation.npz")
    with pytest.raises(DataError, match=r"n_pairs = 61: .* 60"):
        label_pairs(
            made, torch.zeros(len(made)), copies=4, n_pairs=61, rule="argmax", flip_rate=0.0, seed=0
        )
    with pytest.raises(DataError, match="copies = 3"):
        label_pairs(
            made, torch.zeros(len(made)), copies=3, n_pairs=6, rule="argmax", flip_rate=0.0, seed=0
        )


def test_equal_responses_are_a_tie_that_a_coin_decides(run):
    calibration = run.folders["calibration"]
    pool = load_responses(run.folders["pool"] / "responses.npz")
    gold = load_scorer(run.folders["gold"], Place(calibration, run.world, "cpu"))
    # Every response beside a copy of itself, among mates of other lengths.
    rows = torch.arange(len(pool)).repeat_interleave(2)
    twins = pool.select(rows)
    pairs = label_pairs(
        twins, gold.score(twins), copies=2, n_pairs=len(pool), rule="argmax", flip_rate=0.0, seed=0
    )
    assert len(pairs) == len(pool)
    assert not bool(pairs.gold_margin.any())
    first = float((pairs.chosen < pairs.rejected).double().mean())
    assert abs(first - 0.5) < 4 * 0.5 / len(pool) ** 0.5
