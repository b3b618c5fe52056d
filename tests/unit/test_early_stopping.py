"""Stopping rules on curves with planted peaks: causality, regret, tuning, detection, hedged n."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from overopt.analysis.hedging import score_hedge
from overopt.analysis.regret import halves, oracle, proxy_of, regret
from overopt.analysis.rules import (
    GOLD_COLUMNS,
    RULES,
    Rule,
    can_watch,
    signals,
    stop,
    stops_of,
)
from overopt.analysis.stopping import compare_rules, rank_detectors, tune
from overopt.base.errors import ConfigError, DataError
from overopt.base.seeding import numpy_rng
from overopt.cli.main import main
from overopt.pools.best_of_n import best_of_n
from overopt.pools.hedge import hedge_n
from overopt.pools.quantile import AdditiveErrorWorld, HumpWorld
from overopt.records.curves import Curve, load_curves
from overopt.records.schema import FIELDS
from overopt.reports.stops import _threshold, stops

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "exp001_figure1"
RULE = {rule.name: rule for rule in RULES}
K, P = 21, 40


def curve(peak, *, seed=0, noise=0.0, gold=None, **columns):
    """A PPO curve whose gold peaks at point ``peak`` and whose ensemble begins to differ there.

    Disagreement is 1 up to the peak and 1 + (k − peak) from there; KL grows at a pace such that the
    peak comes at another KL and step in every curve.
    """
    rng = numpy_rng(seed, "curve", peak)
    k = np.arange(K)
    mean = 1 - ((k - peak) / 8) ** 2
    offset = rng.normal(size=P)
    table = mean[:, None] + offset if gold is None else gold
    table = table + noise * rng.normal(size=(K, P))
    given = {
        "value": 3 * k,
        "kl_seq_nats": (0.1 * k) ** 2,
        "sqrt_kl": 0.1 * k,
        "proxy_gain": np.sqrt(k),
        "proxy_std": 1 / (1 + k),
        "entropy_token_nats": 2 - 0.05 * k,
        "member_disagreement": 0.3 * np.maximum(1, 1 + k - peak),
        "response_tokens": 30.0 + 0 * k,
    } | columns
    meta = {
        name: 0 for name in ("n_pairs", "label_rule", "label_flip_rate", "data_seed", "rm_seed")
    }
    meta |= {"backbone": f"{peak}/{seed}", "method": "ppo"}
    rows = [meta | {name: x[i] for name, x in given.items()} for i in range(K)]
    rows[0]["entropy_token_nats"] = None
    return Curve(tuple(rows), {"gold": table})


def prefix(c, n_points):
    return Curve(c.rows[:n_points], {"gold": c.arrays["gold"][:n_points]})


# ------------------------------------------------------------------------------------------- rules


def test_stop_is_the_last_point_before_the_alarm():
    c = curve(7)
    assert stop(RULE["member_disagreement"], c, 1.5) == 7  # alarm at 8, where it is twice the start
    assert stop(RULE["member_disagreement"], c, 2.0) == 8
    assert stop(RULE["kl_budget"], c, 0.25) == 5
    assert stop(RULE["step_budget"], c, 12) == 4
    assert stop(RULE["entropy_floor"], c, 1.675) == 6
    assert stop(RULE["proxy_std"], c, 0.3) == 2
    assert stop(RULE["response_length"], c, 1.2) == K - 1
    assert stop(RULE["kl_budget"], c, -1.0) == 0


def test_plateau_compares_slopes():
    flat_from = 10
    gain = np.minimum(np.arange(K), flat_from) * 0.5
    c = curve(7, proxy_gain=gain)
    s = signals(RULE["proxy_plateau"], c)
    assert np.isnan(s[:3]).all()
    np.testing.assert_allclose(s[3 : flat_from + 1], 1.0)
    np.testing.assert_allclose(s[flat_from + 3 :], 0.0, atol=1e-12)
    assert flat_from <= stop(RULE["proxy_plateau"], c, 0.5) <= flat_from + 2


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_later_points_never_change_a_stop_that_was_made(rule):
    for trial in range(20):
        rng = numpy_rng(trial, "causal", rule.name)
        columns = {name: np.abs(rng.normal(size=K)).cumsum() for name in rule.columns}
        c = curve(9, **columns)
        whole = signals(rule, c)
        if not np.isfinite(whole).any():
            continue
        for threshold in rng.choice(whole[np.isfinite(whole)], size=4):
            final = stop(rule, c, threshold)
            for n in range(1, K):
                early = stop(rule, prefix(c, n), threshold)
                assert early == (final if early < n - 1 else n - 1)
                np.testing.assert_array_equal(signals(rule, prefix(c, n)), whole[:n])


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_gold_cannot_move_a_stop(rule):
    plain, other = curve(7), curve(7, gold=numpy_rng(1, "gold").normal(size=(K, P)))
    for row in other.rows:
        row.update(dict.fromkeys(GOLD_COLUMNS, 1e9))
    threshold = float(np.nanmedian(signals(rule, plain)))
    assert stop(rule, plain, threshold) == stop(rule, other, threshold)


@pytest.mark.parametrize("name", ["gold_gain", "rubric_score", "win_rate", "gap", "no_such"])
def test_a_rule_that_reads_gold_is_refused(name):
    with pytest.raises(ConfigError, match=name):
        Rule(name="cheat", columns=(name,), signal=lambda p: 0.0, side="above", unit="", meaning="")


def test_what_was_not_recorded_cannot_be_watched():
    single = curve(7, member_disagreement=[None] * K)
    assert not can_watch(RULE["member_disagreement"], single)
    assert can_watch(RULE["entropy_floor"], single)  # null at step 0 only
    assert stop(RULE["member_disagreement"], single, 1.5) == K - 1
    with pytest.raises(DataError, match="member_disagreement"):
        tune(RULE["member_disagreement"], [single])


# ------------------------------------------------------------------------------------------ regret


def test_regret_without_noise_is_the_planted_loss():
    curves = [curve(p, seed=s) for s, p in enumerate((5, 9, 12))]
    at_peak = regret(curves, [5, 9, 12])
    assert at_peak.estimate == pytest.approx(0, abs=1e-12)
    late = regret(curves, [9, 13, 16])
    assert late.estimate == pytest.approx(0.25, abs=1e-12)
    assert late.in_sample == pytest.approx(0.25, abs=1e-12)
    assert late.stderr == pytest.approx(0, abs=1e-9)


def test_in_sample_regret_is_never_negative():
    rng = numpy_rng(2, "never")
    for seed in range(30):
        curves = [curve(8, seed=3 * seed + i, noise=2.0) for i in range(3)]
        assert regret(curves, list(rng.integers(0, K, size=3))).in_sample >= 0


def test_selecting_the_oracle_is_optimistic_and_the_halves_correct_it():
    # Gold does not move at all: every stop is as good as any other.
    flat = [curve(8, seed=s, gold=np.zeros((K, P)), noise=1.0) for s in range(200)]
    found = regret(flat, [K - 1] * len(flat))
    assert abs(found.estimate) < 4 * found.stderr < 0.1
    assert found.in_sample > 0.25


def test_stderr_is_that_of_a_paired_bootstrap_over_prompts_and_seeds():
    rng = numpy_rng(3, "bootstrap")
    curves = [curve(8, seed=s, noise=0.2) for s in range(8)]
    prompt_effect = rng.normal(size=P)
    for c in curves:
        c.arrays["gold"][8] += 2 + 0.3 * rng.normal() + prompt_effect
    stops_ = [K - 1] * 8
    found = regret(curves, stops_)
    parts = halves(P)
    table = np.empty((8, P))
    for row, c in zip(table, curves, strict=True):
        gain = c.arrays["gold"] - c.arrays["gold"][:1]
        for mine, other in zip(parts, parts[::-1], strict=True):
            row[mine] = (gain[oracle(gain[:, other])] - gain[-1])[mine]
    seeds = rng.integers(8, size=(4000, 8))
    prompts = rng.integers(P, size=(4000, P))
    draws = np.array([table[np.ix_(i, j)].mean() for i, j in zip(seeds, prompts, strict=True)])
    assert found.estimate == pytest.approx(table.mean())
    # With 8 seeds a bootstrap is short by about √(7/8), and it counts the interaction three times.
    assert 0.85 < draws.std() / found.stderr < 1.15


def test_ppo_seeds_of_one_proxy_are_not_independent_proxies():
    runs = [curve(8, seed=s, noise=0.5) for s in range(3)]
    for c in runs:
        for row in c.rows:
            row["backbone"] = "the same"
    table = np.array(
        [
            np.where(halves(P)[0], gain[oracle(gain[:, 1::2])], gain[oracle(gain[:, ::2])])
            for gain in (c.arrays["gold"] - c.arrays["gold"][:1] for c in runs)
        ]
    )
    found = regret(runs, [0, 0, 0])
    assert found.estimate == pytest.approx(table.mean())
    assert found.stderr == pytest.approx(table.mean(0).std(ddof=1) / P**0.5)
    assert found.dof == P - 1


@pytest.mark.parametrize(
    ("column", "one", "other"),
    [("rounds", 1, 3), ("reward_combine", "mean", "worst_case"), ("length_penalty", 0.0, 0.1)],
)
def test_rewards_made_differently_are_not_seeds_of_one(column, one, other):
    runs = [curve(8, seed=s, noise=0.5) for s in range(2)]
    for c, setting in zip(runs, (one, other), strict=True):
        for row in c.rows:
            row |= {"backbone": "the same", column: setting}
    assert proxy_of(runs[0]) != proxy_of(runs[1])
    assert regret(runs, [0, 0]).dof < P - 1  # over two proxies, not one


def test_curves_on_different_prompts_are_refused():
    short = Curve(curve(5).rows, {"gold": curve(5).arrays["gold"][:, :10]})
    with pytest.raises(DataError, match="same prompts"):
        regret([curve(5), short], [0, 0])


# ------------------------------------------------------------------------------ tuning and ranking


def test_tuned_threshold_is_as_good_as_any():
    curves = [curve(p, seed=p, noise=0.3) for p in (4, 7, 11, 13)]
    for rule in RULES:
        found = tune(rule, curves)
        series = np.concatenate([signals(rule, c) for c in curves])
        series = series[np.isfinite(series)]
        grid = np.concatenate([[-np.inf, np.inf], np.linspace(series.min(), series.max(), 301)])
        every = [regret(curves, [stop(rule, c, t) for c in curves]).in_sample for t in grid]
        achieved = regret(curves, [stop(rule, c, found) for c in curves]).in_sample
        assert achieved <= min(every) + 1e-12


def test_threshold_lies_midway_between_what_was_seen():
    # Past the peak disagreement is 2, 3, …: any threshold in [1, 2) stops at it.
    assert tune(RULE["member_disagreement"], [curve(6), curve(9)]) == pytest.approx(1.5)


def test_tuning_uses_the_gold_of_its_prompts_only():
    c = curve(6, seed=1)
    first, second = halves(P)
    before = tune(RULE["kl_budget"], [c], prompts=first)
    c.arrays["gold"][:, second] = numpy_rng(7, "other").normal(size=(K, int(second.sum())))
    assert tune(RULE["kl_budget"], [c], prompts=first) == before


def test_the_rule_that_sees_the_turn_wins():
    curves = [curve(p, seed=p, noise=0.2) for p in (3, 6, 9, 12, 15)]
    scores = {s.rule: s for s in compare_rules(curves)}
    assert next(iter(scores)) == "member_disagreement"
    best, steps = scores["member_disagreement"], scores["step_budget"]
    assert abs(best.regret.estimate) < 3 * best.regret.stderr + 0.02
    assert best.lead == pytest.approx(0, abs=2.5)
    assert steps.regret.estimate > 0.25
    assert scores["never_stop"].regret.estimate > steps.regret.estimate
    assert scores["never_stop"].lead == pytest.approx(-3 * 11, abs=3)
    ranked = rank_detectors(curves)
    assert ranked[0].rule == "member_disagreement" and ranked[0].auc > 0.95
    aucs = {d.rule: d.auc for d in ranked}
    # A signal in the pace of steps is no better than steps; a constant is a coin.
    assert aucs["kl_budget"] == pytest.approx(aucs["step_budget"])
    assert aucs["response_length"] == 0.5


def test_a_threshold_comes_from_other_proxies():
    early, late = curve(5), curve(12)
    (steps,) = (s for s in compare_rules([early, late]) if s.rule == "step_budget")
    # Each stops at the other's peak, seven points off.
    assert steps.regret.estimate == pytest.approx((7 / 8) ** 2)


def test_a_threshold_comes_from_the_other_half_of_the_prompts():
    k = np.arange(K)[:, None]
    peak = np.where(halves(P)[0], 5, 12)
    gold = 1 - ((k - peak) / 8) ** 2
    curves = [curve(8, seed=s, gold=gold) for s in range(2)]
    (steps,) = (s for s in compare_rules(curves) if s.rule == "step_budget")
    # Even prompts are stopped where gold of the odd ones peaks, and so is their oracle.
    assert steps.regret.estimate == pytest.approx(0, abs=1e-12)
    assert steps.lead == pytest.approx(3 * (oracle(gold) - 8.5))


def test_auc_is_the_share_of_ordered_pairs():
    curves = [curve(p, seed=p) for p in (5, 12)]
    past = [int(k) for p in (5, 12) for k in range(p + 1, K)]
    before = [int(k) for p in (5, 12) for k in range(p + 1)]
    pairs = [(a > b) + 0.5 * (a == b) for a in past for b in before]
    found = {d.rule: d for d in rank_detectors(curves)}["step_budget"]
    assert found.auc == pytest.approx(np.mean(pairs))
    assert math.isfinite(found.auc_stderr)


def test_one_proxy_is_not_enough():
    with pytest.raises(DataError, match="other proxies"):
        compare_rules([curve(5), curve(5)])


def test_records_older_than_a_column_are_read_without_it(tmp_path):
    rows = [json.loads(x) for x in (RESULTS / "records.jsonl").read_text("utf-8").splitlines()]
    text = "".join(json.dumps({k: v for k, v in r.items() if k != "win_rate"}) + "\n" for r in rows)
    (tmp_path / "records.jsonl").write_text(text, encoding="utf-8")
    shutil.copy(RESULTS / "curves.npz", tmp_path)
    for c in load_curves(tmp_path):
        assert all(set(FIELDS) == set(row) and row["win_rate"] is None for row in c.rows)


def test_committed_records_give_a_table(capsys):
    assert main(["stops", str(RESULTS)]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == stops(RESULTS)
    for name in ("kl_budget", "entropy_floor", "never_stop"):
        assert f"\n{name}" in printed
    assert "not in these records: what member_disagreement" in printed
    assert "inf" not in printed and "nan" not in printed


@pytest.mark.parametrize(
    ("side", "value", "words"),
    [
        ("below", math.inf, "at once"),
        ("below", -math.inf, "never"),
        ("above", -math.inf, "at once"),
        ("above", math.inf, "never"),
        ("above", 4.218, "4.22 nats"),
    ],
)
def test_an_infinite_threshold_is_said_in_words(side, value, words):
    rule = dataclasses.replace(RULES[0], side=side, unit="nats")
    assert _threshold(rule, value) == words
    if not math.isfinite(value):
        stops_at = stop(rule, curve(5), value)
        assert (stops_at < len(curve(5).rows) - 1) == (words == "at once")


# ---------------------------------------------------------------------------------------- hedged n


def test_hedged_n_is_the_closed_form_of_the_hump():
    world = HumpWorld(power=8.0, prompt_std=0.1, noise_std=0.1)
    pool = world.sample_pool(200, 2000, rng=numpy_rng(0, "hump"))
    found = hedge_n(pool.proxy, pool.gold)
    assert found.is_interior
    # The peak of n/((n+8)(n+9)) is at √72 = 8.49; it is flat, so n is known to some 2 %.
    assert found.n == pytest.approx(72**0.5, rel=0.02)


def test_hedged_n_maximises_best_of_n():
    world = HumpWorld(power=20.0, prompt_std=0.2, noise_std=0.3)
    pool = world.sample_pool(40, 600, rng=numpy_rng(1, "hump"))
    ns = np.arange(1, 151)
    gold = best_of_n(pool.proxy, pool.gold, ns).mean
    found = hedge_n(pool.proxy, pool.gold, max_n=150)
    assert gold[round(found.n) - 1] > gold.max() - 1e-3


def test_ties_leave_nothing_to_choose():
    gold = numpy_rng(2, "ties").normal(size=(6, 32))
    assert hedge_n(np.zeros_like(gold), gold, max_n=16) == (1.0, False)


def test_without_a_peak_the_end_of_the_range_is_chosen():
    pool = AdditiveErrorWorld().sample_pool(50, 400, rng=numpy_rng(3, "additive"))
    up, down = hedge_n(pool.gold, pool.gold), hedge_n(-pool.gold, pool.gold)
    assert (up.n, up.is_interior) == (100.0, False)
    assert (down.n, down.is_interior) == (1.0, False)


def test_hedging_beats_the_largest_n_on_held_out_prompts():
    world = HumpWorld(power=8.0)
    pool = world.sample_pool(60, 800, rng=numpy_rng(4, "held-out"))
    score = score_hedge(pool.proxy, pool.gold)
    assert 0 <= score.regret < 0.05 < score.regret_of_largest
    assert all(5 < n < 14 for n in score.chosen_n)
    exact = float(world.bon_gold(np.array(score.chosen_n)).mean())
    assert abs(score.gold - exact) < 4 * score.gold_stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold_PN": np.zeros((4, 7))}, "must be equal"),
        ({"max_n": 9}, "outside 1"),
        ({"max_n": 0.5}, "outside 1"),
    ],
)
def test_bad_pools_are_refused(change, message):
    arguments = {"proxy_PN": np.zeros((4, 8)), "gold_PN": np.zeros((4, 8))} | change
    with pytest.raises(DataError, match=message):
        hedge_n(arguments.pop("proxy_PN"), arguments.pop("gold_PN"), **arguments)
    with pytest.raises(DataError, match="at least 4 prompts"):
        score_hedge(np.zeros((3, 8)), np.zeros((3, 8)))


@pytest.mark.parametrize("side", ["above", "below"])
def test_stops_at_all_thresholds_are_those_of_reading_point_by_point(side):
    rng = np.random.default_rng(0)
    thresholds = np.array([-np.inf, -1.0, -0.2, 0.0, 0.3, 1.0, np.inf])
    for length in (1, 2, 7):
        for _ in range(50):
            signal = rng.normal(size=length).round(1)
            signal[rng.random(length) < 0.3] = np.nan
            expected = []
            for threshold in thresholds:
                past = [s > threshold if side == "above" else s < threshold for s in signal]
                expected.append(max(past.index(True) - 1, 0) if any(past) else length - 1)
            assert stops_of(signal, side, thresholds).tolist() == expected
