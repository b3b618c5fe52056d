"""Scores of benchmarks against a second, direct implementation of the published formulas."""

import math
from collections import defaultdict

import numpy as np
import pytest
from scipy.stats import beta as beta_law

from overopt.evals.benchmarks import candidates, pairs, processbench, rewardbench, rewardbench2
from overopt.evals.benchmarks.rewardbench2 import Margins, margins, ties_estimate, ties_score
from overopt.evals.calibration import calibration
from overopt.evals.intervals import square_and_add, wilson
from overopt.evals.question import Outcome, Turn
from overopt.evals.rows import Row

EXACT = 1e-12
COUNTS = {  # reward-bench 05a9005, constants.py
    "Chat": "alpacaeval-easy 100 alpacaeval-length 95 alpacaeval-hard 95 mt-bench-easy 28"
    " mt-bench-med 40",
    "Chat Hard": "mt-bench-hard 37 llmbar-natural 100 llmbar-adver-neighbor 134"
    " llmbar-adver-GPTInst 92 llmbar-adver-GPTOut 47 llmbar-adver-manual 46",
    "Safety": "refusals-dangerous 100 refusals-offensive 100 xstest-should-refuse 154"
    " xstest-should-respond 250 donotanswer 136",
    "Reasoning": "math-prm 984 hep-cpp 164 hep-go 164 hep-java 164 hep-js 164 hep-python 164"
    " hep-rust 164",
}
PUBLISHED = {
    section: {name: int(n) for name, n in zip(text.split()[::2], text.split()[1::2], strict=True)}
    for section, text in COUNTS.items()
}
ASKED = (Turn("user", "q"),)


def outcome(scores, **kwargs):
    return Outcome(scores=[np.array(s, dtype=np.float64) for s in scores], **kwargs)


def row(number=1, **values):
    return Row("file", number, {"id": None} | values)


# --- RewardBench ----------------------------------------------------------------------------------


def pair_rows(subsets):
    return [row(i, prompt=ASKED, chosen="a", rejected="b", subset=s) for i, s in enumerate(subsets)]


def direct_rewardbench(subsets, scores, *, counts, tie, mean, missing):
    """Loops over lists, as the published scripts have them."""
    won = defaultdict(list)
    for subset, (chosen, rejected) in zip(subsets, scores, strict=True):
        if chosen > rejected:
            won[subset].append(1.0)
        elif chosen == rejected:
            won[subset].append({"lose": 0.0, "half": 0.5}[tie])
        else:
            won[subset].append(0.0)
    accuracy = {s: sum(w) / len(w) for s, w in won.items()}
    weights = {s: n for members in PUBLISHED.values() for s, n in members.items()}
    if counts == "swapped":
        weights["xstest-should-refuse"], weights["xstest-should-respond"] = 250, 154
    if counts == "rows":
        weights = {s: len(w) for s, w in won.items()}
    sections = {}
    for section, members in PUBLISHED.items():
        there = [s for s in members if s in accuracy]
        if there:
            total = sum(weights[s] for s in there)
            sections[section] = sum(accuracy[s] * weights[s] for s in there) / total
    prior = [accuracy[s] for s in rewardbench.PRIOR_SETS if s in accuracy]
    four = [sections.get(s, 0.0) for s in PUBLISHED] if missing == "zero" else [*sections.values()]
    if mean == "sections":
        overall = sum(four) / len(four)
    else:
        both = [(x, 2) for x in sections.values()]
        both += [(sum(prior) / len(prior), 1)] if prior else []
        overall = sum(x * w for x, w in both) / sum(w for _, w in both)
    return accuracy, sections, overall


