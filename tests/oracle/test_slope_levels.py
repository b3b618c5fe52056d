"""Slopes over sizes against other implementations, enumeration and simulated runs of known truth."""

import itertools

import numpy as np
import pytest
from scipy import stats
from simulated_curves import simulate
from tolerances import FP64, SIGMAS

from overopt.analysis.metrics import half_splits
from overopt.analysis.peaks import peak_of, peak_of_mean
from overopt.analysis.slopes import SHAPE, shape_slopes
from overopt.base.seeding import numpy_rng
from overopt.fits.crossed import nested_mean
from overopt.fits.trend import trend
from overopt.records.curves import Curve
from overopt.records.series import as_replicates

X = np.array([4.7, 5.3, 5.9, 6.5])
SIZES = {"a": 50_000, "b": 200_000, "c": 800_000, "d": 3_200_000}


def of_size(curves, sizes=SIZES):
    """Simulated arms as proxies of the given sizes; curves of all sizes in one list."""
    return [
        Curve(
            tuple(row | {"n_params": sizes[name], "backbone": name} for row in curve.rows),
            curve.arrays,
        )
        for name, same in curves.items()
        for curve in same
    ]


def test_a_slope_within_seeds_is_a_t_test_of_least_squares_slopes():
    rng = numpy_rng(0, "paired")
    values = rng.normal(size=(4, 6, 1))
    seeds = [list(range(6))] * 3 + [list(range(6))[::-1]]
    found = trend(X, [*values[:3], values[3][::-1]], seeds, rng=rng, n_permutations=99)
    slopes = [np.polyfit(X, values[:, s, 0], 1)[0] for s in range(6)]
    oracle = stats.ttest_1samp(slopes, 0.0)
    assert found.is_paired
    assert found.slope.estimate == pytest.approx(np.mean(slopes), abs=FP64)
    assert found.slope.p_value == pytest.approx(oracle.pvalue, abs=FP64)
    assert found.slope.ci == pytest.approx(oracle.confidence_interval(), abs=FP64)


def test_two_groups_of_other_seeds_are_welchs_t_test():
    rng = numpy_rng(0, "welch")
    low, high = rng.normal(0.0, 1.0, (5, 1)), rng.normal(0.5, 3.0, (9, 1))
    found = trend([0.0, 2.0], [low, high], [range(5), range(10, 19)], rng=rng, n_permutations=99)
    oracle = stats.ttest_ind(high[:, 0], low[:, 0], equal_var=False)
    assert not found.is_paired
    assert found.slope.p_value == pytest.approx(oracle.pvalue, abs=FP64)
    assert found.slope.dof == pytest.approx(oracle.df, abs=FP64)
    assert np.divide(oracle.confidence_interval(), 2.0) == pytest.approx(found.slope.ci, abs=FP64)


def test_permutations_within_seeds_against_all_of_them():
    rng = numpy_rng(0, "all")
    values = rng.normal(size=(3, 4, 1)) + np.arange(3)[:, None, None]
    found = trend(np.arange(3), values, [range(4)] * 3, rng=rng, n_permutations=20_000)
    orders = list(itertools.permutations(range(3)))
    every = [
        np.mean([values[list(order), s, 0] @ [-0.5, 0.0, 0.5] for s, order in enumerate(chosen)])
        for chosen in itertools.product(orders, repeat=4)
    ]
    exact = np.mean(np.abs(every) >= abs(found.slope.estimate) - FP64)
    noise = SIGMAS * (exact * (1 - exact) / 20_000) ** 0.5
    assert 1e-3 < exact < 0.5
    assert abs(found.p_permutation - exact) < noise + 1 / 20_000


