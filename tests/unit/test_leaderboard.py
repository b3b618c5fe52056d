"""Metrics of curves, choices and effects against formulas, brute force and other libraries."""

import math

import numpy as np
import pytest
from scipy import stats
from simulated_curves import rows, simulate
from tolerances import FP64, SIGMAS

from overopt.analysis.effects import bootstrap_interval, paired_effect
from overopt.analysis.leaderboard import NEVER, leaderboard
from overopt.analysis.metrics import METRICS, at_peak, half_splits, metric_tables
from overopt.analysis.reach import area, first_reach, gain, gold_at, truncate
from overopt.analysis.tuning import (
    Reference,
    choose,
    common_range,
    find_reference,
    tuning_score,
)
from overopt.base.errors import DataError
from overopt.base.seeding import numpy_rng
from overopt.records.curves import Curve
from overopt.reports.comparison import as_table


def known_curve(d, gold, n_prompts=4, *, proxy=None, intent=None, seed=0):
    """A curve with the same values for every prompt: no noise."""
    d, gold = np.asarray(d, float), np.asarray(gold, float)
    proxy = gold if proxy is None else np.asarray(proxy, float)
    intent = gold if intent is None else np.asarray(intent, float)
    tables = {"gold": gold, "proxy": proxy, "intent": intent, "kl": d**2, "length": d}
    arrays = {k: np.repeat(v[:, None], n_prompts, axis=1) for k, v in tables.items()}
    return Curve(rows(arrays, "known", "ppo", seed), arrays)


def test_proxy_gain_of_a_later_round_is_over_its_own_proxys_start():
    curve = known_curve([0.0, 1.0, 2.0], [0.0, 0.5, 0.4], proxy=[0.1, 0.7, 1.0])
    carried = Curve(
        tuple(
            row | {"round": r, "proxy_gain": g}
            for row, r, g in zip(curve.rows, (1, 1, 2), (0.0, 0.6, 1.3), strict=True)
        ),
        curve.arrays,
    )
    np.testing.assert_allclose(gain(carried, "proxy").mean(axis=1), [0, 0.6, 1.3], atol=FP64)
    np.testing.assert_allclose(gain(curve, "proxy").mean(axis=1), [0, 0.6, 0.9], atol=FP64)
    np.testing.assert_array_equal(gain(carried, "gold"), gain(curve, "gold"))
    reference = Reference(max_sqrt_kl=2.0, peak_sqrt_kl=1.0, is_turning=True)
    tables = metric_tables([carried], reference, half_splits(4, rng=numpy_rng(0, "splits")))
    assert tables["gap_end"].mean() == pytest.approx(1.3 - 0.4, abs=FP64)


# --- curves at a given √KL


def test_first_reach_interpolates_a_monotone_curve_and_carries_its_end():
    d = np.array([0.0, 0.5, 1.5, 4.0])
    values = np.array([0.0, 3.0, 1.0, -2.0])
    at = np.array([0.0, 0.2, 0.5, 1.0, 3.9, 4.0, 4.1, 9.0])
    reach = first_reach(d, at)
    np.testing.assert_allclose(reach.weights @ values, np.interp(at, d, values), atol=FP64)
    np.testing.assert_array_equal(reach.is_carried, at > 4.0)


def test_first_reach_takes_the_first_passage_of_a_curve_that_turns_back():
    d, values = np.array([0.0, 1.0, 0.5, 2.0, 1.0]), np.array([0.0, 10.0, 99.0, 30.0, 7.0])
    reach = first_reach(d, [0.5, 1.0, 1.5, 2.0, 2.5])
    # Between the points that set records, 1 and 2; a budget never reached keeps the run's end.
    np.testing.assert_allclose(reach.weights @ values, [5.0, 10.0, 20.0, 30.0, 7.0], atol=FP64)


def test_area_is_the_integral_of_gold_at():
    rng = numpy_rng(0, "area")
    for reach, end in ((6.0, 4.5), (3.0, 4.5)):
        curve = simulate({"a": (0.6, 0.1, reach)}, rng=rng, n_seeds=1, kl_sd=0.0)["a"][0]
        at = np.linspace(0, end, 90_001)
        dense = np.trapezoid(gold_at(curve, at), at, axis=0) / end
        np.testing.assert_allclose(area(curve, end), dense, atol=1e-4)


