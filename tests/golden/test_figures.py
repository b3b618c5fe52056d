"""Committed records still give the committed figures and leaderboard, to six digits."""

import json
import shutil
from pathlib import Path

import pytest

from overopt.reports.comparison import report
from overopt.reports.draw import draw

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"


def rounded(value):
    """Floats to six digits: the last bits differ between machines."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5e}") if isinstance(value, float) else value


def content(file):
    return rounded(json.loads(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("exp001_figure1", ["fig01", "fig02"]),
        ("desk", ["fig01_desk", "fig02_desk", "fig03_desk", "fig04_desk"]),
        ("gpu", ["fig01_gpu", "fig02_gpu", "fig03_gpu", "fig04_gpu"]),
    ],
)
def test_the_figures_say_what_the_committed_ones_say(name, pictures, tmp_path):
    files = [path for path in draw(RESULTS / name, tmp_path) if path.suffix == ".json"]
    assert sorted(path.stem for path in files) == pictures
    for file in files:
        assert content(file) == content(ROOT / "figures" / file.name)


def test_the_leaderboard_is_the_committed_one(tmp_path):
    committed = RESULTS / "exp005_leaderboard"
    folder = tmp_path / "results"
    shutil.copytree(committed, folder, ignore=shutil.ignore_patterns("leaderboard*", "*.png"))
    text = report(folder)
    assert text + "\n" == (committed / "leaderboard.md").read_text(encoding="utf-8")
    for name in ("leaderboard.json", "effects.json", "frontier.json"):
        assert content(folder / name) == content(committed / name)
