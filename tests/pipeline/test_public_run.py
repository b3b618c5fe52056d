"""`overopt.run` from Python, and the built wheel in an environment of its own."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from small_smoke import prompts_file

import overopt
from overopt.base.config import RuntimeConfig
from overopt.base.errors import ConfigError, StoreError
from overopt.cli.main import main

ROOT = Path(__file__).parents[2]
QUIET = RuntimeConfig(quiet=True)
TINY = ["gold.kind=rubric", "labels.n_pairs=60", "method.steps=2", "bon.ns=1,2,4"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Folder, overrides and results of one small run from Python."""
    folder = tmp_path_factory.mktemp("public")
    overrides = [*TINY, prompts_file(folder / "prompts.jsonl")]
    results = overopt.run(
        "smoke", overrides, store=folder / "runs", results=folder / "out", runtime=QUIET
    )
    return folder, overrides, results


def test_run_returns_its_results(ran):
    folder, _, results = ran
    assert isinstance(results, overopt.Results) and results.folder == folder / "out"
    assert set(results.table.method) == {"bon", "ppo"}
    assert results.experiment == "smoke"


def test_the_command_line_finds_the_same_stages_done(ran, capsys):
    folder, overrides, results = ran
    before = (folder / "out" / "records.jsonl").read_bytes()
    options = ["--store", str(folder / "runs"), "--results", str(folder / "out")]
    assert main(["run", "smoke", *overrides, *options]) == 0
    assert "0 stages computed" in capsys.readouterr().out
    assert (folder / "out" / "records.jsonl").read_bytes() == before


def test_an_experiment_of_ones_own_and_a_single_run_share_the_store(ran, tmp_path):
    folder, overrides, results = ran
    experiment = overopt.load_experiment("smoke", overrides)
    own = overopt.Experiment(name="mine", runs=experiment.runs[:1])
    mine = overopt.run(own, store=folder / "runs", results=tmp_path / "a", runtime=QUIET)
    assert mine.experiment == "mine"
    single = overopt.run(
        experiment.runs[0], store=folder / "runs", results=tmp_path / "b", runtime=QUIET
    )
    ids = {c.meta["run_id"] for c in single.curves}
    assert ids == {c.meta["run_id"] for c in mine.curves}
    assert ids < {c.meta["run_id"] for c in results.curves}


def test_wrong_requests_are_refused_before_anything_is_made(tmp_path):
    store = tmp_path / "runs"
    with pytest.raises(ConfigError, match="experiment 'smok' is unknown; did you mean smoke?"):
        overopt.run("smok", store=store)
    with pytest.raises(ConfigError, match="did you mean"):
        overopt.run("smoke", ["labels.pairs=3"], store=store)
    with pytest.raises(ConfigError, match="torch cannot use it"):
        overopt.run("smoke", store=store, runtime=RuntimeConfig(device="cuda:97", quiet=True))
    assert not store.exists()


def test_changed_settings_under_one_name_need_to_be_accepted(ran, tmp_path):
    folder, overrides, _ = ran
    runs = overopt.load_experiment("smoke", overrides).runs
    for_one_name = {"store": folder / "runs", "results": tmp_path / "r", "runtime": QUIET}
    overopt.run(overopt.Experiment(name="twice", runs=runs[:1]), **for_one_name)
    other = overopt.Experiment(name="twice", runs=runs[1:])
    with pytest.raises(StoreError, match="was finished in"):
        overopt.run(other, **for_one_name)
    assert overopt.run(other, **for_one_name, accept_changes=True).curves


@pytest.mark.long
def test_a_wheel_runs_smoke_where_only_its_dependencies_are(tmp_path):
    """Built, installed without the tree, started elsewhere: every file it needs is in it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*pip, *build, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = str(venv / "bin" / "python")
    site = next(venv.glob("lib/*/site-packages"))
    target = ["--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, "install", *target, str(wheel)], check=True)
    # Dependencies come from this environment; the package itself must not.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = subprocess.run(
        [python, "-I", "-c", "import overopt; print(overopt.__file__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(where.strip()).is_relative_to(site)
    assert (Path(where.strip()).parent / "py.typed").is_file()
    command = [python, "-I", "-m", "overopt", "run", "smoke", "--workers", "1", "--quiet"]
    overrides = [*TINY, prompts_file(tmp_path / "prompts.jsonl")]
    subprocess.run([*command, *overrides], check=True, cwd=tmp_path)
    (records,) = tmp_path.glob("results/*/records.jsonl")
    assert len(records.read_text().splitlines()) == 2 * 3 + 2 * 3