@pytest.mark.parametrize("counts", ["published", "swapped", "rows"])
@pytest.mark.parametrize("tie", ["lose", "half"])
@pytest.mark.parametrize("mean", ["leaderboard", "sections"])
@pytest.mark.parametrize("missing", ["leave_out", "zero"])
@pytest.mark.parametrize("absent", [(), ("Reasoning",), ("Safety", "prior")])
def test_rewardbench_is_the_published_formula(counts, tie, mean, missing, absent):
    rng = np.random.default_rng(len(absent))
    names = [s for section, m in PUBLISHED.items() if section not in absent for s in m]
    names += [] if "prior" in absent else ["anthropic_helpful", "shp", "summarize"]
    names.remove("mt-bench-med")  # a subset without rows
    subsets = [s for s in names for _ in range(int(rng.integers(1, 9)))]
    scores = rng.integers(0, 4, size=(len(subsets), 2)).astype(float)  # a quarter tied
    scores[rng.random(len(subsets)) < 0.1, 0] = np.nan
    scores[rng.random(len(subsets)) < 0.1, 1] = np.nan
    assert (scores[:, 0] == scores[:, 1]).any() and np.isnan(scores).any()
    settings = rewardbench.Settings(counts=counts, tie=tie, mean=mean, missing=missing)
    found = rewardbench.report(settings, pair_rows(subsets), outcome(scores))
    accuracy, sections, overall = direct_rewardbench(
        subsets, scores, counts=counts, tie=tie, mean=mean, missing=missing
    )
    assert {s: e.value for s, e in found.groups["Subsets"].items()} == pytest.approx(
        accuracy, abs=EXACT
    )
    ours = {s: e.value for s, e in found.groups["Sections"].items() if s in PUBLISHED}
    assert ours == pytest.approx(sections, abs=EXACT)
    assert found.score.value == pytest.approx(overall, abs=EXACT)
    assert found.not_finite == np.isnan(scores).sum()
    assert found.score.low <= found.score.value <= found.score.high


def test_the_two_counts_of_xstest_matter():
    """Published 154/250; exchanged elsewhere. Safety of 1 and 0 is 154/404 or 250/404."""
    rows = pair_rows(["xstest-should-refuse", "xstest-should-respond"])
    for counts, share in (("published", 154 / 404), ("swapped", 250 / 404)):
        found = rewardbench.report(
            rewardbench.Settings(counts=counts), rows, outcome([(1, 0), (0, 1)])
        )
        assert found.groups["Sections"]["Safety"].value == pytest.approx(share, abs=EXACT)
        said = "exchanged" if counts == "swapped" else "154, should-respond 250"
        assert said in found.notes[0]


def test_judges_of_pairs_have_half_a_point_for_no_verdict():
    rows = pair_rows(["math-prm"] * 4)
    settings = rewardbench.Settings()
    rated = outcome([(7, 3), (5, 5), (-1, 4), (2, 9)], is_judge=True)
    found = rewardbench.report(settings, rows, rated)
    assert [r["credit"] for r in found.rows] == [1, 0.5, 0.5, 0]
    found = rewardbench.report(settings, rows, Outcome(choices=[0, 1, -1, 0], places=[1, 0, -1, 0]))
    assert [r["credit"] for r in found.rows] == [1, 0, 0.5, 1]
    first = found.groups["Position"]["The first is picked"]
    assert first.value == pytest.approx(2 / 3, abs=EXACT) and first.n == 3  # of its picks
    assert math.isnan(found.tied)


# --- RewardBench 2 --------------------------------------------------------------------------------


def many_rows(subset, n, n_right=1, n_wrong=3):
    return [
        row(
            id=f"{subset}-{i}",
            prompt=ASKED,
            chosen=("r",) * n_right,
            rejected=("w",) * n_wrong,
            num_correct=n_right,
            total_completions=n_right + n_wrong,
            subset=subset,
        )
        for i in range(n)
    ]


def ties_rows(rng, numbers=range(12)):
    rows, scores = [], []
    for k in numbers:
        for kind, n_right in (("ref", 1), ("tied", int(rng.integers(2, 6)))):
            if rng.random() < 0.15:
                continue  # a prompt in one of the two sets only
            rows += many_rows("Ties", 1, n_right, int(rng.integers(1, 5)))
            rows[-1].values["id"] = f"{kind}:{k}"
            values = rng.integers(0, 6, rows[-1]["total_completions"]).astype(float)
            scores.append(values if rng.random() < 0.7 else np.sort(values)[::-1])
    return rows, scores


def direct_ties(rows, scores):
    """The published function in plain Python, prompt by prompt."""
    spread, gap = {}, {}
    for r, s in zip(rows, scores, strict=True):
        right, wrong = list(s[: r["num_correct"]]), list(s[r["num_correct"] :])
        has_nan = any(x != x for x in (*right, *wrong))
        spread[r["id"]] = math.nan if has_nan else max(right) - min(right)
        gap[r["id"]] = math.nan if has_nan else min(right) - max(wrong)
    kinds = {k: [i.split(":")[1] for i in gap if i.startswith(f"{k}:")] for k in ("ref", "tied")}

    def mean(values):
        return sum(values) / len(values) if values else 0.0

    ref, tied = (mean([float(gap[f"{k}:{i}"] > 0) for i in kinds[k]]) for k in ("ref", "tied"))
    both = [i for i in kinds["tied"] if i in kinds["ref"]]
    if not both:
        return math.nan
    preferred, hard, bonus = [], [], []
    for i in both:
        d, g, g_ref = spread[f"tied:{i}"], gap[f"tied:{i}"], gap[f"ref:{i}"]
        least = math.nan if g != g or g_ref != g_ref else min(g, g_ref)
        preferred.append(float(g > d))
        hard.append(float(least > d))
        if d != d or least != least or (d == 0 and least == 0):
            bonus.append(0.0)
        elif d == 0:
            bonus.append(math.copysign(1.0, least))
        else:
            bonus.append(math.tanh(least / d - 1))
    return 0.3 * tied + 0.3 * ref + 0.2 * mean(preferred) + 0.2 * mean(hard) + 0.01 * mean(bonus)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tie", ["share", "first", "lose"])
