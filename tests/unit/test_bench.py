"""The bench harness: rows, limits, peers that fail, the report and its picture. No TRL in here."""

import json
import math
import subprocess
import sys
import textwrap
import time
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from overopt.base.datatypes import Prompts
from overopt.base.errors import ConfigError
from overopt.base.kinds import names
from overopt.base.seeding import torch_generator
from overopt.bench import harness, method_run, peers, ppo_task, sampling_at_size, suite
from overopt.bench.groups import (
    estimators,
    mfu,
    pairs,
    peer_methods,
    pool,
    ppo_defaults,
    reward,
    scoring,
    stacked,
)
from overopt.bench.groups import methods as methods_group
from overopt.bench.groups import ppo as ppo_group
from overopt.bench.harness import BenchError, make_row
from overopt.bench.names import DEFAULT_GROUPS, GROUPS, module_of
from overopt.bench.opponent import PeerSource
from overopt.bench.peers import Peer, environment_python
from overopt.bench.ppo_task import PpoTask
from overopt.bench.report import bench
from overopt.bench.setting import Setting
from overopt.bench.sizes import SMOLLM2_135M, Sizes
from overopt.methods.ppo import Settings
from overopt.nets.checkpoints import load_lm
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.llama import Llama
from overopt.reports.figures import speed
from overopt.rewards import scorer
from overopt.rewards.kinds.reward_model import RewardModelScorer

HERE = Path(sys.executable)
NO_PEER = PeerSource(None, "nobody asked for it")

WORKER = """
import json, sys, time
job = json.loads(sys.argv[1])
print(json.dumps({"ready": {"peer": "1.0"}}), flush=True)
for step in range(job["steps"]):
    if sys.stdin.readline().strip() != "step":
        sys.exit("out of turn")
    {body}
    print(json.dumps({"step": {"cpu_s": 0.25, "wall_s": 9.0, "loss": {loss}}}), flush=True)
if sys.stdin.readline().strip() == "finish":
    print(json.dumps({"done": {}}), flush=True)
"""


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """A function that makes peers run a stand-in; ``body`` is executed before each answer."""

    def install(body: str = "pass", loss: str = "0.5") -> Path:
        path = tmp_path / "worker.py"
        path.write_text(WORKER.replace("{body}", body).replace("{loss}", loss), encoding="utf-8")
        monkeypatch.setattr(peers, "WORKER", path)
        return path

    return install


# --- rows -----------------------------------------------------------------------------------------


def test_row_states_medians_ratio_and_verdict():
    row = make_row("a", [3.0, 1.0, 2.0], [8.0, 2.0, 6.0], target=3.0)
    assert (row["seconds"], row["reference_seconds"], row["ratio"]) == (2.0, 6.0, 3.0)
    assert row["met"] is True and row["samples"] == [3.0, 1.0, 2.0]
    assert make_row("a", [2.0], [5.9], target=3.0)["met"] is False
    assert set(row) == set(harness.ROW_FIELDS)


def test_row_without_reference_has_a_reason_and_no_verdict():
    row = make_row("a", [1.0], None, target=3.0, reason="no network")
    assert row["ratio"] is None and row["met"] is None and row["reason"] == "no network"
    assert "not measured: no network" in harness.table([row])


def test_unknown_field_of_a_row_is_an_error():
    with pytest.raises(BenchError, match="'row 'a' has unknown|unknown fields \\['speed'\\]"):
        harness.complete({"name": "a", "speed": 3})


def test_failing_benchmark_leaves_its_reason():
    def fail():
        raise RuntimeError("no such kernel")

    rows = harness.rows_or_reason(("a", "b"), fail)
    assert [r["name"] for r in rows] == ["a", "b"]
    assert all(r["reason"] == "RuntimeError: no such kernel" for r in rows)


def test_sides_take_turns_after_one_untimed_call():
    calls: list[str] = []
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = harness.interleaved(sides, 3)
    assert "".join(calls) == "ab" * 4
    assert all(len(s) == 3 and min(s) >= 0 for s in seconds.values())


# --- the machine's limit --------------------------------------------------------------------------


