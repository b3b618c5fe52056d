"""Slopes over sizes: which curves make a sweep, what is refused, and how runs spread."""

import numpy as np
import pytest
from scipy import stats
from simulated_curves import simulate
from tolerances import FP64

from overopt.analysis.slopes import shape_slopes, sweeps
from overopt.base.errors import ConfigError, DataError
from overopt.base.seeding import numpy_rng
from overopt.fits.pvalues import p_text
from overopt.fits.spread import spread, two_clusters
from overopt.fits.trend import trend
from overopt.records.curves import Curve


def changed(curve, **columns):
    return Curve(tuple(row | columns for row in curve.rows), curve.arrays)


@pytest.fixture(scope="module")
def curves():
    """Two sizes × three seeds."""
    made = simulate({"a": (0.5, 0.1), "b": (0.7, 0.1)}, rng=numpy_rng(0, "s"), n_seeds=3)
    return [
        changed(c, n_params=n, backbone=name, n_pairs=600)
        for (name, same), n in zip(made.items(), (10**5, 10**6), strict=True)
        for c in same
    ]


def slopes(curves, by="n_params"):
    return shape_slopes(curves, by, rng=numpy_rng(0, "x"), n_permutations=19)


def test_a_decade_is_the_unit(curves):
    end = slopes(curves).slopes["end"].slope
    ends = [np.mean([c.gain("gold")[-1].mean() for c in part]) for part in (curves[:3], curves[3:])]
    assert end.estimate == pytest.approx(ends[1] - ends[0], abs=FP64)
    further = [changed(c, n_params=10**7) if c.meta["n_params"] == 10**6 else c for c in curves]
    assert slopes(further).slopes["end"].slope.estimate == pytest.approx(end.estimate / 2, abs=FP64)


def test_comparisons_are_the_other_axis(curves):
    pairs = [changed(c, n_pairs=c.meta["n_params"], n_params=7, backbone="b") for c in curves]
    one, other = slopes(curves), slopes(pairs, "n_pairs")
    assert other.by == "n_pairs" and [s.size for s in other.at] == [1e5, 1e6]
    assert one.slopes["peak"].slope == other.slopes["peak"].slope


def test_policies_are_the_third_axis(curves):
    params = {10**5: "none", 10**6: "ladder:3m"}
    policies = [
        changed(c, policy_params=n, start_policy=params[n], n_params=7, backbone="b")
        for c in curves
        for n in (c.meta["n_params"],)
    ]
    one, other = slopes(curves), slopes(policies, "policy_params")
    assert one.slopes["end"].slope == other.slopes["end"].slope
    assert [(by, len(same)) for by, same in sweeps(policies)] == [("policy_params", 6)]
    with pytest.raises(DataError, match="curves differ in start_policy"):
        slopes(policies)
    with pytest.raises(DataError, match="none, other all have policy_params = 100000"):
        slopes([*policies[1:], changed(policies[0], start_policy="other")], "policy_params")


def test_the_order_of_curves_does_not_matter(curves):
    assert slopes(curves).slopes == slopes(curves[::-1]).slopes


def test_runs_of_one_data_seed_are_one_replicate(curves):
    # The same run again under another seed of the proxy adds nothing.
    doubled = [*curves, *(changed(c, rm_seed=c.meta["rm_seed"] + 10) for c in curves)]
    one, two = slopes(curves), slopes(doubled)
    for name, found in two.slopes.items():
        assert found.slope.stderr == pytest.approx(one.slopes[name].slope.stderr, rel=1e-9)
        assert found.slope.dof == pytest.approx(one.slopes[name].slope.dof, rel=1e-9)
    assert two.at[0].n_runs == two.at[0].ends.n == 6 and two.n_seeds == 3


def test_seeds_that_differ_between_sizes_are_said_to_be_independent(curves):
    found = slopes([*curves[:5], changed(curves[5], data_seed=9)])
    assert not found.slopes["end"].is_paired
    assert (
        found.note
        == "data seeds ['2', '9'] are not there at every size: seeds count as independent"
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"method": "bon"}, r"curves differ in method \(bon, ppo\)"),
        ({"kl_coef": 0.1}, "curves differ in kl_coef"),
        ({"n_pairs": 1200}, r"curves differ in n_pairs \(1200, 600\)"),
        ({"backbone": "c"}, "b, c all have n_params = 1e.06"),
        ({"n_params": 0}, "leave out proxies without a size"),
    ],
)
def test_curves_that_make_no_sweep_are_refused(curves, columns, message):
    with pytest.raises(DataError, match=message):
        slopes([*curves[:5], changed(curves[5], **columns)])


