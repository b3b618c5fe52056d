"""`overopt show`, `diff`, `samples` and `table`: results in the terminal."""

import csv
import io
import json

import pytest
from report_results import RECORDS, write_results

from overopt.analysis.peaks import peak_table
from overopt.base.errors import ConfigError, DataError
from overopt.cli.main import main
from overopt.records.curves import load_curves
from overopt.reports.fit import fit_json
from overopt.reports.look import diff, samples, show
from overopt.reports.plot import HEIGHT, plot
from overopt.reports.results import Results
from overopt.reports.table import table

OTHERS = RECORDS.parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("look") / "r")


def test_a_plot_puts_points_where_they_are():
    lines = plot({"one": ([0.0, 1.0, 2.0], [0.0, 1.0, -1.0], [0.0, 0.5, 1.0])}).splitlines()
    grid = [line[9:] for line in lines[:HEIGHT]]
    assert grid[0].index("A") == 32 and lines[0].startswith("   1.00 |")  # the peak, half way
    assert grid[-1].rindex("A") == 63 and lines[HEIGHT - 1].startswith("  -1.00 |")  # the end
    assert grid[0].rindex("·") == 63  # the proxy ends at the top
    zero = next(i for i, line in enumerate(lines) if line.startswith("   0.00 |"))
    assert grid[zero][0] == "A" and "----" in grid[zero]
    assert "  A  gold, one" in lines


def test_a_plot_of_nothing_but_zeros_and_of_very_many_curves():
    flat = ([0.0], [0.0], [0.0])
    assert "A" in plot({"flat": flat})
    assert "4 more are not drawn" in plot({str(i): flat for i in range(30)})


def test_show_has_settings_provenance_curves_and_responses(results, capsys):
    assert main(["show", str(results)]) == 0
    out = capsys.readouterr().out
    assert "labels.n_pairs" in out and "6000" in out
    assert "commit" in out and "0123abcd" in out
    assert "best-of-n: gain over" in out and "PPO: gain over" in out
    assert "A  gold, 21M proxy" in out and "C  gold, 106M proxy" in out
    # Of PPO's curves the smallest proxy's ends lowest; of its responses 0 has the widest gap.
    assert "PPO, 21M proxy, data_seed 0" in out
    assert "PPO step 60, √KL 1.84, gold +0.20, proxy +0.39" in out
    assert "gold -3.00, proxy +2.00, intent +0.00; 30 tokens" in out
    assert "\x1b" not in out and "\\x1b[2J" in out


def test_show_of_one_run_shows_one_curve(results):
    run_id = load_curves(results)[1].meta["run_id"]
    text = show(results, run=run_id[:8])
    assert "1 curves in" in text and "B  gold" not in text
    with pytest.raises(ConfigError, match="--run zz: no run of .* begins so; there are 20552967"):
        show(results, run="zz")


def test_show_of_older_results_says_what_they_lack():
    text = show(RECORDS)
    assert "hold no responses" in text and "not recorded" in text
    assert "label_rule" in text and "argmax" in text


def test_samples_are_those_of_the_point_worst_first(results):
    curve = load_curves(results)[0]
    peak = int(curve["value"][curve["gold_gain"].argmax()])
    for at, value in (("start", 1), ("peak", peak), ("end", 512), ("8", 8)):
        text = samples(results, at=at, run=curve.meta["run_id"])
        told = [line for line in text.splitlines() if "response " in line]
        assert [f"response {rank} at {value} " in told[rank] for rank in range(3)] == [True] * 3
    by_gap = samples(results, by="gap", n=1, run=curve.meta["run_id"])
    assert "gold -3.00, proxy +2.00" in by_gap and "response 1" not in by_gap
    by_intent = samples(results, by="intent", n=6, run=curve.meta["run_id"])
    assert by_intent.index("response 0") < by_intent.index("response 5")
    assert "31 tokens, cut off" in by_intent