def test_variance_of_nested_groups_is_unbiased():
    # Own variances of runs in each group, prompts common to all with an effect of their own on the
    # slope: Σ w² (a²/S + e²/(S P)) + b² Σ w² / P, since b is drawn anew for each group.
    rng = numpy_rng(0, "nested")
    weights, spread_a, spread_e, counts = (
        np.array([-0.6, -0.1, 0.7]),
        (0.2, 0.5, 0.9),
        0.6,
        (2, 4, 6),
    )
    n_prompts, spread_b = 12, 0.5
    estimates, variances = [], []
    for _ in range(4000):
        groups = [
            a * rng.normal(size=(s, 1))
            + spread_b * rng.normal(size=n_prompts)
            + spread_e * rng.normal(size=(s, n_prompts))
            for a, s in zip(spread_a, counts, strict=True)
        ]
        found = nested_mean(groups, weights)
        estimates.append(found.estimate[0])
        variances.append(found.covar[0, 0])
    runs, each = np.square(spread_a), spread_e**2
    truth = weights**2 @ (runs / counts + each / np.multiply(counts, n_prompts))
    truth += spread_b**2 * (weights**2).sum() / n_prompts
    # Standard error of a variance from 4,000 draws: 2.2 %.
    assert np.var(estimates) == pytest.approx(truth, rel=0.09)
    assert np.mean(variances) == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize("is_paired", [True, False])
@pytest.mark.parametrize(("seed_sd", "prompt_sd"), [(0.5, 0.3), (0.05, 0.6)])
def test_intervals_and_permutations_hold_their_level(is_paired, seed_sd, prompt_sd):
    """Four sizes × 5 seeds × 24 prompts with a true slope of 0.3; then without one."""
    rng, n_runs = numpy_rng(0, "level", int(is_paired), str(seed_sd)), 600
    covered, false, false_permutation = 0, 0, 0
    for _ in range(n_runs):
        common = prompt_sd * rng.normal(size=24) + prompt_sd * np.multiply.outer(
            X - X.mean(), 0.5 * rng.normal(size=24)
        )
        shared = seed_sd * rng.normal(size=5) if is_paired else np.zeros(5)
        values = (
            common[:, None]
            + shared[:, None]
            + seed_sd * rng.normal(size=(4, 5, 1))
            + 0.5 * rng.normal(size=(4, 5, 24))
        )
        seeds = [range(5)] * 4 if is_paired else [range(5 * g, 5 * g + 5) for g in range(4)]
        none = trend(X, values, seeds, rng=rng, n_permutations=99)
        covered += none.slope.ci.low <= 0.0 <= none.slope.ci.high
        false += none.slope.p_value < 0.05
        # Permuting speaks of these prompts, so there must be no effect of them on the slope.
        level = values - (common - common.mean(axis=0))[:, None]
        false_permutation += (
            trend(X, level, seeds, rng=rng, n_permutations=99).p_permutation <= 0.05
        )
    noise = 3.0 * (0.05 * 0.95 / n_runs) ** 0.5
    assert covered / n_runs == pytest.approx(0.95, abs=noise)
    assert false == n_runs - covered
    assert false_permutation / n_runs == pytest.approx(0.05, abs=noise)