def test_a_run_that_ends_early_keeps_its_last_value():
    curve = known_curve([0, 1], [0, 1])
    # ∫₀¹ d dd = 1/2, then 1 for the second unit of √KL: one may stop there.
    np.testing.assert_allclose(area(curve, 2.0), 0.75, atol=FP64)
    long = known_curve([0, 1, 2, 3], [0, 1, -5, -5])
    np.testing.assert_allclose(area(truncate(long, 1), 2.0), 0.75, atol=FP64)
    # What lies beyond the range does not count.
    np.testing.assert_allclose(area(long, 1.0), 0.5, atol=FP64)


def test_a_range_of_no_length_is_refused():
    with pytest.raises(DataError, match="must be positive"):
        area(known_curve([0, 1], [0, 1]), 0.0)


def test_scatter_over_prompts_contains_the_error_of_measured_kl():
    # Gold is a known function of √KL; all that varies is the KL that is measured.
    rng, at = numpy_rng(0, "kl error"), np.array([2.0, 4.5])
    d = np.linspace(0, 6, 25)
    gold = np.repeat((d * (1.0 - 0.1 * d))[:, None], 200, axis=1)
    means, stderrs = [], []
    for _ in range(300):
        factor = np.exp(rng.normal(-0.32, 0.8, 200))
        arrays = {"gold": gold, "kl": np.square(d)[:, None] * factor}
        curve = Curve(rows(arrays, "x", "ppo", 0), arrays)
        values = gold_at(curve, at)
        means.append(values.mean(axis=1))
        stderrs.append(values.std(axis=1, ddof=1) / 200**0.5)
        plain = first_reach(curve["sqrt_kl"], at).weights @ gold
        np.testing.assert_allclose(values.mean(axis=1), plain.mean(axis=1), atol=FP64)
    spread = np.std(means, axis=0)
    assert (spread > 0.005).all()
    # The standard deviation of 300 means is known to 4 %; the slope is taken on a coarse grid.
    np.testing.assert_allclose(np.mean(stderrs, axis=0), spread, rtol=0.2)


# --- peaks


