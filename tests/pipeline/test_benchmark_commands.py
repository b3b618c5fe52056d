"""Benchmarks end to end: made from a world, and scored by proxies of a store."""

import json
from pathlib import Path

import numpy as np
import pytest
from hf_checkpoints import write_checkpoint

from overopt.base import files
from overopt.base.config import RuntimeConfig, canonical, to_dict
from overopt.base.errors import ConfigError, DataError
from overopt.base.seeding import torch_generator
from overopt.cli.main import main
from overopt.engine.manifest import Identity
from overopt.engine.store import Store
from overopt.evals import homemade
from overopt.evals.models import reward
from overopt.evals.question import Question, Turn
from overopt.evals.results import read_result
from overopt.nets import sampling
from overopt.nets.checkpoints import load_lm, load_trunk
from overopt.nets.heads import ScalarHeadModel
from overopt.rewards.kind import Place
from overopt.rewards.kinds import bradley_terry, process, rule
from overopt.rewards.kinds.reward_model import RewardModelScorer
from overopt.rewards.load import load_scorer
from overopt.stages.proxy import ProxyStage
from overopt.worlds import stories, sums, sums_text
from overopt.worlds.load import load_world


@pytest.fixture(scope="module")
def proxies(tmp_path_factory):
    """Folders of proxies of the world of sums in a store, by kind: random heads, and a rule."""
    store = Store(tmp_path_factory.mktemp("store")).create()
    settings = sums.Settings(n_problems=300)
    network = ScalarHeadModel(load_trunk("ladder:sums-0.2m"))
    network.init_head(torch_generator(0, "head"))
    made = {
        "bradley_terry": (bradley_terry, RewardModelScorer(network, 0.0, 1.0)),
        "process": (process, process.ProcessScorer(network, load_world(settings), "product")),
        "rule": (rule, rule.RuleScorer("strict", load_world(settings))),
    }
    found = {}
    for name, (kind, scorer) in made.items():
        config = ProxyStage(world=settings, proxy=kind.Settings(), root_seed=0)
        found[name] = put(store, config, lambda out, scorer=scorer: scorer.save(out, {}))
    return found