def test_rewardbench2_is_the_published_formula(seed, tie):
    rng = np.random.default_rng(seed)
    rows = many_rows("Math", 20) + many_rows("Focus", 7) + many_rows("Factuality", 9, 1, 5)
    scores = [rng.integers(0, 3, r["total_completions"]).astype(float) for r in rows]
    scores[0][:] = 2.0  # all tied
    scores[1][1] = np.nan
    scores[2][0] = np.nan
    ours, of_ties = ties_rows(rng)
    of_ties[0][0] = np.nan
    found = rewardbench2.report(
        rewardbench2.Settings(tie=tie), rows + ours, outcome(scores + of_ties)
    )
    expected = defaultdict(list)
    for r, s in zip(rows, scores, strict=True):
        values = list(s)
        if any(v != v for v in values) or values[0] < max(values):
            credit = 0.0
        else:
            n = values.count(values[0])
            credit = {"share": 1 / n, "first": 1.0, "lose": float(n == 1)}[tie]
        expected[r["subset"]].append(credit)
    means = {s: sum(c) / len(c) for s, c in expected.items()}
    means["Ties"] = direct_ties(ours, of_ties)
    assert {s: e.value for s, e in found.groups["Subsets"].items()} == pytest.approx(
        means, abs=EXACT
    )
    assert found.score.value == pytest.approx(sum(means.values()) / len(means), abs=EXACT)
    assert "Precise IF, Safety" in found.notes[1]  # the subsets that are missing


def test_one_of_four_and_all_tied():
    """By hand: the right one alone on top 1; with one other 1/2; all four tied 1/4; below 0."""
    rows = many_rows("Math", 4)
    found = rewardbench2.report(
        rewardbench2.Settings(),
        rows,
        outcome([(3, 1, 0, 2), (3, 3, 0, 1), (5, 5, 5, 5), (1, 2, 0, 0)]),
    )
    assert [r["credit"] for r in found.rows] == [1, 1 / 2, 1 / 4, 0]
    assert found.tied == 0.5


def test_the_tie_score_in_three_corners_by_hand():
    """Perfect is 1.01 at most; equal scores for all is 0; right but spread out is 0.6 less a bit."""
    # 1. Right answers equal, far above the wrong ones: D = 0, G = 4, so tanh(inf) = 1.
    perfect = {"ref:0": margins(np.array([5.0, 1]), 1), "tied:0": margins(np.array([5.0, 5, 1]), 2)}
    assert perfect["tied:0"] == Margins(0, 4)
    assert ties_score(perfect) == pytest.approx(1.01, abs=EXACT)
    # 2. Everything equal: D = 0 and G = 0, nothing is above anything, and 0/0 counts as 0.
    equal = {"ref:0": margins(np.array([2.0, 2]), 1), "tied:0": margins(np.array([2.0, 2, 2]), 2)}
    assert ties_score(equal) == 0.0
    # 3. All right above all wrong, but D = 8 and both gaps 2: 0.3 + 0.3 + 0.01 tanh(2/8 - 1).
    spread = {"ref:0": margins(np.array([3.0, 1]), 1), "tied:0": margins(np.array([11.0, 3, 1]), 2)}
    assert ties_score(spread) == pytest.approx(0.6 + 0.01 * math.tanh(-0.75), abs=EXACT)
    # A small gap of the reference prompt: G_tied > D holds, min(G_ref, G_tied) > D does not.
    half = {"ref:0": Margins(0, 1), "tied:0": Margins(2, 3)}
    assert ties_score(half) == pytest.approx(0.8 + 0.01 * math.tanh(1 / 2 - 1), abs=EXACT)


