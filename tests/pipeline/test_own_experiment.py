"""A researcher's own model and prompts, from `overopt init` to Figure 1, a report and the responses."""

import pytest
from hf_checkpoints import write_checkpoint, write_prompts

from overopt.base.errors import CheckpointError
from overopt.cli.main import main
from overopt.study.presets import load_experiment
from overopt.study.template import experiment_text

SMALL = [
    *("labels.n_pairs=24", "labels.n_validation_prompts=4", "proxy.epochs=1"),
    *("bon.n_prompts=3", "bon.pool_size=16", "bon.ns=1,2,4,8,16", "world.max_response_tokens=8"),
    *("method.steps=2", "method.batch=8", "method.minibatches=2", "method.warmup_steps=0"),
    *(
        "method.step_kl=0",
        "method.eval_sqrt_kl=0",
        "method.stop_sqrt_kl=0",
        "method.adv_scale=batch",
    ),
    *("method.eval_every=1", "method.eval_prompts=4"),
]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with a checkpoint and a prompts file."""
    folder = tmp_path_factory.mktemp("own")
    write_checkpoint(folder / "policy", "llama", num_hidden_layers=4)
    write_prompts(folder / "prompts.jsonl", 200)
    return folder


def test_init_run_and_figures_are_figure_1_of_ones_own_model(own, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = ["--policy", str(own / "policy"), "--prompts", str(own / "prompts.jsonl")]
    assert main(["init", "mine.py", *places]) == 0
    assert main(["run", "mine.py", *SMALL, "--results", "r", "--workers", "1", "--quiet"]) == 0
    assert main(["figures", "r", "--out", "r"]) == 0
    assert (tmp_path / "r" / "fig01_mine.png").stat().st_size > 10_000
    assert main(["report", "r", "--out", "mine.html"]) == 0
    assert main(["samples", "r", "--at", "peak", "--worst", "gap", "--count", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("→") == 2 * 3  # a response of each proxy under both methods
    assert main(["show", "r"]) == 0
    assert "world.policy" in capsys.readouterr().out
    assert main(["diff", "r", "r"]) == 0
    assert "the same in both" in capsys.readouterr().out


def test_the_file_fits_the_prompts_and_the_policy(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy, prompts = str(own / "policy"), str(own / "prompts.jsonl")
    (tmp_path / "mine.py").write_text(
        experiment_text(tmp_path / "mine.py", policy=policy, prompts=prompts)
    )
    runs = load_experiment("mine.py").runs
    assert [run.proxy.layers for run in runs] == [1, 2, 0]
    assert {run.world.prompts_file for run in runs} == {prompts}
    # Of 200 prompts 13 are for evaluation, as many for validation, and 80 for training, six pairs each.
    assert {(r.bon.n_prompts, r.method.eval_prompts, r.labels.n_pairs) for r in runs} == {
        (12, 13, 300)
    }
    assert main(["plan", "mine.py"]) == 0  # everything fits


def test_a_policy_that_is_none_is_refused_and_nothing_written(own, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine.py", "--policy", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["init", "mine.py", "--policy", str(own / "policy"), "--prompts", "no.jsonl"]) == 2
    assert "no.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "mine.py").exists()
    with pytest.raises(CheckpointError):
        experiment_text(tmp_path / "mine.py", policy=str(tmp_path / "nowhere"))


def test_gold_may_be_a_published_reward_model(own, tmp_path):
    gold = write_checkpoint(own / "gold", "llama", labels=1)
    text = experiment_text(tmp_path / "m.py", policy=str(own / "policy"), gold=str(gold))
    (tmp_path / "m.py").write_text(text)
    (run, *_) = load_experiment(str(tmp_path / "m.py")).runs
    assert run.gold.sources == {"source": str(gold)} and not run.world.has_intent
