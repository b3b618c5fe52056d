"""`overopt compare` end to end, tiny, and resumed."""

import json
import shutil

import pytest

from overopt.analysis.leaderboard import NEVER
from overopt.cli.main import main
from overopt.records.curves import load_curves

FILE = """
from overopt.study.comparison import Comparison, Mitigation
from overopt.base.overrides import apply_overrides
from overopt.study.presets import smoke

TINY = [
    "gold.kind=rubric", "labels.n_pairs=60", "labels.n_validation_prompts=4", "method.steps=2",
    "method.batch=8", "method.eval_prompts=4", "bon.n_prompts=3", "bon.pool_size=16", "bon.ns=1,4,16",
]


def compare():
    return Comparison(
        name="tiny",
        base=apply_overrides(smoke().runs[0], TINY),
        baseline="single",
        mitigations=(
            Mitigation(name="single", family="none", trials=((),)),
            Mitigation(
                name="penalty", family="KL", trials=(("method.kl_coef=0.5",),), methods=("ppo",)
            ),
            Mitigation(name="two steps", family="stop", kind="stopping", rule="step_budget"),
        ),
        tuning_seeds=(0,),
        test_seeds=(1,),
    )
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The command line of a comparison that was carried out, and its folders."""
    folder = tmp_path_factory.mktemp("compare")
    file = folder / "mine.py"
    file.write_text(FILE)
    store, results = folder / "store", folder / "results"
    where = ["--store", str(store), "--results", str(results)]
    command = ["compare", str(file), *where, "--workers", "1", "--quiet"]
    assert main(command) == 0
    return command, store, results


def test_results_are_complete(finished):
    _, _, results = finished
    protocol = json.loads((results / "comparison.json").read_text())
    # Best-of-n: the baseline; PPO: baseline and penalty. Each once for tuning and once for test.
    assert len(protocol["runs"]) == 6
    for role in ("tuning", "test"):
        curves = {c.meta["run_id"]: c for c in load_curves(results / role)}
        mine = [r for r in protocol["runs"] if r["role"] == role]
        assert {r["run_id"] for r in mine} == set(curves)
        seed = {"tuning": 0, "test": 1}[role]
        assert {(c.meta["data_seed"], c.meta["rm_seed"]) for c in curves.values()} == {(seed, seed)}
    board = json.loads((results / "leaderboard.json").read_text())
    assert {s["mitigation"] for s in board["standings"]["bon"]} == {
        "single",
        "two steps",
        NEVER,
    }
    assert {s["mitigation"] for s in board["standings"]["ppo"]} == {
        "single",
        "penalty",
        "two steps",
        NEVER,
    }
    for method in ("bon", "ppo"):
        for standing in board["standings"][method]:
            costs = standing["costs"]
            if standing["mitigation"] == NEVER:
                assert set(costs.values()) == {0.0}
            else:
                assert costs["cpu_s"] > 0 and costs["gold_labels"] == 40
            assert standing["effects"]["win_rate"]["value"] is not None
    assert "One test seed" in (results / "leaderboard.md").read_text()
    for name in ("frontier.png", "effects.png"):
        assert (results / name).stat().st_size > 10_000


def test_a_comparison_resumes_and_is_reported_again(finished, capsys):
    command, store, results = finished
    names = ("test/records.jsonl", "tuning/records.jsonl", "choices.json", "frontier.json")
    before = {name: (results / name).read_bytes() for name in names}
    # As after a kill between two runs: a test run is gone, and all results with it.
    protocol = json.loads((results / "comparison.json").read_text())
    lost = next(r for r in protocol["runs"] if r["role"] == "test" and r["method"] == "bon")
    shutil.rmtree(store / "bon" / lost["run_id"])
    shutil.rmtree(results)
    assert main([*command, "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("tuning: 0 of") for line in lines)
    assert any(line.startswith("test, at most: 1 of") for line in lines)
    assert not results.exists()
    assert main(command) == 0
    assert {name: (results / name).read_bytes() for name in names} == before
    capsys.readouterr()
    (results / "leaderboard.md").unlink()
    assert main(["compare", str(results)]) == 0
    assert capsys.readouterr().out == (results / "leaderboard.md").read_text()
    assert main(["compare", str(results), "method.steps=9"]) == 2
    assert "leave out overrides" in capsys.readouterr().err
