"""Win rate, spread and costs in the records of a small run, against its own artefacts."""

import json

import numpy as np
import pytest
from small_smoke import prompts_file

from overopt.cli.main import main
from overopt.records.curves import load_curves, load_records, read_costs

N_PAIRS, BATCH, STEPS, N_PROMPTS, N_EVAL, COPIES = 61, 16, 2, 4, 8, 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Store and results of a single proxy and of an ensemble of two."""
    folder = tmp_path_factory.mktemp("costs")
    small = prompts_file(folder / "prompts.jsonl")
    experiment = folder / "pair.py"
    experiment.write_text(
        "from dataclasses import replace\n"
        "from overopt.study.presets import smoke\n"
        "from overopt.stages.settings import Experiment\n"
        "from overopt.rewards.settings import RewardConfig\n"
        "def build():\n"
        "    run = smoke().runs[0]\n"
        "    both = (run, replace(run, reward=RewardConfig(members=2)))\n"
        "    return Experiment(name='pair', runs=both)\n"
    )
    settings = ["gold.kind=rubric", f"labels.n_pairs={N_PAIRS}", f"method.steps={STEPS}", small]
    where = ["--store", str(folder / "store"), "--results", str(folder / "results")]
    assert main(["run", str(experiment), *settings, *where, "--workers", "1", "--quiet"]) == 0
    return folder / "store", folder / "results"


def test_gold_labels_are_the_responses_in_the_comparisons(run):
    store, results = run
    (file,) = (store / "labels").glob("*/train.npz")
    with np.load(file) as pairs:
        used = len(np.union1d(pairs["chosen"], pairs["rejected"]))
    # Ten whole prompts of four responses and one pair of an eleventh.
    assert used == 42
    assert set(load_records(results).gold_labels) == {used}


def test_rm_calls_are_exact(run):
    table = load_records(run[1])
    per_value = np.where(table.method == "ppo", BATCH, N_PROMPTS)
    assert (table.rm_calls == table.value * per_value * table.reward_members).all()
    assert set(table.reward_members) == {1, 2}


def test_curves_start_at_a_win_rate_of_half(run):
    for curve in load_curves(run[1]):
        assert curve["win_rate"][0] == pytest.approx(0.5, abs=1e-12)
        assert curve["win_rate_stderr"][0] == pytest.approx(0, abs=1e-12)
        assert np.all((curve["win_rate"] >= 0) & (curve["win_rate"] <= 1))
        assert np.all(curve["win_rate_stderr"][1:] > 0)


def test_spread_of_the_proxy_is_that_of_its_evaluation_scores(run):
    store, results = run
    checked = 0
    for curve in load_curves(results):
        if curve.meta["method"] == "bon":
            assert all(row["proxy_std"] is None for row in curve.rows)
            continue
        manifest = json.loads(
            (store / "ppo_gold" / curve.meta["run_id"] / "manifest.json").read_text()
        )
        for row in curve.rows:
            file = store / "ppo" / manifest["upstream"]["ppo"] / f"eval-{row['value']:05d}.npz"
            with np.load(file) as table:
                first, second = table["proxy"].astype(float).reshape(N_EVAL, COPIES).T
            # The variance of two numbers is half their squared difference.
            assert row["proxy_std"] == pytest.approx(np.sqrt(np.mean((first - second) ** 2) / 2))
            checked += 1
    assert checked == 2 * (STEPS + 1)


def test_only_an_ensemble_disagrees(run):
    for curve in load_curves(run[1]):
        found = [row["member_disagreement"] for row in curve.rows]
        if curve.meta["reward_members"] == 1:
            assert found == [None] * len(found)
        else:
            assert all(0 < x < 2 for x in found)


def test_costs_name_the_stages_of_each_run(run):
    store, results = run
    rows = [json.loads(line) for line in (results / "costs.jsonl").read_text().splitlines()]
    totals = read_costs(results)
    for curve in load_curves(results):
        mine = [row for row in rows if row["run_id"] == curve.meta["run_id"]]
        names = sorted(row["stage"] for row in mine)
        members = ["proxy"] * curve.meta["reward_members"]
        proxies = members + ["reward"] * (len(members) > 1)
        scores = ["scores"] * len(members)
        method = [*scores, "bon"] if curve.meta["method"] == "bon" else ["ppo", "ppo_gold"]
        assert names == sorted(proxies + method)
        assert totals[curve.meta["run_id"]] == pytest.approx(sum(row["cpu_s"] for row in mine))
        for row in mine:
            manifest = json.loads(
                (store / row["stage"] / row["stage_id"] / "manifest.json").read_text()
            )
            assert row["cpu_s"] == manifest["cpu_s"] > 0
    assert "cpu_s" not in (results / "records.jsonl").read_text()


def test_results_without_costs_have_none(tmp_path):
    assert read_costs(tmp_path) == {}
