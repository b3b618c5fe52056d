"""Mitigations end to end on a small world: every kind of member and combination, a user's file."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_smoke import prompts_file

from overopt.base.config import RuntimeConfig
from overopt.cli.main import main
from overopt.engine.execute import execute
from overopt.engine.progress import Silent
from overopt.engine.store import Store
from overopt.records.curves import load_curves, load_records
from overopt.rewards.kind import Place
from overopt.rewards.kinds import gold
from overopt.rewards.kinds.ensemble import EnsembleScorer
from overopt.rewards.kinds.reward_model import RewardModelScorer
from overopt.rewards.kinds.rubric import RubricScorer
from overopt.rewards.load import load_scorer
from overopt.rewards.settings import RewardConfig
from overopt.stages.common import load_responses
from overopt.stages.settings import Experiment
from overopt.study.chain import build_graph
from overopt.study.collect import collect
from overopt.study.presets import load_experiment
from overopt.worlds.load import load_world

PAGE = Path(__file__).parents[2] / "docs" / "rewards.md"
SMALL = [
    "gold.kind=rubric", "labels.n_pairs=60", "labels.n_validation_prompts=8",
    "proxy.backbone=ladder:0.05m", "bon.n_prompts=3", "bon.pool_size=32", "bon.ns=1,4,32",
    "method.steps=2", "method.batch=8", "method.eval_prompts=3", "world.max_response_tokens=24",
]  # fmt: skip
REWARDS = {
    "WCO of 2": {"members": 2, "combine": "worst_case"},
    "WARM of 2 by bootstrap": {
        "members": 2,
        "members_by": "bootstrap",
        "combine": "weight_average",
    },
    "UWO 0.1 of 3 by heads": {
        "members": 3,
        "members_by": "heads",
        "combine": "mean_minus_variance",
        "strength": 0.1,
    },
    "soft min 1 of 2 by pretraining + 0.2m": {
        "members": 2,
        "members_by": "pretraining",
        "backbones": ("ladder:0.2m",),
        "combine": "log_mean_exp",
        "strength": 1.0,
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs by name of their mitigation, the store that holds them, and their curves by name."""
    folder = tmp_path_factory.mktemp("ensembles")
    small = [prompts_file(folder / "prompts.jsonl"), *SMALL]
    base = load_experiment("smoke", small).runs[0]
    bon = replace(base, method=None)
    runs = {"none": bon} | {k: replace(bon, reward=RewardConfig(**v)) for k, v in REWARDS.items()}
    runs["length 0.1"] = replace(
        bon,
        proxy=gold.Settings(),
        reward=RewardConfig(length_penalty="linear", length_coef=0.1),
    )
    runs["ODIN 1"] = replace(bon, proxy=replace(base.proxy, length_control=1.0))
    runs["mean of 2, length 0.05 past 0.8, par 1, KL target 3"] = replace(
        base,
        bon=None,
        reward=RewardConfig(members=2, length_penalty="hinge", length_coef=0.05, length_budget=0.8),
        method=replace(base.method, shaping="par", kl_coef=0.1, kl_target=3.0),
    )
    experiment = Experiment(name="ensembles", runs=tuple(runs.values()))
    store = Store(folder / "store")
    execute(build_graph(experiment), store, RuntimeConfig(quiet=True), workers=1, reporter=Silent())
    results = collect(experiment, store, folder / "results")
    curves = {curve.meta["mitigation"]: curve for curve in load_curves(results)}
    return runs, store, curves


def opened(run, store):
    """World, calibration folder, and the finished stages of a run's only curve."""
    (end,) = build_graph(Experiment(name="one", runs=(run,)))
    upstream = {
        role: store.open(stage.name, stage.fingerprint).path for role, stage in end.upstream.items()
    }
    return load_world(run.world), end, upstream


def test_every_mitigation_is_recorded_under_its_name(finished):
    runs, _, curves = finished
    assert set(curves) == set(runs)
    row = curves["UWO 0.1 of 3 by heads"].meta
    assert (row["reward_members"], row["members_by"]) == (3, "heads")
    assert (row["reward_combine"], row["reward_strength"]) == ("mean_minus_variance", 0.1)
    row = curves["none"].meta
    assert (row["reward_members"], row["reward_combine"], row["reward_strength"]) == (
        1,
        "mean",
        None,
    )
    row = next(c for c in curves.values() if c.meta["method"] == "ppo").meta
    assert (row["shaping"], row["kl_target"], row["length_penalty"]) == ("par", 3.0, "hinge")
    assert curves["ODIN 1"].meta["length_control"] == 1.0