def counted_products(run) -> int:
    """Floating-point operations of the matrix products that torch itself counts in ``run``."""
    with FlopCounterMode(display=False) as counter:
        run()
    ops = counter.get_flop_counts()["Global"]
    return sum(n for op, n in ops.items() if str(op) in ("aten.mm", "aten.addmm"))


def test_products_are_those_of_the_network(tiny_llama):
    model = tiny_llama(0).train()
    ids = torch.randint(2, 48, (3, 10), generator=torch_generator(0, "ids"))

    def train():
        model.logits(model(ids)).sum().backward()

    forward = harness.forward_products(model.cfg, ids.numel(), n_logits=ids.numel())
    both = harness.training_products(model.cfg, ids.numel(), n_logits=ids.numel())
    with torch.no_grad():
        assert counted_products(lambda: model.logits(model(ids))) == sum(p.flops for p in forward)
    assert counted_products(train) == sum(p.flops for p in both)


def test_products_read_at_one_position_are_those_of_a_reward_model(tiny_llama):
    model = tiny_llama(0)
    ids = torch.randint(2, 48, (3, 10), generator=torch_generator(0, "ids"))
    length = torch.full((3,), 10)
    read = harness.forward_products(model.cfg, ids.numel(), n_read=len(ids))
    with torch.no_grad():
        counted = counted_products(lambda: model.at_last_token(ids, length))
    assert counted == sum(p.flops for p in read)
    assert counted < sum(p.flops for p in harness.forward_products(model.cfg, ids.numel()))


def test_runner_computes_every_product(monkeypatch):
    done = []
    monkeypatch.setattr(torch, "mm", lambda x, w, out: done.append((*x.shape, w.shape[1])))
    products = [harness.Product(4, 3, 2, 2), harness.Product(5, 1, 6)]
    harness.product_runner(products, torch_generator(0, "products"))()
    assert done == [(4, 3, 2), (4, 3, 2), (5, 1, 6)]


def test_ppo_products_count_what_a_step_does(tiny_llama):
    cfg = tiny_llama(0).cfg
    ppo = Settings(batch=8, ppo_epochs=3, minibatches=2, kl_coef=0.1)
    n_prompt, n_tokens = 5, 4
    made = ppo_group.ppo_products(cfg, cfg, cfg, ppo, n_prompt=n_prompt, n_tokens=n_tokens)
    d, h, prompt, response, every = 16, 24, 8 * n_prompt, 8 * n_tokens, 8 * (n_prompt + n_tokens)
    keys, rest, head = 2 * (2 * d * d), 2 * (2 * d * d + 3 * d * h), 2 * d * 48

    def flops(n, n_read):  # two blocks; the first works everywhere, the second where it is read
        return n * (2 * keys + rest) + n_read * rest

    rollout = flops(prompt, 8) + flops(response - 8, response - 8) + head * response
    scored = flops(every, 8) + 2 * flops(every, response) + head * response
    update = 3 * (2 * flops(every, response) + head * response)
    assert sum(p.flops for p in made) == rollout + scored + 3 * update


# --- scoring --------------------------------------------------------------------------------------


@pytest.fixture
def tiny_reward_model(tiny_llama):
    model = ScalarHeadModel(tiny_llama(1))
    model.init_head(torch_generator(1, "head"))
    torch.nn.init.constant_(model.head.bias, 0.5)
    return model


SMALL = dict(n_responses=20, n_prompt_tokens=4, max_tokens=9, batch=6, repeats=2)


def test_scoring_compares_equal_scores(tiny_reward_model):
    vs_transformers, vs_products = scoring.scoring_rows(tiny_reward_model, **SMALL)
    assert vs_transformers["ratio"] > 0 and len(vs_transformers["samples"]) == 2
    assert vs_products["against"] == "limit"


def test_scoring_refuses_sides_that_disagree(tiny_reward_model, monkeypatch):
    right = scorer.raw_scores
    monkeypatch.setattr(scoring, "raw_scores", lambda m, r: right(m, r) + 1e-3)
    with pytest.raises(BenchError, match="differ by 0.001"):
        scoring.scoring_rows(tiny_reward_model, **SMALL)


