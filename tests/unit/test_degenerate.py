"""Policies and scores on which there is nothing to see: no nan in any table, and a sentence why."""

import json
import re

import numpy as np
import pytest
from report_results import write_results

import overopt
from overopt.cli.main import main
from overopt.records.curves import load_curves

FLAT = {"kl_bon_ties": 0.0, "proxy_std": 0.0, "win_rate": 0.5, "proxy_gain": 0.0, "gold_gain": 0.0}
CASES = {
    "at once": (
        {"ended_share": 1.0, "response_tokens": 1.0, "distinct_share": 0.5, **FLAT},
        ("gold", "proxy", "length", "kl"),
        "every response ends at once",
    ),
    "never": ({"ended_share": 0.0}, (), "no response ends, all are cut off"),
    "answers": (
        {"distinct_share": 0.5, **FLAT},
        ("gold", "proxy", "kl"),
        "all responses to a prompt are the same",
    ),
    "proxy": (
        {"kl_bon_ties": 0.0, "proxy_std": 0.0, "proxy_gain": 0.0},
        ("proxy",),
        "the proxy gives all responses to a prompt the same score",
    ),
    "gold": (
        {"gold_gain": 0.0, "win_rate": 0.5, "proxy_std": 1.0},
        ("gold",),
        "gold gives every response to a prompt the same score",
    ),
}
NO_NUMBER = re.compile(r"\bnan\b|\bNaN\b|Infinity|Traceback")


def spoiled(folder, columns, flat):
    """Results of four curves with these columns at every point and these arrays as at the start."""
    write_results(folder)
    lines = (folder / "records.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if not row["backbone"].endswith("[:15]")]
    for row in rows:
        if row["method"] != "bon":
            row |= {"n_responses": 2 * row["n_prompts"], "distinct_share": 1.0, "proxy_std": 1.0}
        row |= {name: x for name, x in columns.items() if row.get(name) is not None}
        row |= (
            {"kl_seq_nats": 0.0, "sqrt_kl": 0.0} if "kl" in flat and row["method"] != "bon" else {}
        )
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arrays = dict(np.load(folder / "curves.npz"))
    for name, values in arrays.items():
        kind = name.rsplit(".")[-1]
        if kind in flat and (kind != "kl" or not values[-1].min() > 0):
            arrays[name] = np.repeat(values[:1], len(values), 0)
    np.savez(folder / "curves.npz", **arrays)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_every_table_says_why_and_none_has_nan(case, tmp_path, capsys):
    columns, flat, sentence = CASES[case]
    folder = str(spoiled(tmp_path / "r", columns, flat))
    page, found = tmp_path / "page.html", {}
    for command in (
        *(["fit"], ["fit", "--json"], ["stops"], ["stops", "--json"], ["show"], ["table"]),
        *(
            ["table", "--format", "csv"],
            ["table", "--format", "md"],
            ["report", "--out", str(page)],
        ),
    ):
        assert main([command[0], folder, *command[1:]]) == 0
        found[" ".join(command[:2])] = out = capsys.readouterr().out
        assert not NO_NUMBER.search(out), (command, NO_NUMBER.search(out))
    assert f"PPO, 21M proxy: {sentence}" in found["fit"]
    assert sentence in found["show"] and sentence in page.read_text()
    assert sentence in overopt.Results(folder)._repr_html_()
    said = json.loads(found["fit --json"])
    of_ppo = [" ".join(curve["remarks"]) for curve in said["peaks"] if curve["method"] == "ppo"]
    assert len(of_ppo) == 2 and all(sentence in remark for remark in of_ppo)
    if case in ("at once", "answers", "gold"):
        assert set(said["unfitted"]) == {"bon", "ppo"} and not said["fits"]["ppo"]
        assert f"ppo 21M proxy: not fitted: {sentence}" in found["fit"]


def test_ordinary_curves_are_left_alone_and_a_collapse_says_when(tmp_path):
    from overopt.analysis.degenerate import remarks

    curves = load_curves(write_results(tmp_path / "r"))
    (curve,) = (c for c in curves if not c.is_bon and c.meta["backbone"].endswith("[:15]"))
    assert [remarks(c) for c in curves if c is not curve] == [[]] * 5
    assert remarks(curve) == ["no response ends, all are cut off, from PPO step 60 on"]
    for row in curve.rows[-3:]:
        row |= {"ended_share": 0.5, "distinct_share": row["n_prompts"] / row["n_responses"]}
    at = curve.rows[-3]["value"]
    assert remarks(curve) == [f"all responses to a prompt are the same, from PPO step {at} on"]
    curve.rows[-1]["distinct_share"] = 0.9
    assert remarks(curve) == []


def test_the_fall_of_the_proxy_does_not_depend_on_its_zero(tmp_path):
    """It was a ratio to the highest score, above 1 where that score is below zero."""
    from overopt.analysis.peaks import peak_of

    (curve,) = load_curves(write_results(tmp_path / "r"))[-1:]
    proxy = np.linspace(-1.0, -2.0, len(curve.rows))
    for zero in (0.0, 1.5, 40.0):
        for row, score in zip(curve.rows, proxy, strict=True):
            row["proxy_score"] = float(score + zero)
        assert peak_of(curve)["proxy_fall"] == pytest.approx(1.0)
