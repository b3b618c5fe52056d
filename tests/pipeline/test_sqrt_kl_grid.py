"""Evaluations on a grid of √KL and an end by √KL in whole runs, also of one that is interrupted."""

import shutil

import numpy as np
import pytest
from small_smoke import prompts_file

from overopt.base.config import RuntimeConfig
from overopt.base.files import load_json
from overopt.cli.main import main
from overopt.engine.graph import topological
from overopt.engine.perform import make_task, perform
from overopt.engine.store import Store
from overopt.methods.pace import sqrt_kl
from overopt.records.curves import Curve, load_curves
from overopt.records.series import as_replicates, average
from overopt.stages import optimise
from overopt.study.chain import build_graph
from overopt.study.presets import load_experiment

PACE = [
    *("gold.kind=rubric", "labels.n_pairs=60", "bon=none", "proxy.backbone=ladder:0.05m"),
    *("method.steps=14", "method.batch=32", "method.warmup_steps=5", "method.step_kl=0.1"),
    *("method.eval_sqrt_kl=0.4", "method.stop_sqrt_kl=1.2", "method.adv_scale=fixed"),
]
STEPS = 14


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run: its folder, its overrides and the stage of PPO."""
    folder = tmp_path_factory.mktemp("pace")
    overrides = [prompts_file(folder / "prompts.jsonl"), *PACE]
    places = ["--store", str(folder / "store"), "--results", str(folder / "results")]
    assert main(["run", "smoke", *overrides, "--workers", "1", "--quiet", *places]) == 0
    graph = topological(build_graph(load_experiment("smoke", overrides)))
    return folder, overrides, next(s for s in graph if s.name == "ppo")


def without(ppo, folder, elsewhere):
    """A store that lacks the artefact of PPO alone, and how many steps the run took."""
    shutil.copytree(folder / "store", elsewhere / "store")
    store = Store(elsewhere / "store")
    n_steps = len(load_json(store.path("ppo", ppo.fingerprint) / "log.json"))
    shutil.rmtree(store.path("ppo", ppo.fingerprint))
    return store, n_steps


def assert_same(ppo, folder, store):
    """The artefact of PPO is bit for bit that of the uninterrupted run."""
    files = [f for f in (folder / "store" / "ppo" / ppo.fingerprint).glob("*.*")]
    assert len(files) > 5
    for file in files:
        made = store.path("ppo", ppo.fingerprint) / file.name
        assert file.name == "manifest.json" or made.read_bytes() == file.read_bytes(), file.name


def test_points_lie_near_the_multiples_and_the_run_ends_at_its_limit(whole):
    folder, _, ppo = whole
    (curve,) = load_curves(folder / "results")
    log = load_json(folder / "store" / "ppo" / ppo.fingerprint / "log.json")
    assert 3 < len(log) < STEPS and curve["value"][-1] == len(log)
    found = [sqrt_kl(row) for row in log]
    assert found[-1] >= 1.2 and max(found[:-1]) < 1.2
    crossed, multiples = [0], np.floor(np.array(found) / 0.4)
    for k in range(1, len(found)):
        if multiples[k] > multiples[:k].max():
            crossed.append(k + 1)
    assert list(curve["value"]) == crossed
    assert curve["sqrt_kl"][-1] == pytest.approx(1.2, abs=0.6)
    assert curve.meta["step_kl"] == 0.1 and curve.meta["adv_scale"] == "fixed"


def test_an_interrupted_run_ends_like_a_whole_one(whole, tmp_path, monkeypatch):
    folder, _, ppo = whole
    monkeypatch.setattr(optimise, "CHECKPOINT_BYTES_PER_S", 1e15)  # a checkpoint at each evaluation
    store, n_steps = without(ppo, folder, tmp_path)
    runtime = RuntimeConfig(checkpoint_s=0.0, quiet=True)
    seen = []

    def stop_at(step):
        def progress(done, total):
            seen.append(done)
            if done == step:
                raise KeyboardInterrupt

        return progress

    # In the middle, and between the last step and its evaluation, which ends the run.
    for step in (n_steps - 1, n_steps):
        with pytest.raises(KeyboardInterrupt):
            perform(make_task(ppo, runtime), store, stop_at(step))
    perform(make_task(ppo, runtime), store, stop_at(None))
    assert (
        max(seen) == n_steps and len(seen) > n_steps
    )  # steps were done again, none beyond the end
    assert_same(ppo, folder, store)


def test_a_finished_state_that_was_saved_takes_no_further_step(whole, tmp_path, monkeypatch):
    """A kill during the last evaluation: the checkpoint is of the step that ended the run."""
    folder, _, ppo = whole
    store, n_steps = without(ppo, folder, tmp_path)
    original, killed = optimise._evaluate, []

    def evaluate(file, *rest):
        if file.stem == f"eval-{n_steps:05d}" and not killed:
            killed.append(file)
            raise KeyboardInterrupt
        original(file, *rest)

    monkeypatch.setattr(optimise, "_evaluate", evaluate)
    runtime, seen = RuntimeConfig(checkpoint_s=0.0, quiet=True), []
    with pytest.raises(KeyboardInterrupt):
        perform(make_task(ppo, runtime), store, lambda k, total: None)
    perform(make_task(ppo, runtime), store, lambda k, total: seen.append(k))
    assert seen == [] and len(killed) == 1
    assert_same(ppo, folder, store)


def test_seeds_with_other_numbers_of_points_are_averaged_as_far_as_all_reach(whole):
    (curve,) = load_curves(whole[0] / "results")
    other = [row | {"rm_seed": 1} for row in curve.rows]
    cut = {name: values[:-1] for name, values in curve.arrays.items()}
    shorter = Curve(tuple(other[:-1]), cut, curve.descriptions)
    mean = average([curve, shorter], as_replicates([curve, shorter]))
    assert len(mean.d) == len(mean.gold) == len(mean.proxy) == len(curve.rows) - 1
    np.testing.assert_allclose(mean.d, curve["sqrt_kl"][:-1])
    same = Curve(curve.rows[:-1], cut, curve.descriptions)  # another seed of PPO, the same proxy
    (replicate,) = as_replicates([curve, same])
    assert len(replicate.d) == len(curve.rows) - 1