def test_pairs_compare_equal_scores():
    shape = replace(tiny_sizes().model, max_position_embeddings=pairs.LONGEST)
    (row,) = pairs.pair_rows(shape, n_pairs=4, repeats=1)
    assert row["ratio"] > 0 and "4 pairs of 2985" in row["note"]
    # Both sides of (1, 2 | 3), (1, 2 | 4, 5): one beginning of two tokens, padded two by two.
    some = [[[1, 2, 3], [1, 2, 4, 5]], [[7, 8], [7, 9]]]
    assert pairs.positions(some, batch=2) == {"tokens": 11, "prompts_once": 8, "padded": 14}


def test_pairs_refuse_sides_that_disagree(monkeypatch):
    right = pairs.shared_scores
    monkeypatch.setattr(pairs, "shared_scores", lambda *given: right(*given) + 1e-3)
    with pytest.raises(BenchError, match="differ by 0.001"):
        shape = replace(tiny_sizes().model, max_position_embeddings=pairs.LONGEST)
        pairs.pair_rows(shape, n_pairs=4, repeats=1)


# --- peers ----------------------------------------------------------------------------------------


def test_peer_steps_in_turn(worker):
    worker()
    with Peer(HERE, {"kind": "stand-in", "steps": 2}) as peer:
        assert peer.versions == {"peer": "1.0"}
        assert [peer.step()["cpu_s"] for _ in range(2)] == [0.25, 0.25]
        assert peer.finish() == {}


def test_peer_that_fails_is_named_with_its_last_words(worker):
    worker("sys.exit('MemoryError: too large')")
    with (
        Peer(HERE, {"kind": "stand-in", "steps": 2}) as peer,
        pytest.raises(BenchError, match="'stand-in' ended early .* MemoryError: too large"),
    ):
        peer.step()


def test_peer_that_hangs_is_ended(worker):
    worker("time.sleep(60)")
    start = time.perf_counter()
    with (
        Peer(HERE, {"kind": "stand-in", "steps": 1}, timeout_s=2.0) as peer,
        pytest.raises(BenchError, match="no answer in 2 s"),
    ):
        peer.step()
    assert time.perf_counter() - start < 30


def test_environment_that_cannot_be_built_is_named(monkeypatch, tmp_path):
    def no_network(command, **kwargs):
        assert command[-1] == "trl==1.16.0" and any(c.startswith("torch==") for c in command)
        raise subprocess.CalledProcessError(1, command, "", "…\nERROR: no route to the index\n")

    monkeypatch.setattr(peers.venv, "create", lambda *args, **kwargs: None)
    monkeypatch.setattr(peers.subprocess, "run", no_network)
    with pytest.raises(BenchError, match="trl==1.16.0 could not be built .* no route to the index"):
        environment_python(tmp_path, "trl==1.16.0")


def test_finished_environment_is_used_again_and_a_broken_one_is_not(monkeypatch, tmp_path):
    made: list[Path] = []

    def create(home, **kwargs):
        made.append(home)
        (home / "bin").mkdir(parents=True, exist_ok=True)
        (home / "bin" / "python").write_text("", encoding="utf-8")

    monkeypatch.setattr(peers.venv, "create", create)
    monkeypatch.setattr(peers.subprocess, "run", lambda *args, **kwargs: None)
    python = environment_python(tmp_path, "trl==1.16.0")
    assert environment_python(tmp_path, "trl==1.16.0") == python and len(made) == 1
    (python.parents[1] / "installed.txt").unlink()
    environment_python(tmp_path, "trl==1.16.0")
    assert len(made) == 2


# --- training -------------------------------------------------------------------------------------


def tiny_reward_rows(tiny_llama, peer):
    model = tiny_llama(2, scale=2.0, vocab_size=64)
    return reward.reward_rows(model, peer, n_pairs=4, n_tokens=12, repeats=2)


def test_reward_step_without_peer_says_why(tiny_llama):
    vs_trl, vs_products = tiny_reward_rows(tiny_llama, NO_PEER)
    assert vs_trl["seconds"] > 0 and vs_trl["ratio"] is None and vs_trl["met"] is None
    assert vs_trl["reason"] == "nobody asked for it"
    assert len(vs_products["samples"]) == len(vs_products["reference_samples"]) == 2