def test_other_refusals(curves):
    with pytest.raises(ConfigError, match="by is 'size'"):
        slopes(curves, "size")
    with pytest.raises(DataError, match="two places that differ"):
        slopes(curves[:3])
    with pytest.raises(DataError, match="group at x = 6 has 1 seed"):
        slopes(curves[:4])
    with pytest.raises(DataError, match="no curves"):
        slopes([])
    fewer = Curve(curves[0].rows, {k: a[:, :8] for k, a in curves[0].arrays.items()})
    with pytest.raises(DataError, match="score the same prompts"):
        slopes([*curves[1:], fewer])
    rng, ok = numpy_rng(0, "x"), np.zeros((2, 3))
    with pytest.raises(DataError, match="seeds .* repeat"):
        trend([0, 1], [ok, ok], [[0, 0], [0, 1]], rng=rng)
    with pytest.raises(DataError, match="value of seed 1, prompt 2 is nan"):
        trend([0, 1], [ok, ok + np.diag([0, 0, np.nan])[1:]], [[0, 1]] * 2, rng=rng)
    with pytest.raises(DataError, match="give one of each"):
        trend([0, 1], [ok], [[0, 1]], rng=rng)
    with pytest.raises(DataError, match=r"shape \(2, 2\)"):
        trend([0, 1], [ok, ok[:, :2]], [[0, 1]] * 2, rng=rng)


# --- spread


def test_spread_of_runs():
    found = spread([-7.0, 1.0, 2.0, 1.5])
    assert (found.median, found.n_below, found.share_below) == (1.25, 1, 0.25)
    assert found.mean == pytest.approx(-0.625)
    # Clopper and Pearson: quantiles of beta distributions.
    limits = stats.beta.ppf(0.025, 1, 4), stats.beta.ppf(0.975, 2, 3)
    assert found.share_ci == pytest.approx(limits, abs=1e-7)
    squares = 3 * found.sd**2
    assert found.sd_ci == pytest.approx(np.sqrt(squares / stats.chi2.ppf([0.975, 0.025], 3)))
    assert spread([0.5, 2.0], below=1.0).n_below == 1
    one = spread([1.0])
    assert np.isnan(one.sd) and np.isnan(one.sd_ci.low) and np.isnan(one.p_clusters)
    with pytest.raises(DataError, match="one finite number a run"):
        spread([1.0, np.nan])


def test_the_best_split_in_two_is_found_by_trying_all():
    values = numpy_rng(0, "split").normal(size=9)
    low = np.sort(values)
    # F of two groups of 9 values is the ratio times 7.
    every = [stats.f_oneway(low[:k], low[k:]).statistic / 7 for k in range(1, 9)]
    found = two_clusters(values)
    assert found.statistic == pytest.approx(max(every), rel=1e-9)
    assert found.n_low == 1 + int(np.argmax(every))


def test_two_clusters_are_told_from_one():
    rng = numpy_rng(0, "clusters")
    p = [two_clusters(rng.normal(3.0, 2.0, 8)).p_value for _ in range(400)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    apart = np.concatenate([rng.normal(-7, 0.7, 4), rng.normal(1.5, 0.7, 6)])
    assert two_clusters(apart).p_value < 0.005 and two_clusters(apart).n_low == 4
    assert two_clusters(np.ones(5)).p_value == 1.0
    assert two_clusters([0.0, 0.0, 1.0, 1.0]).statistic == np.inf
    with pytest.raises(DataError, match="needs 4 or more"):
        two_clusters([1.0, 2.0, 3.0])


def test_small_p_values_are_only_said_to_be_small():
    assert [p_text(p) for p in (1.0, 0.35, 0.0346, 0.001)] == [
        "p = 1.000",
        "p = .350",
        "p = .035",
        "p = .001",
    ]
    assert p_text(0.000999) == p_text(0.0) == "p < .001"
    assert p_text(float("nan")) == "p –"
