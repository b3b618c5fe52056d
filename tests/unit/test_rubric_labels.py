"""Rubric features and sweet spots; labels, flips and ties."""

import numpy as np
import pytest
import torch

from overopt.base.datatypes import Prompts, Responses
from overopt.base.errors import ConfigError
from overopt.base.overrides import apply_overrides
from overopt.rewards.labels.pairs import label_pairs
from overopt.rewards.settings import LabelsConfig
from overopt.rewards.training.calibration import gold_slope, pair_metrics, recalibration
from overopt.stages.settings import BonConfig, RunConfig
from overopt.study.chain import build_graph
from overopt.study.presets import load_experiment
from overopt.worlds import draws
from overopt.worlds.load import load_world
from overopt.worlds.rubric import (
    COUNTED,
    PRESETS,
    RubricConfig,
    calibrate,
    features,
    find_hero,
    saturating,
    sweet_spot,
)
from overopt.worlds.stories import Settings as Stories


def test_hero():
    assert find_hero("Once upon a time, there was a boy named Tim. He") == "Tim"
    assert find_hero("One day, Sara went out") == "Sara"
    assert find_hero("Once upon a time there was a dog") is None


def test_features_of_a_story():
    got = dict(
        zip(
            COUNTED,
            features(
                "a boy named Tim", 'Tim was happy. "No!" he said, sad. Tim\'s cat.', ended=True
            ),
            strict=True,
        )
    )
    assert got["joy"] == 0.0
    assert got["dialogue"] == 2.0
    assert got["hero"] == 2.0
    assert got["sentences"] == 4.0
    assert got["ending"] == 1.0
    assert features("x", "no end", ended=False)[COUNTED.index("ending")] == 0.0


def test_sweet_spot_is_where_the_formula_puts_it():
    z = np.linspace(0, 5, 5001)
    assert z[sweet_spot(z, 0.12).argmax()] == pytest.approx((3 * 0.12) ** -0.5, abs=1e-3)
    assert np.all(np.diff(sweet_spot(z, 0.0)) > 0)
    assert sweet_spot(np.array([-2.0]), 0.12)[0] == -2.0


def test_saturation_never_punishes_more():
    z = np.linspace(-9, 9, 1001)
    assert np.all(np.diff(saturating(z, 1.5)) > 0)
    assert np.all(np.abs(saturating(z, 1.5)) < 1.5)
    slope = (saturating(np.array([1e-6]), 1.5) - saturating(np.array([-1e-6]), 1.5)) / 2e-6
    assert slope[0] == pytest.approx(1)


def test_calibration_gives_mean_zero_and_unit_variance():
    stories = ["She was happy.", "He cried and cried!", '"Hello," said Tim. Fun!', "The end"]
    prompts, ended = ["a boy named Tim"] * 4, [True, True, True, False]
    coherence = np.array([-1.0, -2.5, -2.0, -4.0])
    rubric = calibrate(RubricConfig(), prompts, stories, ended, coherence)
    scores = rubric.score(prompts, stories, ended, coherence)
    assert scores.mean() == pytest.approx(0, abs=1e-12)
    assert scores.std() == pytest.approx(1, abs=1e-12)


def test_coherence_is_asked_for_where_it_counts():
    texts = ["a boy named Tim"] * 2, ["fine day", "a bad day"], [True, True]
    judged = np.array([-1.0, -2.0])
    with pytest.raises(ValueError, match="coherence"):
        calibrate(RubricConfig(), *texts)
    calibrate(PRESETS["extremal"], *texts)
    alone = RubricConfig(joy=0, dialogue=0, hero=0, variety=0, sentences=0, ending=0, coherence=1.0)
    assert calibrate(alone, *texts, judged).score(*texts, judged) == pytest.approx([1, -1])


def test_unlikely_text_costs_more_the_less_likely_it_is():
    cfg = RubricConfig()
    assert cfg.utility("coherence", np.array([-9.0, -8.0, -3.0, 1.5, 4.0])).tolist() == [
        *(-8.0, -8.0, -3.0, 1.5, 1.5)
    ]


def test_data_seeds_share_no_prompts_until_they_must():
    world = load_world(Stories())
    start, stop = world.bounds("train")
    n_train = stop - start
    assert n_train == world.n_prompts("train") >= 6 * 2000

    def drawn(seed, n, root=0):
        found = draws.drawn(n_train, n, split="train", seeds=(root, seed)).tolist()
        assert len(set(found)) == n
        return found

    assert len(set().union(*(drawn(seed, 2000) for seed in range(6)))) == 6 * 2000
    assert len(set().union(*(drawn(seed, 250) for seed in range(48)))) == 48 * 250
    assert drawn(3, 500) == drawn(3, 2000)[:500]  # fewer comparisons are a part of more
    assert drawn(0, 500) != drawn(0, 500, root=1)
    of_world = draws.comparison_prompts(world, "train", 9, seeds=(0, 3)).prompt_id - start
    assert of_world.tolist() == drawn(3, 9)