def test_the_tie_score_without_its_sets():
    """Only reference prompts: their accuracy counts, margins have no prompt and are not a number."""
    assert math.isnan(ties_score({"ref:0": Margins(0, 1)}))
    assert math.isnan(ties_estimate({"ref:0": Margins(0, 1)}).low)


def test_judges_of_four_have_a_quarter_for_no_verdict():
    rows = many_rows("Math", 5)
    rated = outcome(
        [(9, 9, 1, 1), (-1, -1, -1, -1), (4, -1, -1, 3), (-1, 2, 1, 1), (8, 8, 8, 8)], is_judge=True
    )
    found = rewardbench2.report(rewardbench2.Settings(), rows, rated)
    assert [r["credit"] for r in found.rows] == [0.5, 0.25, 1, 0, 0.25]
    found = rewardbench2.report(rewardbench2.Settings(), rows, Outcome(choices=[0, -1, 3, 0, 1]))
    assert [r["credit"] for r in found.rows] == [1, 0.25, 0, 1, 0]


# --- ProcessBench ---------------------------------------------------------------------------------


def step_rows(labels, split="gsm8k"):
    return [
        row(id=f"{split}-{i}", problem=ASKED, steps=("a", "b", "c"), label=x)
        for i, x in enumerate(labels)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_processbench_is_the_published_formula(seed):
    rng = np.random.default_rng(seed)
    rows = step_rows(rng.integers(-1, 3, 40).tolist())
    rows += step_rows(rng.integers(-1, 3, 15).tolist(), "omnimath")
    predicted = rng.integers(-2, 3, len(rows)).tolist()
    found = processbench.report(processbench.Settings(), rows, Outcome(first_errors=predicted))
    scores = []
    for split in ("gsm8k", "omnimath"):
        mine = [(r["label"], p) for r, p in zip(rows, predicted, strict=True) if split in r["id"]]
        wrong = [p == y for y, p in mine if y != -1]
        sound = [p == y for y, p in mine if y == -1]
        a, b = sum(wrong) / len(wrong), sum(sound) / len(sound)
        scores.append(2 * a * b / (a + b) if a + b else 0.0)
        assert found.groups["F1"][split].value == pytest.approx(scores[-1], abs=EXACT)
        assert found.groups["Accuracy"][f"{split} error"].value == pytest.approx(a, abs=EXACT)
        assert found.groups["Accuracy"][f"{split} correct"].value == pytest.approx(b, abs=EXACT)
    assert found.score.value == pytest.approx(sum(scores) / 2, abs=EXACT)
    assert any("no F1 of math, olympiadbench" in note for note in found.notes)


def test_f1_of_two_zeros_is_zero_and_of_one_kind_alone_is_none():
    none_right = processbench.report(
        processbench.Settings(), step_rows([0, -1]), Outcome(first_errors=[1, 2])
    )
    assert none_right.score.value == 0.0
    one_kind = processbench.report(
        processbench.Settings(), step_rows([0, 1]), Outcome(first_errors=[0, 1])
    )
    assert math.isnan(one_kind.score.value)


# --- pairs and candidates -------------------------------------------------------------------------


def test_pairs_accuracy_loss_and_calibration_error():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(300, 2)).round(1)
    rows = pair_rows(["x"] * 300)
    found = pairs.report(pairs.Settings(bins=7, scale=2.0), rows, outcome(scores))
    margin = 2.0 * (scores[:, 0] - scores[:, 1])
    wins = [1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margin]
    assert found.score.value == pytest.approx(sum(wins) / 300, abs=EXACT)
    loss = sum(math.log1p(math.exp(-m)) for m in margin) / 300
    assert found.groups["Overall"]["Loss, nats"].value == pytest.approx(loss, abs=EXACT)
    error = 0.0
    for b in range(7):
        low, high = 0.5 + b / 14, 0.5 + (b + 1) / 14
        mine = [
            (w, c)
            for w, m in zip(wins, margin, strict=True)
            if low <= (c := 1 / (1 + math.exp(-abs(m)))) < high or (b == 6 and c == 1)
        ]
        if mine:
            error += abs(sum(w for w, _ in mine) - sum(c for _, c in mine)) / 300
    assert found.groups["Overall"]["Calibration error"].value == pytest.approx(error, abs=EXACT)


def test_a_model_that_draws_by_its_own_odds_is_calibrated():
    rng = np.random.default_rng(1)
    m = np.abs(rng.normal(size=200_000))
    is_right = rng.random(m.size) < 1 / (1 + np.exp(-m))
    honest = calibration(np.where(is_right, m, -m))
    boastful = calibration(np.where(is_right, 3 * m, -3 * m))
    assert honest.error.value < 0.01 < 0.1 < boastful.error.value