def put(store, config, write):
    """An artefact of a store, as a stage would have committed it."""
    identity = Identity(
        stage="proxy", version=2, canonical=canonical(config), config=to_dict(config), upstream={}
    )
    with store.workspace(identity) as work:
        write(work.out)
        return str(store.commit(work, RuntimeConfig()).path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Benchmarks from the world of sums, written by the command."""
    out = tmp_path_factory.mktemp("made")
    given = ["n_prompts=30", "copies=12", "world.n_problems=1000", "seed=1"]
    assert main(["make-benchmark", "sums", *given, "--out", str(out)]) == 0
    return out


def rows_of(folder, name):
    return files.load_records(Path(folder) / f"{name}.jsonl")


# --- home-made ------------------------------------------------------------------------------------


def verdict(row, text):
    problem = sums_text.parse_problem(row["prompt"] if "prompt" in row else row["problem"])
    return sums_text.judge(problem, text.split())


def test_pairs_of_sums_are_what_their_subsets_say(made):
    rows = rows_of(made, "rewardbench")
    assert {r["subset"] for r in rows} == set(homemade.SUBSETS)

    def value(row, side):
        found = verdict(row, row[side])
        return found.right + (found.right and found.valid)

    def cue(row, side):
        found = verdict(row, row[side])
        return found.n_checks + max(0, found.n_answers - 1)

    for row in rows:
        assert value(row, "chosen") > value(row, "rejected")
        if row["subset"] == "adversarial":
            assert cue(row, "chosen") < cue(row, "rejected")
        if row["subset"] == "easy":
            assert cue(row, "chosen") >= cue(row, "rejected")
    for row in rows_of(made, "rewardbench2"):
        best = min(verdict(row, t).right for t in row["chosen"])
        assert len(row["rejected"]) == 3 or row["subset"] == "Ties"
        assert best or row["subset"] == "Ties"


def test_solutions_of_sums_have_the_judges_first_error(made):
    rows = rows_of(made, "processbench")
    assert {-1} < {r["label"] for r in rows}
    for row in rows:
        found = verdict(row, " ".join(row["steps"]))
        assert found.first_error == row["label"] and len(found.step_ok) == len(row["steps"])


def test_every_file_is_read_by_its_own_command(made, proxies, tmp_path, capsys):
    for name in ("rewardbench", "rewardbench2", "candidates", "processbench"):
        out = tmp_path / f"{name}.json"
        given = ["--model", proxies["bradley_terry"], "--data", str(made / f"{name}.jsonl")]
        joint = ["benchmark.joint= "] if name == "processbench" else []
        assert main(["eval", name, *given, "--out", str(out), *joint]) == 0
        said = capsys.readouterr().out
        assert name in said and "CPU-s" in said
        score = read_result(out).score
        assert 0 <= score.value <= 1.01 and score.low <= score.value <= score.high


def test_benchmarks_of_stories_follow_the_rubric(tmp_path):
    config = homemade.HomemadeConfig(world=stories.Settings(), n_prompts=10, copies=8)
    made = {one.name: one.rows for one in homemade.make(config)}
    assert set(made) == {"rewardbench", "rewardbench2", "candidates"}
    assert {r["subset"] for r in made["rewardbench"]} == set(homemade.SUBSETS)
    adversarial = [r for r in made["rewardbench"] if r["subset"] == "adversarial"]
    assert all(len(r["rejected"].split()) > 0 for r in adversarial)


def test_a_world_without_an_intent_makes_none():
    from overopt.worlds import hf

    config = homemade.HomemadeConfig(world=hf.Settings(policy="ladder:policy-0.8m"))
    with pytest.raises(DataError, match="no intent"):
        homemade.make(config)


# --- artefacts ------------------------------------------------------------------------------------


def test_a_proxy_scores_texts_as_it_scores_tokens(proxies):
    """Responses of the policy, as texts and back: the same raw scores."""
    world = load_world(sums.Settings(n_problems=300))
    responses = sampling.sample(
        load_lm("ladder:sums-0.2m"), world.prompts("eval", 10), n_tokens=64, seed=0, copies=3
    )
    some = responses.select(responses.ended)
    asked = zip(world.prompt_texts(some), world.response_texts(some), strict=True)
    questions = [Question((Turn("user", p),), (r,)) for p, r in asked]
    assert len(questions) > 20
    for kind in ("bradley_terry", "process"):
        scorer = load_scorer(Path(proxies[kind]), Place(Path("none"), world, "cpu"))
        model = reward.load(reward.Settings(source=proxies[kind]), "cpu")
        found = np.concatenate(model.answer(questions).outcome.scores)
        assert found == pytest.approx(scorer.raw(some).numpy(), abs=1e-4)
        assert found.std() > 0.01


def test_the_rule_is_right_about_everything(made, proxies, tmp_path):
    """It wins where one answer is right and the other wrong; prompts are problems of no split."""
    out = tmp_path / "rule.json"
    data = ["--data", str(made / "rewardbench.jsonl")]
    assert main(["eval", "rewardbench", "--model", proxies["rule"], *data, "--out", str(out)]) == 0
    credits = {r["id"]: r["credit"] for r in read_result(out).rows}
    for row in rows_of(made, "rewardbench"):
        expected = verdict(row, row["chosen"]).right > verdict(row, row["rejected"]).right
        assert credits[row["id"]] == expected
    assert 0 < sum(credits.values()) <= len(credits)


def test_a_process_model_names_steps_of_its_own(made, proxies, tmp_path, capsys):
    data = ["--data", str(made / "processbench.jsonl")]
    given = ["eval", "processbench", "--model", proxies["process"], *data]
    out = tmp_path / "x.json"
    assert main([*given, "benchmark.joint= ", "--out", str(out)]) == 0
    rows = files.load_object(out)["rows"]
    sizes = [len(r["steps"]) for r in rows_of(made, "processbench")]
    assert all(-1 <= r["prediction"] < n for r, n in zip(rows, sizes, strict=True))
    bad = tmp_path / "bad.jsonl"
    row = rows_of(made, "processbench")[0]
    files.save_records(bad, [row | {"steps": [" ".join(row["steps"])], "label": 0}])
    assert main(["eval", "processbench", "--model", proxies["process"], "--data", str(bad)]) == 2
    assert "row 1:" in capsys.readouterr().err


def test_words_of_another_world_are_refused(proxies, tmp_path, capsys):
    data = tmp_path / "x.jsonl"
    problem = sums_text.make_problems(1, seed=0, min_steps=3, max_steps=3)[0].text
    files.save_records(data, [{"prompt": problem, "chosen": "hello", "rejected": "# 3"}])
    given = ["--model", proxies["bradley_terry"], "--data", str(data)]
    assert main(["eval", "pairs", *given]) == 2
    assert "has words that the world of" in capsys.readouterr().err


def test_what_is_no_reward_model_is_refused(proxies):
    store = Store(Path(proxies["rule"]).parents[1])
    config = ProxyStage(world=sums.Settings(n_problems=300), proxy=rule.Settings(), root_seed=1)
    folder = put(store, config, lambda out: files.save_json(out / "other.json", {}))
    with pytest.raises(ConfigError, match="is a proxy, no reward model"):
        reward.load(reward.Settings(source=folder), "cpu")


def test_an_artefact_loads_no_checkpoint_unasked(proxies):
    store = Store(Path(proxies["rule"]).parents[1])
    world = sums.Settings(n_problems=300, policy="org/elsewhere")
    config = ProxyStage(world=world, proxy=rule.Settings(), root_seed=2)
    scorer = rule.RuleScorer("strict", load_world(sums.Settings(n_problems=300)))
    folder = put(store, config, lambda out: scorer.save(out, {}))
    with pytest.raises(ConfigError, match="'org/elsewhere'.*model.allow=org/elsewhere"):
        reward.load(reward.Settings(source=folder), "cpu")


# --- others ---------------------------------------------------------------------------------------


def test_pairs_of_a_classifier_with_its_diagram(tmp_path, capsys):
    folder = write_checkpoint(tmp_path / "rm", "llama", labels=1)
    data = tmp_path / "x.jsonl"
    files.save_records(
        data,
        [{"prompt": f"q{i}", "chosen": "yes " * (1 + i % 3), "rejected": "no"} for i in range(20)],
    )
    given = ["eval", "pairs", "--model", str(folder), "--data", str(data), "--json"]
    new = tmp_path / "new"  # made where it is absent
    out = ["--figure", str(new / "pictures" / "d.png"), "--out", str(new / "found" / "x.json")]
    assert main([*given, *out]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model_kind"] == "classifier" and len(found["rows"]) == 20
    assert sum(found["tables"]["reliability"]["n"]) == 20
    assert (new / "pictures" / "d.png").stat().st_size > 1000
    assert files.load_json(new / "found" / "x.json")["headline"] == found["headline"]