def test_slopes_of_simulated_runs_recover_the_truth():
    """d(α − d/10): peak 2.5 α² at 5 α, end 6 α − 3.6, over four sizes; 8 seeds × 64 prompts."""
    rng = numpy_rng(0, "runs")
    alphas = {"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.8}
    truth = {"peak": [2.5 * a**2 for a in alphas.values()]}
    truth["peak_sqrt_kl"] = [5 * a for a in alphas.values()]
    truth["end"] = [6 * a - 3.6 for a in alphas.values()]
    truth["fall"] = np.subtract(truth["peak"], truth["end"])
    decades = np.log10(list(SIZES.values()))
    z = {name: [] for name in SHAPE}
    for _ in range(25):
        arms = {name: (alpha, 0.1) for name, alpha in alphas.items()}
        curves = of_size(simulate(arms, rng=rng, n_seeds=8, kl_sd=0.1))
        found = shape_slopes(curves, rng=rng, n_permutations=99)
        assert found.slopes["end"].is_paired and found.note == "" and found.n_seeds == 8
        for name, values in truth.items():
            slope = found.slopes[name].slope
            z[name].append((slope.estimate - np.polyfit(decades, values, 1)[0]) / slope.stderr)
    # 25 experiments: a mean of z beyond 1 would be a bias as large as the error itself. A peak found
    # on half of the prompts is a little low, on both sides alike.
    for name, values in z.items():
        assert abs(np.mean(values)) < (0.6 if name != "peak_sqrt_kl" else 1.0), (name, values)
        assert 0.6 < np.std(values) < 1.6, (name, values)


def test_a_fall_is_not_made_by_choosing_the_peak():
    """Runs that level off: their highest point lies above their end, their cross-fitted peak not."""
    rng = numpy_rng(0, "flat")
    naive, fair, rejected = [], [], 0
    for _ in range(60):
        curves = simulate({"a": (0.0, 0.0), "b": (0.0, 0.0)}, rng=rng, n_prompts=24)
        found = shape_slopes(of_size(curves), rng=rng, n_permutations=19)
        gains = [c.gain("gold").mean(axis=1) for same in curves.values() for c in same]
        naive.append(np.mean([g.max() - g[-1] for g in gains]))
        fair.append(np.mean([s.shape["fall"].estimate for s in found.at]))
        rejected += sum(s.shape["fall"].ci.low > 0 for s in found.at)
    assert np.mean(naive) > 0.2
    assert np.mean(fair) < SIGMAS * np.std(fair) / 60**0.5
    assert rejected / 120 < 0.025 + 3 * (0.025 * 0.975 / 120) ** 0.5


def test_reported_peaks_are_not_made_by_choosing_them():
    """The same for the peaks of tables and figures, of a run and of the mean of runs."""
    rng = numpy_rng(0, "reported")
    of_run, of_mean, naive = [], [], []
    for _ in range(40):
        arms = simulate({"a": (0.0, 0.0)}, rng=rng, n_seeds=3, n_prompts=24, full=True)
        curves = arms["a"]
        found = [peak_of(c) for c in curves]
        of_run += [[p["peak_gold"], p["fall"]] for p in found]
        of_mean.append(peak_of_mean(as_replicates(curves)).estimate)
        naive += [c.gain("gold").mean(axis=1).max() for c in curves]
    assert np.mean(naive) > 0.2
    assert (np.mean(of_run, axis=0) < SIGMAS * np.std(of_run, axis=0) / 40**0.5).all()
    assert np.mean(of_mean) < SIGMAS * np.std(of_mean) / 40**0.5


def test_peaks_beyond_the_end_say_nothing_of_location():
    """All runs still rise; those of larger proxies are only seen further out."""
    reach = {"a": 3.0, "b": 4.0, "c": 5.0, "d": 6.0}
    arms = {name: (3.0, 0.1, far) for name, far in reach.items()}
    curves = of_size(simulate(arms, rng=numpy_rng(0, "beyond"), kl_sd=0.05))
    found = shape_slopes(curves, rng=numpy_rng(0, "x"), n_permutations=99)
    highest = [c["sqrt_kl"][c.gain("gold").mean(axis=1).argmax()] for c in curves]
    # Taken at face value, location grows with size; restricted to what all runs show, it does not.
    assert np.polyfit(np.log10([c.meta["n_params"] for c in curves]), highest, 1)[0] > 1.0
    assert found.horizon == pytest.approx(3.0, abs=0.1)
    assert found.slopes["peak_sqrt_kl"].slope.estimate == pytest.approx(0.0, abs=FP64)
    assert found.slopes["peak_sqrt_kl"].slope.p_value == 1.0
    assert [s.share_censored for s in found.at] == [1.0] * 4
    assert "nothing is known of its √KL" in found.note


def test_the_location_is_that_of_halves_up_to_the_horizon():
    curves = of_size(simulate({"a": (0.6, 0.1), "b": (0.9, 0.1)}, rng=numpy_rng(0, "halves")))
    found = shape_slopes(curves, rng=numpy_rng(0, "x"), n_permutations=9)
    splits = half_splits(64, rng=numpy_rng(0, "x"))
    horizon = min(c["sqrt_kl"][-1] for c in curves)
    expected = []
    for curve in curves[:5]:
        at = [curve.gain("gold")[:, half].mean(axis=1).argmax() for half in splits]
        expected.append(np.minimum(curve["sqrt_kl"][at], horizon).mean())
    assert found.at[0].shape["peak_sqrt_kl"].estimate == pytest.approx(np.mean(expected), abs=FP64)
