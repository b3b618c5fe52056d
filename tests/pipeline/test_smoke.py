"""The smoke preset end to end, and what must hold in its records."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from overopt.cli.main import main
from overopt.pools.best_of_n import best_of_n
from overopt.records.curves import load_curves, load_records
from overopt.reports.draw import draw
from overopt.reports.fit import fit
from overopt.stages.settings import BonConfig, Experiment
from overopt.study.chain import build_graph
from overopt.study.presets import load_experiment

SMALL = ["gold.kind=rubric", "labels.n_pairs=60", "method.steps=2"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Store and results of one full smoke run."""
    folder = tmp_path_factory.mktemp("smoke")
    store, results = folder / "store", folder / "results"
    assert (
        main(
            [
                "run",
                "smoke",
                "--store",
                str(store),
                "--results",
                str(results),
                "--workers",
                "1",
                "--quiet",
            ]
        )
        == 0
    )
    return store, results


def test_records_are_complete(smoke):
    _, results = smoke
    table = load_records(results)
    assert set(table.method) == {"bon", "ppo"}
    assert len(table) == 2 * 7 + 2 * 4
    assert (table.n_params.groupby(table.backbone).nunique() == 1).all()
    assert table.gold_gain_stderr.notna().all()


def test_kl_starts_at_exactly_zero(smoke):
    for curve in load_curves(smoke[1]):
        assert curve.rows[0]["kl_seq_nats"] == 0.0
        if curve.meta["method"] == "ppo":
            assert curve.rows[0]["kl_k1"] == 0.0


def test_exact_kl_and_k1_agree_along_a_run(tmp_path):
    where = ["--store", str(tmp_path / "s"), "--results", str(tmp_path / "r"), "--quiet"]
    # The preset's 8 prompts are too few for a standard error to be trusted.
    settings = ["gold.kind=rubric", "labels.n_pairs=60", "bon=none", "method.eval_prompts=100"]
    one = ["proxy.backbone=ladder:0.05m", "--workers", "1"]
    assert main(["run", "smoke", *settings, *one, *where]) == 0
    (curve,) = load_curves(tmp_path / "r")
    for row in curve.rows[1:]:
        assert row["kl_seq_nats"] > 0
        assert abs(row["kl_k1"] - row["kl_seq_nats"]) < 3 * row["kl_k1_stderr"]


def test_scores_are_normalised_under_the_initial_policy(smoke):
    for curve in load_curves(smoke[1]):
        # 4 prompts × 64 samples, or 8 × 2: the mean is near 0 within a few standard errors.
        assert abs(curve.rows[0]["proxy_score"]) < 4 * curve.rows[0]["proxy_score_stderr"] + 0.3


def test_second_run_reuses_everything(smoke, capsys):
    store, results = smoke
    before = (results / "records.jsonl").read_bytes()
    assert (
        main(["run", "smoke", "--store", str(store), "--results", str(results), "--workers", "1"])
        == 0
    )
    assert "0 stages computed" in capsys.readouterr().out
    assert (results / "records.jsonl").read_bytes() == before


def test_figures_and_fits_from_records(smoke, tmp_path):
    files = draw(smoke[1], tmp_path)
    assert {f.suffix for f in files} == {".png", ".json"}
    side = json.loads(next(f for f in files if f.suffix == ".json").read_text())
    assert side["records"] and side["fits"]
    assert "alpha" in fit(smoke[1])


def test_shuffled_gold_is_noticed(smoke):
    store, _ = smoke
    scores = next((store / "pool").glob("*/scores.npz"))
    with np.load(scores) as table:
        gold = table["gold"].astype(float)
    ns = [1, 8, 64]
    straight = best_of_n(gold, {"gold": gold}, ns)["gold"].mean
    # One shuffle moves the mean of 4 prompts by about half a standard deviation; forty average out.
    rng = np.random.default_rng(0)
    shuffles = [rng.permutation(gold.ravel()).reshape(gold.shape) for _ in range(40)]
    broken = np.mean([best_of_n(gold, {"gold": x}, ns)["gold"].mean for x in shuffles], axis=0)
    assert straight[-1] > 1.5 and abs(broken[-1] - broken[0]) < 0.4


def test_flipped_byte_is_reported_by_file(smoke, tmp_path, capsys):
    import shutil

    store = tmp_path / "copy"
    shutil.copytree(smoke[0], store)
    file = next((store / "bon").glob("*/curve.npz"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    code = main(
        [
            "run",
            "smoke",
            "--store",
            str(store),
            "--results",
            str(tmp_path / "r"),
            "--workers",
            "1",
            "--quiet",
        ]
    )
    assert code != 0
    assert "curve.npz" in capsys.readouterr().err
    assert file.read_bytes() == bytes(data)


def test_perfect_proxy_has_no_gap(tmp_path):
    base = load_experiment("smoke", ["gold.kind=learned", "proxy.kind=gold"])
    bon = BonConfig(n_prompts=3, pool_size=32, ns=(1, 4, 32))
    run = replace(base.runs[0], bon=bon, method=replace(base.runs[0].method, steps=1))
    from overopt.base.config import RuntimeConfig
    from overopt.engine.execute import execute
    from overopt.engine.progress import Silent
    from overopt.engine.store import Store
    from overopt.study.collect import collect

    experiment = Experiment(name="perfect", runs=(run,))
    store = Store(tmp_path / "store")
    execute(build_graph(experiment), store, RuntimeConfig(quiet=True), workers=1, reporter=Silent())
    curves = load_curves(collect(experiment, store, tmp_path / "results"))
    assert [c.meta["method"] for c in curves] == ["bon", "ppo"]
    for curve in curves:
        assert all(row["gap"] == 0.0 for row in curve.rows)
        np.testing.assert_array_equal(curve.arrays["gold"], curve.arrays["proxy"])


def test_two_runs_of_one_store_at_once(tmp_path):
    common = [
        sys.executable, "-m", "overopt", "run", "smoke", *SMALL, "bon=none", "--quiet",
        "--workers", "1", "--store", str(tmp_path / "store"), "--results",
    ]  # fmt: skip
    both = [subprocess.Popen([*common, str(tmp_path / name)]) for name in ("a", "b")]
    assert [p.wait() for p in both] == [0, 0]
    a, b = ((tmp_path / name / "records.jsonl").read_bytes() for name in ("a", "b"))
    assert a == b


def test_experiment_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from overopt.study.presets import smoke\nfrom dataclasses import replace\n"
        "def build():\n    return replace(smoke(), name='mine')\n"
    )
    assert load_experiment(str(path)).name == "mine"
    assert Path(path).exists()


def test_tilt_never_has_less_proxy_than_best_of_n_at_its_kl(smoke):
    curves = {c.meta["run_id"]: c for c in load_curves(smoke[1]) if c.meta["method"] == "bon"}
    rows = [json.loads(line) for line in (smoke[1] / "tilt.jsonl").read_text().splitlines()]
    assert {row["run_id"] for row in rows} == set(curves)
    for run_id, curve in curves.items():
        mine = [row for row in rows if row["run_id"] == run_id]
        d = np.array([row["sqrt_kl"] for row in mine])
        assert np.all(np.diff(d) > 0)
        best = np.interp(d, curve["sqrt_kl"], curve["proxy_gain"])
        inside = (d < curve["sqrt_kl"][-2]) & (d > 0.1)
        # The pool's own tilt is optimal among reweightings of the pool; interpolation costs a little.
        assert np.all(np.array([row["proxy_gain"] for row in mine])[inside] > best[inside] - 0.05)
