"""Kinds by the path of a file: what is refused, what carries over, what keeps its name."""

from dataclasses import fields
from pathlib import Path

import pytest

from overopt.base.errors import ConfigError
from overopt.base.overrides import apply_overrides
from overopt.base.userfile import loaded_kinds
from overopt.cli.main import main
from overopt.methods import ppo
from overopt.records.series import group_curves, of_shared_data
from overopt.rewards.kinds import (
    judge,
    mixture,
    outcome,
    pairwise,
    process,
    regression,
    two_models,
)
from overopt.stages.settings import RunConfig
from overopt.study.presets import load_experiment

ROOT = Path(__file__).parents[2]
METHOD = (
    (ROOT / "docs" / "methods.md")
    .read_text(encoding="utf-8")
    .split("## A method of your own")[1]
    .split("```python\n")[1]
    .split("```")[0]
)
BORROWED = METHOD.replace("class Settings(Schedule)", "class Own(Schedule)") + (
    "\nfrom overopt.methods.ppo import Settings\n"
)


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine.py", BORROWED, r"its Settings is that of overopt\.methods\.ppo; define a class"),
        ("mine.py", METHOD.replace("def step(", "def stepped("), "has no step: define it"),
        ("mine.py", METHOD.replace("SHOWN =", "LOOKS ="), "has no SHOWN: define it"),
        ("my method.py", METHOD, "rename it to lower-case letters"),
        ("proxy_mine.py", METHOD, "not beginning with proxy"),
        ("round_02.py", METHOD, "not ending in _ and two digits"),
        ("grpo.py", METHOD, "grpo is the name of a kind that exists: rename the file"),
        ("mine.py", METHOD + "raise SystemExit(3)\n", "importing it raised SystemExit: 3"),
    ],
)
def test_a_file_that_is_no_kind_is_refused(tmp_path, name, text, message):
    path = written(tmp_path, name, text)
    with pytest.raises(ConfigError, match=message):
        apply_overrides(RunConfig(), [f"method.kind={path}"])


@pytest.mark.parametrize("name", ["experiments", "policy", "start", "scores"])
def test_a_name_that_the_store_uses_is_refused(tmp_path, capsys, name):
    path = written(tmp_path, f"{name}.py", METHOD)
    assert main(["plan", "smoke", f"method.kind={path}", "--store", str(tmp_path / "s")]) == 2
    assert "is the name of a stage: rename the file" in capsys.readouterr().err


def test_another_method_keeps_the_replicate():
    """Seeds are called otherwise in each kind; a sweep over them stays one."""
    run = apply_overrides(
        RunConfig(method=ppo.Settings(ppo_seed=3)), ["method.kind=grpo", "method.steps=5"]
    )
    assert run.method.seed == 3 and run.method.steps == 5
    back = apply_overrides(run, ["method.kind=ppo"])
    assert back.method.ppo_seed == 3 and back.method.steps == 5


@pytest.mark.parametrize("override", ["method=grpo", "method.kind=grpo"])
def test_runs_without_a_method_stay_without(override):
    before, after = load_experiment("desk"), load_experiment("desk", [override])
    assert [r.method is None for r in after.runs] == [r.method is None for r in before.runs]
    seeds = [r.method.ppo_seed for r in before.runs if r.method]
    assert [r.method.seed for r in after.runs if r.method] == seeds and len(set(seeds)) == 5


def test_an_unknown_group_is_named_with_its_setting():
    with pytest.raises(ConfigError, match=r"'ppo.steps'; did you mean method.steps"):
        apply_overrides(RunConfig(method=ppo.Settings()), ["ppo.steps=3"])


def test_pretraining_needs_a_backbone():
    overrides = ["world.kind=sums", "gold.kind=rubric", "proxy.kind=implicit", "reward.members=2"]
    overrides += ["reward.members_by=pretraining", "reward.backbones=ladder:sums-0.2m,"]
    with pytest.raises(ConfigError, match="needs a proxy with a backbone"):
        apply_overrides(RunConfig(), overrides)


def test_stories_gold_does_not_judge_sums():
    with pytest.raises(ConfigError, match="is a judge of stories"):
        apply_overrides(RunConfig(), ["world.kind=sums", "gold.kind=frozen"])
    apply_overrides(RunConfig(), ["world.kind=sums"])  # the default gold is the world's own intent


