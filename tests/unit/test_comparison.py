"""The protocol without its runs: what is planned, what is refused, and the report of records."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from simulated_curves import simulate

from overopt.analysis.tuning import Reference
from overopt.base.config import to_dict
from overopt.base.errors import ConfigError, DataError
from overopt.base.files import save_arrays, save_json, save_records
from overopt.base.seeding import numpy_rng
from overopt.records.schema import validate_records
from overopt.reports.comparison import load_results, report, too_few_seeds
from overopt.reports.figures.frontier import frontier
from overopt.study.compare import COMPARISONS, choose_trials, load_comparison
from overopt.study.comparison import Comparison, Mitigation, test_runs, tuning_runs
from overopt.study.presets import smoke

test_runs.__test__ = False


def comparison(**changes):
    """Two mitigations that train, with two trials, and one that stops."""
    settings = {
        "name": "mine",
        "base": smoke().runs[0],
        "baseline": "single",
        "mitigations": (
            Mitigation(
                name="single", family="none", trials=(("proxy.lr=1e-3",), ("proxy.lr=3e-3",))
            ),
            Mitigation(
                name="kl",
                family="penalty",
                trials=(("method.kl_coef=0.1",), ("method.kl_coef=0.3",)),
                methods=("ppo",),
            ),
            Mitigation(name="stop", family="stop", kind="stopping", rule="kl_budget"),
        ),
        "tuning_seeds": (0, 1),
        "test_seeds": (2, 3, 4),
    }
    return Comparison(**(settings | changes))


def test_tuning_and_test_share_neither_seeds_nor_prompts():
    found = comparison()
    tuning = tuning_runs(found)
    test = test_runs(found, {"bon": {"single": 1}, "ppo": {"single": 0, "kl": 1}})
    # (bon: single; ppo: single, kl) × 2 trials × 2 seeds, then × 3 seeds.
    assert len(tuning) == 12 and len(test) == 9
    used = {}
    for run in [*tuning, *test]:
        r = run.run
        seeds = {r.labels.data_seed, r.proxy.rm_seed} | ({r.method.ppo_seed} if r.method else set())
        assert seeds == {run.seed}
        assert (r.bon is None) == (run.method == "ppo") and (r.method is None) == (
            run.method == "bon"
        )
        first, n = (
            (r.bon.eval_offset, r.bon.n_prompts)
            if r.bon
            else (r.method.eval_offset, r.method.eval_prompts)
        )
        used.setdefault((run.role, run.method), set()).update(range(first, first + n))
    for method, n in (("bon", 4), ("ppo", 8)):
        assert not used["tuning", method] & used["test", method]
        assert len(used["tuning", method]) == len(used["test", method]) == n
    assert [r.run.method.kl_coef for r in test if r.mitigation == "kl"] == [0.3] * 3
    assert [r.run.proxy.lr for r in test if r.mitigation == "single"] == [3e-3] * 3 + [1e-3] * 3


def test_runs_of_a_seed_differ_in_the_mitigation_only():
    every = [r for r in tuning_runs(comparison()) if r.method == "ppo" and r.trial == 0]
    runs = {r.mitigation: r.run for r in every if r.seed == 1}
    a, b = to_dict(runs["single"]), to_dict(runs["kl"])
    assert {k for k in a if a[k] != b[k]} == {"proxy", "method"}
    assert {k for k in a["method"] if a["method"][k] != b["method"][k]} == {"kl_coef"}


def test_number_of_tuning_prompts():
    runs = tuning_runs(comparison(tuning_prompts=3))
    assert {r.run.bon.n_prompts for r in runs if r.run.bon} == {3}
    assert {r.run.method.eval_prompts for r in runs if r.run.method} == {3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mitigations": (
                Mitigation(name="single", family="", trials=((), ())),
                Mitigation(name="x", family="", trials=((),)),
            )},
            "gives all mitigations the same number",
        ),
        (
            {"mitigations": (
                *comparison().mitigations,
                Mitigation(name="never optimise", family="", trials=((), ())),
            )},
            "is the row that all have to beat",
        ),
        ({"test_seeds": (1, 2)}, "test on seeds not tuned on"),
        ({"tuning_seeds": (0, 0)}, "each once"),
        ({"baseline": "stop"}, "must be a mitigation that trains"),
        ({"baseline": "nobody"}, "must be a mitigation that trains"),
        ({"baseline": "kl"}, "does not apply to bon"),
        ({"base": replace(smoke().runs[0], bon=None), "methods": ("bon", "ppo")}, "methods = .bon."),
        (
            {"mitigations": (Mitigation(name="single", family="", trials=(("method.nothing=1",),)),)},
            "did you mean|unknown setting|none here",
        ),
    ],
)  # fmt: skip
def test_unfair_comparisons_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        comparison(**changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": (("proxy.rm_seed=3",),)}, "belongs to the protocol"),
        ({"trials": (("gold.kind=rubric",),)}, "belongs to the protocol"),
        ({"trials": (("bon.n_prompts=2",),)}, "belongs to the protocol"),
        ({"trials": (("labels.label_flip_rate=0",),)}, "belongs to the protocol"),
        ({"trials": ()}, "give at least one"),
        ({"kind": "stopping", "rule": "gut feeling"}, "use one of"),
        ({"kind": "stopping", "rule": "kl_budget", "trials": ((),)}, "a rule has no trials"),
        ({"trials": ((),), "rule": "kl_budget"}, "goes with kind='stopping'"),
    ],
)
def test_mitigations_that_break_the_protocol_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Mitigation(name="x", family="y", **settings)


@pytest.mark.parametrize(
    ("n_seeds", "n_mitigations", "is_too_few"),
    [(4, 1, True), (5, 5, False), (5, 6, True), (7, 14, True), (8, 14, False)],
)
def test_more_mitigations_need_more_seeds(n_seeds, n_mitigations, is_too_few):
    assert bool(too_few_seeds(n_seeds, n_mitigations)) == is_too_few


def test_presets_and_files(tmp_path):
    for name in COMPARISONS:
        assert load_comparison(name).name
    changed = load_comparison("smoke", ["bon.pool_size=128"])
    assert changed.base.bon.pool_size == 128
    file = tmp_path / "mine.py"
    file.write_text(
        "from overopt.study.compare import smoke_comparison\n"
        "def compare():\n    return smoke_comparison()\n"
    )
    assert load_comparison(str(file)) == load_comparison("smoke")
    file.write_text("def build():\n    pass\n")
    with pytest.raises(ConfigError, match=r"has no compare\(\)"):
        load_comparison(str(file))
    with pytest.raises(ConfigError, match="is unknown"):
        load_comparison("nothing")


def test_choices_follow_the_tuning_curves():
    arms = {("single", 0): (0.5, 0.1), ("single", 1): (0.8, 0.1)}
    arms |= {("kl", 0): (1.2, 0.1), ("kl", 1): (0.4, 0.1)}
    found = comparison(methods=("ppo",))
    simulated = simulate(arms, rng=numpy_rng(0, "choices"), n_seeds=2)
    runs, curves = [], []
    for (name, trial), same in simulated.items():
        for seed, curve in enumerate(same):
            run = {"method": "ppo", "mitigation": name, "trial": trial, "seed": seed}
            runs.append(run | {"run_id": curve.meta["run_id"]})
            curves.append(curve)
    choices = choose_trials(found, runs, curves)["ppo"]
    chosen = choices["mitigations"]
    assert chosen["single"]["trial"] == 1 and chosen["kl"]["trial"] == 0
    assert chosen["kl"]["overrides"] == ("method.kl_coef=0.1",)
    assert choices["reference"].is_turning
    # The true peak of d (0.8 − 0.1 d) is at 4; its KL is the budget a user would choose.
    assert 3.0 < choices["reference"].peak_sqrt_kl < 5.0
    assert 9.0 < chosen["stop"]["threshold"] < 25.0


# --- report


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The files of a finished comparison, from simulated runs."""
    folder = tmp_path_factory.mktemp("results")
    rng, rows, arrays, runs = numpy_rng(0, "report"), [], {}, []
    arms = {"single": (0.6, 0.1), "kl": (0.6, 0.1, 3.0), "ensemble": (0.9, 0.1)}
    for method in ("bon", "ppo"):
        for name, same in simulate(arms, rng=rng, method=method, n_prompts=16, full=True).items():
            for seed, curve in enumerate(same):
                rows += curve.rows
                run_id = curve.meta["run_id"]
                arrays |= {f"{run_id}.{k}": a for k, a in curve.arrays.items()}
                run = {"role": "test", "method": method, "mitigation": name, "trial": 0}
                runs.append(run | {"seed": seed, "run_id": run_id})
    validate_records(rows)
    test = folder / "test"
    test.mkdir()
    save_records(test / "records.jsonl", rows)
    save_arrays(test / "curves.npz", arrays)
    parts = (("proxy", 5.0), ("ppo", 7.0), ("ppo_gold", 100.0))
    costs = [
        {"run_id": r["run_id"], "stage": stage, "cpu_s": s} for r in runs for stage, s in parts
    ]
    save_records(test / "costs.jsonl", costs)
    methods = ("bon", "ppo")
    mitigations = [
        {"name": n, "family": f, "kind": "training", "rule": "", "methods": methods}
        for n, f in (("single", "none"), ("kl", "penalty"), ("ensemble", "ensemble"))
    ]
    mitigations.append(
        {
            "name": "stop",
            "family": "stop",
            "kind": "stopping",
            "rule": "kl_budget",
            "methods": methods,
        }
    )
    reference = Reference(max_sqrt_kl=6.0, peak_sqrt_kl=3.0, is_turning=True)
    save_json(
        folder / "choices.json",
        {
            m: {
                "criterion": "gold_end",
                "reference": vars(reference),
                "mitigations": {"stop": {"threshold": 9.0}},
            }
            for m in methods
        },
    )
    save_json(
        folder / "comparison.json",
        {
            "name": "simulated",
            "description": "",
            "baseline": "single",
            "methods": methods,
            "n_trials": 1,
            "tuning_seeds": [9],
            "test_seeds": list(range(5)),
            "mitigations": mitigations,
            "runs": runs,
        },
    )
    return folder


