"""Proxies that rank policies: τ by hand, and a store whose proxies are gold or each other's copies."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from overopt.base import files
from overopt.base.config import RuntimeConfig
from overopt.base.errors import ConfigError
from overopt.cli.main import main
from overopt.engine.progress import Silent
from overopt.engine.store import Store
from overopt.methods import rloo
from overopt.rewards.kinds import outcome, rubric, rule
from overopt.rewards.settings import LabelsConfig
from overopt.stages.common import load_responses
from overopt.stages.settings import Experiment, RunConfig
from overopt.study import ranking
from overopt.study.chain import build_graph
from overopt.study.finished import finished_curves
from overopt.study.ranking import Policies, contrast, tau, tau_matrix
from overopt.study.run import Loaded, carry_out
from overopt.worlds import sums
from overopt.worlds.load import load_world


def made(gold, scores):
    points = [{"run_id": "r", "method": "m", "value": k, "sqrt_kl": 0.0} for k in range(len(gold))]
    return Policies(points, np.asarray(gold, float), np.asarray(scores, float))


def test_tau_by_hand():
    assert tau(np.array([1, 2, 3, 4.0]), np.array([1, 2, 4, 3.0])) == pytest.approx(4 / 6)
    assert tau(np.array([1, 2.0]), np.array([2, 1.0])) == -1
    assert math.isnan(tau(np.array([1, 1.0]), np.array([1, 2.0])))
    # b: a tie on one side, (2 - 0) / sqrt(2 · 3).
    assert tau(np.array([1, 1, 2.0]), np.array([1, 2, 3.0])) == pytest.approx(2 / 6**0.5)


def test_tau_is_that_of_scipy_with_ties_and_without():
    rng = np.random.default_rng(0)
    for high in (3, 1000):
        x, y = rng.integers(0, high, size=(2, 40)).astype(float)
        assert tau(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)


def test_rounding_makes_no_ranks():
    """A third of the prompts right, whichever: equal policies, though sums of floats may differ."""
    gold = [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.2, 0.3, 0.4]]
    found = tau_matrix([made(gold, [[[1.0] * 3, [2.0] * 3, [3.0] * 3]])], np.full(3, 1 / 3))
    assert found[0, 0] == pytest.approx(2 / 6**0.5)


def test_a_matrix_is_of_the_proxy_of_the_row_on_policies_of_the_column():
    rng = np.random.default_rng(0)
    policies = [made(rng.normal(size=(5, 8)), rng.normal(size=(3, 5, 8))) for _ in range(3)]
    weights = rng.dirichlet(np.ones(8))
    found = tau_matrix(policies, weights)
    for i in range(3):
        for j in range(3):
            of_proxy = [float(row @ weights) for row in policies[j].scores_SKP[i]]
            of_gold = [float(row @ weights) for row in policies[j].gold_KP]
            pairs = [(a, b) for a in range(5) for b in range(a)]
            agree = [
                np.sign((of_proxy[a] - of_proxy[b]) * (of_gold[a] - of_gold[b])) for a, b in pairs
            ]
            assert found[i, j] == pytest.approx(np.mean(agree))


def test_own_and_others_are_means_over_the_diagonal_and_beside_it():
    taus = np.array([[0.1, 0.5, 0.7], [0.9, 0.3, np.nan], [0.6, 0.8, 0.2]])
    own, others, difference = contrast(taus, np.full(3, 1 / 3))
    assert own == pytest.approx(0.2) and others == pytest.approx(np.mean([0.5, 0.7, 0.9, 0.6, 0.8]))
    assert difference == pytest.approx(own - others)
    own, others, _ = contrast(taus, np.array([0.75, 0.25, 0.0]))
    assert own == pytest.approx(0.75 * 0.1 + 0.25 * 0.3) and others == pytest.approx(0.7)
    assert math.isnan(contrast(taus, np.array([1.0, 0, 0]))[1])


# --- from a store ---------------------------------------------------------------------------------


SHORT = {"steps": 3, "batch": 8, "group": 4, "warmup_steps": 0, "eval_every": 1, "lr": 3e-3}


def experiment(proxy, name="ranked", seeds=(0, 1)):
    return Experiment(
        name=name,
        runs=tuple(
            RunConfig(
                world=sums.Settings(n_problems=300),
                gold=rubric.Settings(),
                labels=LabelsConfig(n_pairs=60, data_seed=s, n_validation_prompts=10),
                proxy=proxy.with_seed(s),
                bon=None,
                method=rloo.Settings(
                    steps=3,
                    batch=8,
                    group=4,
                    warmup_steps=0,
                    eval_every=1,
                    eval_prompts=12,
                    lr=3e-3,
                    seed=s,
                ),
            )
            for s in seeds
        ),
    )


PROXIES = {
    "learned": outcome.Settings(backbone="ladder:sums-0.2m", epochs=1),
    "rule": rule.Settings(rule="strict"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with two replicates against learned proxies, and two against the rule that is gold."""
    where = tmp_path_factory.mktemp("ranked")
    for name, proxy in PROXIES.items():
        loaded = as_loaded(experiment(proxy, name))
        carry_out(
            loaded,
            Store(where / "runs"),
            RuntimeConfig(quiet=True),
            results=where / name,
            workers=1,
            reporter=Silent(),
        )
    return where / "runs"