def test_reward_step_takes_the_seconds_of_the_peer(tiny_llama, worker):
    worker(loss=repr(tiny_reward_rows(tiny_llama, NO_PEER)[0]["details"]["first_loss"]))
    row = tiny_reward_rows(tiny_llama, PeerSource(HERE))[0]
    assert row["reference_samples"] == [0.25, 0.25] and row["reason"] == ""
    assert row["details"]["peer_versions"] == {"peer": "1.0"}


def test_reward_step_refuses_a_peer_with_another_loss(tiny_llama, worker):
    worker(loss="0.123")
    with pytest.raises(BenchError, match="0.123000 with the peer"):
        tiny_reward_rows(tiny_llama, PeerSource(HERE))


def test_peer_that_dies_half_way_leaves_our_side(tiny_llama, worker):
    worker("step == 3 and sys.exit('killed')", loss="None")
    row = tiny_reward_rows(tiny_llama, PeerSource(HERE))[0]
    assert len(row["samples"]) == 2 and row["reference_samples"] == []
    assert "ended early" in row["reason"] and "killed" in row["reason"]


@pytest.fixture(scope="module")
def tiny_task():
    """The smallest rung as policy and proxy, four tokens for prompt and response."""
    reward = ScalarHeadModel(load_lm("ladder:0.05m"))
    reward.init_head(torch_generator(0, "head"))
    ids = torch.randint(2, 4096, (30, 4), generator=torch_generator(0, "ids"))
    prompts = Prompts(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(30))
    return PpoTask(
        lambda: ppo_task.endless(load_lm("ladder:0.05m")),
        RewardModelScorer(reward.eval(), 0.5, 2.0),
        prompts,
        prompts.select(slice(0, 8)),
        4,
    )


def test_ppo_step_without_peer(tiny_task):
    vs_trl, vs_products = ppo_group.ppo_rows(tiny_task, NO_PEER, batch=4, repeats=2)
    assert vs_trl["ratio"] is None and vs_trl["reason"] == "nobody asked for it"
    assert len(vs_trl["samples"]) == 2 and vs_products["ratio"] > 0


def test_ppo_step_takes_the_seconds_of_the_peer(tiny_task, worker):
    worker()
    vs_trl, vs_products = ppo_group.ppo_rows(tiny_task, PeerSource(HERE), batch=4, repeats=2)
    assert vs_trl["reference_samples"] == [0.25, 0.25] and vs_trl["reason"] == ""
    assert vs_trl["details"]["peer_versions"] == {"peer": "1.0"}
    assert 0.25 not in vs_products["reference_samples"]


def test_methods_are_timed_against_ppo_in_turn(tiny_task):
    rows = methods_group.method_rows(tiny_task, {"ppo": 7}, batch=8, repeats=2)
    assert [row["name"] for row in rows] == list(methods_group.NAMES)
    for row in rows:
        assert len(row["samples"]) == len(row["reference_samples"]) == 2
        assert row["ratio"] > 0 and row["details"]["peak_mb"] == {"ppo": 7}


def peer_method_rows(task, peer):
    return peer_methods.peer_rows(task, peer, n_pairs=4, n_responses=8, repeats=1)


def test_peer_methods_without_peer_say_their_losses(tiny_task):
    rows = peer_method_rows(tiny_task, NO_PEER)
    assert [row["name"] for row in rows] == list(peer_methods.NAMES)
    for row in rows:
        assert row["ratio"] is None and row["reason"] == "nobody asked for it"
        assert len(row["samples"]) == 1
    dpo, ipo, grpo, rloo = (row["details"] for row in rows)
    # Policy and reference differ: where they were the same, DPO's loss would be log 2, IPO's 25.
    assert abs(dpo["loss"]["ours"] - math.log(2)) > 1e-4 and abs(ipo["loss"]["ours"] - 25) > 1e-4
    assert grpo["clip_fraction"]["ours"] > 0 and grpo["loss"]["ours"] != 0
    assert rloo["gradient_norm"] == {"ours": rloo["gradient_norm"]["ours"], "peer": None}