def test_samples_of_what_is_not_there_are_errors(results, tmp_path, capsys):
    with pytest.raises(
        ConfigError, match="--at 9: give start, peak, end, or a point of the curve: 1, 2"
    ):
        samples(results, at="9")
    with pytest.raises(DataError, match="hold no responses"):
        samples(RECORDS)
    own = write_results(tmp_path / "r")
    rows = [json.loads(line) for line in (own / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        del row["intent"]
    (own / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="--worst intent: these responses have no intent"):
        samples(own, by="intent")
    assert main(["samples", str(own), "--worst", "intent"]) == 2
    assert "use gold or gap" in capsys.readouterr().err


def test_diff_says_which_settings_differ_and_compares_the_series_of_both(results, tmp_path, capsys):
    own = write_results(tmp_path / "b")
    runs = (own / "runs.jsonl").read_text().replace('"labels.n_pairs": 6000', '"labels.n_pairs": 7')
    (own / "runs.jsonl").write_text(runs)
    assert main(["diff", str(results), str(own)]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "labels.n_pairs" in line]
    assert line.split() == ["labels.n_pairs", "6000", "7"]
    assert "proxy.backbone" not in out  # the same in both
    (line,) = [line for line in out.splitlines() if "PPO" in line and "53M" in line]
    *_, end_a, end_b, difference = line.split()
    assert end_a == end_b and end_a.startswith("0.37±0.1")
    assert difference.startswith("0.00±0.1")  # of independent prompts: √2 times one error


def test_diff_of_different_experiments_names_what_only_one_has():
    text = diff(RECORDS, OTHERS / "exp004_length")
    assert "n_pairs" in text and "3000" in text
    assert "only in A: best-of-n, 21M proxy" in text
    assert "only in B: " in text and "best-of-n, 0.2M proxy, length 0.01" in text
    assert "  the same in both" in diff(RECORDS, RECORDS)


def test_a_table_as_csv_has_every_digit_and_a_row_a_curve(results):
    text = table([results, OTHERS / "exp003_kl_penalty"], format="csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 6 + 50
    curve = load_curves(results)[0]
    assert float(rows[0]["end_gold"]) == pytest.approx(curve["gold_gain"][-1], abs=1e-6)
    assert text.count("\r\n") == 57


def test_a_table_is_selected_and_sorted():
    options = {"columns": ["series", "end_gold"], "format": "csv"}
    text = table([RECORDS], select=["method=ppo", "end_gold<0.4"], sort=["end_gold-"], **options)
    assert [row[0] for row in csv.reader(io.StringIO(text))] == ["series", "53M proxy", "21M proxy"]
    text = table([RECORDS], select=["method!=bon"], sort=["end_gold"], **options)
    found = [row[0] for row in csv.reader(io.StringIO(text))][1:]
    assert found == ["21M proxy", "53M proxy", "106M proxy"]
    text = table([RECORDS], select=["kl_coef=none"], columns=["method"], format="csv")
    assert text.split() == ["method", "bon", "bon", "bon"]


def test_a_table_in_markdown_keeps_its_shape_whatever_the_names_are(tmp_path):
    own = write_results(tmp_path / "r")
    records = own / "records.jsonl"
    records.write_text(
        records.read_text().replace('"experiment": "smollm"', '"experiment": "a|b`c"')
    )
    lines = table([own], format="md").splitlines()
    assert len(lines) == 8 and len(set(map(len, lines))) == 1
    assert "a\\|b\\`c" in lines[2] and set(lines[1]) == set("| -")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["goldd"]}, "--columns goldd: is no column; there are results"),
        ({"sort": ["goldd-"]}, "--sort goldd: is no column"),
        ({"select": ["method"]}, "--select method: is no condition"),
        ({"select": ["end_gold<low"]}, "end_gold is a number, 'low' is none"),
    ],
)
def test_a_table_that_cannot_be_made_says_why(options, message):
    with pytest.raises(ConfigError, match=message):
        table([RECORDS], **options)


def test_the_table_command_writes_a_file(results, tmp_path, capsys):
    out = tmp_path / "t.csv"
    assert main(["table", str(results), "--format", "csv", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_bytes().decode() == table([results], format="csv")
    assert (
        main(["table", str(results), "--columns", "method,series", "--select", "method=ppo"]) == 0
    )
    assert capsys.readouterr().out.splitlines()[1:] == [
        "ppo     21M proxy",
        "ppo     53M proxy",
        "ppo     106M proxy",
    ]


def test_every_table_says_what_sets_arms_apart():
    """Four arms of one proxy are four names, in the table, in fit and in Results.peaks."""
    place = OTHERS / "exp012_control"
    proxy = "0.0012M proxy, flips 0.1"
    arms = [proxy, *(f"{proxy}, {arm}" for arm in ("mean of 3", "WCO of 3", "4 rounds, mean of 3"))]
    assert list(Results(place).peaks.series.unique()) == arms
    assert {peak["series"] for peak in fit_json(place)["peaks"]} == set(arms)
    rows = csv.DictReader(io.StringIO(table([place], columns=["series"], format="csv")))
    assert {row["series"] for row in rows} == set(arms)
    printed = peak_table(load_curves(place))
    assert all(printed.count(f" {arm}  ") == 5 for arm in arms)