def test_report_writes_leaderboard_and_figures(results):
    text = report(results)
    assert "1 × 1, chosen by gold_end; test seeds: 5" in text
    assert (results / "leaderboard.md").read_text() == text + "\n"
    board = json.loads((results / "leaderboard.json").read_text())
    for method in ("bon", "ppo"):
        standings = {s["mitigation"]: s for s in board["standings"][method]}
        assert set(standings) == {"single", "kl", "ensemble", "stop", "never optimise"}
        assert standings["ensemble"]["costs"]["cpu_s"] == 12.0
        assert standings["single"]["effects"]["gold_end"]["p_holm"] is None
        # A stopped run ends at the last point before its KL passes 9 nats.
        assert (
            2.0 < standings["stop"]["reach_sqrt_kl"] <= 3.0 < standings["single"]["reach_sqrt_kl"]
        )
    for name in ("frontier", "effects"):
        assert (results / f"{name}.png").stat().st_size > 20_000
        side = json.loads((results / f"{name}.json").read_text())
        assert len(side["records"]) == 30


def test_a_stopped_run_is_the_baseline_up_to_its_stop(results):
    found = load_results(results).curves["ppo"]
    for stopped, whole in zip(found["stop"], found["single"], strict=True):
        k = len(stopped.rows)
        np.testing.assert_array_equal(stopped.arrays["gold"], whole.arrays["gold"][:k])
        assert whole["kl_seq_nats"][k - 1] <= 9.0 < whole["kl_seq_nats"][k]


