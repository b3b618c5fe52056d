"""`--track`: curves in a tracker's own store, read back; a tracker that fails stops nothing."""

import importlib.util

import numpy as np
import pytest
from small_smoke import prompts_file

import overopt
from overopt.base.config import RuntimeConfig
from overopt.base.errors import ConfigError
from overopt.cli.main import main
from overopt.study import track

TINY = ["gold.kind=rubric", "labels.n_pairs=60", "method.steps=2", "bon.ns=1,2,4"]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """Folder, overrides and results of one small run that was tracked by TensorBoard."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    folder = tmp_path_factory.mktemp("track")
    overrides = [*TINY, prompts_file(folder / "prompts.jsonl")]
    places = ["--store", str(folder / "runs"), "--results", str(folder / "out")]
    options = ["--track", "tensorboard", "--track-to", str(folder / "tracks")]
    assert main(["run", "smoke", *overrides, *places, *options, "--workers", "1", "--quiet"]) == 0
    return folder, overrides, overopt.Results(folder / "out")


def scalars(run):
    """Steps and values by tag of a TensorBoard run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_the_event_files_hold_every_curve(tracked):
    folder, _, results = tracked
    runs = sorted((folder / "tracks" / "tensorboard" / "smoke").iterdir())
    assert len(runs) == len(results.curves) == 4
    found = []
    for run in runs:
        tags = scalars(run)
        steps, gold = zip(*tags["gold_gain"], strict=True)
        assert {"proxy_gain", "kl_seq_nats", "sqrt_kl", "response_tokens"} <= tags.keys()
        found.append((steps, np.float32(gold).tolist()))
    expected = [
        (tuple(c["value"].tolist()), np.float32(c["gold_gain"]).tolist()) for c in results.curves
    ]
    assert sorted(found) == sorted(expected)


def test_what_is_finished_already_is_not_sent_again(tracked, tmp_path):
    folder, overrides, _ = tracked
    overopt.run(
        "smoke",
        overrides,
        store=folder / "runs",
        results=tmp_path / "r",
        runtime=RuntimeConfig(quiet=True),
        track=["tensorboard"],
        track_to=tmp_path / "tracks",
    )
    assert not (tmp_path / "tracks").exists()


def test_a_tracker_that_fails_is_left_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(track, "_tracker", full)
    without = [o for o in TINY if not o.startswith("method.")]
    overrides = [*without, "method=none", prompts_file(tmp_path / "prompts.jsonl")]
    places = ["--store", str(tmp_path / "runs"), "--results", str(tmp_path / "out")]
    command = ["run", "smoke", *overrides, *places, "--track", "tensorboard", "--workers", "1"]
    assert main([*command, "--quiet"]) == 0
    said = capsys.readouterr().err
    assert said.count("--track tensorboard failed and is left out from here") == 1
    assert len(overopt.Results(tmp_path / "out").curves) == 2


@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_other_local_trackers_hold_a_curve(name, tracked, tmp_path, monkeypatch):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    folder, overrides, results = tracked
    for variable in ("TRACKIO_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    (run, *_) = overopt.load_experiment("smoke", overrides).runs
    sent = track._Tracked(
        overopt.study.run.Silent(),
        [name],
        overopt.Experiment(name="smoke", runs=(run,)),
        overopt.study.run.Store(folder / "runs"),
        tmp_path,
        pytest.fail,
    )
    stage = overopt.study.run.chain.curve_stages(run)[0]
    sent.finished(stage, True)
    (curve,) = [c for c in results.curves if c.meta["run_id"] == stage.fingerprint]
    assert read_back(name, tmp_path / name) == pytest.approx(curve["gold_gain"].tolist())


def read_back(name, place):
    """``gold_gain`` by step in the tracker's own store."""
    if name == "mlflow":
        import mlflow

        (found,) = mlflow.search_runs(search_all_experiments=True).run_id
        history = mlflow.MlflowClient().get_metric_history(found, "gold_gain")
        return [m.value for m in sorted(history, key=lambda m: m.step)]
    import json
    import sqlite3

    (file,) = place.glob("smoke*.db")
    rows = (
        sqlite3.connect(file).execute("select step, metrics from metrics order by step").fetchall()
    )
    return [json.loads(metrics)["gold_gain"] for _, metrics in rows]


def test_trackers_are_checked_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "smoke", "--track", "tensorbord"]) == 2
    assert "--track tensorbord: is unknown; use one of tensorboard" in capsys.readouterr().err
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'overopt\[mlflow\]'"):
        track.check_tracker("mlflow")
    assert list(tmp_path.iterdir()) == []
