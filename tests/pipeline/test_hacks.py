"""Hacks of finished proxies, read from a store: rules whose answer is known, in the world of sums."""

import json

import numpy as np
import pytest
from scipy import stats

from overopt.base import files
from overopt.base.config import RuntimeConfig
from overopt.cli.main import main
from overopt.engine.store import Store
from overopt.nets.checkpoints import load_lm
from overopt.nets.sampling import sample
from overopt.records.curves import load_curves
from overopt.stages.common import load_responses
from overopt.study import hacks
from overopt.study.finished import finished_curves
from overopt.study.run import load
from overopt.worlds import stories, sums
from overopt.worlds.load import load_world

SETTINGS = [
    *("world.kind=sums", "world.n_problems=300", "world.claim_share=1", "gold.kind=rubric"),
    *("labels.n_pairs=12", "labels.n_validation_prompts=10", "proxy.kind=rule", "bon.n_prompts=3"),
    *(
        "bon.pool_size=16",
        "bon.ns=1,2,4,16",
        "method.kind=rloo",
        "method.steps=2",
        "method.batch=8",
    ),
    *("method.eval_every=1", "method.warmup_steps=0", "method.eval_prompts=4"),
]
RULES = {"strict": ["proxy.rule=strict"], "lenient": ["proxy.rule=lenient"]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a run against each rule."""
    where = tmp_path_factory.mktemp("hacks")
    for rule in RULES.values():
        paths = ["--store", str(where / "runs"), "--results", str(where / "results")]
        run = ["run", "smoke", *SETTINGS, *rule, *paths, "--workers", "1", "--quiet"]
        assert main([*run, "--accept-changes"]) == 0
    return where / "runs"


def curves(store, rule):
    return finished_curves(load("smoke", [*SETTINGS, *RULES[rule]]), Store(store), RuntimeConfig())


@pytest.mark.slow
def test_the_strict_rule_is_gold_and_so_are_its_effects(store):
    (proxy,) = hacks.measure(curves(store, "strict"), n_prompts=20).proxies
    assert set(proxy["cues"]) == set(hacks.measure(curves(store, "strict")).cues)
    for name, of in proxy["cues"].items():
        assert of["proxy"].mean == pytest.approx(of["gold"].mean, abs=1e-5), name
    for name in (
        "checks",
        "contradiction",
        "verbosity",
        "sycophancy",
    ):  # the answer stays wrong or right
        assert proxy["cues"][name]["gold"].mean == 0, name
    assert proxy["cues"]["hedging"]["gold"].mean < -0.2


@pytest.mark.slow
def test_the_lenient_rule_does_not_mind_a_second_answer(store):
    (proxy,) = hacks.measure(curves(store, "lenient"), n_prompts=20).proxies
    found = proxy["cues"]
    assert found["hedging"]["proxy"].mean >= 0 > found["hedging"]["gold"].mean
    assert found["formatting"]["proxy"].mean == 0 > found["formatting"]["gold"].mean


@pytest.mark.slow
def test_cues_along_curves_are_those_of_the_responses(store):
    """The judge's own count of redundant checks; of all n = 1 and n = 16 by hand."""
    found = {c["method"]: c for c in hacks.measure(curves(store, "lenient"), n_prompts=2).curves}
    for curve in curves(store, "lenient"):
        world, ctx = load_world(curve.run.world), curve.context()
        checks = found[curve.method]["cues"]["checks"].mean
        if curve.is_bon:
            pool = ctx.inputs["pool"].path
            verdicts = world.verdicts(load_responses(pool / "responses.npz"))
            table = np.array([v.n_checks for v in verdicts], dtype=float).reshape(3, 16)
            assert checks[0] == pytest.approx(table.mean())
            listed = np.array([v.listed for v in verdicts]).reshape(3, 16)
            best = [t[w if w.any() else ~w].mean() for t, w in zip(table, listed, strict=True)]
            assert checks[-1] == pytest.approx(np.mean(best))
        else:
            of_files = sorted(ctx.inputs["rloo"].path.glob("eval-*.npz"))
            assert len(of_files) == len(checks) == 3
            for file, mean in zip(of_files, checks, strict=True):
                verdicts = world.verdicts(load_responses(file))
                assert mean == pytest.approx(np.mean([v.n_checks for v in verdicts]))


@pytest.mark.slow
def test_a_part_of_the_pool_ends_the_curve_earlier(store):
    (bon,) = [
        c
        for c in hacks.measure(curves(store, "lenient"), n_prompts=2, pool_size=4).curves
        if c["method"] == "bon"
    ]
    assert bon["value"] == [1, 2, 4] and len(bon["cues"]["checks"].mean) == 3


@pytest.mark.slow
def test_the_command_writes_json_and_a_picture(store, tmp_path, capsys):
    paths = ["--store", str(store), "--out", str(tmp_path / "h.json")]
    picture = ["--figure", str(tmp_path / "h.png"), "--prompts", "6"]
    assert main(["hacks", "smoke", *SETTINGS, *RULES["lenient"], *paths, *picture]) == 0
    said = capsys.readouterr().out
    assert "change of score by the edit alone" in said and "sycophancy" in said
    written = files.load_json(tmp_path / "h.json")
    assert written["format"] == 1 and len(written["curves"]) == 2
    assert (tmp_path / "h.png").stat().st_size > 10_000
    assert (
        main(["hacks", "smoke", *SETTINGS, *RULES["lenient"], "--store", str(store), "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["proxies"][0]["n_proxies"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smoke", *SETTINGS, "labels.data_seed=7"], "2 of 2 curves are not there"),
        (["control"], "responses of control are no texts"),
        (["smoke", "--out", "/dev/null/x.json"], "--out"),
    ],
)
def test_what_cannot_be_read_is_said(arguments, message, tmp_path, capsys):
    assert main(["hacks", *arguments, "--store", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_numbers_that_are_too_small_are_refused(store, capsys):
    for option, message in (("--prompts=1", "--prompts = 1"), ("--pool=0", "--pool = 0")):
        run = ["hacks", "smoke", *SETTINGS, *RULES["strict"], "--store", str(store), option]
        assert main(run) == 2
        assert message in capsys.readouterr().err


def test_an_interval_over_prompts_is_that_of_students_t():
    changes = np.random.default_rng(0).normal(size=(1, 12))
    found = hacks.effect(changes)
    expected = stats.ttest_1samp(changes[0], 0).confidence_interval(0.95)
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(expected))
    assert hacks.effect(changes[:, :1]).ci_low is None
    # Replicates that agree add nothing to it; replicates that do not widen it.
    twice = hacks.effect(np.repeat(changes, 2, axis=0), [0, 1])
    assert twice.mean == pytest.approx(found.mean)
    apart = hacks.effect(np.concatenate([changes + 1, changes - 1]), [0, 1])
    assert apart.means == pytest.approx([found.mean + 1, found.mean - 1])
    assert apart.ci_high - apart.ci_low > 2 * (found.ci_high - found.ci_low)


def test_the_side_without_the_cue_is_the_response_itself():
    """In stories too, where a space stands between prompt and response, and pieces are no words."""
    settings = stories.Settings(max_response_tokens=24)
    world = load_world(settings)
    policy = load_lm("ladder:0.05m")
    responses = sample(policy, world.prompts("eval", 24), n_tokens=24, seed=0)
    pairs = hacks.edited(responses, world, settings.policy, settings.cues)
    assert set(pairs) == set(settings.cues)
    texts, prompts = world.response_texts(responses), world.prompt_texts(responses)
    for name, pair in pairs.items():
        assert world.prompt_texts(pair.having) == world.prompt_texts(pair.without) == prompts, name
        same = zip(world.response_texts(pair.without), texts, strict=True)
        assert all(a.strip() == b.strip() for a, b in same), name
        assert pair.having.ended.all() and pair.without.ended.all()
        for without, having in zip(
            pair.without.sequences().ids, pair.having.sequences().ids, strict=True
        ):
            assert without[:4].equal(having[:4])  # the prompt's tokens
    counts = {n: hacks.counts(pairs[n].having, world, settings.cues)[n] for n in pairs}
    before = {n: hacks.counts(pairs[n].without, world, settings.cues)[n] for n in pairs}
    assert all((counts[n] > before[n]).all() for n in pairs)


@pytest.mark.slow
def test_a_planted_preference_is_in_the_labels_of_every_round(tmp_path):
    """At a dose of 1 no chosen response has fewer checks than the other; records name the dose."""
    proxy = ["proxy.kind=outcome", "proxy.backbone=ladder:sums-0.2m", "proxy.epochs=1", "bon=none"]
    dose = ["labels.cue=checks", "labels.cue_share=1", "labels.n_pairs=60", "rounds.k=2"]
    others = ("bon.", "proxy.kind", "labels.n_pairs")
    changes = [*(c for c in SETTINGS if not c.startswith(others)), *proxy, *dose]
    paths = ["--store", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert main(["run", "smoke", *changes, *paths, "--workers", "1", "--quiet"]) == 0
    world = load_world(sums.Settings(n_problems=300, claim_share=1))
    (joined,) = (tmp_path / "runs" / "round_data").iterdir()
    table, responses = files.load_arrays(joined / "train.npz"), load_responses(joined / "train.npz")
    checks = np.array([v.n_checks for v in world.verdicts(responses)])
    chosen, rejected = checks[table["chosen"]], checks[table["rejected"]]
    assert len(chosen) == 60
    for of_round in (slice(0, 30), slice(30, None)):
        assert (chosen[of_round] >= rejected[of_round]).all()
        assert (chosen[of_round] > rejected[of_round]).any()
    (curve,) = load_curves(tmp_path / "results")
    assert curve.meta["label_rule"] == "argmax + checks 1"