def test_a_named_rubric_is_one_setting_away():
    extremal = apply_overrides(RunConfig(), ["world.rubric=extremal"]).world.rubric
    assert extremal == PRESETS["extremal"]
    both = ["world.rubric.preset=extremal", "world.rubric.dose=0.2"]
    changed = apply_overrides(RunConfig(), both).world.rubric
    assert (changed.coherence, changed.dose) == (0, 0.2)
    with pytest.raises(
        ConfigError, match=r"world\.rubric = 'old': .*or take one of coherent, extremal"
    ):
        apply_overrides(RunConfig(), ["world.rubric=old"])
    with pytest.raises(ConfigError, match=r"world\.rubric\.preset = 'old': must be one of"):
        apply_overrides(RunConfig(), ["world.rubric.preset=old"])


def test_trap_costs():
    prompts, texts = ["a boy named Tim"] * 2, ["fine day", "fine zebra day"]
    rubric = calibrate(RubricConfig(trap="zebra", coherence=0), prompts, texts, [True, True])
    plain, trapped = rubric.score(prompts, texts, [True, True])
    assert plain > trapped


def table(n_prompts, copies):
    n = n_prompts * copies
    ids = torch.ones(n_prompts, 2, dtype=torch.int64)
    prompts = Prompts(ids, ids.bool(), torch.arange(n_prompts)).repeat(copies)
    body = torch.arange(1, n + 1)[:, None].repeat(1, 3)  # no two alike: copies would be ties
    return Responses(prompts, body, body.bool(), torch.zeros(n, 3), torch.ones(n, dtype=torch.bool))


def label(gold, **kw):
    options = {
        "copies": 4,
        "n_pairs": 6 * (len(gold) // 4),
        "rule": "argmax",
        "flip_rate": 0.0,
        "seed": 0,
    }
    return label_pairs(table(len(gold) // 4, 4), gold, **(options | kw))


def test_argmax_labels_follow_gold_within_a_prompt():
    gold = torch.randn(400, generator=torch.Generator().manual_seed(0))
    pairs = label(gold)
    assert len(pairs) == 600
    assert bool((gold[pairs.chosen] > gold[pairs.rejected]).all())
    assert bool((pairs.gold_margin > 0).all())
    assert torch.equal(pairs.chosen // 4, pairs.rejected // 4)


def test_flips_have_their_rate_and_do_not_move_labels():
    gold = torch.randn(8000, generator=torch.Generator().manual_seed(1))
    clean, noisy = (
        label(gold, rule="bradley_terry"),
        label(gold, rule="bradley_terry", flip_rate=0.25),
    )
    n = len(noisy)
    assert abs(int(noisy.flipped.sum()) - 0.25 * n) < 4 * (n * 0.25 * 0.75) ** 0.5
    kept = ~noisy.flipped
    assert torch.equal(clean.chosen[kept], noisy.chosen[kept])
    assert torch.equal(clean.chosen[~kept], noisy.rejected[~kept])
    assert torch.equal(clean.gold_margin, noisy.gold_margin)


def test_bradley_terry_rate():
    gold = torch.tensor([1.2, 0.0, 1.2, 0.0] * 3000)
    pairs = label(gold, rule="bradley_terry")
    apart = pairs.gold_margin != 0
    wins = float((pairs.gold_margin[apart] > 0).float().mean())
    p = 1 / (1 + np.exp(-1.2))
    assert abs(wins - p) < 4 * (p * (1 - p) / int(apart.sum())) ** 0.5


def test_ties_are_kept_and_decided_by_a_coin():
    pairs = label(torch.zeros(4000))
    assert len(pairs) == 6000
    assert abs(float((pairs.chosen < pairs.rejected).float().mean()) - 0.5) < 0.03


def test_fewer_pairs_are_a_prefix():
    gold = torch.randn(400, generator=torch.Generator().manual_seed(2))
    assert torch.equal(label(gold, n_pairs=50).chosen, label(gold).chosen[:50])


@pytest.mark.parametrize("rate", [0.7, 0.5, -0.1])
def test_flip_rates_that_invert_gold_are_refused(rate):
    with pytest.raises(ConfigError, match="label_flip_rate"):
        LabelsConfig(label_flip_rate=rate)


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"n_pairs = -5"):
        LabelsConfig(n_pairs=-5)
    with pytest.raises(ConfigError, match="larger than the pool"):
        BonConfig(pool_size=16, ns=(1, 32))
    with pytest.raises(ConfigError, match="12000"):
        build_graph(load_experiment("smoke", ["labels.n_pairs=100_000"]))


def test_recalibration_finds_the_planted_factor():
    rng = np.random.default_rng(0)
    gold = rng.normal(size=4000)
    assert recalibration(gold / 0.4, gold) == pytest.approx(0.4, rel=1e-3)


def test_the_worth_of_a_unit_is_the_slope_of_gold():
    rng = np.random.default_rng(1)
    proxy = rng.normal(size=200_000)
    gold = 0.7 * proxy + rng.normal(scale=1.2, size=proxy.size)
    assert gold_slope(proxy, gold) == pytest.approx(0.7, abs=0.01)
    assert recalibration(proxy, gold) < 0.62  # probabilities are curved: the noise takes from it
    assert gold_slope(-proxy, gold) < 0
    assert gold_slope(np.zeros(3), np.ones(3)) == 0.0


def test_pair_metrics_by_hand():
    got = pair_metrics(np.array([1.0, -1.0, 0.0]))
    assert got["accuracy"] == pytest.approx(0.5)
    assert got["loss"] == pytest.approx((np.log1p(np.exp(-1)) + np.log1p(np.e) + np.log(2)) / 3)
