"""The record schema, its documentation, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from overopt.analysis.reach import gain
from overopt.base.errors import DataError
from overopt.records import series
from overopt.records.curves import Curve, load_curves, read_records
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
    with pytest.raises(DataError, match="is missing"):
        read_records(tmp_path / "absent")


def test_documentation_lists_every_column_with_its_unit():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            name, unit = (cell.strip() for cell in line.split("|")[1:3])
            documented[name.strip("`")] = unit
    assert documented == {name: field.unit for name, field in FIELDS.items()}


def test_either_name_of_the_intent_is_enough():
    """Older records say rubric, newer ones intent; neither needs a reason without nulls."""
    old = dict.fromkeys(("intent_score", "intent_score_stderr"))
    new = dict.fromkeys(("rubric_score", "rubric_score_stderr"))
    for row in (a_row(missing_reason=None) | names for names in (old, new)):
        validate_records([row])
    with pytest.raises(DataError, match="'intent_score' is null without a missing_reason"):
        validate_records([a_row(missing_reason=None) | old | new])
    validate_records([a_row(missing_reason="a world without intent") | old | new])


def test_the_older_name_reads_under_both(tmp_path):
    row = a_row(rubric_score=0.7, rubric_score_stderr=0.1)
    del row["intent_score"], row["intent_score_stderr"], row["method_seed"]
    (tmp_path / "records.jsonl").write_text(json.dumps(row) + "\n")
    (read,) = read_records(tmp_path)
    assert (read["intent_score"], read["rubric_score"]) == (0.7, 0.7)
    assert (read["intent_score_stderr"], read["method_seed"]) == (0.1, None)


@pytest.mark.parametrize("name", ["intent", "rubric", None])
def test_the_intent_of_a_curve_is_read_from_either_array_or_absent(tmp_path, name):
    rows = [a_row(value=k, n_prompts=2, rubric_score=None, run_id="r") for k in (1, 2)]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = np.arange(4.0).reshape(2, 2)
    arrays = {f"r.{k}": table for k in ("gold", "proxy", "kl", "length")}
    np.savez(tmp_path / "curves.npz", **arrays, **({f"r.{name}": -table} if name else {}))
    (curve,) = load_curves(tmp_path)
    assert "rubric" not in curve.arrays and curve.gain("gold").tolist() == [[0, 0], [2, 2]]
    if name is None:
        assert "intent" not in curve.arrays
        assert np.isnan(gain(curve, "intent")).all()
    else:
        np.testing.assert_array_equal(curve.arrays["intent"], -table)


def test_committed_records_have_the_intent_under_both_names():
    results = ROOT / "experiments" / "results" / "exp002_ensembles"
    curve = load_curves(results)[0]
    assert curve["intent_score"].tolist() == curve["rubric_score"].tolist()
    np.testing.assert_allclose(curve.arrays["intent"].mean(1), curve["intent_score"], atol=1e-6)


def promised(rows, **arrays):
    return series.promised_gain(Curve(tuple(rows), arrays))


def test_what_a_proxy_promises_is_its_gain_times_what_a_unit_is_worth():
    rows = [{"proxy_gold_slope": 0.5, "proxy_raw": raw} for raw in (1.0, 2.0, 5.0)]
    assert promised(rows).tolist() == [0.0, 0.5, 2.0]
    assert promised([row | {"proxy_gold_slope": None} for row in rows]) is None
    assert promised([row | {"proxy_gold_slope": -0.1} for row in rows]) is None  # knows nothing
    changed = [rows[0], *(row | {"proxy_gold_slope": 0.7} for row in rows[1:])]
    assert promised(changed) is None  # the proxy was replaced on the way


def test_the_intent_is_shown_where_gold_is_a_model():
    gold = np.array([[0.0, 1.0], [2.0, 3.0], [1.0, 2.0]])
    same = Curve(({}, {}, {}), {"gold": gold, "intent": gold.copy()})
    model = Curve(({}, {}, {}), {"gold": gold, "intent": gold * 0.5})
    assert series._intent([same, same], 3) is None
    assert series._intent([Curve(({},), {"gold": gold})], 3) is None
    assert series._intent([same, model], 2).tolist() == [0.0, 1.5]