def test_every_prompt_is_read_equally_often():
    splits = half_splits(7, rng=numpy_rng(0, "splits"))
    np.testing.assert_array_equal((~splits).sum(axis=0), len(splits) // 2)


def test_a_cross_fitted_peak_of_noise_is_zero_and_the_largest_mean_is_not():
    rng = numpy_rng(0, "peak")
    splits = half_splits(32, rng=rng)
    noise = rng.normal(size=(400, 20, 32))
    fair = [at_peak(gold, [gold], splits)[0].mean() for gold in noise]
    stderr = np.std(fair) / 20
    assert abs(np.mean(fair)) < SIGMAS * stderr
    assert noise.mean(axis=2).max(axis=1).mean() > 50 * stderr


def test_a_clear_peak_is_found_exactly():
    curve = known_curve([0, 1, 2], [0, 2, 1], intent=[0, -1, 5])
    splits = half_splits(4, rng=numpy_rng(0, "splits"))
    gold, intent = at_peak(
        curve.arrays["gold"], [curve.arrays["gold"], curve.arrays["intent"]], splits
    )
    np.testing.assert_allclose(gold, 2.0, atol=FP64)
    np.testing.assert_allclose(intent, -1.0, atol=FP64)


# --- metrics, tuning


def test_metrics_of_a_curve_without_noise():
    curve = known_curve([0, 1, 2, 3], [5, 7, 6, 4], proxy=[1, 2, 3, 5], intent=[0, 1, 3, -1])
    reference = Reference(max_sqrt_kl=3.0, peak_sqrt_kl=1.5, is_turning=True)
    tables = metric_tables([curve], reference, half_splits(4, rng=numpy_rng(0, "splits")))
    assert set(tables) == set(METRICS)
    found = {name: float(table.mean()) for name, table in tables.items()}
    assert found == pytest.approx(
        {
            "area": (0.5 * 2 + (2 + 1) / 2 + (1 - 1) / 2) / 3,
            "gold_1x": 1.5,
            "gold_2x": -1.0,
            "gold_peak": 2.0,
            "gold_end": -1.0,
            "gap_end": 4.0 + 1.0,
            "rubric_peak": 1.0,
            "rubric_end": -1.0,
            "win_rate": 0.53,
        }
    )


def test_missing_columns_give_nan_and_no_effect():
    curve = known_curve([0, 1], [0, 1])
    old = Curve(
        tuple({k: v for k, v in r.items() if k != "win_rate"} for r in curve.rows), curve.arrays
    )
    reference = Reference(max_sqrt_kl=1.0, peak_sqrt_kl=1.0, is_turning=False)
    board = leaderboard(
        {"a": [old], "b": [old]},
        baseline="a",
        reference=reference,
        families={"a": "x", "b": "y"},
        rng=numpy_rng(0, "x"),
    )
    effect = next(s for s in board if s.mitigation == "b").effects["win_rate"]
    assert math.isnan(effect.value) and math.isnan(effect.p_holm) and math.isnan(effect.ci_low)
    assert math.isnan(board[0].costs["cpu_s"])
    assert "–" in as_table(board)


def test_the_best_trial_is_chosen_and_the_first_among_equals():
    low, high = known_curve([0, 2], [0, 1]), known_curve([0, 2], [0, 3])
    assert choose([[low, high], [high, high], [high, high]]) == (1, (2.0, 3.0, 3.0))
    assert choose([[low], [high]], lambda curves: -curves[0]["sqrt_kl"][-1]).trial == 0
    assert tuning_score([low, high]) == pytest.approx(2.0)


def test_reference_points_of_the_baseline():
    curves = [known_curve([0, 1, 2, r], [0, 1, 3, 0]) for r in (3.0, 4.0, 7.0)]
    assert common_range(curves) == 4.0
    found = find_reference(curves, 4.0)
    assert found.is_turning and found.peak_sqrt_kl == pytest.approx(2.0, abs=0.03)
    rising = find_reference([known_curve([0, 2], [0, 2])], 2.0)
    assert rising == Reference(max_sqrt_kl=2.0, peak_sqrt_kl=2.0, is_turning=False)


# --- effects


def test_a_metric_by_seed_is_a_paired_t_test():
    rng = numpy_rng(0, "t")
    a, b = rng.normal(size=(2, 6, 1))
    effect, oracle = paired_effect(a, b), stats.ttest_rel(a[:, 0], b[:, 0])
    assert effect.p_value == pytest.approx(oracle.pvalue, abs=FP64)
    assert effect.ci == pytest.approx(oracle.confidence_interval(), abs=FP64)


def test_bootstrap_of_prompts_alone_is_that_of_scipy():
    rng = numpy_rng(0, "boot")
    table = rng.normal(0.3, 1.0, size=(1, 60))
    ours = bootstrap_interval(table, rng=rng, n_draws=20_000)
    theirs = stats.bootstrap(
        (table[0],), np.mean, n_resamples=20_000, method="percentile", rng=rng
    ).confidence_interval
    # Quantiles of 20,000 draws have a standard error of about 2 % of a stderr, here 0.0026 each.
    assert ours == pytest.approx(theirs, abs=0.012)


def test_bootstrap_draws_seeds_as_well():
    table = np.repeat(np.array([-1.0, 0.0, 1.0])[:, None], 50, axis=1)
    found = bootstrap_interval(table, rng=numpy_rng(0, "seeds"))
    # Only seeds differ: the mean of 3 draws from {−1, 0, 1} is ±1 with probability 1/27 each.
    assert found == pytest.approx((-1.0, 1.0), abs=FP64)


@pytest.fixture(scope="module")
def board():
    """A baseline, its equal, and a mitigation that is truly better."""
    rng = numpy_rng(1, "board")
    arms = {"base": (0.6, 0.1), "equal": (0.6, 0.1), "better": (0.9, 0.1)}
    curves = simulate(arms, rng=rng)
    reference = find_reference(curves["base"], common_range(curves["base"]))
    families = {"base": "baseline", "equal": "f", "better": "g"}

    def make(order=tuple(arms), seed=1):
        return leaderboard(
            {name: curves[name] for name in order},
            baseline="base",
            reference=reference,
            families=families,
            rng=numpy_rng(seed, "rng"),
        )

    return make


def test_leaderboard_finds_the_better_one(board):
    standings = board()
    assert standings[0].mitigation == "better"
    ends = [s.effects["gold_end"].value for s in standings]
    assert ends == sorted(ends, reverse=True)
    effects = {s.mitigation: s.effects["gold_end"] for s in standings}
    assert effects["better"].p_holm < 0.01 < 0.05 < effects["equal"].p_holm
    assert math.isnan(effects["base"].difference)
    for name in ("equal", "better"):
        e = effects[name]
        assert e.difference == pytest.approx(e.value - effects["base"].value, abs=FP64)
        assert e.ci_low < e.difference < e.ci_high
    # Holm with three tests, never optimising among them: the smallest p is tripled.
    p = {name: e.p_value for name, e in effects.items() if name != "base"}
    assert set(p) == {"equal", "better", NEVER}
    smallest = min(p, key=p.get)
    assert effects[smallest].p_holm == pytest.approx(3 * p[smallest])
    assert effects["equal"].p_holm >= p["equal"]
    assert standings[0].costs["rm_calls"] == 128 * 18


def collapsing():
    """A baseline that peaks early and collapses, a policy that hardly moves, one that gains."""
    arms = {"base": (0.6, 0.3), "hardly": (0.6, 0.3, 0.05), "gains": (0.9, 0.1)}
    return simulate(arms, rng=numpy_rng(2, "collapse"), n_seeds=8)


def collapsing_board():
    curves = collapsing()
    return leaderboard(
        curves,
        baseline="base",
        reference=find_reference(curves["base"], common_range(curves["base"])),
        families=dict.fromkeys(curves, "f"),
        rng=numpy_rng(0, "rng"),
    )


def test_never_optimising_is_a_row_that_all_have_to_beat():
    standings = {s.mitigation: s for s in collapsing_board()}
    assert list(standings) == [
        "gains",
        *sorted((NEVER, "hardly"), key=list(standings).index),
        "base",
    ]
    never = standings[NEVER]
    for metric in ("gold_end", "gold_peak", "gold_1x", "gold_2x", "area", "gap_end", "rubric_end"):
        assert never.effects[metric].value == 0.0
    assert never.reach_sqrt_kl == 0.0 and set(never.costs.values()) == {0.0}
    assert math.isnan(never.effects["gold_end"].p_never)
    # By the mean over √KL a policy that never moves beats one that collapses: the fault of that metric.
    assert never.effects["area"].p_holm < 0.001 and never.effects["area"].difference > 0.5
    end = {name: s.effects["gold_end"] for name, s in standings.items()}
    assert end["gains"].p_never < 0.05 and end["gains"].never_low > 0
    assert end["hardly"].p_never > 0.05 or end["hardly"].over_never < 0.1
    assert end["base"].over_never < 0 and end["base"].never_high < 0
    # Over never optimising is the metric's own mean, for gains that start at 0.
    assert end["gains"].over_never == pytest.approx(end["gains"].value, abs=FP64)
    assert end[NEVER].difference == pytest.approx(-end["base"].value, abs=FP64)


def test_the_table_says_who_beats_never_optimising():
    text = as_table(collapsing_board())
    (line,) = (x for x in text.splitlines() if x.startswith("At the end better than never"))
    assert "gains" in line and "base" not in line
    assert f"| {NEVER} " in text and "Gold over never optimising" in text
    assert "p < .001" in text and "e-" not in text


def test_the_name_of_the_row_is_taken():
    curves = collapsing()
    with pytest.raises(DataError, match="a mitigation is called 'never optimise'"):
        leaderboard(
            {NEVER: curves["gains"], "base": curves["base"]},
            baseline="base",
            reference=Reference(max_sqrt_kl=1.0, peak_sqrt_kl=1.0, is_turning=False),
            families={},
            rng=numpy_rng(0, "rng"),
        )


def test_leaderboard_does_not_depend_on_the_order_of_mitigations(board):
    one, two = board(), board(order=("better", "equal", "base"))
    for a, b in zip(one, two, strict=True):
        assert a.mitigation == b.mitigation
        for metric in METRICS:
            assert a.effects[metric].p_holm == pytest.approx(b.effects[metric].p_holm, nan_ok=True)


def test_table_has_a_row_for_each(board):
    text = as_table(board())
    # Values, differences from the baseline, and from never optimising.
    assert text.count("| better ") == 3 and text.count("| base ") == 2
    assert len({line.count("|") for line in text.splitlines() if line.startswith("| better")}) == 3


def test_unpaired_curves_are_refused():
    rng = numpy_rng(0, "pairs")
    a, b = (simulate({"x": (0.6, 0.1)}, rng=rng, n_seeds=n)["x"] for n in (3, 2))
    reference = Reference(max_sqrt_kl=5.0, peak_sqrt_kl=3.0, is_turning=True)
    options = {"baseline": "a", "reference": reference, "families": {"a": "", "b": ""}, "rng": rng}
    for other in (b, a[::-1]):
        with pytest.raises(DataError, match="pair the same seeds in the same order"):
            leaderboard({"a": a, "b": other}, **options)
    c = simulate({"x": (0.6, 0.1)}, rng=rng, n_seeds=3, n_prompts=8)["x"]
    with pytest.raises(DataError, match="score the same prompts"):
        leaderboard({"a": a, "b": c}, **options)