def test_only_files_of_kinds_go_to_other_processes(tmp_path):
    mine = written(tmp_path, "mine_alone.py", METHOD)
    study = written(
        tmp_path,
        "study_alone.py",
        "from overopt.study.presets import smoke\ndef build(): return smoke()\n",
    )
    load_experiment(str(study))
    apply_overrides(RunConfig(), [f"method.kind={mine}"])
    sent = dict(loaded_kinds())
    assert sent[str(mine)] == METHOD.encode() and str(study) not in sent


@pytest.mark.parametrize(
    "changed",
    [
        *({"layers": 1}, {"flip_rate": 0.1}, {"noise": 0.5}, {"opponents": 2}),
        *({"score": "win_rate"}, {"order": "debias_first"}, {"gate": "constant"}),
        *({"threshold": 0.5}, {"tagged": ""}, {"safe": "no_checks"}, {"critique": True}),
        {"critique": True, "samples": 2},
    ],
    ids=lambda c: list(c)[-1],
)
def test_titles_tell_settings_apart(changed):
    """Curves are grouped by title: what two proxies differ in has to be in it."""
    known = (judge, mixture, outcome, pairwise, process, regression, two_models)
    for kind in known:
        if set(changed) <= {field.name for field in fields(kind.Settings)}:
            assert kind.Settings(**changed).title != kind.Settings().title


class FakeCurve:
    """As much of a curve as grouping looks at."""

    is_bon = True

    def __init__(self, backbone, n_params, n_pairs=10, method="bon", flips=0.0):
        self.meta = {
            "run_id": f"{backbone} {id(self)}",
            "backbone": backbone,
            "n_params": n_params,
            "n_pairs": n_pairs,
            "method": method,
            "label_rule": "argmax",
            "label_flip_rate": flips,
        }
        self.shown = ppo.SHOWN


def test_proxies_are_averaged_only_with_their_like():
    """Of one size are replicates, a process model and an outcome model; a rule has no size."""
    curves = [
        FakeCurve("ladder:3m", 3e6),
        FakeCurve("ladder:3m", 3e6),
        FakeCurve("outcome sums-0.2m", 2e5),
        FakeCurve("process sums-0.2m", 2e5),
        FakeCurve("rule strict", 0),
        FakeCurve("rule lenient", 0),
    ]
    sizes = {name: len(same) for name, same in group_curves(curves)["bon"].items()}
    assert sizes == {
        "3M proxy": 2,
        "outcome sums-0.2m": 1,
        "process sums-0.2m": 1,
        "rule strict": 1,
        "rule lenient": 1,
    }


def test_a_lone_rule_has_a_name_and_no_size():
    assert list(group_curves([FakeCurve("rule strict", 0)])["bon"]) == ["rule strict"]


def test_proxies_are_grouped_at_the_comparisons_that_most_of_them_share():
    """More comparisons of one size do not hide the others, nor its own run with few."""
    few = [FakeCurve("ladder:0.2m", 2e5), FakeCurve("ladder:3m", 3e6)]
    many = FakeCurve("ladder:0.2m", 2e5, n_pairs=99)
    assert group_curves([*few, many]) == {"bon": {"0.2M proxy": few[:1], "3M proxy": few[1:]}}
    only = FakeCurve("ladder:3m", 3e6, n_pairs=99)
    assert group_curves([*few, many, only]) == {"bon": {"0.2M proxy": [many], "3M proxy": [only]}}
    ppo_too = FakeCurve("ladder:3m", 3e6, method="ppo")
    assert set(group_curves([*few, ppo_too, many, only])) == {"bon", "ppo"}


def test_sizes_are_compared_among_proxies_that_were_treated_alike():
    plain = [FakeCurve("ladder:0.2m", 2e5), FakeCurve("ladder:3m", 3e6)]
    shuffled = [FakeCurve("ladder:0.2m", 2e5, flips=0.5), FakeCurve("ladder:3m", 3e6, flips=0.5)]
    assert of_shared_data([*shuffled, *plain]) == [*shuffled, *plain]
    for some in (shuffled[:1], shuffled):
        assert of_shared_data([*some, *plain], treated_alike=True) == plain
    assert of_shared_data(shuffled, treated_alike=True) == shuffled
    assert of_shared_data([*shuffled, plain[0]], treated_alike=True) == shuffled
    assert of_shared_data([]) == []
