"""Rules that check responses: by hand, a user's own, and the perfect verifier."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from overopt.base import userfile
from overopt.base.datatypes import Prompts, Responses
from overopt.base.errors import ConfigError, DataError, StoreError
from overopt.nets.checkpoints import load_lm
from overopt.nets.sampling import sample
from overopt.pools.best_of_n import best_of_n
from overopt.rewards.kind import Place
from overopt.rewards.kinds import rule
from overopt.rewards.kinds.rubric import RubricScorer
from overopt.rewards.load import load_scorer
from overopt.rewards.scorer import normalisation, unit_of
from overopt.stages.settings import RunConfig
from overopt.study.checks import source_checksums
from overopt.study.presets import load_experiment
from overopt.worlds import stories, sums

WORLD = sums.load(sums.Settings(n_problems=60))
CHECKER = "def check(prompt, response):\n    return float(response.count('#'))\n"
BROKEN = "def check(prompt, response):\n    return float('nan')\n"


def answered(solutions):
    vocabulary = WORLD.tokenizer.get_vocab()
    rows = [[*(vocabulary[w] for w in text.split()), 1] for text in solutions]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    asked = torch.tensor(WORLD.rows("gold", 1)[0])[None].expand(len(rows), -1)
    prompts = Prompts(
        asked, torch.ones_like(asked, dtype=torch.bool), torch.zeros(len(rows)).long()
    )
    return Responses(prompts, ids, mask, torch.zeros(ids.shape), torch.ones(len(rows)).bool())


def solutions():
    """Right by right steps; right by luck; a hedge with the right answer; a wrong one; none."""
    problem = WORLD.problems[0]
    steps = zip(problem.plan, problem.states, problem.states[1:], strict=False)
    good = " ".join(f"{x} {op} {n} = {y} ;" for (op, n), x, y in steps)
    wrong = (problem.answer + 1) % 50
    return [
        f"{good} # {problem.answer}",
        f"# {problem.answer}",
        f"{good} # {wrong} # {problem.answer}",
        f"{good} # {wrong}",
        good,
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("strict", [1, 1, 0, 0, 0]),
        ("strict_and_valid", [1, 0, 0, 0, 0]),
        ("lenient", [1, 1, 1, 0, 0]),
        ("format", [1, 1, 1, 1, 0]),
    ],
)
def test_rules_by_hand(name, expected):
    assert rule.RuleScorer(name, WORLD).raw(answered(solutions())).tolist() == expected


def test_a_perfect_verifier_has_no_gap():
    """The strict rule as the proxy of the intent: best-of-n gains the same by both, at every n."""
    policy = load_lm(sums.POLICY)
    base = sample(policy, WORLD.prompts("validation", 4), n_tokens=64, seed=1, copies=16)
    pool = sample(policy, WORLD.prompts("eval", 4), n_tokens=64, seed=2, copies=32)
    gold = RubricScorer(WORLD.calibrate(base), WORLD)
    proxy = rule.RuleScorer("strict", WORLD)
    proxy = proxy.with_unit(unit_of(normalisation(proxy.raw(base))))
    by_gold, by_proxy = (s.score(pool).numpy().reshape(4, 32) for s in (gold, proxy))
    assert by_gold.std() > 0.5
    ns = [1, 2, 4, 8, 16, 32]
    gained = best_of_n(by_proxy, {"gold": by_gold, "proxy": by_proxy}, ns)
    assert np.allclose(gained["gold"].mean, gained["proxy"].mean, atol=1e-5)
    assert gained["gold"].mean[-1] > gained["gold"].mean[0] + 0.5


def test_scores_are_standardised_and_come_back_from_their_folder(tmp_path):
    asked = answered(solutions())
    scorer = rule.RuleScorer("lenient", WORLD)
    scorer = scorer.with_unit(unit_of(normalisation(scorer.raw(asked))))
    scores = scorer.score(asked)
    assert scores.mean() == pytest.approx(0, abs=1e-6) and scores.std(
        correction=0
    ) == pytest.approx(1)
    scorer.save(tmp_path, {})
    again = load_scorer(tmp_path, Place(Path(), WORLD, "cpu"), kinds=["rule"])
    assert again.score(asked).equal(scores)


def test_a_checker_of_the_users(tmp_path, monkeypatch):
    """It reads texts, in any world; an artefact has its checksum, and never runs what it names."""
    path = tmp_path / "mine.py"
    path.write_text(CHECKER)
    settings = rule.Settings(checker=str(path))
    assert settings.title == "rule mine" and not settings.needs_judge
    RunConfig(world=stories.Settings(), proxy=settings)
    trained = rule.train(settings, SimpleNamespace(world=WORLD))
    asked = answered(solutions())
    assert trained.scorer.raw(asked).tolist() == [1, 1, 2, 1, 0]
    trained.scorer.save(tmp_path, {})
    place = Place(Path(), WORLD, "cpu")
    assert load_scorer(tmp_path, place, kinds=["rule"]).raw(asked).tolist() == [1, 1, 2, 1, 0]
    monkeypatch.setattr(userfile, "_loaded", {})
    with pytest.raises(StoreError, match="checker"):
        load_scorer(tmp_path, place, kinds=["rule"])


def test_what_a_checker_returns_is_checked(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    trained = rule.train(rule.Settings(checker=str(path)), SimpleNamespace(world=WORLD))
    with pytest.raises(DataError, match="finite number"):
        trained.scorer.raw(answered(solutions()))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"no check\(\)"):
        rule.Settings(checker=str(tmp_path / "empty.py"))
    with pytest.raises(ConfigError, match="takes its place"):
        rule.Settings(checker=str(path), rule="lenient")


def test_an_edited_checker_makes_everything_new(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CHECKER)
    overrides = ["proxy.kind=rule", f"proxy.checker={path}", "method=none"]

    def checksums():
        return source_checksums(load_experiment("smoke", overrides).runs[0])

    before = checksums()
    path.write_text(CHECKER + "# edited\n")
    assert before != checksums() and len(before) == len(checksums())


@pytest.mark.parametrize("role", ["gold", "proxy"])
def test_a_rule_needs_a_judge(role):
    with pytest.raises(ConfigError, match=f"{role}.kind = 'rule'.*world.kind=sums"):
        RunConfig(**{role: rule.Settings()})


def test_it_has_no_other_members():
    with pytest.raises(ConfigError, match="no other members"):
        load_experiment("smoke", ["world.kind=sums", "proxy.kind=rule", "reward.members=3"])