def as_loaded(made):
    return Loaded(made, build_graph(made), made.name)


def curves(store, kind, **changes):
    made = experiment(PROXIES[kind], kind, **changes)
    return finished_curves(as_loaded(made), Store(store), RuntimeConfig())


@pytest.mark.slow
def test_scores_are_those_of_each_proxy_on_the_policies_of_all(store):
    found = curves(store, "learned")
    (one,) = ranking.rank(found, n_draws=100)
    world = load_world(found[0].run.world)
    for j, curve in enumerate(found):
        assert [p["value"] for p in one.policies[j].points] == [0, 1, 2, 3]
        assert np.allclose(one.policies[j].gold_KP.mean(1), [r["gold_score"] for r in curve.rows])
        own = one.policies[j].scores_SKP[j].mean(1)
        assert np.allclose(own, [r["proxy_score"] for r in curve.rows], atol=1e-6)
        other = found[1 - j]
        file = curve.context().inputs["rloo"].path / "eval-00003.npz"
        score = other.scorer(other.proxy, world).score(load_responses(file)).numpy()
        assert one.policies[j].scores_SKP[1 - j][3].mean() == pytest.approx(score.mean(), abs=1e-5)
    gold, scores = (x.mean(-1) for x in one.policies[1][1:])
    expected = stats.kendalltau(scores[0], gold).statistic
    assert one.taus[0, 1] == pytest.approx(expected, nan_ok=True)


@pytest.mark.slow
def test_gold_as_proxy_ranks_as_gold_does(store):
    """The rule has no seed: two data seeds share one proxy's score, and it is gold."""
    (one,) = ranking.rank(curves(store, "rule"), n_draws=100)
    for value in (one.own.value, one.others.value):
        assert value is None or value == pytest.approx(1)
    assert one.own.value is not None


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "overopt.study.run.load", lambda *_: as_loaded(experiment(PROXIES["learned"], "learned"))
    )
    paths = ["--store", str(store), "--out", str(tmp_path / "rank.json"), "--draws", "100"]
    assert main(["rank", "whatever", *paths]) == 0
    assert "policies optimised against the same proxy" in capsys.readouterr().out
    (written,) = files.load_json(tmp_path / "rank.json")["series"]
    assert len(written["policies"]) == 2 and len(written["policies"][0][0]["proxies"]) == 2
    assert main(["rank", "whatever", *paths, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["series"][0]["n_prompts"] == 12


@pytest.mark.slow
def test_one_proxy_alone_and_few_draws_are_refused(store):
    with pytest.raises(ConfigError, match=r"several labels.data_seed or proxy.rm_seed"):
        ranking.rank(curves(store, "learned", seeds=(0,)))
    with pytest.raises(ConfigError, match="--draws = 99"):
        ranking.rank(curves(store, "learned"), n_draws=99)
