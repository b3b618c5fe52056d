"""Statistics of predictors: against scipy, by construction, and where there is nothing to find."""

import math

import numpy as np
import pytest
from scipy.stats import pareto, spearmanr

from overopt.analysis.predictors import (
    out_of_sample_r2,
    over_groups,
    partial_rank_correlation,
    rank_correlation,
    tail_index,
)
from overopt.base.userfile import load_module


def test_rank_correlation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, (2, 40)).astype(float)
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert math.isnan(rank_correlation(x, np.ones(40)))


def test_partial_correlation_is_the_textbook_formula_of_three():
    """ρ_xy.z = (ρ_xy − ρ_xz ρ_yz) / sqrt((1 − ρ_xz²)(1 − ρ_yz²))."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=80)
    x, y = z + rng.normal(size=80), z + rng.normal(size=80)
    xy, xz, yz = rank_correlation(x, y), rank_correlation(x, z), rank_correlation(y, z)
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    found = partial_rank_correlation(x, y, z[:, None])
    assert found == pytest.approx(expected, abs=1e-12)
    assert abs(found) < 0.25 < xy  # what they share is z
    assert math.isnan(partial_rank_correlation(z, y, z[:, None]))


def test_a_line_is_foretold_and_noise_is_not():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 1))
    groups = np.repeat(np.arange(6), 10)
    assert out_of_sample_r2(x, 3 + 2 * x[:, 0], groups) == pytest.approx(1.0)
    assert out_of_sample_r2(x, rng.normal(size=60), groups) < 0.1
    y = x[:, 0] + rng.normal(size=60)
    by_hand = total = 0.0
    for g in range(6):
        test = groups == g
        slope, cut = np.polyfit(x[~test, 0], y[~test], 1)
        by_hand += ((y[test] - cut - slope * x[test, 0]) ** 2).sum()
        total += ((y[test] - y[~test].mean()) ** 2).sum()
    assert out_of_sample_r2(x, y, groups) == pytest.approx(1 - by_hand / total, abs=1e-12)


def test_intervals_draw_whole_groups():
    """Ten equal rows in each of 20 groups: the interval of the mean is that of 20 values, not 200."""
    values = np.repeat(np.random.default_rng(3).normal(size=20), 10)
    groups = np.repeat(np.arange(20), 10)
    rng = np.random.default_rng(4)
    found = over_groups(lambda rows: float(values[rows].mean()), groups, rng=rng)
    half = 1.96 * values[::10].std(ddof=1) / math.sqrt(20)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.2)


@pytest.mark.parametrize("alpha", [1.5, 4.0])
def test_hill_finds_the_index_of_a_pareto_tail(alpha):
    x = pareto.rvs(alpha, size=100_000, random_state=np.random.default_rng(5))
    assert tail_index(x) == pytest.approx(alpha, rel=0.06)  # 4 / sqrt(5,000)
    assert math.isnan(tail_index(-x)) and tail_index(np.ones(100)) == math.inf


def test_experiment_13_asks_what_it_says(monkeypatch):
    """A target that is the predictor is foretold; what was known anyway, size, says nothing of it."""
    experiment = load_module("experiments/exp013_foretell.py", needs=("foretells", "markdown"))
    monkeypatch.setattr(experiment, "DRAWS", 60)
    rng = np.random.default_rng(6)
    rows = [
        {
            "seed": seed,
            "setting": f"{size} {pairs}",
            "log size": size,
            "log pairs": pairs,
            "flips": 0.0,
            "accuracy": (x := float(rng.normal())),
            "PPO end": 2 * x,
        }
        for seed in range(4)
        for size in (1.0, 2.0, 3.0)
        for pairs in (5.0, 7.0)
    ]
    (found,) = experiment.foretells(rows)
    assert (found["target"], found["predictor"], found["n"]) == ("PPO end", "accuracy", 24)
    assert found["rho"]["value"] == pytest.approx(1) and found["rho"]["low"] > 0.99
    assert found["partial"]["value"] == pytest.approx(1)
    assert found["r2"]["value"] == pytest.approx(1) and found["r2_known"] < 0.1
    assert found["r2_added"]["value"] == pytest.approx(1 - found["r2_known"])
    assert "| PPO end | accuracy | 24 | 1.00 [1.00, 1.00] |" in experiment.markdown([found])
