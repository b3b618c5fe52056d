"""Control from the command line to records, fits and pictures."""

import numpy as np
import pytest
from PIL import Image

from overopt.base import files
from overopt.cli.main import main
from overopt.engine.graph import topological
from overopt.engine.store import Store
from overopt.records.curves import load_curves, read_costs
from overopt.study.chain import build_graph
from overopt.study.presets import load_experiment

TINY = [
    "world.n_starts=3", "world.horizon=30", "world.n_trajectories=40", "labels.segment=10",
    "labels.n_pairs=40", "proxy.steps=20", "method.iterations=3", "method.population=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Store and results of a tiny run of the preset."""
    folder = tmp_path_factory.mktemp("control")
    command = ["run", "control", *TINY, "--workers", "1", "--quiet"]
    places = ["--store", str(folder / "store"), "--results", str(folder / "results")]
    assert main([*command, *places]) == 0
    return folder / "store", folder / "results"


def test_records_hold_gold_and_proxy_along_exact_kl(done):
    curves = load_curves(done[1])
    assert [c.meta["mitigation"] for c in curves] == ["none", "mean of 3", "4 rounds, mean of 3"]
    for curve in curves:
        assert curve["value"].tolist() == [0, 1, 2, 3]
        assert (curve["kl_seq_nats"][0], curve["win_rate"][0]) == (0, 0.5)
        assert (np.diff(curve["kl_seq_nats"]) > 0).all()
        assert curve.arrays["gold"].shape == (4, 3)
        np.testing.assert_allclose(curve["gold_score"], curve.arrays["gold"].mean(1), rtol=1e-5)
        assert curve["response_tokens"].tolist() == [30] * 4
        assert curve["proxy_gain"][-1] > 0
    assert set(read_costs(done[1])) == {c.meta["run_id"] for c in curves}


def test_rounds_ask_about_the_optimised_policy_and_forget_nothing(done):
    store = Store(done[0])
    run = load_experiment("control", TINY).runs[2]
    stages = topological(build_graph(load_experiment("control", TINY))[2:])
    rewards = [s for s in stages if s.name == "control_reward"]
    policies = [s for s in stages if s.name == "control"]
    assert (len(rewards), len(policies)) == (4, 4)
    pairs = [
        files.load_arrays(store.path(s.name, s.fingerprint) / "comparisons.npz") for s in rewards
    ]
    share = run.labels.n_pairs // 4
    assert [len(p["margin"]) for p in pairs] == [share * j for j in (1, 2, 3, 4)]
    for j in (1, 2, 3):
        np.testing.assert_array_equal(pairs[j]["first"][: share * j], pairs[j - 1]["first"])
        shown = files.load_arrays(
            store.path("control", policies[j - 1].fingerprint) / "trajectories.npz"
        )
        seen = {row.tobytes() for row in shown["observations"].reshape(-1, 3)}
        fresh = pairs[j]["first"][share * j :, 0, :3]
        assert all(np.ascontiguousarray(row).tobytes() in seen for row in fresh)


def test_figures_fits_and_an_animation_are_drawn_from_the_records(done, tmp_path, capsys):
    assert main(["fit", str(done[1])]) == 0
    assert "cem" in capsys.readouterr().out
    assert main(["figures", str(done[1]), "--out", str(tmp_path)]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"fig01_control.png", "control_control.png", "control_control.gif"} <= names
    with Image.open(tmp_path / "control_control.gif") as animation:
        assert animation.n_frames == 15 and animation.info["loop"] == 0


def test_a_run_repeats_itself_and_joins_its_parts(done, tmp_path):
    command = ["run", "control", *TINY, "--workers", "1", "--quiet"]
    for part in ("1/3", "2/3", "3/3"):
        places = ["--store", str(tmp_path / part[0]), "--results", str(tmp_path / "results")]
        assert main([*command, *places, "--part", part]) == 0
    for name in ("records.jsonl", "curves.npz"):
        assert (tmp_path / "results" / name).read_bytes() == (done[1] / name).read_bytes()


def test_plans_and_settings_of_control_are_shown_and_refused_by_name(tmp_path, capsys):
    store = ["--store", str(tmp_path / "none")]
    assert main(["plan", "control", *store]) == 0
    assert "control cem pendulum" in capsys.readouterr().out
    for wrong, message in (
        ("labels.segment=500", "labels.segment = 500: is longer than a trajectory"),
        ("labels.n_pairs=7", "labels.n_pairs = 7: must be a multiple of rounds.k = 4"),
        ("world.evn=x", "world.evn"),
        ("world.env=CartPole-v1", "Discrete"),
    ):
        assert main(["plan", "control", wrong, *store]) == 2
        assert message in capsys.readouterr().err


def test_an_environment_of_gymnasium_runs_through(tmp_path):
    pytest.importorskip("gymnasium")
    small = [t for t in TINY if not t.startswith(("world.n_traj", "method.pop"))]
    small += [
        "world.n_trajectories=10",
        "method.population=10",
        "world.env=MountainCarContinuous-v0",
    ]
    command = ["run", "control", *small, "proxy.members=1", "rounds.k=1", "--quiet"]
    places = ["--store", str(tmp_path / "store"), "--results", str(tmp_path / "results")]
    assert main([*command, *places, "--workers", "1"]) == 0
    (curve,) = load_curves(tmp_path / "results")
    assert curve.meta["backbone"] == "MountainCarContinuous-v0 2x32"
