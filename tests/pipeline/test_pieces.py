"""Work in pieces: a time limit, records of what is finished, pools in parts, results of two places."""

import shutil
import time
from dataclasses import replace

import fake_graph
import pytest
import torch
from small_smoke import prompts_file

from overopt.base.config import RuntimeConfig
from overopt.base.errors import ConfigError, StoreError
from overopt.base.files import load_json
from overopt.cli.main import main
from overopt.engine import signals
from overopt.engine.execute import check_on_cpu, execute
from overopt.engine.graph import Stage, topological
from overopt.engine.perform import make_task, perform
from overopt.engine.store import Store
from overopt.records.curves import load_curves, read_records
from overopt.rewards.kinds.reward_model import RewardModelScorer
from overopt.stages import optimise, pool
from overopt.study import chain, collect
from overopt.study.chain import build_graph
from overopt.study.presets import load_experiment

TINY = ["gold.kind=rubric", "labels.n_pairs=60", "labels.n_validation_prompts=6", "proxy.epochs=1",
        "bon.n_prompts=3", "bon.pool_size=16", "bon.ns=1,4,16", "method.steps=2", "method.batch=4",
        "method.eval_prompts=4", "method.eval_early_every=1"]  # fmt: skip
RESULTS = ("records.jsonl", "curves.npz", "tilt.jsonl")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_reaches_its_limit_stops_and_goes_on_from_its_checkpoints(tmp_path, workers):
    stages = fake_graph.build(steps=200, pause_s=0.01)
    store, limit, attempts = Store(tmp_path / "limited"), 1.0, 0
    while True:
        started = time.monotonic()
        left = execute(stages, store, workers=workers, time_limit_s=limit).left
        assert time.monotonic() - started < limit + 5
        assert (left == 0) == store.has("merge", stages[-1].fingerprint)
        assert not any((store.root / ".locks").iterdir())
        if left == 0:
            break
        # Starting workers takes seconds on a busy machine.
        limit, attempts = limit * 1.2, attempts + 1
        assert attempts < 20
    assert attempts > 0
    whole = Store(tmp_path / "whole")
    assert execute(stages, whole, workers=1).left == 0
    assert fake_graph.contents(store.root) == fake_graph.contents(whole.root)
    manifests = [load_json(f) for f in store.root.glob("train/*/manifest.json")]
    assert any(manifest["resumed"] for manifest in manifests)


def test_few_stages_share_the_device_and_the_others_work_beside_them(tmp_path):
    stages = [
        Stage(
            name="span",
            version=1,
            config=fake_graph.SpanConfig(root_seed=i),
            run=fake_graph.run_span,
            gpu=i < 5,
        )
        for i in range(9)
    ]
    runtime = RuntimeConfig(device="cuda", gpu_jobs=2)  # no stage here touches the device
    execute(stages, Store(tmp_path), runtime, workers=4)
    spans = [load_json(tmp_path / "span" / s.fingerprint / "span.json") for s in stages]
    assert [span["device"] for span in spans] == ["cuda"] * 5 + ["cpu"] * 4

    def at_once(own, others):
        return [sum(o["start"] < s["stop"] and s["start"] < o["stop"] for o in others) for s in own]

    for i, span in enumerate(spans[:5]):
        running = [s for j, s in enumerate(spans[:5]) if j != i and s["start"] <= span["start"]]
        assert sum(s["stop"] > span["start"] for s in running) <= 1
    assert max(at_once(spans[5:], spans[:5])) >= 1


def test_stages_named_on_cpu_leave_the_device_to_others(tmp_path):
    stages = [
        Stage(
            name=name,
            version=1,
            config=fake_graph.SpanConfig(root_seed=0),
            run=fake_graph.run_span,
            gpu=True,
        )
        for name in ("large", "small")
    ]
    execute(stages, Store(tmp_path), RuntimeConfig(device="cuda", on_cpu=("small",)), workers=1)
    spans = [load_json(tmp_path / s.name / s.fingerprint / "span.json") for s in stages]
    assert [span["device"] for span in spans] == ["cuda", "cpu"]
    with pytest.raises(ConfigError, match="on_cpu = 'ppo': is no stage.*large, small"):
        check_on_cpu(stages, RuntimeConfig(on_cpu=("ppo",)))


