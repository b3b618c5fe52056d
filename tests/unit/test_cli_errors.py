"""The command line: one clear message per error, the right exit status, a light --help."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import types
from dataclasses import dataclass, field

import pytest

from overopt.base.config import check_types, require
from overopt.base.errors import ConfigError
from overopt.base.files import save_json
from overopt.base.overrides import apply_overrides
from overopt.cli import main
from overopt.engine.graph import Stage
from overopt.engine.store import Store


@dataclass(frozen=True, kw_only=True)
class CountConfig:
    root_seed: int = 0
    n: int = 3
    fate: str = "finish"

    def __post_init__(self) -> None:
        check_types(self)
        require(self.n > 0, "n", self.n, "must be positive")


@dataclass(frozen=True, kw_only=True)
class FakeExperiment:
    name: str = "tiny"
    count: CountConfig = field(default_factory=CountConfig)


def run_count(context):
    match context.config.fate:
        case "diverge":
            from overopt.base.errors import DivergenceError

            raise DivergenceError("loss = nan at step 3; lower lr")
        case "bug":
            raise ZeroDivisionError("a bug")
        case "interrupt":
            raise KeyboardInterrupt
    save_json(context.out / "n.json", context.config.n)


def load_experiment(name, overrides):
    if name != "tiny":
        raise ConfigError(f"no preset {name!r}; did you mean tiny?")
    return apply_overrides(FakeExperiment(), overrides)


def build_graph(experiment):
    count = Stage(name="count", version=1, config=experiment.count, run=run_count, label="count")
    return [count]


def collect(experiment, store, results_dir, *, partial=False):
    results_dir.mkdir(parents=True, exist_ok=True)
    stage = sys.modules["overopt.study.chain"].build_graph(experiment)[0]
    artefact = store.open(stage.name, stage.fingerprint)
    (results_dir / "records.jsonl").write_bytes((artefact.path / "n.json").read_bytes())
    return results_dir


@pytest.fixture(autouse=True)
def fake_pipe(monkeypatch, tmp_path):
    """Stand-ins for the presets and the pipeline, and an empty working directory."""
    stand_ins = {
        "study.presets": {"load_experiment": load_experiment},
        "study.chain": {"build_graph": build_graph},
        "study.collect": {"collect": collect},
        "reports.fit": {"fit": lambda records: f"fitted {records}"},
        "reports.draw": {"draw": lambda records, out, only: [f"{out}/{records}.pdf"]},
    }
    importlib.import_module("overopt.study.track")  # with the real ones, before they are hidden
    for name, functions in stand_ins.items():
        module = types.ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, f"overopt.{name}", module)
        parent, _, own = name.partition(".")
        package = importlib.import_module(f"overopt.{parent}")
        monkeypatch.setattr(package, own, module, raising=False)
    # What carries an experiment out, over the stand-ins, and not left to other tests.
    spec = importlib.util.find_spec("overopt.study.run")
    carrier = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(carrier)
    monkeypatch.setitem(sys.modules, "overopt.study.run", carrier)
    monkeypatch.setattr(importlib.import_module("overopt.study"), "run", carrier, raising=False)
    monkeypatch.chdir(tmp_path)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def run(*args):
    return main.main(list(args))


def test_help_starts_fast_and_loads_nothing_heavy():
    code = (
        "import sys, time\n"
        "from overopt.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'transformers', 'scipy', 'pandas'} & set(sys.modules)\n"
        "print('cpu', time.process_time())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("plan", "run", "status", "fit", "figures", "bench", "forecast"):
        assert command in done.stdout
    assert float(done.stdout.split()[-1]) < 0.3


def test_plan_run_status_tell_the_story_of_an_experiment(tmp_path, capsys):
    assert run("plan", "tiny") == 0
    assert "to do" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists(), "plan must not write"
    assert run("run", "tiny", "--workers", "1") == 0
    out, err = capsys.readouterr()
    assert "1 stages computed" in out and "done   count" in err
    assert (tmp_path / "results" / "tiny" / "records.jsonl").read_text() == "3\n"
    assert run("status", "tiny") == 0
    assert capsys.readouterr().out == "tiny: 1 stages, 1 done\n"
    assert run("plan", "tiny") == 0
    assert " done" in capsys.readouterr().out


def test_plan_and_status_as_json_say_the_same(capsys):
    assert run("plan", "tiny", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    (stage,) = planned["stages"]
    assert (stage["title"], stage["state"]) == ("count", "missing")
    assert planned["cost_s"] == stage["cost_s"] == 1.0 and planned["wall_s"] == 1.0
    assert run("run", "tiny", "--workers", "1", "--quiet") == 0
    assert run("status", "tiny", "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert done["stages"][0]["state"] == "done" and done["cost_s"] == 0
    assert done["stages"][0]["fingerprint"] == stage["fingerprint"] and done["stale"] == {}


def test_overrides_may_come_before_and_after_options(tmp_path, capsys):
    command = ("run", "tiny", "count.n=5", "--workers", "1", "--quiet", "--results", "out")
    assert run(*command, "count.root_seed=2") == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "out" / "records.jsonl").read_text() == "5\n"
    recorded = Store("runs").recorded("tiny count.n=5 count.root_seed=2")
    assert list(recorded["stages"]) == ["count"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("run", "tny"), ["no preset 'tny'", "did you mean tiny"]),
        (("run", "tiny", "count.m=1"), ["unknown setting 'count.m'", "count.n"]),
        (("run", "tiny", "count.n=x"), ["count.n = 'x'", "an int"]),
        (("run", "tiny", "count.n=0"), ["count: n = 0: must be positive"]),
        (("plan", "tiny", "oops"), ["'oops'", "name=value"]),
        (("run", "tiny", "--threads", "0"), ["threads = 0: must be at least 1"]),
        (("run", "tiny", "--store", "file"), ["file: is a file", "--store"]),
        (("run", "tiny", "--store", "file/runs"), ["--store"]),
        (("status", "tiny", "--store", "foreign"), ["format = 99"]),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_one_message(tmp_path, capsys, args, words):
    (tmp_path / "file").write_text("x")
    (tmp_path / "foreign").mkdir()
    save_json(tmp_path / "foreign" / "store.json", {"format": 99})
    assert run(*args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("overopt: error: ") and err.count("\n") == 1
    for word in words:
        assert word in err
    assert not (tmp_path / "runs").exists(), "work was started"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "command"),
        (("ran",), "invalid choice"),
        (("run", "tiny", "--wrkers", "2"), "--wrkers"),
        (("run", "tiny", "--workers", "-1"), "not a whole number"),
        (("fit", "dir", "extra"), "'extra'"),
    ],
)
def test_wrong_usage_exits_with_status_2(capsys, args, words):
    with pytest.raises(SystemExit) as caught:
        run(*args)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_debug_shows_the_traceback():
    with pytest.raises(ConfigError, match="no preset"):
        run("run", "tny", "--debug")


def test_a_failed_stage_exits_with_status_1_without_a_traceback(capsys):
    assert run("run", "tiny", "count.fate=diverge", "--workers", "1", "--quiet") == 1
    err = capsys.readouterr().err
    assert "stage 'count' failed: loss = nan at step 3; lower lr" in err
    assert "Traceback" not in err


def test_a_bug_keeps_its_traceback(capsys, monkeypatch):
    assert run("run", "tiny", "count.fate=bug", "--workers", "1", "--quiet") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "in run_count" in err and "ZeroDivisionError: a bug" in err
    monkeypatch.setattr(sys.modules["overopt.study.chain"], "build_graph", lambda experiment: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("run", "tiny")


def test_an_interrupt_says_how_to_go_on(capsys):
    assert run("run", "tiny", "count.fate=interrupt", "--workers", "1", "--quiet") == 130
    assert "running the same command again resumes" in capsys.readouterr().err


def test_an_interrupt_inside_a_string_of_code_has_the_same_status(tmp_path):
    """An import that makes a dataclass runs one; CPython ends ``python -m`` by the signal after it."""
    (tmp_path / "interrupted.py").write_text(
        "import argparse, sys\n"
        "from overopt.cli import main as cli\n"
        "def command(args):\n"
        "    exec('raise KeyboardInterrupt')\n"
        "cli._parse = lambda argv: argparse.Namespace(command=command, debug=False, name='run')\n"
        "sys.exit(cli.main([]))\n"
    )
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert "running the same command again resumes" in done.stderr


def test_changed_code_under_one_name_is_an_error_until_accepted(capsys, monkeypatch):
    assert run("run", "tiny", "--workers", "1", "--quiet") == 0

    def changed(experiment):
        stage = build_graph(experiment)[0]
        return [Stage(name="count", version=2, config=stage.config, run=run_count, label="count")]

    monkeypatch.setattr(sys.modules["overopt.study.chain"], "build_graph", changed)
    for command in ("run", "plan"):
        assert run(command, "tiny") == 2
        out, err = capsys.readouterr()
        assert "version 1 -> 2" in err and "--accept-changes" in err
    assert "STALE" in out
    assert run("run", "tiny", "count.n=9", "--workers", "1", "--quiet") == 0, "another experiment"
    assert run("run", "tiny", "--accept-changes", "--workers", "1", "--quiet") == 0
    assert run("plan", "tiny") == 0


def test_an_unusable_device_is_refused_before_work(capsys, tmp_path):
    pytest.importorskip("torch")
    assert run("run", "tiny", "--device", "cuda:99") == 2
    assert "device = 'cuda:99': torch cannot use it" in capsys.readouterr().err
    assert run("run", "tiny", "--device", "gpu") == 2
    assert not (tmp_path / "runs").exists()


def test_a_read_only_store_is_one_message(capsys, monkeypatch):
    import errno
    import os

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "runs")

    monkeypatch.setattr(os, "mkdir", refuse)
    assert run("run", "tiny") == 2
    err = capsys.readouterr().err
    assert "read-only; give a writable directory with --store" in err and err.count("\n") == 1


def test_fit_and_figures_print_what_the_analysis_returns(capsys):
    assert run("fit", "somewhere") == 0
    assert run("figures", "quick", "--out", "plots") == 0
    assert capsys.readouterr().out == "fitted somewhere\nplots/quick.pdf\n"


def test_runs_with_other_overrides_do_not_share_a_results_folder():
    from overopt.study.run import default_results

    plain, flipped = default_results("smoke"), default_results("smoke labels.label_flip_rate=0.2")
    assert str(plain) == "results/smoke"
    assert str(flipped) == "results/smoke_labels.label_flip_rate=0.2"
    long = [default_results(f"smoke world.prompts_file=/{'a' * 200}/{x}") for x in "ab"]
    assert long[0] != long[1] and len(long[0].name) < 120 and "/" not in long[0].name


def test_the_package_is_the_command_line_too():
    done = subprocess.run(
        [sys.executable, "-m", "overopt", "plan", "desc"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "did you mean desk?" in done.stderr