def test_peer_methods_refuse_a_peer_with_another_loss(tiny_task, worker):
    worker(loss="0.123")
    with pytest.raises(
        BenchError, match=r"dpo: loss of the same batch is .* and 0.123 with the peer"
    ):
        peer_method_rows(tiny_task, PeerSource(HERE))


def test_peer_methods_take_the_seconds_of_the_peer(tiny_task, worker):
    loss = peer_method_rows(tiny_task, NO_PEER)[0]["details"]["loss"]["ours"]
    worker(loss=repr(loss * (1 + 1e-6)))  # the same to single precision
    with pytest.raises(BenchError, match="ipo: loss"):
        peer_method_rows(tiny_task, PeerSource(HERE))


def test_every_method_makes_steps_on_the_task_and_a_missing_one_is_named(tiny_task):
    for kind in names("overopt.methods"):
        method_run.stepper(kind, tiny_task, batch=16)()
    with pytest.raises(BenchError, match="nothing: its process ended with 1.*unknown"):
        method_run.peak_mb("nothing")


def test_ppo_defaults_report_the_score_they_reach(tiny_task):
    rows = ppo_defaults.ppo_defaults_rows(tiny_task, NO_PEER, batch=4, n_steps=3, n_seeds=2)
    assert [row["name"] for row in rows] == list(ppo_defaults.NAMES)
    for row in rows:
        details = row["details"]
        assert details["n_samples"] == 12
        assert details["proxy_score"] == pytest.approx(sum(details["proxy_score_of_seeds"]) / 2)
        assert details["proxy_score_stderr"] > 0 and row["met"] is None
    scores = [row["details"]["proxy_score"] for row in rows]
    assert scores[0] != scores[1]


def test_endless_policy_fills_every_response(tiny_task):
    from overopt.nets.sampling import sample

    made = sample(tiny_task.policy(), tiny_task.prompts, n_tokens=40, seed=0, copies=8)
    assert bool(made.mask.all()) and not bool(made.ended.any())
    assert bool((made.ids == 1).any())  # the end piece does occur, as a piece like any other


def test_cut_prompts_keep_the_first_real_tokens():
    ids = torch.tensor([[0, 0, 5], [0, 6, 7], [8, 9, 10]])
    cut = ppo_task.cut_prompts(Prompts(ids, ids > 0, torch.arange(3)), 2)
    assert cut.ids.tolist() == [[6, 7], [8, 9]] and cut.prompt_id.tolist() == [1, 2]


# --- the report -----------------------------------------------------------------------------------


@pytest.fixture
def fast_groups(monkeypatch):
    """Stand-ins for two groups: one with a row, one that fails."""
    monkeypatch.setattr(estimators, "run_all", lambda root_seed: [make_row("best", [1.0], [4.0])])

    def fail(*args, **kwargs):
        raise BenchError("the two sides disagree")

    monkeypatch.setattr(scoring, "scoring_rows", fail)
    return ("scoring", "estimators")


