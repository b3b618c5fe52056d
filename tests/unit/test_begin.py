"""`overopt init`, `completion`, repeated settings, and options that are settings."""

import subprocess
import sys

import pytest

from overopt.base.userfile import from_file
from overopt.cli.main import _parse, main
from overopt.stages.settings import Experiment
from overopt.study.presets import load_experiment


def test_the_file_of_init_is_figure_1_with_its_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine.py"]) == 0
    assert "next: overopt plan mine.py" in capsys.readouterr().out
    text = (tmp_path / "mine.py").read_text()
    compile(text, "mine.py", "exec")
    assert max(map(len, text.splitlines())) <= 100 and "${" not in text
    experiment = from_file(tmp_path / "mine.py", "build", Experiment)
    assert experiment.name == "mine"
    assert experiment.runs == load_experiment("quick").runs[:3]  # of its first seed
    assert main(["plan", "mine.py"]) == 0
    changed = load_experiment("mine.py", ["labels.n_pairs=1500"])
    assert {run.labels.n_pairs for run in changed.runs} == {1500}


def test_init_writes_over_nothing_and_wants_its_options_together(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("x = 1\n")
    for command, message in (
        ([str(file)], "exists already"),
        ([str(tmp_path / "mine")], "that ends in .py"),
        ([str(tmp_path / "my 'file'.py")], "must be a name of letters"),
        ([str(tmp_path / "new.py"), "--prompts", "p.jsonl"], "go with --policy"),
        ([str(file / "new.py")], "nothing could be written"),
    ):
        assert main(["init", *command]) == 2
        assert message in capsys.readouterr().err
    assert file.read_text() == "x = 1\n" and not (tmp_path / "new.py").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_options_presets_and_settings(shell, capsys):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    for word in ("report", "samples", "time-limit", "smollm", "labels.n_pairs=", "method.kl_coef="):
        assert word in out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["sam"], ["samples"]),
        (["run", "smo"], ["smoke", "smollm"]),
        (["run", "smoke", "labels.n_p"], ["labels.n_pairs="]),
        (["run", "smoke", "--time"], ["--time-limit"]),
        (["samples", "r", "--wor"], ["--worst"]),
    ],
)
def test_bash_completes(tmp_path, capsys, typed, offered):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "overopt.bash"
    script.write_text(capsys.readouterr().out)
    asked = (
        f"compopt() {{ :; }}; source {script}; COMP_WORDS=(overopt {' '.join(typed)});"
        f' COMP_CWORD={len(typed)}; _overopt; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered


def test_the_last_of_repeated_settings_counts_and_it_is_said(capsys):
    args = _parse(["plan", "smoke", "seed=1", "labels.n_pairs=5", "--store", "s", "seed=2"])
    assert args.overrides == ["labels.n_pairs=5", "seed=2"]
    assert capsys.readouterr().err == "overopt: seed=1 is overridden by seed=2, which comes later\n"
    assert _parse(["plan", "smoke", "a=1", "a=1"]).overrides == ["a=1"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("option", "settings"),
    [
        ("--seed", ["root_seed=VALUE", "labels.data_seed=VALUE", "method.ppo_seed=VALUE"]),
        ("--n-pairs", ["labels.n_pairs=VALUE"]),
        ("--kl_coef=0.1", ["method.kl_coef=VALUE"]),
    ],
)
def test_an_option_that_is_a_setting_points_to_it(option, settings, capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "smoke", option, "3"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "settings are given without dashes" in said
    for setting in settings:
        assert setting in said


def test_an_option_that_is_none_does_not(capsys):
    for command in (["run", "smoke", "--wrkers", "2"], ["fit", "desk", "--seed", "3"]):
        with pytest.raises(SystemExit):
            main(command)
        assert f"see `overopt {command[0]} --help`" in capsys.readouterr().err


def test_help_does_not_import_the_settings():
    code = (
        "import sys\nfrom overopt.cli.main import main\n"
        "try:\n    main(['run', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'overopt.stages.settings' not in sys.modules "
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
