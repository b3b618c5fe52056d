"""Every notebook runs, is short, and is committed with its outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_CODE_LINES = 60

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def has_output(cell):
    """Whether a cell printed or showed something; warnings on stderr are not what it is for."""
    return any(o.output_type != "stream" or o.name == "stdout" for o in cell.outputs)


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
@pytest.mark.slow
def test_runs_and_shows_what_is_committed(path, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # no profile of the user's takes part
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    committed = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    for cell in code_cells(fresh):
        cell.outputs = []
    NotebookClient(
        fresh,
        kernel_name="python3",
        timeout=120,
        resources={"metadata": {"path": str(FOLDER)}},
    ).execute()
    for was, now in zip(code_cells(committed), code_cells(fresh), strict=True):
        assert has_output(was) == has_output(now), f"commit the outputs of: {was.source[:80]!r}"


@each_notebook
def test_is_short_and_ends_with_an_assertion(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    lines = [line for cell in cells for line in cell.source.splitlines() if line.strip()]
    assert len(lines) <= MAX_CODE_LINES
    assert "assert " in cells[-1].source


@each_notebook
def test_was_committed_after_a_clean_run_with_relative_paths(path):
    notebook = nbformat.read(path, as_version=4)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    absolute = re.compile(r"""["'](/|[A-Z]:\\)\w""")
    assert not [cell.source for cell in cells if absolute.search(cell.source)]
