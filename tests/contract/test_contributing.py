"""The examples of CONTRIBUTING.md are complete: each is written to a file and run."""

import json
import re
from pathlib import Path

import pytest

from overopt.base.userfile import load_module
from overopt.bench.setting import Setting
from overopt.cli.main import main
from overopt.records.curves import load_curves

ROOT = Path(__file__).parents[2]
SECTIONS = re.split(r"^## ", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.M)
EXAMPLES = {
    section.partition("\n")[0].removeprefix("A "): section.split("```python\n")[1].split("```")[0]
    for section in SECTIONS
    if section.startswith("A ") and "```python\n" in section
}
SMALL = (
    "labels.n_pairs=60", "labels.n_validation_prompts=6", "bon.n_prompts=3", "bon.pool_size=32",
    "bon.ns=1,8,32", "method.steps=2", "method.batch=8", "method.eval_prompts=4",
)  # fmt: skip


def example(name, tmp_path, file):
    path = tmp_path / file
    path.write_text(EXAMPLES[name], encoding="utf-8")
    return path


def run(tmp_path, *settings, workers):
    """Smoke with these settings, to pictures; returns its results directory."""
    results = tmp_path / "results"
    command = ["run", "smoke", *SMALL, *settings, "--store", str(tmp_path / "store")]
    assert main([*command, "--results", str(results), "--workers", str(workers), "--quiet"]) == 0
    assert main(["figures", str(results), "--out", str(tmp_path / "figures")]) == 0
    assert list((tmp_path / "figures").glob("fig01*.png"))
    return results


def test_there_is_an_example_of_each():
    assert set(EXAMPLES) == {"reward kind", "world", "figure", "benchmark"}
    assert all(len(text.splitlines()) <= 60 for text in EXAMPLES.values())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_reward_kind_is_optimised(tmp_path, workers):
    """With two workers, settings of a user's file cross to other processes."""
    file = example("reward kind", tmp_path, "mentions.py")
    given = (f"proxy.kind={file}", "proxy.word=friend", "gold.kind=rubric")
    results = run(tmp_path, *given, workers=workers)
    curve = next(c for c in load_curves(results) if c.is_bon)
    assert curve.meta["backbone"] == "mentions" and curve["proxy_gain"][-1] > 0.5
    assert all(row["gold_labels"] == 0 for row in curve.rows)  # it learns from none
    written = next((tmp_path / "store" / "proxy").glob("*/scorer.json"))
    assert json.loads(written.read_text())["kind"].startswith("mentions.py#")


def test_a_changed_file_is_another_kind(tmp_path, capsys):
    file = example("reward kind", tmp_path, "mentions.py")
    command = ["plan", "smoke", *SMALL, f"proxy.kind={file}", "gold.kind=rubric"]
    command += ["--store", str(tmp_path / "store")]
    assert main(command) == 0
    before = capsys.readouterr().out
    file.write_text(file.read_text().replace("lower()", "upper()"))
    assert main(command) == 0
    after = capsys.readouterr().out
    changed = [a for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert any(" proxy mentions" in line for line in changed)
    assert not any(" gold" in line.removesuffix("seed 0") and "ppo" not in line for line in changed)


@pytest.mark.slow
def test_the_world_is_told_and_judged(tmp_path):
    file = example("world", tmp_path, "animals.py")
    results = run(tmp_path, f"world.kind={file}", "gold.kind=rubric", workers=1)
    curve = load_curves(results)[0]
    assert curve["intent_score"][0] == pytest.approx(curve["gold_score"][0])


def test_the_figure_is_drawn(tmp_path):
    file = example("figure", tmp_path, "lengths.py")
    records = ROOT / "experiments" / "results" / "exp001_figure1"
    assert main(["figures", str(records), "--out", str(tmp_path), "--figure", str(file)]) == 0
    assert list(tmp_path.glob("lengths*.png"))


def test_the_benchmark_is_measured(tmp_path):
    module = load_module(example("benchmark", tmp_path, "kl_sum.py"), ("group",))
    setting = Setting(root_seed=0, device="cpu", sizes=None, peer=lambda requirement: "none")
    found = module.group(setting)
    (row,) = found.measure()
    assert row["name"] == found.names[0] and row["ratio"] > 1 and row["met"] is not None
