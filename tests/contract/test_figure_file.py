"""A user's own figure is one file: `overopt figures RESULTS --figure my_figure.py` draws it."""

import json
from pathlib import Path

import pytest
from matplotlib.image import imread
from matplotlib.lines import Line2D

from overopt.base.errors import DataError
from overopt.cli.main import main
from overopt.records.view import view
from overopt.reports.draw import built_in, draw
from overopt.reports.figures import data_sizes, overoptimization

RECORDS = Path(__file__).parents[2] / "experiments" / "results" / "exp001_figure1"

TOY = '''
"""How long responses get, against √KL: is the proxy's favourite vice to go on and on?"""

from matplotlib.figure import Figure


def draw(results):
    """Response length of every optimised policy, a line a run; None without one."""
    curves = [c for c in results.curves if not c.is_bon]
    if not curves:
        return None
    figure = Figure(figsize=(4, 3), layout="constrained")
    ax = figure.subplots()
    for curve in curves:
        ax.plot(curve["sqrt_kl"], curve["response_tokens"], curve.shown.marker + "-")
    ax.set_xlabel("√KL (√nats)")
    ax.set_ylabel("tokens")
    ax.set_title(curves[0].shown.label)
    return figure


def sidecar(results):
    """What the picture shows in numbers."""
    return {"longest": max(float(c["response_tokens"].max()) for c in results.curves)}
'''


def write(folder, text, name="lengths.py"):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_a_file_of_the_user_s_becomes_a_picture(tmp_path, capsys):
    file, out = write(tmp_path, TOY), tmp_path / "out"
    assert len(TOY.splitlines()) < 60
    assert main(["figures", str(RECORDS), "--out", str(out), "--figure", file]) == 0
    assert capsys.readouterr().out.split() == [str(out / "lengths.png"), str(out / "lengths.json")]
    assert sorted(p.name for p in out.iterdir()) == ["lengths.json", "lengths.png"]
    pixels = imread(out / "lengths.png")[..., :3]
    assert pixels.shape[:2] == (480, 640) and pixels.std() > 0.05  # not a white page
    side = json.loads((out / "lengths.json").read_text(encoding="utf-8"))
    assert side["longest"] > 20 and side["experiment"] == "exp001_figure1"
    assert side["records"] and set(side["fits"]) == {"bon", "ppo"}


def test_a_figure_of_the_user_s_stands_beside_a_built_in_one(tmp_path):
    file = write(tmp_path, TOY)
    written = draw(RECORDS, tmp_path / "out", ["size_and_peak", file])
    assert [p.name for p in written] == ["fig02.png", "fig02.json", "lengths.png", "lengths.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("def paint(results): ...\n", "has no draw(): define one"),
        ("1 / 0\n", "importing it raised ZeroDivisionError: division by zero"),
        ("def draw(results):\n", "importing it raised IndentationError"),
        ("def draw(results): return 7\n", "returned int, not a matplotlib Figure"),
        ("def draw(results): return None\n", "does not hold what it shows"),
    ],
)
def test_a_file_that_is_no_figure_is_refused_by_name(tmp_path, capsys, text, message):
    file = str(tmp_path / "mine.py") if text is None else write(tmp_path, text, "mine.py")
    assert main(["figures", str(RECORDS), "--out", str(tmp_path / "out"), "--figure", file]) == 2
    error = capsys.readouterr().err
    assert message in error and "mine" in error
    assert not list((tmp_path / "out").glob("*"))


def test_an_unknown_name_lists_the_built_in_ones(tmp_path, capsys):
    assert main(["figures", str(RECORDS), "--out", str(tmp_path), "--figure", "fig9"]) == 2
    error = capsys.readouterr().err
    assert "'fig9' does not exist" in error
    assert all(figure.name in error for figure in built_in())


def test_two_figures_of_one_name_do_not_overwrite_each_other(tmp_path, capsys):
    (tmp_path / "other").mkdir()
    files = [write(tmp_path, TOY), write(tmp_path / "other", TOY)]
    options = [x for file in files for x in ("--figure", file)]
    assert main(["figures", str(RECORDS), "--out", str(tmp_path / "out"), *options]) == 2
    assert "lengths are asked for twice" in capsys.readouterr().err


@pytest.mark.parametrize("figure", built_in(), ids=lambda figure: figure.name)
def test_every_built_in_figure_draws_committed_records(figure, tmp_path):
    """Each has records in the repository that show it, the first of these."""
    places = ("exp001_figure1", "desk", "exp012_control", "search_steps", "exp006_optimisers")
    for name in places:
        try:
            names = [p.name for p in draw(RECORDS.parent / name, tmp_path, [figure.name])]
        except DataError as error:
            assert "does not hold what it shows" in str(error)
            continue
        stem = figure.picture + ("" if name == "exp001_figure1" else f"_{name}")
        assert {f"{stem}.png", f"{stem}.json"} <= set(names)
        return
    pytest.fail(f"no committed records show {figure.name}")


@pytest.mark.parametrize("name", ["exp001_figure1", "exp014_world", "desk", "smollm"])
@pytest.mark.parametrize("figure", [overoptimization, data_sizes], ids=["curves", "data sizes"])
def test_every_kind_of_line_stands_in_the_legend(figure, name):
    """Such as the intent behind a gold that is a model; and the legend names nothing else."""
    picture = figure.draw(view(RECORDS.parent / name))
    if picture is None:
        assert figure is data_sizes and name in ("exp001_figure1", "smollm")
        return
    drawn = {line.get_linestyle() for ax in picture.axes for line in ax.lines} - {"None"}
    named = {key.get_linestyle() for key in picture.legends[0].legend_handles if line_like(key)}
    assert named == drawn


def line_like(key):
    """Not the patch of a shaded area."""
    return isinstance(key, Line2D)
