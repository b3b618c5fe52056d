"""The commands forecast and replay: what they print and write, and what they refuse."""

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from overopt.base.errors import DataError
from overopt.cli.main import main
from overopt.fits.scaling import Forecast
from overopt.pools.best_of_n import kl_bon
from overopt.records.schema import CURVE_ARRAYS, FIELDS, SCHEMA_VERSION
from overopt.records.series import fit_records
from overopt.reports.forecast import forecast, score
from overopt.reports.replay import as_text, replay

NS = 2 ** np.arange(10)
PROMPTS = 60


def planted(n_params):
    """(alpha, beta) on a line in log10 parameters; the peak moves outwards with size."""
    x = math.log10(n_params)
    return 0.1 + 0.2 * x, 0.75 - 0.05 * x


def write_records(folder, sizes, *, prompts=PROMPTS, noise=0.05, gold_sizes=(), wave=0.0):
    """Best-of-n records of one proxy a size, whose gold is the planted curve plus prompt noise."""
    rng = np.random.default_rng(11)
    d = np.sqrt(kl_bon(NS))
    rows, arrays = [], {}
    for n_params in sizes:
        alpha, beta = planted(n_params)
        run_id = f"run{n_params}"
        slope = rng.normal(size=prompts) * noise
        gold = d[:, None] * (alpha + slope - beta * d[:, None])
        gold = gold + noise * d[:, None] * rng.normal(size=(len(d), prompts))
        gold = gold + wave * np.sin(5 * d)[:, None]
        columns = dict.fromkeys(CURVE_ARRAYS, gold) | {"kl": np.tile(d[:, None] ** 2, prompts)}
        arrays |= {f"{run_id}.{name}": value for name, value in columns.items()}
        for k, n in enumerate(NS):
            row = {name: f.type() if f.required else None for name, f in FIELDS.items()}
            row |= {
                "schema_version": SCHEMA_VERSION,
                "experiment": "planted",
                "run_id": run_id,
                "method": "bon",
                "coord": "n",
                "value": int(n),
                "backbone": "gold" if n_params in gold_sizes else f"ladder:{n_params}",
                "n_params": n_params,
                "n_pairs": 1000,
                "n_prompts": prompts,
                "kl_seq_nats": float(d[k] ** 2),
                "sqrt_kl": float(d[k]),
                "kl_estimator": "bon_bound",
                "missing_reason": "planted",
            }
            rows.append(row)
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "records.jsonl").write_text(text, encoding="utf-8")
    np.savez(folder / "curves.npz", **arrays)
    return folder


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    """Files that a command writes by default go under a directory of the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def three_sizes(tmp_path):
    return write_records(tmp_path / "three", (50_000, 200_000, 800_000))


def test_a_forecast_is_written_with_what_it_was_fitted_on(three_sizes, tmp_path, capsys):
    file = tmp_path / "forecast.json"
    arguments = ["forecast", str(three_sizes), "--n-params", "3e6", "--out", str(file)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "extrapolates 3.8-fold" in out and str(file) in out
    data = json.loads(file.read_text(encoding="utf-8"))
    made = Forecast.from_dict(data["forecast"])
    alpha, beta = planted(3e6)
    assert made.ci["alpha"].low < alpha < made.ci["alpha"].high
    assert made.ci["beta"].low < beta < made.ci["beta"].high
    assert made.peak_sqrt_kl == pytest.approx(made.alpha / (2 * made.beta), rel=1e-9)
    assert [p["n_params"] for p in made.fitted_on] == [50_000, 200_000, 800_000]
    assert data["records"] == ["run200000", "run50000", "run800000"]
    assert (made.n_pairs, data["method"], data["experiment"]) == (1000, "bon", "planted")


def test_a_forecast_is_made_once(three_sizes):
    text = forecast(three_sizes, n_params=3e6)
    file = Path("results") / "forecast_three_bon_3M.json"
    before = file.read_bytes()
    assert f"written to {file}" in text
    with pytest.raises(DataError, match="a forecast is made once"):
        forecast(three_sizes, n_params=3e6)
    assert file.read_bytes() == before


def test_a_forecast_is_scored_against_the_proxy_it_was_made_for(three_sizes, tmp_path, capsys):
    file = tmp_path / "forecast.json"
    forecast(three_sizes, n_params=3e6, out=file)
    with pytest.raises(DataError, match="no bon fit of a proxy of 3e.06 parameters"):
        score(three_sizes, file)
    # 2.95M is the size that was meant by 3e6.
    four = write_records(tmp_path / "four", (50_000, 200_000, 800_000, 2_950_000))
    assert main(["forecast", str(four), "--score", str(file)]) == 0
    out = capsys.readouterr().out
    measured = {line.split()[0]: line for line in out.splitlines() if " se, " in line}
    assert set(measured) == {"alpha", "beta", "peak_sqrt_kl", "peak_gold"}
    assert all("inside" in line for line in measured.values())
    observed = float(re.search(r"\] +(\S+)", measured["alpha"]).group(1))
    assert observed == pytest.approx(planted(2.95e6)[0], abs=0.05)


def test_a_peak_beyond_the_measured_range_is_called_an_extrapolation(tmp_path):
    sizes = write_records(tmp_path / "sizes", (50_000, 200_000, 800_000), noise=0.01)
    assert "beyond √KL" not in forecast(sizes, n_params=3e6)
    assert "beyond √KL 2.29, the largest measured" in forecast(sizes, n_params=1e9)


def test_a_wrong_forecast_is_seen_to_be_wrong(three_sizes, tmp_path):
    file = tmp_path / "forecast.json"
    forecast(three_sizes, n_params=3e6, out=file)
    data = json.loads(file.read_text(encoding="utf-8"))
    data["forecast"]["alpha"] += 5.0
    data["forecast"]["ci"]["alpha"] = [x + 5.0 for x in data["forecast"]["ci"]["alpha"]]
    file.write_text(json.dumps(data), encoding="utf-8")
    four = write_records(tmp_path / "four", (50_000, 200_000, 800_000, 3_000_000))
    (line,) = (x for x in score(four, file).splitlines() if x.startswith("  alpha"))
    assert "OUTSIDE" in line


def test_too_few_sizes_name_how_many_are_needed(tmp_path, capsys):
    two = write_records(tmp_path / "two", (50_000, 200_000))
    assert main(["forecast", str(two), "--n-params", "3e6"]) == 2
    error = capsys.readouterr().err
    assert "2 proxy sizes with a bon fit (0.05M proxy, 0.2M proxy)" in error
    assert "at least 3" in error
    assert not list(two.glob("forecast*"))


def test_gold_as_its_own_proxy_is_no_size(tmp_path):
    folder = write_records(tmp_path / "gold", (50_000, 200_000, 800_000), gold_sizes=(800_000,))
    with pytest.raises(DataError, match="2 proxy sizes with a bon fit"):
        forecast(folder, n_params=3e6)


def test_fits_without_uncertainty_do_not_count(tmp_path):
    folder = write_records(tmp_path / "one", (50_000, 200_000, 800_000), prompts=1)
    with pytest.raises(DataError, match=r"0 proxy sizes with a bon fit \(none\)"):
        forecast(folder, n_params=3e6)


def test_a_forecast_from_a_form_that_does_not_fit_says_so(three_sizes, tmp_path):
    assert "does not describe" not in forecast(three_sizes, n_params=3e6)
    folder = write_records(tmp_path / "wavy", (50_000, 200_000, 800_000), wave=0.3)
    text = forecast(folder, n_params=3e6)
    assert "does not describe (p < 0.001): 0.05M proxy, 0.2M proxy, 0.8M proxy" in text


def test_a_size_between_the_measured_ones_can_be_forecast(three_sizes):
    assert "extrapolates" not in forecast(three_sizes, n_params=6.5e5)


@pytest.mark.parametrize(
    ("n_params", "message"),
    [(2.05e5, "already hold"), (0.0, "positive"), (math.nan, "positive")],
)
def test_sizes_that_cannot_be_forecast(three_sizes, n_params, message):
    with pytest.raises(DataError, match=message):
        forecast(three_sizes, n_params=n_params)


def test_no_forecast_for_a_method_without_records(three_sizes):
    with pytest.raises(DataError, match="0 proxy sizes with a ppo fit"):
        forecast(three_sizes, n_params=3e6, method="ppo")


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"schema_version": 99}'])
def test_a_file_that_is_no_forecast(three_sizes, tmp_path, text):
    file = tmp_path / "bad.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="bad.json' is not a forecast"):
        score(three_sizes, file)


def test_options_of_making_and_scoring_do_not_mix(three_sizes, tmp_path, capsys):
    command = ["forecast", str(three_sizes), "--score", str(tmp_path / "f.json")]
    assert main([*command, "--method", "ppo"]) == 2
    assert "--method goes with --n-params" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["forecast", str(three_sizes)])


@pytest.fixture
def table(tmp_path):
    """A function (pool size, columns) -> a file of 30 prompts whose gold turns over in the proxy."""

    def write(pool_size, proxies=("proxy_scores",), gold="gold_scores"):
        rng = np.random.default_rng(3)
        rows = []
        for p in range(30):
            proxy = rng.normal(size=pool_size)
            value = 0.8 * proxy - 0.3 * proxy**2 + 0.3 * rng.normal(size=pool_size)
            row = {"prompt_id": f"q{p}", gold: value.tolist()}
            rows.append(row | {name: proxy.tolist() for name in proxies})
        file = tmp_path / "table.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write


def rows_of(out, name):
    """Numbers of the best-of-n table: n, KL, KL with ties, sqrt, then means and stderrs."""
    block = out.split(f"{name}: best of n")[1].split(f"{name}: exponential")[0]
    lines = block.splitlines()[2:]
    return np.array([[float(x) for x in line.replace("±", "").split()] for line in lines])


def test_replay_prints_best_of_n_kl_tilt_and_fit(table, capsys):
    assert main(["replay", str(table(100))]) == 0
    out = capsys.readouterr().out
    rows = rows_of(out, "proxy_scores")
    np.testing.assert_array_equal(rows[:, 0], [1, 2, 4, 8, 16, 32, 64])
    np.testing.assert_allclose(rows[:, 1], np.log(rows[:, 0]) - 1 + 1 / rows[:, 0], atol=5.1e-4)
    np.testing.assert_array_equal(rows[:, 1], rows[:, 2])  # no ties
    # E[max of 2 normals] = 1/sqrt(pi); E[gold] = -0.3 at n = 1.
    assert rows[1, 4] == pytest.approx(1 / math.sqrt(math.pi), abs=4 * rows[1, 5])
    assert rows[0, 6] == pytest.approx(-0.3, abs=4 * rows[0, 7])
    np.testing.assert_allclose(rows[:, 8], rows[:, 6] - rows[0, 6], atol=2e-3)
    tilt = out.split("exponential tilt")[1].split("fit R")[0]
    marks = [line.endswith("  unreliable") for line in tilt.splitlines()[2:-1]]
    assert marks == [False, True, True, True]  # with 100 samples, ess 50 is soon undercut
    assert re.search(r"alpha = \S+ \[\S+, \S+\], beta = ", out)
    assert re.search(r"peak: \S+ \[\S+, \S+\] at √KL", out)


def test_replay_reads_named_columns_and_reports_each_proxy(table, capsys):
    file = table(16, proxies=("small", "large"), gold="truth")
    command = ["replay", str(file), "--gold", "truth", "--proxy", "small", "--proxy", "large"]
    assert main([*command, "--pool-size", "8"]) == 0
    out = capsys.readouterr().out
    assert "30 prompts, 8 responses each" in out
    for name in ("small", "large"):
        np.testing.assert_array_equal(rows_of(out, name)[:, 0], [1, 2, 4, 8])


def test_replay_of_a_pool_too_small_says_why_there_is_no_fit(table):
    text = as_text(replay(table(2)))
    assert "no fit: " in text and "nan" not in text


def write_scores(file, proxies, *, pool_size=16, gold=None):
    """A list a prompt of gold and of each proxy, given as functions of the random numbers (N,)."""
    rng = np.random.default_rng(5)
    rows = []
    for p in range(30):
        normal = rng.normal(size=pool_size)
        row = {"prompt_id": p, "gold_scores": (normal if gold is None else gold(normal)).tolist()}
        row |= {name: score(normal).tolist() for name, score in proxies.items()}
        rows.append(json.dumps(row) + "\n")
    file.write_text("".join(rows), encoding="utf-8")
    return file


def test_replay_says_in_a_sentence_that_a_score_is_constant(tmp_path):
    proxies = {
        "proxy_same": lambda z: np.full_like(z, 0.5),
        "proxy_by_prompt": lambda z: np.full_like(z, z[0]),
        "proxy_rounded": lambda z: 3.0 + 1e-8 * z,
        "proxy_good": lambda z: z,
    }
    found = replay(write_scores(tmp_path / "t.jsonl", proxies))
    remarks = {p.name: p.remark for p in found.proxies}
    assert remarks["proxy_same"] == (
        "'proxy_same' gives all responses to a prompt the same score, 0.5: there is nothing to choose by"
    )
    assert "the same score: there is nothing" in remarks["proxy_by_prompt"]
    assert "differ by no more than rounding" in remarks["proxy_rounded"]
    assert remarks["proxy_good"] == ""
    text = as_text(found)
    assert text.count("exponential tilt") == 1 and "nan" not in text
    constant = replay(
        write_scores(tmp_path / "g.jsonl", {"proxy": lambda z: z}, gold=lambda z: 0 * z)
    )
    (only,) = constant.proxies
    assert only.fit is None and "there is nothing to gain" in only.remark and only.best_of_n


def test_replay_of_one_response_a_prompt_has_nothing_to_choose_from(tmp_path):
    file = write_scores(tmp_path / "t.jsonl", {"proxy": lambda z: z}, pool_size=1)
    assert "nothing to choose from" in as_text(replay(file))


def test_replay_writes_table_json_and_figure(table, tmp_path, capsys):
    file, out = table(16, proxies=("small", "large"), gold="truth"), tmp_path / "out" / "here"
    command = ["replay", str(file), "--gold", "truth", "--proxy", "small", "--proxy", "large"]
    assert main([*command, "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "replay.json").read_text())
    assert [p["name"] for p in printed["proxies"]] == ["small", "large"]
    rows = list(csv.DictReader((out / "replay.csv").read_text().splitlines()))
    assert [row["n"] for row in rows] == ["1", "2", "4", "8", "16"] * 2
    for row, at in zip(rows, printed["proxies"][0]["best_of_n"], strict=False):
        assert float(row["gold_gain"]) == at["gold_gain"]
    assert printed["proxies"][0]["fit"]["params"].keys() == {"alpha", "beta"}
    assert (out / "replay.png").read_bytes()[:4] == b"\x89PNG"


def test_replay_tries_the_place_of_its_output_before_it_reads(table, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main(["replay", str(table(4)), "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err


def test_fit_and_stops_print_json(capsys):
    records = str(Path(RECORDS).parent / "smollm")
    assert main(["fit", records, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["experiment"] == "smollm" and len(found["peaks"]) == 6
    for method, fits in fit_records(records).items():
        for name, fit in fits.items():
            printed = found["fits"][method][name]
            assert printed["params"] == pytest.approx(fit.params)
            assert (printed["peak"]["gold"] is None) == (not fit.peak_in_range)
    assert found["size_rank_correlation"] == {"bon": None, "ppo": None}  # of three sizes
    assert main(["stops", records, "--json"]) == 0
    (rules,) = json.loads(capsys.readouterr().out).values()
    assert {rule["rule"] for rule in rules} >= {"never_stop", "kl_budget"}
    assert all("estimate" in rule["regret"] for rule in rules)


def test_replay_names_a_missing_column(table, capsys):
    assert main(["replay", str(table(4)), "--proxy", "rm"]) == 2
    assert "no column 'rm'" in capsys.readouterr().err


def test_replay_needs_no_torch(table):
    code = (
        "import sys; from overopt.cli.main import main; main(['replay', sys.argv[1]]);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(table(8))], check=True, capture_output=True)


RECORDS = str(Path(__file__).parents[2] / "experiments" / "results" / "exp001_figure1")


@pytest.mark.parametrize(
    ("arguments", "unused"),
    [
        (["fit", RECORDS], "matplotlib"),
        (["stops", RECORDS], "matplotlib"),
        (["forecast", RECORDS, "--n-params", "12e6"], "matplotlib"),
        (["figures", RECORDS], "matplotlib.pyplot"),
    ],
)
def test_reading_commands_load_only_what_they_use(arguments, unused):
    code = (
        "import sys; from overopt.cli.main import main; assert main(sys.argv[2:]) == 0;"
        "heavy = {'torch', 'transformers', 'tokenizers', 'pandas', sys.argv[1]} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, unused, *arguments], check=True)
