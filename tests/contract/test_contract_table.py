"""docs/contract.md: every point has a test, and every test that it names exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in (ROOT / "docs" / "contract.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d+ \|", line)
]


@cache
def functions_of(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_all_points_are_there():
    assert [int(row[0]) for row in ROWS] == list(range(1, 26))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_point_names_tests_that_exist(row):
    _, what, tests = row
    nodes = re.findall(r"`([^`]+)`", tests)
    assert what and nodes, "no test"
    for node in nodes:
        file, _, name = node.partition("::")
        assert name.startswith("test_") and (ROOT / file).is_file(), node
        assert name in functions_of(file), node