def test_report_keeps_the_rows_that_could_be_measured(fast_groups, tmp_path):
    text = bench(
        threads=1,
        device="cpu",
        groups=fast_groups,
        peers=None,
        constraints=None,
        out=tmp_path / "bench",
        say=lambda group: None,
    )
    report = json.loads((tmp_path / "bench" / "bench.json").read_text(encoding="utf-8"))
    suite.check_report(report)
    assert [r["name"] for r in report["rows"]] == ["best", *scoring.NAMES]
    assert report["rows"][0]["ratio"] == 4.0
    assert "the two sides disagree" in report["rows"][1]["reason"]
    assert "not measured: BenchError: the two sides disagree" in text
    assert (tmp_path / "bench" / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_peer_environment_failure_is_in_the_row(monkeypatch, tmp_path, tiny_llama):
    def broken(folder, requirement, *, constraints):
        raise BenchError(f"environment for {requirement} could not be built: no network")

    monkeypatch.setattr(suite, "environment_python", broken)
    monkeypatch.setattr(reward, "ladder", lambda rung: tiny_llama(3, vocab_size=64))
    measure = reward.reward_rows
    monkeypatch.setattr(
        reward,
        "reward_rows",
        lambda model, peer, **options: measure(model, peer, n_pairs=2, n_tokens=8, repeats=1),
    )
    report = suite.run_suite(threads=1, peers=tmp_path, groups=("reward",))
    vs_trl, vs_products = report["rows"]
    assert "trl==1.16.0 could not be built: no network" in vs_trl["reason"]
    assert vs_trl["seconds"] > 0 and vs_products["ratio"] > 0


def test_report_without_a_field_or_reason_is_an_error(fast_groups):
    report = suite.run_suite(threads=1, groups=("estimators",))
    with pytest.raises(BenchError, match="no field 'threads'"):
        suite.check_report({k: v for k, v in report.items() if k != "threads"})
    row = report["rows"][0]
    with pytest.raises(BenchError, match="note"):
        suite.check_report(report | {"rows": [{k: v for k, v in row.items() if k != "note"}]})
    with pytest.raises(BenchError, match="neither a ratio nor a reason"):
        suite.check_report(report | {"rows": [row | {"ratio": None}]})


def test_an_unknown_group_is_an_error():
    with pytest.raises(ConfigError, match="'speed' is not known"):
        suite.run_suite(threads=1, groups=("speed",))


@pytest.mark.parametrize("name", GROUPS)
def test_every_group_is_a_file_with_rows(name):
    """Nothing is measured or loaded before it is asked for; the rows have names of their own."""
    setting = Setting(
        root_seed=0, device="cpu", sizes=tiny_sizes(), peer=lambda requirement: NO_PEER
    )
    group = import_module(module_of(name)).group(setting)
    assert group.names and len(set(group.names)) == len(group.names)


def test_every_file_is_a_group():
    files = Path(suite.__file__).with_name("groups").glob("[a-z]*.py")
    assert sorted(f"overopt.bench.groups.{file.stem}" for file in files) == sorted(
        map(module_of, GROUPS)
    )


def test_names_of_groups_need_no_torch():
    code = "import sys, overopt.bench.names, overopt.cli.bench; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_whole_preset_is_timed_on_request_only():
    assert set(GROUPS) - set(DEFAULT_GROUPS) == {"quick"}


def test_picture_has_a_bar_for_each_measured_row():
    rows = [
        make_row("fast", [1.0], [2.0], target=1.5),
        make_row("limit", [2.0], [1.0], against="limit"),
        make_row("huge", [1.0], [5000.0]),
        make_row("absent", [1.0], None, reason="no network"),
        make_row("slow", [1.0], [1.25], target=1.5),
    ]
    axes = speed.speed_ratios(rows).axes[0]
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert ends == [2.0, 0.5, speed.LONGEST_BAR, 1.25]
    texts = [t.get_text() for t in axes.texts]
    assert texts == ["2.00", "0.50", "→ 5,000", "not measured", "1.25 missed"]
    assert [t.get_text() for t in axes.get_yticklabels()] == [r["name"] for r in rows]


def test_worker_of_trl_needs_nothing_of_this_package():
    source = peers.WORKER.name and Path(peers.__file__).with_name("peer_worker.py")
    assert "overopt" not in textwrap.dedent(source.read_text(encoding="utf-8")).split('"""')[2]


# --- at the shape of a checkpoint -----------------------------------------------------------------


def tiny_sizes(precision="bf16") -> Sizes:
    shape = replace(
        SMOLLM2_135M,
        vocab_size=64,
        hidden_size=36,
        intermediate_size=48,
        num_hidden_layers=2,
        max_position_embeddings=128,
    )
    return Sizes(
        model=shape,
        n_pairs=2,
        n_tokens=8,
        mfu_pairs=2,
        matrix=32,
        ppo_batch=2,
        ppo_prompt_tokens=4,
        ppo_tokens=3,
        n_scored=8,
        n_pool=20,
        precision=precision,
    )


def test_rows_of_a_gpu_at_a_tiny_size():
    groups = ("scoring", "reward", "ppo", "mfu", "pool")
    report = suite.run_suite(threads=1, groups=groups, sizes=tiny_sizes())
    suite.check_report(report)
    found = {row["name"]: row for row in report["rows"]}
    for name in ("score_vs_transformers", "reward_step_vs_products", "ppo_step_vs_products"):
        assert found[name]["ratio"] > 0, found[name]["reason"]
    mfu = found["reward_mfu"]
    assert 0 < mfu["ratio"] < 1 and "bf16" in mfu["note"]
    assert found["score_pool"]["reference_seconds"] == pool.BUDGET_S
    assert set(report["seconds"]) == set(groups)


def test_sampling_at_the_shape_of_a_checkpoint(monkeypatch):
    """Generate at the first shape only; the bandwidth's time is the least bytes over its rate."""
    monkeypatch.setattr(sampling_at_size, "copy_bandwidth", lambda device, n_bytes: 1e9)
    sizes = replace(tiny_sizes("fp32"), sample_rows=4, sample_shapes=((4, 3), (5, 2)))
    rows = sampling_at_size.sampling_rows(sizes, repeats=1, device="cpu")
    assert [row["name"] for row in rows] == [*sampling_at_size.NAMES, "sample_vs_bandwidth_5_2"]
    moved = sampling_at_size.decoding_bytes(sizes.model, 4, 5, 2, 4)
    assert rows[2]["reference_seconds"] == moved / 1e9 and rows[2]["target"] is None
    assert rows[1]["target"] == sampling_at_size.BANDWIDTH_TARGET and rows[0]["ratio"] > 0


def test_a_group_of_the_gpu_alone_is_an_error_on_the_cpu():
    with pytest.raises(ConfigError, match="'mfu' needs a GPU: use --device cuda"):
        suite.run_suite(threads=1, groups=("mfu",))


def test_shape_of_the_checkpoint_has_its_number_of_weights():
    """134,515,008 by the model card's weights: embedding tied, norms included."""
    with torch.device("meta"):
        model = Llama(SMOLLM2_135M)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008


def test_attention_operations_are_those_that_torch_counts():
    """torch counts the masked half too; the backward pass of both products costs twice theirs."""
    cfg = tiny_sizes().model
    q = torch.zeros(3, cfg.num_attention_heads, 10, cfg.head_dim)
    with FlopCounterMode(display=False) as counter:
        q @ q.transpose(2, 3) @ q
    forward = counter.get_total_flops() / 2 * cfg.num_hidden_layers
    assert mfu.attention_flops(cfg, 3, 10) == 3 * forward


def test_stacked_members_are_measured_against_the_same_apart(tiny_llama):
    backbones = [("tiny", lambda: tiny_llama(3, vocab_size=64))]
    (row,) = stacked.stacked_rows(
        backbones=backbones, n_members=2, n_steps=2, batch=2, n_tokens=8, repeats=2
    )
    assert row["name"] == "tiny" and row["ratio"] > 0 and row["target"] == 2.0


def test_no_group_starts_behind_the_budget(fast_groups):
    report = suite.run_suite(threads=1, groups=fast_groups, budget_s=-1.0)
    assert all("of a budget of -1 s were spent" in row["reason"] for row in report["rows"])
    assert len(report["rows"]) == 1 + len(scoring.NAMES)


def test_peer_from_local_wheels(tmp_path):
    """A wheel is a zip file with a record of what is in it."""
    home = tmp_path / "wheels" / "peer-1.0"
    home.mkdir(parents=True)
    with zipfile.ZipFile(home / "peer-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("peer.py", "answer = 42\n")
        about = "Metadata-Version: 2.1\nName: peer\nVersion: 1.0\nRequires-Dist: nothing-like-it\n"
        wheel.writestr("peer-1.0.dist-info/METADATA", about)
        wheel.writestr(
            "peer-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("peer-1.0.dist-info/RECORD", "")
    site = peers.wheel_site(tmp_path / "sites", "peer==1.0", tmp_path / "wheels")
    assert "42" in (site / "peer.py").read_text(encoding="utf-8")
    assert peers.wheel_site(tmp_path / "sites", "peer==1.0", tmp_path / "wheels") == site


def test_missing_wheels_name_the_directory(tmp_path):
    with pytest.raises(BenchError, match="peer-1.0 has no wheels"):
        peers.wheel_site(tmp_path, "peer==1.0", tmp_path)
