"""A method that the reading wing has never heard of: what shown.json says is what readers see."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from overopt.base.errors import ConfigError, DataError
from overopt.base.shown import Shown
from overopt.records.curves import load_curves
from overopt.records.view import view
from overopt.reports.figures import optimisers, overoptimization, size_and_peak
from overopt.reports.fit import fit
from overopt.reports.forecast import forecast
from overopt.reports.stops import stops

PACKAGE = Path(__file__).parents[2] / "overopt"
RECORDS = PACKAGE.parent / "experiments" / "results" / "exp001_figure1"
NEW = Shown(
    label="Tempered search",
    coord="ts_step",
    axis="search step",
    form="bon",
    marker="D",
    treatments={"method_lr": "rate"},
)


def with_new_method(folder, shown=NEW, rates=(0.1,)):
    """The records of figure 1, and its optimised policies again as those of the method ``ts``.

    Its runs take the ``rates`` in turn.
    """
    folder.mkdir()
    rows = [json.loads(x) for x in (RECORDS / "records.jsonl").read_text().splitlines()]
    moved = [row for row in rows if row["method"] != "bon"]
    with np.load(RECORDS / "curves.npz") as table:
        arrays = dict(table)
    runs = list(dict.fromkeys(row["run_id"] for row in moved))
    for row in moved:
        rate = rates[runs.index(row["run_id"]) % len(rates)]
        run_id = f"ts-{row['run_id']}"
        arrays |= {f"{run_id}.{k}": arrays[f"{row['run_id']}.{k}"] for k in
                   ("gold", "proxy", "intent", "kl", "length")}  # fmt: skip
        new = {"method": "ts", "coord": "ts_step", "run_id": run_id, "ppo_seed": None}
        rows.append(row | new | {"method_seed": row["ppo_seed"], "ppo_lr": None, "method_lr": rate})
    np.savez(folder / "curves.npz", **arrays)
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(RECORDS / "tilt.jsonl", folder)
    if shown is not None:
        (folder / "shown.json").write_text(json.dumps({"ts": shown._asdict()}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_new_method(tmp_path_factory.mktemp("new") / "records")


def titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes if ax.axison]


def test_each_method_has_its_panel_best_of_n_the_first(folder):
    results = view(folder)
    assert results.methods == ["bon", "ppo", "ts"]
    figure = overoptimization.draw(results)
    assert titles(figure) == ["(a) best-of-n", "(b) PPO", "(c) Tempered search"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["0.028M proxy", "0.2M proxy", "0.8M proxy"]
    assert labels[-1] == "height of (a)"


def test_treatments_of_the_method_set_its_series_apart_where_they_differ(folder, tmp_path):
    assert list(view(folder).groups["ts"]) == ["0.028M proxy", "0.2M proxy", "0.8M proxy"]
    groups = view(with_new_method(tmp_path / "records", rates=(0.1, 0.2))).groups
    found = list(groups["ts"])
    assert len(found) == 6 and all(re.search(r"M proxy, rate 0\.[12]$", name) for name in found)
    assert not [name for method in ("bon", "ppo") for name in groups[method] if "rate" in name]


def test_panels_of_many_methods_are_in_rows(folder):
    results = view(folder)
    last = results.curves[-1]
    more = [
        replace(last, rows=tuple(row | {"method": name} for row in last.rows)) for name in "xyz"
    ]
    # The view is filled by hand: what it would read from disk.
    vars(results)["curves"] = [results.curves[0], *more]
    figure = overoptimization.draw(results)
    assert titles(figure) == ["(a) best-of-n", "(b) X", "(c) Y", "(d) Z"]
    assert len(figure.axes) == 6
    assert figure.get_size_inches() == pytest.approx((5.4 * 3, 4.4 * 2))


def test_its_form_is_fitted_and_its_marker_drawn(folder):
    results = view(folder)
    assert {f.form for f in results.fits["ts"].values()} == {"bon"}
    assert {f.form for f in results.fits["ppo"].values()} == {"rl"}
    ax = size_and_peak.draw(results).axes[0]
    drawn = {line.get_marker() for line in ax.lines}
    assert {"o", "s", "D"} <= drawn
    assert "ts 0.8M proxy: bon:" in fit(folder)


def test_stopping_rules_have_a_table_a_method_and_the_same_numbers(folder):
    text = stops(folder)
    first, second = text.split("\n\n")
    assert first == stops(RECORDS) and first.splitlines()[0].split()[1] == "PPO"
    assert "Tempered search curves" in second
    assert second.splitlines()[2:] == first.splitlines()[2:]


def test_a_forecast_takes_it_by_the_name_of_the_records(folder, tmp_path):
    text = forecast(folder, n_params=12e6, method="ts", out=tmp_path / "f.json")
    assert text.startswith("ts (form bon)")
    with pytest.raises(DataError, match="0 proxy sizes with a xy fit .none.; they have curves of"):
        forecast(folder, n_params=12e6, method="xy")


def test_its_seeds_are_every_column_that_ends_in_seed(folder):
    curve = next(c for c in load_curves(folder) if c.meta["method"] == "ts")
    assert curve.seeds == {"data_seed": 0, "rm_seed": 0, "method_seed": 0, "ppo_seed": None}


def test_without_a_description_the_name_is_the_label(tmp_path):
    results = view(with_new_method(tmp_path / "records", shown=None))
    shown = next(c.shown for c in results.curves if c.meta["method"] == "ts")
    assert (shown.label, shown.coord, shown.form) == ("TS", "ts_step", "rl")
    assert {f.form for f in results.fits["ts"].values()} == {"rl"}


@pytest.mark.parametrize("text", ["[]", '{"ts": 3}', '{"ts": {"label": "x", "colour": "red"}}'])
def test_a_description_that_is_none_is_refused(tmp_path, text):
    folder = with_new_method(tmp_path / "records", shown=None)
    (folder / "shown.json").write_text(text)
    with pytest.raises(DataError, match=r"shown.json: not the descriptions of methods"):
        load_curves(folder)


def test_a_form_that_does_not_exist_is_an_error_and_not_a_missing_fit(tmp_path):
    results = view(with_new_method(tmp_path / "records", NEW._replace(form="bom")))
    with pytest.raises(ConfigError, match="unknown form 'bom'; nearest: bon"):
        results.fits  # noqa: B018


def test_records_of_best_of_n_alone_have_nothing_to_stop(tmp_path):
    folder = tmp_path / "bon"
    folder.mkdir()
    rows = (RECORDS / "records.jsonl").read_text().splitlines()
    only = [row for row in rows if json.loads(row)["method"] == "bon"]
    (folder / "records.jsonl").write_text("\n".join(only))
    shutil.copy(RECORDS / "curves.npz", folder)
    with pytest.raises(DataError, match="no curve of an optimised policy"):
        stops(folder)


def test_the_reading_wing_names_no_method():
    """But best-of-n, which has no file; and columns of older records, in the schema."""
    names = re.compile(r"\b(ppo|grpo|rloo|dpo)(\b|_)", re.IGNORECASE)
    files = [
        *(PACKAGE / "analysis").rglob("*.py"),
        *(PACKAGE / "reports").rglob("*.py"),
        *((PACKAGE / "records").glob("*.py")),
        PACKAGE / "cli" / "reports.py",
    ]
    assert len(files) > 25
    for file in files:
        if (file.parent.name, file.name) not in (
            ("records", "schema.py"),
            ("records", "settings.py"),
        ):
            assert not names.search(file.read_text(encoding="utf-8")), file


def test_methods_on_one_proxy_are_drawn_side_by_side(folder):
    results = view(folder)
    figure = optimisers.draw(results)
    assert titles(figure) == ["0.028M proxy", "", "", "0.2M proxy", "", "", "0.8M proxy", "", ""]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["best-of-n", "PPO", "Tempered search"]
    kl, proxy, seconds = figure.axes[6:]
    curves = results.groups["ppo"]["0.8M proxy"]
    n = min(len(c.rows) for c in curves)
    last = {
        name: np.mean([c[name][n - 1] for c in curves])
        for name in ("sqrt_kl", "proxy_gain", "gold_gain")
    }
    for ax, name in ((kl, "sqrt_kl"), (proxy, "proxy_gain")):
        drawn = ax.containers[1].lines[0]
        assert drawn.get_xdata()[-1] == pytest.approx(last[name])
        assert drawn.get_ydata()[-1] == pytest.approx(last["gold_gain"])
    assert not seconds.containers  # no costs were written
    assert optimisers.draw(view(RECORDS)) is None


def test_cpu_seconds_of_a_method_are_those_of_its_stage(folder, tmp_path):
    place = tmp_path / "records"
    shutil.copytree(folder, place)
    found = load_curves(place)
    costs = [
        {"run_id": c.meta["run_id"], "stage": stage, "cpu_s": cpu}
        for c in found
        if not c.is_bon
        for stage, cpu in ((c.meta["method"], 60.0), ("proxy", 1000.0))
    ]
    (place / "costs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in costs))
    seconds = optimisers.draw(view(place)).axes[2]
    assert [c.get_label() for c in seconds.containers] == ["PPO", "Tempered search"]
    for line in seconds.containers:
        x = line.lines[0].get_xdata()
        assert x[0] == 0 and (np.diff(x) > 0).all() and 30 < x[-1] <= 60


def test_the_strength_of_one_method_is_not_named_in_others():
    """DPO has a β; methods without a penalty have no weight to be told apart by."""
    groups = view(RECORDS.parent / "exp006_optimisers").groups
    plain = ["0.056M proxy", "0.2M proxy", "0.8M proxy"]
    assert all(list(groups[method]) == plain for method in ("bon", "ppo", "grpo", "rejection"))
    assert list(groups["dpo"])[:2] == ["0.056M proxy, beta 0.1", "0.056M proxy, online, beta 0.1"]