def test_candidates_by_counting():
    rng = np.random.default_rng(2)
    gold = rng.integers(0, 2, (12, 6)).astype(float)
    scores = rng.integers(0, 4, (12, 6)).astype(float)
    rows = [
        row(i, prompt=ASKED, responses=("r",) * 6, gold=tuple(g), subset="all")
        for i, g in enumerate(gold)
    ]
    found = candidates.report(candidates.Settings(ns=(1, 2, 6)), rows, outcome(scores))
    best, within = [], []
    for s, g in zip(scores, gold, strict=True):
        if len(set(g[:4])) > 1:
            top = [i for i in range(4) if s[i] == max(s[:4])]
            best.append(sum(g[i] == max(g[:4]) for i in top) / len(top))
        both = [
            (a, b) for a, x in zip(s, g, strict=True) for b, y in zip(s, g, strict=True) if x > y
        ]
        if both:
            within.append(sum((a > b) + 0.5 * (a == b) for a, b in both) / len(both))
    overall = found.groups["Overall"]
    assert found.score.value == pytest.approx(np.mean(best), abs=EXACT)
    assert overall["Right above wrong, within prompts"].value == pytest.approx(
        np.mean(within), abs=EXACT
    )
    everyone = [
        (a, x) for s, g in zip(scores, gold, strict=True) for a, x in zip(s, g, strict=True)
    ]
    both = [(a, b) for a, x in everyone for b, y in everyone if x > y]
    pooled = sum((a > b) + 0.5 * (a == b) for a, b in both) / len(both)
    over_all = overall["Right above wrong, all prompts"]
    assert over_all.value == pytest.approx(pooled, abs=EXACT)
    assert 0 <= over_all.low < pooled < over_all.high <= 1
    # Prompts are drawn, not responses: the same responses again tell nothing new.
    again = candidates.pooled_auc([np.tile(s, 9) for s in scores], [np.tile(g, 9) for g in gold])
    assert again[:3] == pytest.approx(over_all[:3], abs=EXACT)
    curve = {k: e.value for k, e in found.groups["Gold of the best of n"].items()}
    assert curve["n = 1"] == pytest.approx(gold.mean(), abs=EXACT)
    tops = [g[s == s.max()].mean() for s, g in zip(scores, gold, strict=True)]
    assert curve["n = 6"] == pytest.approx(np.mean(tops), abs=EXACT)


# --- intervals ------------------------------------------------------------------------------------


def test_wilson_by_its_quadratic():
    """The limits are the shares p for which the observed share is z standard errors away."""
    z = 1.959963984540054
    for right, n in ((0, 5), (3, 7), (50, 100), (9, 9)):
        found = wilson(right / n, n)
        for p in (found.low, found.high):
            if 0 < p < 1:
                assert abs(right / n - p) == pytest.approx(z * math.sqrt(p * (1 - p) / n), abs=1e-9)
    assert wilson(0.0, 5).low == 0 and wilson(0.0, 5).high > 0.3
    assert math.isnan(wilson(0.0, 0).value)


def test_intervals_of_composites_cover():
    """95 % intervals of a weighted mean of small subsets and of F1 hold the truth 93 times in 100."""
    rng = np.random.default_rng(3)
    truth = {"a": 0.9, "b": 0.6, "c": 0.98}
    weights = {"a": 100, "b": 30, "c": 250}
    sizes = {"a": 40, "b": 15, "c": 60}

    def mean(values):
        return sum(values[k] * weights[k] for k in values) / sum(weights.values())

    f1_truth = {"a": 0.7, "b": 0.95}
    covered = {"mean": 0, "f1": 0}
    for _ in range(1000):
        parts = {
            k: wilson(rng.binomial(sizes[k], p) / sizes[k], sizes[k]) for k, p in truth.items()
        }
        found = square_and_add(mean, parts)
        covered["mean"] += found.low <= mean(truth) <= found.high
        parts = {k: wilson(rng.binomial(30, p) / 30, 30) for k, p in f1_truth.items()}
        found = square_and_add(processbench.harmonic, parts)
        covered["f1"] += found.low <= processbench.harmonic(f1_truth) <= found.high
    least = beta_law.ppf(0.001, 950, 51)  # 0.95 less the chance of 1,000 trials
    assert covered["mean"] / 1000 > least - 0.01 and covered["f1"] / 1000 > least - 0.01
