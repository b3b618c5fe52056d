"""The public interface: its names, types, results in Python, and how they show themselves."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure

import overopt
from overopt import Results
from overopt.base.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "experiments" / "results" / "smollm"


@pytest.fixture(scope="module")
def results():
    return Results(RECORDS)


def test_every_name_can_be_imported_and_type_checkers_see_the_same():
    tree = ast.parse(Path(overopt.__file__).read_text(encoding="utf-8"))
    seen = {
        (alias.asname, f"{node.module}.{alias.name}")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("overopt.")
        for alias in node.names
    }
    at_run_time = {
        (name, f"overopt.{module}.{name}")
        for module, names in overopt._HOME.items()
        for name in names
    }
    assert seen == at_run_time
    for name in overopt.__all__:
        assert getattr(overopt, name) is not None
        assert name in dir(overopt)
    with pytest.raises(AttributeError, match="no attribute 'best_of_m'"):
        _ = overopt.best_of_m


def test_reading_needs_no_torch():
    reading = [name for name in overopt.__all__ if name != "run"]
    code = (
        f"import sys; from overopt import {', '.join(reading)}; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_results_hold_curves_and_what_follows_from_them(results):
    assert [c.meta["run_id"] for c in results.curves] == list(dict.fromkeys(results.table.run_id))
    assert list(results.peaks.method) == [c.meta["method"] for c in results.curves]
    highest = results.table.groupby("run_id", sort=False).gold_gain.max()
    # Cross-fitted, so below the highest mean, by no more than the choice among noisy means adds.
    low = np.array(highest) - 2 * results.peaks.peak_stderr
    assert (results.peaks.peak_gold < np.array(highest)).all()
    assert (results.peaks.peak_gold > low).all()


def test_fits_are_those_of_the_command_unless_another_form_is_asked_for(results):
    printed = overopt.fit_records(RECORDS)
    for method, series in results.fit().items():
        assert series.keys() == printed[method].keys()
        for name, fit in series.items():
            assert fit.params == printed[method][name].params
    others = [f for series in results.fit("rl_log1p").values() for f in series.values()]
    assert {f.form for f in others} == {"rl_log1p"} and len(others) == 6
    with pytest.raises(ConfigError, match="cubic"):
        results.fit("cubic")
    with pytest.raises(ConfigError, match="'power' has the shape parameter"):
        results.fit("power")


def test_scaling_has_a_point_for_each_size(results):
    sizes = [point.n_params for point in results.scaling("bon")]
    assert sizes == sorted({c.meta["n_params"] for c in results.curves})


def test_plot_gives_a_figure_or_says_why_not(results):
    assert isinstance(results.plot(), Figure)
    with pytest.raises(ConfigError, match="figure 'pie' does not exist"):
        results.plot("pie")
    with pytest.raises(DataError, match="does not hold what it shows"):
        results.plot("data_sizes")


def test_a_notebook_shows_a_line_for_each_series(results):
    page = results._repr_html_()
    assert page.count("<tr>") == 1 + 6
    assert "0.45±0.10 at √KL 2.34" in page  # PPO against the largest proxy
    poor = [
        f for of_method in results.fits.values() for f in of_method.values() if f.p_value < 1e-3
    ]
    assert page.count("does not describe the curve") == len(poor)
    assert repr(results) == f"Results({str(RECORDS)!r})"


def test_what_a_notebook_shows_is_escaped(tmp_path):
    folder = tmp_path / "x&y"
    folder.mkdir()
    text = (RECORDS / "records.jsonl").read_text(encoding="utf-8")
    (folder / "records.jsonl").write_text(
        text.replace('"experiment": "smollm"', '"experiment": "<b>"'), encoding="utf-8"
    )
    (folder / "curves.npz").write_bytes((RECORDS / "curves.npz").read_bytes())
    page = Results(folder)._repr_html_()
    assert "<b>&lt;b&gt;</b>" in page and "x&amp;y" in page


def test_without_records_the_remedy_is_named(tmp_path):
    with pytest.raises(DataError, match="run `overopt run` first, or give the directory"):
        Results(tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_use_the_public_interface_only(path):
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(
        line
        for cell in cells
        if cell.cell_type == "code"
        for line in cell.source.splitlines()
        if not line.startswith("%")
    )
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("overopt"):
            assert node.module == "overopt"
            assert {alias.name for alias in node.names} <= set(overopt.__all__)
        if isinstance(node, ast.Import):
            assert not [a.name for a in node.names if a.name.startswith("overopt.")]


def test_the_table_of_names_in_the_documents_is_complete():
    section = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8").split("## From Python")[1]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert set(re.findall(r"`(\w+)`", "\n".join(rows))) == set(overopt.__all__)


def test_the_page_of_the_interface_has_every_name():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = {
        f"overopt.{module}.{name}" for module, names in overopt._HOME.items() for name in names
    }
    assert set(re.findall(r"^::: (\S+)$", page, re.MULTILINE)) == named