def test_nothing_starts_without_time(tmp_path):
    stages, store = fake_graph.build(steps=4), Store(tmp_path)
    for workers in (1, 2):
        summary = execute(stages, store, workers=workers, time_limit_s=0)
        assert (summary.computed, summary.left) == (0, len(stages))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder with store and results of a tiny smoke run, and the arguments that made it."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = ["run", "smoke", prompts_file(folder / "prompts.jsonl"), *TINY, "--quiet"]
    arguments += ["--workers", "1"]
    assert main([*arguments, *places(folder)]) == 0
    return folder, arguments


def places(folder):
    return ["--store", str(folder / "store"), "--results", str(folder / "results")]


def without(finished, tmp_path, lost):
    """A copy of the finished store from which the artefact ``lost`` is gone; it and its experiment."""
    folder, arguments = finished
    shutil.copytree(folder / "store", tmp_path / "store")
    experiment = load_experiment("smoke", [a for a in arguments[2:] if "=" in a])
    shutil.rmtree(tmp_path / "store" / lost.name / lost.fingerprint)
    return Store(tmp_path / "store"), experiment


def curve_stage(finished, i):
    experiment = load_experiment("smoke", [a for a in finished[1][2:] if "=" in a])
    return chain.build_graph(experiment)[i]


def test_a_run_out_of_time_writes_the_records_of_finished_curves(finished, tmp_path, capsys):
    lost = curve_stage(finished, 3)
    without(finished, tmp_path, lost)
    assert main([*finished[1], *places(tmp_path), "--time-limit", "0"]) == 3
    err = capsys.readouterr().err
    assert "1 left; running the same command again continues" in err
    rows, whole = read_records(tmp_path / "results"), read_records(finished[0] / "results")
    assert rows == [row for row in whole if row["run_id"] != lost.fingerprint]
    assert len({c.meta["run_id"] for c in load_curves(tmp_path / "results")}) == 3
    # The same command without the limit completes them.
    assert main([*finished[1], *places(tmp_path)]) == 0
    for name in RESULTS:
        made = (tmp_path / "results" / name).read_bytes()
        assert made == (finished[0] / "results" / name).read_bytes(), name


def test_records_of_two_stores_are_joined(finished, tmp_path, capsys):
    """What a first machine measured is neither computed again nor lost on a second one."""
    lost = curve_stage(finished, 0)
    store, experiment = without(finished, tmp_path, lost)
    collect.collect(experiment, store, tmp_path / "results", partial=True)
    shutil.rmtree(tmp_path / "store")
    assert main([*finished[1], *places(tmp_path), "--extend"]) == 0
    for name in RESULTS:
        made = (tmp_path / "results" / name).read_bytes()
        assert made == (finished[0] / "results" / name).read_bytes(), name
    assert (tmp_path / "store" / lost.name / lost.fingerprint).is_dir()
    assert not (tmp_path / "store" / "ppo").exists(), "a PPO run was computed again"


def test_a_stage_may_be_named_on_cpu_though_nothing_of_it_is_left(finished, tmp_path, capsys):
    """The same command, given once more: `experiments/on_a_gpu.sh` promises that."""
    shutil.copytree(finished[0] / "results", tmp_path / "results")
    again = [*finished[1], *places(tmp_path), "--extend", "--on-cpu"]
    assert main([*again, "ppo,ppo_gold"]) == 0
    assert main([*again, "pppo"]) == 2
    assert "'pppo': is no stage of this run: use bon," in capsys.readouterr().err


