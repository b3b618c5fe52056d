"""The list of settings: complete, and each line an override that changes nothing."""

import subprocess
import sys

import pytest

from overopt.base.overrides import apply_overrides, setting_names
from overopt.cli.main import main
from overopt.cli.settings import describe_settings
from overopt.stages.settings import RunConfig

SETTINGS = list(describe_settings(RunConfig()))


def test_every_setting_is_listed_with_a_meaning():
    assert [s.name for s in SETTINGS] == list(setting_names(RunConfig()))
    unexplained = [s.name for s in SETTINGS if not s.meaning]
    assert unexplained == []


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_a_line_is_an_override_to_the_default(setting):
    if setting.value != "":  # an empty text or list is what leaving it out gives
        assert apply_overrides(RunConfig(), [f"{setting.name}={setting.value}"]) == RunConfig()


def test_the_settings_of_all_kinds_are_listed_without_torch():
    code = (
        "import sys; from overopt.cli.settings import known_names;"
        "names = known_names(); assert len(names) == len(set(names));"
        "assert {'method.clip', 'method.loss', 'proxy.gate', 'world.min_steps'} <= set(names);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_words_select_settings(capsys):
    assert main(["settings", "flip", "label"]) == 0
    shown = capsys.readouterr().out
    assert "labels.label_flip_rate=0.0" in shown and "ppo." not in shown
    assert main(["settings", "nonsense"]) == 2
    assert "no setting has these words" in capsys.readouterr().err
