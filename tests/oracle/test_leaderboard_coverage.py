"""Coverage, family-wise error and equivalence bounds against curves with a known truth."""

import numpy as np
import pytest
from simulated_curves import simulate
from tolerances import SIGMAS

from overopt.analysis.effects import paired_effect
from overopt.analysis.equivalence import equivalence
from overopt.analysis.metrics import half_splits, metric_tables
from overopt.analysis.tuning import Reference
from overopt.base.errors import DataError
from overopt.base.seeding import numpy_rng
from overopt.fits.replicates import holm

LINEAR = ("area", "gold_1x", "gold_peak", "gold_end")


def test_intervals_cover_and_holm_controls_the_family():
    """5 seeds × 64 prompts, four mitigations that do nothing and one that raises α by 0.1."""
    rng, n_runs = numpy_rng(0, "coverage"), 150
    arms = {"base": (0.6, 0.1)} | {f"null{i}": (0.6, 0.1) for i in range(4)} | {"up": (0.7, 0.1)}
    reference = Reference(max_sqrt_kl=6.0, peak_sqrt_kl=3.0, is_turning=True)
    # 0.1 d: its mean over 0 to 6, and its value at 3; the peak of d(α − d/10) is 2.5 α².
    truth = {"area": 0.3, "gold_1x": 0.3, "gold_peak": 2.5 * (0.49 - 0.36), "gold_end": 0.6}
    splits = half_splits(64, rng=rng)
    covered = {m: 0 for m in LINEAR}
    false_alarms = {m: 0 for m in LINEAR}
    for _ in range(n_runs):
        curves = simulate(arms, rng=rng)
        tables = {name: metric_tables(same, reference, splits) for name, same in curves.items()}
        for metric in LINEAR:
            base = tables["base"][metric]
            up = paired_effect(tables["up"][metric], base)
            covered[metric] += up.ci.low <= truth[metric] <= up.ci.high
            p = [paired_effect(tables[f"null{i}"][metric], base).p_value for i in range(4)]
            false_alarms[metric] += bool((holm(p) < 0.05).any())
    noise = SIGMAS * (0.05 * 0.95 / n_runs) ** 0.5
    for metric in LINEAR:
        assert covered[metric] / n_runs > 0.95 - noise
        assert false_alarms[metric] / n_runs < 0.05 + noise


def test_an_equivalence_bound_is_below_the_true_difference_as_often_as_it_says():
    """The frontiers differ by 0.3 d, largest at d = 4, where the level of 5 % is then attained."""
    rng, n_runs, below = numpy_rng(0, "tost"), 200, 0
    for _ in range(n_runs):
        curves = simulate({"a": (0.95, 0.1), "b": (0.65, 0.1)}, rng=rng, n_prompts=32)
        found = equivalence(curves["a"], curves["b"], [1.0, 2.0, 4.0])
        below += found.bound < 0.3 * 4.0
    assert abs(below / n_runs - 0.05) < SIGMAS * (0.05 * 0.95 / n_runs) ** 0.5
    assert below > 0


def test_equivalence_of_a_penalised_run_on_the_same_frontier():
    rng = numpy_rng(0, "null")
    curves = simulate({"free": (0.6, 0.1), "penalised": (0.6, 0.1, 3.0)}, rng=rng, n_seeds=20)
    found = equivalence(curves["free"], curves["penalised"])
    assert found.sqrt_kl[-1] < 3.2
    assert found.mean_ci.low < 0.0 < found.mean_ci.high
    assert np.abs(found.difference).max() < found.bound < 0.5
    assert found.mean_bound < found.bound
    limits = np.maximum(np.abs(found.ci_low), np.abs(found.ci_high))
    assert found.bound == limits.max()
    wrong = equivalence(curves["free"], simulate({"x": (0.9, 0.1)}, rng=rng, n_seeds=20)["x"])
    assert wrong.bound > 0.3 * 5.5


def test_equivalence_does_not_extrapolate():
    curves = simulate({"a": (0.6, 0.1), "b": (0.6, 0.1, 2.0)}, rng=numpy_rng(0, "range"))
    with pytest.raises(DataError, match="all curves reach"):
        equivalence(curves["a"], curves["b"], [1.0, 5.0])


def test_the_default_grid_ends_exactly_where_the_shortest_curve_ends():
    """Whatever the rounding of its reach: 20 parts of it must not add up to more."""
    curves = simulate({"a": (0.6, 0.1), "b": (0.6, 0.1)}, rng=numpy_rng(0, "grid"), n_seeds=2)
    for reach in numpy_rng(0, "reach").uniform(3.0, 3.5, 20):
        for curve in (*curves["a"], *curves["b"]):
            scale = reach / curve["sqrt_kl"].max()
            for row in curve.rows:
                row["sqrt_kl"] = min(row["sqrt_kl"] * scale, reach)
        found = equivalence(curves["a"], curves["b"])
        assert found.sqrt_kl[-1] == min(c["sqrt_kl"].max() for c in (*curves["a"], *curves["b"]))
