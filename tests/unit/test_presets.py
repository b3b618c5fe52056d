"""What the presets ask for, before anything is run."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from overopt.analysis.peaks import mean_peak, peak_of
from overopt.base.errors import ConfigError
from overopt.nets.checkpoints import load_trunk
from overopt.records.curves import Curve, load_curves
from overopt.records.series import data_sweeps
from overopt.reports.draw import draw
from overopt.reports.figures.overoptimization import proxies_a_size
from overopt.study.presets import PRESETS, load_experiment


def test_gpu_sweeps_seven_sizes_and_six_data_sizes_with_five_seeds():
    runs = load_experiment("gpu").runs
    most = max(run.labels.n_pairs for run in runs)
    kind = {(r.proxy.backbone, r.proxy.layers) for r in runs if r.labels.n_pairs == most}
    sizes = {
        sum(p.numel() for p in load_trunk(backbone, layers=layers).parameters())
        for backbone, layers in kind
    }
    assert len(sizes) == len(kind) == 7
    for backbone in ("ladder:0.2m", "ladder:3m"):
        same = [r for r in runs if r.proxy.backbone == backbone and r.proxy.layers == 0]
        seeds = Counter(r.labels.n_pairs for r in same)
        assert len(seeds) == 6 and set(seeds.values()) == {5}
    for run in runs:
        assert run.proxy.rm_seed == run.labels.data_seed
        assert run.bon.n_prompts >= 32
        if run.labels.n_pairs == most:
            assert run.bon.pool_size >= 60_000 and run.bon.ns[-1] == 60_000
            assert len(run.method.evaluation_steps) >= 25
    assert len(runs) == 85


def test_layers_of_a_preset_are_fewer_than_the_backbone_has():
    for name in ("gpu", "desk"):
        for run in load_experiment(name).runs:
            n_layers = load_trunk(run.proxy.backbone).cfg.num_hidden_layers
            assert run.proxy.layers < n_layers, run.proxy


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"control"}))
def test_overrides_of_a_method_pass_by_the_runs_without_it(name):
    runs = load_experiment(name, ["method.steps=3", "bon.pool_size=70000"]).runs
    assert {run.method.steps for run in runs if run.method is not None} == {3}
    assert {run.bon.pool_size for run in runs} == {70_000}


def test_an_unknown_experiment_is_answered_with_the_nearest_and_all():
    with pytest.raises(
        ConfigError, match="did you mean desk\\? .*smollm, control, quantile or the path"
    ):
        load_experiment("desc")
    with pytest.raises(ConfigError, match="`overopt run quantile`"):
        load_experiment("quantile")


def test_peaks_of_data_sizes_are_over_a_common_range():
    def curve(seed, gold_of_n):
        rows = tuple({"value": n, "rm_seed": seed} for n in gold_of_n)
        gold = np.array([[g - 1.0, g + 1.0] for g in gold_of_n.values()])
        return Curve(rows, {"gold": gold})

    curves = [curve(0, {1: 5.0, 4: 7.0, 9: 9.0}), curve(1, {1: 0.0, 4: 3.0, 9: 1.0})]
    mean, stderr = mean_peak(curves, 4)
    assert mean == pytest.approx(2.5) and stderr == pytest.approx(0.5)
    assert mean_peak(curves, 9)[0] == pytest.approx(3.5)
    assert np.isnan(mean_peak(curves[:1], 4)[1])


def test_the_figure_of_data_sizes_is_drawn_from_records(tmp_path):
    sweeps = data_sweeps(load_curves("experiments/results/desk"))
    assert {name: list(sweep) for name, sweep in sweeps.items()} == dict.fromkeys(
        ("0.056M proxy", "0.2M proxy", "0.8M proxy"), [300, 1500, 6000]
    )
    assert all(len(same) == 5 for sweep in sweeps.values() for same in sweep.values())
    names = [path.name for path in draw("experiments/results/desk", tmp_path)]
    assert "fig03_desk.png" in names and (tmp_path / "fig03_desk.png").stat().st_size > 10_000


def test_two_experiments_agree_to_the_last_bit_where_they_are_one_run():
    results = Path(__file__).parents[2] / "experiments" / "results"
    seeds = {c.meta["run_id"]: c for c in load_curves(results / "exp014_world")}
    same = [c for c in load_curves(results / "exp001_figure1") if c.meta["run_id"] in seeds]
    assert len(same) == 12 + 9
    for curve in same:
        other = seeds[curve.meta["run_id"]]
        for name, values in curve.arrays.items():
            np.testing.assert_array_equal(values, other.arrays[name])


def test_the_results_page_s_tables_of_seeds_are_those_of_the_records():
    root = Path(__file__).parents[2]
    results = root / "experiments" / "results"
    peaks = {name: [peak_of(c) for c in load_curves(results / name)] for name in ("desk", "gpu")}
    sizes = ("0.056M", "0.2M", "0.8M", "2M", "3M", "6M")
    shown = {"desk": 0, "gpu": 0}
    for line in (root / "docs" / "results.md").read_text(encoding="utf-8").splitlines():
        found = re.match(r"\| (best-of-n|PPO), ([\d,]+)(, at the end)? \|(.*)\|$", line)
        if found is None:
            continue
        method, pairs, at_end, cells = found.groups()
        name = "gpu" if pairs == "12,000" else "desk"
        columns = [s for s in sizes if name == "gpu" or s not in ("2M", "6M")]
        for series, cell in zip(columns, cells.split("|"), strict=True):
            values = [
                p["end_gold" if at_end else "peak_gold"]
                for p in peaks[name]
                if p["method"] == {"best-of-n": "bon", "PPO": "ppo"}[method]
                and p["n_pairs"] == int(pairs.replace(",", ""))
                and p["series"] == f"{series} proxy"
            ]
            if not cell.strip():
                assert not values
                continue
            assert len(values) == 5
            mean, stderr = np.mean(values), np.std(values, ddof=1) / 5**0.5
            assert cell.strip().replace("−", "-") == f"{mean:.2f} ± {stderr:.2f}"
            shown[name] += 1
    assert shown == {"desk": 18, "gpu": 18}


def test_figure_1_says_how_many_proxies_stand_behind_a_size():
    assert proxies_a_size([[1], [1]]) == "one proxy a size"
    assert proxies_a_size([[1, 2, 3], [1, 2, 3]]) == "means of 3 proxies a size"
    assert proxies_a_size([[1], [1, 2, 3]]) == "means of 1 to 3 proxies a size"


@pytest.mark.parametrize(
    "path", sorted(Path("experiments").glob("*.py")), ids=lambda path: path.stem
)
def test_every_experiment_can_be_built(path):
    if "def build(" in path.read_text(encoding="utf-8"):
        experiment = load_experiment(str(path))
        assert experiment.runs
        assert len(set(experiment.runs)) == len(experiment.runs)