def test_the_frontier_marks_the_mean_end_of_the_runs_in_as_many_panels_as_it_needs(results):
    found = load_results(results)
    families = {m["name"]: m["family"] for m in found.protocol["mitigations"]}
    figure = frontier(found.curves, families, found.references, baseline="single")
    shown = {ax.get_title(loc="left"): ax for ax in figure.axes}
    assert len(figure.axes) == sum(
        len({families[n] for n in same if n != "single"}) for same in found.curves.values()
    )
    (stopping,) = (ax for title, ax in shown.items() if title.startswith("PPO: stop"))
    marks = [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in stopping.lines
        if line.get_marker() not in ("None", None, "") and len(line.get_xdata()) == 1
    ]
    for mark, name in zip(marks, ("single", "stop"), strict=True):
        ends = [
            (c["sqrt_kl"][-1], (c.arrays["gold"][-1] - c.arrays["gold"][0]).mean())
            for c in found.curves["ppo"][name]
        ]
        assert mark == pytest.approx(np.mean(ends, axis=0))


@pytest.mark.parametrize("name", ["comparison.json", "choices.json"])
def test_a_damaged_comparison_is_an_error_that_names_it(results, tmp_path, name):
    shutil.copytree(results, tmp_path / "r")
    for damaged in ("{}", '{"methods": 3, "bon": []}', "[]"):
        (tmp_path / "r" / name).write_text(damaged)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            load_results(tmp_path / "r")


def test_unfinished_results_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not hold a finished comparison"):
        report(tmp_path)


def test_report_needs_no_torch_and_repeats_itself(results):
    files = ("leaderboard.json", "leaderboard.md", "effects.json")
    before = [(results / name).read_bytes() for name in files]
    code = (
        "import sys; from overopt.reports.comparison import report; report(sys.argv[1]);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(results)], check=True)
    assert [(results / name).read_bytes() for name in files] == before


@pytest.mark.parametrize(
    ("rule", "methods", "says"),
    [
        ("entropy_floor", ("bon", "ppo"), "best-of-n has not"),
        ("member_disagreement", ("ppo",), "has one"),
    ],
)
def test_a_rule_without_its_signal_is_refused_before_any_run(rule, methods, says):
    stopping = Mitigation(name="s", family="stopping", kind="stopping", rule=rule, methods=methods)
    with pytest.raises(ConfigError, match=says):
        comparison(mitigations=(*comparison().mitigations, stopping))
