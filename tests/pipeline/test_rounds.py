"""Retraining in rounds on a small world: whose responses are labelled, at what budget, and when."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hf_checkpoints import write_checkpoint
from small_smoke import prompts_file

from overopt.base.config import RuntimeConfig
from overopt.base.errors import ConfigError
from overopt.base.files import load_arrays, load_json, load_tensors, save_tensors
from overopt.engine.execute import execute
from overopt.engine.graph import topological
from overopt.engine.progress import Silent
from overopt.engine.store import Store
from overopt.methods import ppo as ppo_method
from overopt.nets.checkpoints import backbone_state, load_lm, load_policy
from overopt.nets.sampling import score_logprobs
from overopt.records.curves import load_curves
from overopt.rewards.kind import Place
from overopt.rewards.load import load_scorer
from overopt.rewards.settings import RewardConfig
from overopt.stages.common import load_responses
from overopt.stages.rounds import RoundMethodStage
from overopt.stages.settings import BonConfig, Experiment, RoundsConfig
from overopt.study.chain import build_graph
from overopt.study.collect import collect
from overopt.study.presets import load_experiment
from overopt.worlds.load import load_world

N_PAIRS, K_RESPONSES, STEPS, BATCH = 60, 4, 4, 8
SMALL = [
    "gold.kind=rubric", f"labels.n_pairs={N_PAIRS}", "labels.n_validation_prompts=8",
    "labels.label_flip_rate=0.2", "proxy.backbone=ladder:0.05m", "bon=none",
    f"method.steps={STEPS}", f"method.batch={BATCH}", "method.eval_prompts=3",
    "method.eval_every=3", "world.max_response_tokens=24",
]  # fmt: skip
ALL_ON = {"rm": "carry_on", "policy": "carry_on"}
ROUNDS = {
    "2 rounds": RoundsConfig(k=2),
    "2 rounds, newest data, proxy carried on, policy carried on": RoundsConfig(
        k=2, data="take_last", **ALL_ON
    ),
    "3 rounds, proxy carried on, policy carried on, WCO of 2": RoundsConfig(k=3, **ALL_ON),
    "2 rounds, proxy carried on, mean of 2 by heads": RoundsConfig(k=2, rm="carry_on"),
}
RESTART, CARRY_ON, ENSEMBLE, HEADS = ROUNDS


def computed(stages, store):
    execute(stages, store, RuntimeConfig(quiet=True), workers=1, reporter=Silent())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs by name, the store that holds them, and curves by method and name."""
    folder = tmp_path_factory.mktemp("rounds")
    small = [prompts_file(folder / "prompts.jsonl"), *SMALL]
    base = load_experiment("smoke", small).runs[0]
    runs = {name: replace(base, rounds=rounds) for name, rounds in ROUNDS.items()}
    bon = BonConfig(n_prompts=3, pool_size=16, ns=(1, 4, 16))
    runs[RESTART] = replace(runs[RESTART], bon=bon)
    worst = RewardConfig(members=2, combine="worst_case")
    runs[ENSEMBLE] = replace(runs[ENSEMBLE], reward=worst)
    runs[HEADS] = replace(runs[HEADS], reward=RewardConfig(members=2, members_by="heads"))
    experiment = Experiment(name="rounds", runs=tuple(runs.values()))
    store = Store(folder / "store")
    computed(build_graph(experiment), store)
    curves = load_curves(collect(experiment, store, folder / "results"))
    return runs, store, {(c.meta["method"], c.meta["mitigation"]): c for c in curves}


def end_of(run):
    """The PPO curve's stage."""
    return build_graph(Experiment(name="one", runs=(run,)))[-1]


def of_kind(end, name):
    """Stages of one kind behind a curve, in the order of rounds."""
    return [stage for stage in topological([end]) if stage.name == name]


def path(store, stage):
    return store.open(stage.name, stage.fingerprint).path


def test_every_rule_is_recorded_under_its_name(finished):
    runs, _, curves = finished
    assert set(curves) == {("ppo", name) for name in runs} | {("bon", RESTART)}
    for (_, name), curve in curves.items():
        assert set(curve["rounds"]) == {ROUNDS[name].k}


