"""A user's Python file: imported once by its path, refused with its name."""

import numpy as np
import pytest

from overopt.base import files
from overopt.base.errors import ConfigError
from overopt.base.userfile import from_file, load_module
from overopt.fits.fit import jsonable


def test_a_file_is_imported_once_until_it_is_changed(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("state = []\ndef draw(results): return state\n")
    first = load_module(file, ("draw",))
    first.state.append(1)
    monkeypatch.chdir(tmp_path)
    assert load_module("mine.py", ("draw",)) is first and load_module(str(file), ("draw",)).draw(
        None
    ) == [1]
    file.write_text("state = [7]\ndef draw(results): return state\n")
    assert load_module(file, ("draw",)).draw(None) == [7]


def test_files_of_one_name_in_two_folders_are_two(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(f"def draw(results): return {name!r}\n")
    assert [load_module(tmp_path / name / "mine.py").draw(None) for name in "ab"] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("draw = 3\n", r"mine.py' has no draw\(\): define one"),
        ("import no_such_module_\n", "mine.py': importing it raised ModuleNotFoundError"),
        ("raise SystemError('no')\n", "mine.py': importing it raised SystemError: no"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_module(file, ("draw",))


def test_what_is_no_python_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="absent.py' does not exist"):
        load_module(tmp_path / "absent.py")
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match=r"mine.txt' cannot be imported: give the path of a .py"):
        load_module(tmp_path / "mine.txt")


def test_an_error_of_ours_inside_the_file_keeps_its_words(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from overopt.base.errors import ConfigError\nraise ConfigError('seed = -1')\n")
    with pytest.raises(ConfigError, match=r"^seed = -1$"):
        load_module(file, ("draw",))


def test_from_file_checks_what_the_function_returns(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def build(): return 'x'\n")
    assert from_file(file, "build", str) == "x"
    with pytest.raises(ConfigError, match=r"build\(\) of .* returned str, not int"):
        from_file(file, "build", int)


def test_one_cleaner_makes_json_types_of_everything():
    value = {1: (np.float32(0.5), np.arange(2), float("nan")), "inf": [np.inf, -np.inf]}
    assert files.plain(value) == {"1": [0.5, [0, 1], None], "inf": [None, None]}
    assert jsonable(value) == {"1": [0.5, [0, 1], None], "inf": ["inf", "-inf"]}
