"""The record schema, its documentation, and what is refused."""

import json
from pathlib import Path

import pytest

from overopt.base.errors import DataError
from overopt.records.curves import read_records
from overopt.records.schema import FIELDS, SCHEMA_VERSION, validate_records

ROOT = Path(__file__).parents[2]


def a_row(**changes):
    values = {int: 3, float: 0.5, str: "x"}
    row = {name: values[f.type] for name, f in FIELDS.items()}
    return row | {"schema_version": SCHEMA_VERSION} | changes


def test_a_full_row_is_valid():
    validate_records([a_row(value=1), a_row(value=2)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold_score": float("nan")}, "gold_score"),
        ({"gold_score": None}, "'gold_score' is missing"),
        ({"gold_score": "0.5"}, "not float"),
        ({"n_pairs": True}, "not int"),
        ({"kl_seq_nats": -0.1}, "negative"),
        ({"kl_k1": None, "missing_reason": None}, "without a missing_reason"),
        ({"schema_version": 99}, "schema_version 99"),
        ({"golden_score": 1.0}, "unknown column 'golden_score'"),
    ],
)
def test_bad_rows_are_refused_by_name(change, message):
    with pytest.raises(DataError, match=message):
        validate_records([a_row(**change)])


def test_a_point_occurs_once():
    with pytest.raises(DataError, match="two records"):
        validate_records([a_row(), a_row()])


def test_reading_names_the_line(tmp_path):
    (tmp_path / "records.jsonl").write_text(json.dumps(a_row()) + "\n{oops\n")
    with pytest.raises(DataError, match="line 2"):
        read_records(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_records(tmp_path / "absent")


def test_documentation_lists_every_column_with_its_unit():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            name, unit = (cell.strip() for cell in line.split("|")[1:3])
            documented[name.strip("`")] = unit
    assert documented == {name: field.unit for name, field in FIELDS.items()}