def test_one_round_is_the_plain_run_and_the_first_of_two_is_that_of_half_the_pairs(finished):
    runs, _, _ = finished
    plain = replace(runs[CARRY_ON], rounds=RoundsConfig())
    names = [(stage.name, stage.label) for stage in topological([end_of(plain)])]
    assert not any(name == "round_data" or "round" in label for name, label in names)
    half = end_of(replace(plain, labels=replace(plain.labels, n_pairs=N_PAIRS // 2)))
    two = end_of(runs[RESTART])
    for name in ("proxy", "ppo"):
        assert of_kind(two, name)[0].fingerprint == of_kind(half, name)[0].fingerprint
        assert len({stage.fingerprint for stage in of_kind(two, name)}) == 2


def test_a_sweep_over_the_number_of_rounds_shares_its_beginnings(finished):
    two = finished[0][RESTART]
    three = replace(
        two, rounds=RoundsConfig(k=3), labels=replace(two.labels, n_pairs=N_PAIRS * 3 // 2)
    )
    of_two, of_three = ([s.fingerprint for s in of_kind(end_of(r), "ppo")] for r in (two, three))
    assert of_three[:2] == of_two and len(of_three) == 3


def test_a_policy_that_restarts_is_recorded_in_its_last_round(finished):
    curve = finished[2]["ppo", RESTART]
    assert list(curve["value"]) == [0, 3, 4] and set(curve["round"]) == {2}
    assert curve["kl_seq_nats"][0] == 0 < curve["kl_seq_nats"][-1]


@pytest.mark.parametrize(
    ("name", "steps", "rounds"),
    [(CARRY_ON, [0, 2, 3, 4], [1, 1, 2, 2]), (ENSEMBLE, [0, 1, 2, 3, 4], [1, 1, 2, 3, 3])],
)
def test_a_policy_that_is_carried_on_has_one_curve(finished, name, steps, rounds):
    runs, store, curves = finished
    curve = curves["ppo", name]
    assert list(curve["value"]) == steps and list(curve["round"]) == rounds
    assert curve["kl_seq_nats"][0] == 0 and np.all(curve["kl_seq_nats"][1:] > 0)
    end = end_of(runs[name])
    log = load_json(path(store, end.upstream["ppo"]) / "log.json")
    assert len(log) == STEPS
    assert curve.rows[-1]["entropy_token_nats"] == log[-1]["entropy_token_nats"]
    # A gain is paired: both scores are those of the row's own proxy, and normalised as it is.
    calibration = path(store, end.upstream["calibration"])
    first = path(store, end.upstream["ppo_01"]) / "eval-00000.npz"
    for row in curve.rows:
        role = "" if row["round"] == runs[name].rounds.k else f"_{row['round']:02d}"
        folder = path(store, end.upstream[f"ppo{role}"])
        proxy_stage = end.upstream[f"proxy{role}"]
        proxy = load_scorer(
            path(store, proxy_stage), Place(calibration, load_world(runs[name].world), "cpu")
        )
        score, start = (
            float(proxy.score(load_responses(file)).double().mean())
            for file in (folder / f"eval-{row['value']:05d}.npz", first)
        )
        assert row["proxy_score"] == pytest.approx(score, abs=1e-6)
        assert row["proxy_gain"] == pytest.approx(score - start, abs=1e-6)
        assert row["proxy_raw"] == pytest.approx(score * proxy.unit.std + proxy.unit.mean, abs=1e-5)
        training = load_json(path(store, proxy_stage) / "training.json")
        assert row["proxy_val_loss"] == training["loss"]


def test_the_budget_is_exact(finished):
    runs, store, curves = finished
    for (method, name), curve in curves.items():
        run = runs[name]
        end = end_of(run)
        is_last_only = run.rounds.data == "take_last"
        folders = [of_kind(end, "labels")[0], *of_kind(end, "round_data")]
        pairs, responses = [], []
        for stage in folders:
            a = load_arrays(path(store, stage) / "train.npz")
            pairs.append(len(a["chosen"]))
            responses.append(len(np.union1d(a["chosen"], a["rejected"])))
        total_pairs, total = ((sum(x) if is_last_only else x[-1]) for x in (pairs, responses))
        assert total_pairs == N_PAIRS
        if run.rounds.k == 2:
            assert total == N_PAIRS // 6 * K_RESPONSES  # whole prompts, as in one round
        assert curve.rows[-1]["gold_labels"] == total
        assert all(r["gold_labels"] * run.rounds.k == total * r["round"] for r in curve.rows)
        steps = sum(
            stage.config.method.steps / (run.rounds.k if run.rounds.policy == "carry_on" else 1)
            for stage in of_kind(end, "ppo")
        )
        assert steps == STEPS * (1 if run.rounds.policy == "carry_on" else run.rounds.k)
        models = 2 if name == ENSEMBLE else 1
        for row in curve.rows:
            earlier = 0 if run.rounds.policy == "carry_on" else STEPS * BATCH
            own = row["value"] * (BATCH if method == "ppo" else row["n_prompts"])
            assert row["rm_calls"] == (earlier + own) * models


@pytest.mark.parametrize("name", ROUNDS)
def test_labelled_responses_are_those_of_the_last_rounds_policy(finished, name):
    runs, store, _ = finished
    run, end = runs[name], end_of(runs[name])
    initial = load_lm(run.world.policy)
    n_prompts = run.labels_per_round.n_prompts
    seen = load_responses(path(store, of_kind(end, "comparisons")[0]) / "train.npz")
    used = set(seen.prompts.prompt_id[: n_prompts * K_RESPONSES].tolist())
    for data, ppo in zip(of_kind(end, "round_data"), of_kind(end, "ppo"), strict=False):
        assert data.upstream["policy"] is ppo or data.upstream["policy"].fingerprint == (
            ppo.fingerprint
        )
        responses = load_responses(path(store, data) / "train.npz")
        fresh = responses.select(slice(-n_prompts * K_RESPONSES, None))
        policy = load_policy(run.world.policy, path(store, ppo) / "policy.safetensors")
        with torch.no_grad():
            own, other = (score_logprobs(p, fresh) for p in (policy, initial))
        assert float((own - fresh.logprobs).abs().max()) < 1e-4
        assert float((other - fresh.logprobs).abs().max()) > 1e-2
        ids = set(fresh.prompts.prompt_id.tolist())
        assert len(ids) == n_prompts and not ids & used
        used |= ids


@pytest.mark.parametrize("name", ROUNDS)
def test_data_of_all_rounds_or_of_the_newest_reach_the_proxy(finished, name):
    runs, store, _ = finished
    run, end = runs[name], end_of(runs[name])
    n_rows = run.labels_per_round.n_prompts * K_RESPONSES
    n_pairs = run.labels_per_round.n_pairs
    first = path(store, of_kind(end, "comparisons")[0])
    first_labels = path(store, of_kind(end, "labels")[0])
    before = load_responses(first / "train.npz").select(slice(0, n_rows)), n_pairs
    before_labels = load_arrays(first_labels / "train.npz")
    for data in of_kind(end, "round_data"):
        responses, labels = (
            f(path(store, data) / "train.npz") for f in (load_responses, load_arrays)
        )
        gold = load_arrays(path(store, data) / "train_gold.npz")["gold"]
        if run.rounds.data == "take_last":
            assert (len(responses), len(labels["chosen"])) == (n_rows, n_pairs)
        else:
            kept, n_before = before
            assert (len(responses), len(labels["chosen"])) == (
                len(kept) + n_rows,
                n_before + n_pairs,
            )
            torch.testing.assert_close(responses.ids[: len(kept)], kept.ids, rtol=0, atol=0)
            for key in ("chosen", "rejected", "flipped", "gold_margin"):
                np.testing.assert_array_equal(labels[key][:n_before], before_labels[key])
            assert labels["chosen"][n_before:].min() >= len(kept)
            before, before_labels = (responses, n_before + n_pairs), labels
        prompt = responses.prompts.prompt_id.numpy()
        chosen, rejected = labels["chosen"], labels["rejected"]
        np.testing.assert_array_equal(prompt[chosen], prompt[rejected])
        sign = np.where(labels["flipped"], -1, 1)
        np.testing.assert_allclose(
            gold[chosen] - gold[rejected], sign * labels["gold_margin"], atol=1e-6
        )
        held_out = load_arrays(path(store, data) / "validation.npz")
        for folder in (first, first_labels):
            for key, value in load_arrays(folder / "validation.npz").items():
                np.testing.assert_array_equal(held_out[key], value)
        assert load_arrays(path(store, data) / "train.npz").keys() == held_out.keys()


def test_a_proxy_that_is_carried_on_starts_as_the_last_one_and_another_does_not(finished):
    runs, store, _ = finished
    for name, kind in ((CARRY_ON, "proxy"), (ENSEMBLE, "proxy"), (HEADS, "heads")):
        stage = of_kind(end_of(runs[name]), kind)[-1]
        assert stage.upstream["start"].config == stage.config  # member i from member i
        slow = replace(stage, config=replace(
            stage.config, proxy=replace(stage.config.proxy, lr=1e-9)
        ))  # fmt: skip
        fresh = replace(slow, upstream={k: v for k, v in slow.upstream.items() if k != "start"})
        computed([slow, fresh], store)
        start, kept, other = (
            load_tensors(path(store, s) / "model.safetensors")
            for s in (stage.upstream["start"], slow, fresh)
        )
        assert all((kept[k] - start[k]).abs().max() < 1e-6 for k in start)
        assert any((other[k] - start[k]).abs().max() > 1e-3 for k in start)


def test_with_an_unchanged_proxy_a_carried_policy_is_the_uninterrupted_run(finished):
    """Optimizers, value model, schedule and random numbers go on across the boundary."""
    runs, store, _ = finished
    whole = of_kind(end_of(runs[RESTART]), "ppo")[0]
    first, second = of_kind(end_of(runs[CARRY_ON]), "ppo")
    assert first.upstream["proxy"].fingerprint == whole.upstream["proxy"].fingerprint
    second = replace(second, upstream=second.upstream | {"proxy": first.upstream["proxy"]})
    computed([second], store)
    a, b = (load_tensors(path(store, s) / "policy.safetensors") for s in (whole, second))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert load_json(path(store, whole) / "log.json") == load_json(path(store, second) / "log.json")


def test_a_killed_round_ends_like_an_uninterrupted_one(finished, tmp_path, monkeypatch):
    runs, store, _ = finished
    second = of_kind(end_of(runs[CARRY_ON]), "ppo")[1]
    shutil.copytree(store.root, tmp_path / "store")
    broken = Store(tmp_path / "store")
    shutil.rmtree(path(broken, second))
    step = ppo_method.step

    def dies(state, *args, **kwargs):
        if state.step == STEPS - 1:
            raise KeyboardInterrupt
        return step(state, *args, **kwargs)

    monkeypatch.setattr(ppo_method, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        computed([second], broken)
    monkeypatch.setattr(ppo_method, "step", step)
    assert not broken.has(second.name, second.fingerprint)
    computed([second], broken)
    manifest = broken.open(second.name, second.fingerprint).manifest
    assert manifest["resumed"]
    for file in path(store, second).iterdir():
        if file.name != "manifest.json":
            assert file.read_bytes() == (path(broken, second) / file.name).read_bytes(), file.name


@pytest.mark.parametrize("kind", ["ladder", "gpt2", "gpt_neox"])
def test_any_policy_is_read_back_as_it_was_written(tmp_path, kind):
    source = "ladder:0.05m" if kind == "ladder" else str(write_checkpoint(tmp_path / kind, kind))
    policy, weights = load_lm(source), tmp_path / "policy.safetensors"
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.01)
    save_tensors(weights, backbone_state(policy))
    ids = torch.tensor([[5, 9, 2, 30]])
    again = load_policy(source, weights)
    with torch.no_grad():
        logits = [model.logits(model(ids)) for model in (policy, again, load_lm(source))]
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


def test_gold_reaches_ppo_as_labels_only(finished):
    for run in finished[0].values():
        stack = [stage for stage in topological([end_of(run)]) if stage.name == "ppo"]
        assert len(stack) == run.rounds.k
        while stack:
            stage = stack.pop()
            assert stage.name != "gold"
            if stage.name not in ("labels", "comparisons", "round_data"):
                stack += stage.upstream.values()


def test_each_step_is_evaluated_once():
    method = load_experiment("quick").runs[0].method
    for k in (1, 2, 3, 7):
        parts = [
            RoundMethodStage(world=None, method=method, round=j, k=k, root_seed=0).evaluation_steps
            for j in range(1, k + 1)
        ]
        steps = [step for part in parts for step in part]
        ends = {method.steps * j // k for j in range(1, k + 1)}
        assert steps == sorted(set(steps)) and set(steps) == {*method.evaluation_steps, *ends}
        assert [part[-1] for part in parts] == sorted(ends)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["rounds.k=0"], "rounds.k = 0: must be at least 1"),
        (["rounds.policy=carry_on"], "rounds.policy = 'carry_on': has no effect on rounds.k = 1"),
        (["rounds.k=2", "method=none"], "rounds.k = 2: .* set method.kind"),
        (["rounds.k=2", "proxy.kind=gold"], "rounds.k = 2: .* use proxy.kind=bradley_terry"),
        (["rounds.k=3", "labels.n_pairs=17"], "labels.n_pairs = 17: .* use at least 18"),
        (["rounds.k=5", "rounds.policy=carry_on"], "rounds.k = 5: .* method.steps"),
        (
            ["rounds.k=2", "rounds.rm=carry_on", "proxy.length_control=1"],
            "rounds.rm = 'carry_on': .* rounds.rm=restart",
        ),
        (["rounds.k=2", "labels.n_pairs=5e5"], "labels.n_pairs = 500000: needs .* prompts"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_graph(load_experiment("smoke", settings))