@pytest.mark.parametrize("name", REWARDS)
def test_gold_at_the_pool_size_is_that_of_the_ensembles_own_choice(finished, name):
    runs, store, curves = finished
    world, end, upstream = opened(runs[name], store)
    scorer = load_scorer(upstream["proxy"], Place(upstream["calibration"], world, "cpu"))
    assert isinstance(scorer, EnsembleScorer)
    members = [
        load_scorer(
            store.open(stage.name, stage.fingerprint).path,
            Place(upstream["calibration"], world, "cpu"),
        )
        for role, stage in end.upstream["proxy"].upstream.items()
        if role.startswith("member_")
    ]
    responses = load_responses(upstream["pool"] / "responses.npz")
    with np.load(upstream["pool"] / "scores.npz") as scores:
        gold = scores["gold"]
    own = scorer.score(responses).numpy().reshape(gold.shape)
    chosen = gold[np.arange(3), own.argmax(1)]
    np.testing.assert_allclose(curves[name].arrays["gold"][-1], chosen, atol=1e-6)
    first = members[0].score(responses).numpy().reshape(gold.shape)
    assert (first.argsort(1) != own.argsort(1)).any()
    if name == "WCO of 2":
        worst = torch.stack([m.score(responses) for m in members]).amin(0)
        np.testing.assert_array_equal(worst.numpy().reshape(gold.shape).argmax(1), own.argmax(1))
    if name == "WARM of 2 by bootstrap":
        (average,) = scorer.parts
        heads = [m.model.head.weight for m in members]
        assert isinstance(average, RewardModelScorer) and not torch.equal(*heads)
        torch.testing.assert_close(average.model.head.weight, (heads[0] + heads[1]) / 2)


def test_the_proxy_score_is_normalised_whatever_the_combination(finished):
    runs, store, curves = finished
    for name in REWARDS:
        world, _, upstream = opened(runs[name], store)
        scorer = load_scorer(upstream["proxy"], Place(upstream["calibration"], world, "cpu"))
        base = load_responses(upstream["calibration"] / "responses.npz")
        score = scorer.score(base).double()
        assert abs(float(score.mean())) < 1e-5
        assert abs(float(score.std(correction=0)) - 1) < 1e-5
        row = curves[name].rows[-1]
        assert row["proxy_raw"] == pytest.approx(
            row["proxy_score"] * scorer.unit.std + scorer.unit.mean
        )


def test_a_length_penalty_on_gold_itself(finished):
    """The perfect proxy with a price for tokens: shorter, and no longer what gold would choose."""
    runs, store, curves = finished
    world, _, upstream = opened(runs["length 0.1"], store)
    scorer = load_scorer(upstream["proxy"], Place(upstream["calibration"], world, "cpu"))
    (part,) = scorer.parts
    assert isinstance(part, RubricScorer)
    responses = load_responses(upstream["pool"] / "responses.npz")
    by_hand = part.score(responses) - 0.1 * (responses.length - scorer.ref_tokens)
    torch.testing.assert_close(
        scorer.score(responses), (by_hand - scorer.center) / scorer.spread, atol=1e-6, rtol=0
    )
    tokens = curves["length 0.1"]["response_tokens"]
    assert tokens[-1] < tokens[0]


def test_an_ensemble_that_is_recorded_has_a_disagreement(finished):
    _, _, curves = finished
    for name, curve in curves.items():
        several = name not in ("none", "ODIN 1", "length 0.1") and not name.startswith("WARM")
        assert (curve.meta["member_disagreement"] is not None) == several


def test_the_example_of_the_page_runs_on_the_smoke_preset(tmp_path, monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    code = re.search(r"```python\n# my\.py\n(.*?)```", text, re.DOTALL)
    command = re.search(r"\n    overopt (run smoke .*transform=my\.py.*)\n", text)
    assert code and command
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(code.group(1))
    small = [prompts_file(tmp_path / "prompts.jsonl"), *SMALL, "--workers", "1", "--quiet"]
    assert main([*command.group(1).split(), *small, "--results", "results"]) == 0
    table = load_records("results")
    assert set(table.reward_combine) == {"my.py"} and set(table.method) == {"bon", "ppo"}
    assert set(table.reward_members) == {3}