@pytest.mark.parametrize("checkpoint_s", [0.0, 1e6])
def test_ppo_resumes_from_its_last_state_whenever_that_was_saved(
    finished, tmp_path, monkeypatch, checkpoint_s
):
    """Evaluations that are newer than the state belong to steps that are done again."""
    monkeypatch.setattr(optimise, "CHECKPOINT_BYTES_PER_S", 1.0)  # as if it were huge
    ppo = curve_stage(finished, 1).upstream["ppo"]
    store, _ = without(finished, tmp_path, ppo)

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    runtime = RuntimeConfig(checkpoint_s=checkpoint_s, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        perform(make_task(ppo, runtime), store, stop)
    (left,) = (store.root / ".inflight").glob(f"ppo-{ppo.fingerprint}.*")
    assert (left / "state.safetensors").exists() == (checkpoint_s == 0)
    evaluations = sorted(file.name for file in left.glob("eval-*.npz"))
    assert evaluations[0] == "eval-00000.npz"
    if checkpoint_s > 0:  # as if step 2 had been evaluated by another course of the steps
        (left / "eval-00002.npz").write_bytes((left / "eval-00000.npz").read_bytes())
    done = []
    perform(make_task(ppo, runtime), store, lambda k, total: done.append(k))
    assert done == ([2] if checkpoint_s == 0 else [1, 2])
    for file in (finished[0] / "store" / "ppo" / ppo.fingerprint).glob("*.*"):
        made = store.path("ppo", ppo.fingerprint) / file.name
        assert file.name == "manifest.json" or made.read_bytes() == file.read_bytes(), file.name


def test_ppo_saves_the_step_at_which_it_is_asked_to_leave(finished, tmp_path, monkeypatch):
    """Between two evaluations, where nothing is saved otherwise; no step is done twice."""
    ppo = curve_stage(finished, 1).upstream["ppo"]
    method = replace(ppo.config.method, steps=6, eval_early_every=6, eval_every=6)
    longer = replace(ppo, config=replace(ppo.config, method=method))
    store, _ = without(finished, tmp_path, ppo)
    task, done = make_task(longer, RuntimeConfig(quiet=True)), []

    def ask(step, total):
        done.append(step)
        if step == 3:
            monkeypatch.setattr(signals._State, "is_leaving", True)

    with pytest.raises(signals.Leaving):
        perform(task, store, ask)
    (left,) = (store.root / ".inflight").glob(f"ppo-{longer.fingerprint}.*")
    assert (left / "log-3.json").exists()
    monkeypatch.setattr(signals._State, "is_leaving", False)
    perform(task, store, lambda step, total: done.append(step))
    assert done == [1, 2, 3, 4, 5, 6]
    whole = Store(shutil.copytree(store.root, tmp_path / "whole"))
    shutil.rmtree(whole.path("ppo", longer.fingerprint))
    perform(task, whole, lambda step, total: None)
    for file in store.path("ppo", longer.fingerprint).glob("*.*"):
        made = whole.path("ppo", longer.fingerprint) / file.name
        assert file.name == "manifest.json" or made.read_bytes() == file.read_bytes(), file.name


def test_a_worker_computes_what_is_missing_and_run_collects(finished, tmp_path, capsys):
    lost = curve_stage(finished, 1)
    without(finished, tmp_path, lost)
    command, store = finished[1][1:-3], tmp_path / "store"
    assert main(["worker", str(store), *command, "--deadline", "0"]) == 3
    assert "1 left to other workers" in capsys.readouterr().err
    assert main(["worker", str(store), *command]) == 0
    assert "1 stages computed" in capsys.readouterr().out
    assert main([*finished[1], *places(tmp_path)]) == 0
    for name in RESULTS:
        made = (tmp_path / "results" / name).read_bytes()
        assert made == (finished[0] / "results" / name).read_bytes(), name
    assert main(["watch", *command, "--store", str(store)]) == 0
    assert "done" in capsys.readouterr().out


def test_parts_of_the_runs_make_the_whole(finished, tmp_path, capsys):
    for part in ("1/2", "2/2"):
        store = ["--store", str(tmp_path / part[0]), "--results", str(tmp_path / "results")]
        assert main([*finished[1], *store, "--part", part]) == 0
    for name in RESULTS:
        made = (tmp_path / "results" / name).read_bytes()
        assert made == (finished[0] / "results" / name).read_bytes(), name
    assert len(list((tmp_path / "1" / "ppo").iterdir())) == 1
    assert main([*finished[1], *store, "--part", "1/3"]) == 2
    assert "there are 2 runs to divide" in capsys.readouterr().err


def test_tf32_scores_are_other_scores_made_in_tf32(finished, tmp_path, monkeypatch):
    before = torch.get_float32_matmul_precision()
    overrides = [a for a in finished[1][2:] if "=" in a]
    plain, rounded = (
        {s.fingerprint: s for s in topological(build_graph(load_experiment("smoke", o)))}
        for o in (overrides, [*overrides, "bon.precision=tf32"])
    )
    changed = {s.name for fp, s in rounded.items() if fp not in plain}
    assert changed == {"scores", "bon"}, "what precision does not touch is not made again"
    shutil.copytree(finished[0] / "store", tmp_path / "store")
    used = []
    score = RewardModelScorer.score
    monkeypatch.setattr(
        RewardModelScorer,
        "score",
        lambda *args: used.append(torch.get_float32_matmul_precision()) or score(*args),
    )
    folder = ["--store", str(tmp_path / "store"), "--results", str(tmp_path / "results")]
    assert main([*finished[1], "bon.precision=tf32", *folder]) == 0
    assert used and set(used) == {"high"}
    assert torch.get_float32_matmul_precision() == before


def test_a_part_can_be_planned(tmp_path, capsys):
    assert main(["plan", "desk", "--store", str(tmp_path), "--part", "2/5"]) == 0
    proxies = [x for x in capsys.readouterr().out.splitlines() if "  proxy " in x]
    assert len(proxies) == 11 and all(x.endswith("data 1 rm 1") for x in proxies)


def test_part_of_the_records_never_replaces_others(finished, tmp_path, capsys):
    store, experiment = without(finished, tmp_path, curve_stage(finished, 0))
    results = tmp_path / "results"
    shutil.copytree(finished[0] / "results", results)
    text = (results / "records.jsonl").read_text()
    (results / "records.jsonl").write_text(text.replace(curve_stage(finished, 1).fingerprint, "x"))
    before = (results / "records.jsonl").read_bytes()
    with pytest.raises(StoreError, match="holds 1 other curve"):
        collect.collect(experiment, store, results, partial=True)
    assert (results / "records.jsonl").read_bytes() == before
    # Said before anything is computed.
    empty = ["--store", str(tmp_path / "empty"), "--results", str(results)]
    assert main([*finished[1], *empty, "--part", "1/2"]) == 2
    assert "holds 1 other curve" in capsys.readouterr().err
    assert not (tmp_path / "empty" / "calibration").exists()


def test_a_pool_in_pieces_gives_the_same_curves(finished, tmp_path, monkeypatch):
    folder, arguments = finished
    monkeypatch.setattr(pool, "PIECE_RESPONSES", 32)  # two prompts, then one
    experiment = load_experiment("smoke", [a for a in arguments[2:] if "=" in a])
    runs = tuple(replace(run, method=None) for run in experiment.runs)
    experiment = replace(experiment, runs=runs)
    stages, store = chain.build_graph(experiment), Store(tmp_path / "store")
    roles = [role for role in stages[0].upstream if role.startswith("pool")]
    assert roles == ["pool_000", "pool_001"]
    execute(stages, store, RuntimeConfig(quiet=True))
    made = load_curves(collect.collect(experiment, store, tmp_path / "results"))
    whole = [c for c in load_curves(folder / "results") if c.meta["method"] == "bon"]
    assert len(made) == len(whole) == 2
    for a, b in zip(made, whole, strict=True):
        for row, other in zip(a.rows, b.rows, strict=True):
            assert row | {"run_id": 0} == other | {"run_id": 0}
        for name, values in a.arrays.items():
            assert (values == b.arrays[name]).all(), name
