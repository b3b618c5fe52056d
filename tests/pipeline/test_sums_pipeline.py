"""The world of sums end to end: every reward kind that reads right and wrong, to a picture."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from overopt.base import files
from overopt.base.config import RuntimeConfig
from overopt.cli.main import main
from overopt.records.curves import load_curves
from overopt.reports.draw import draw
from overopt.stages import proxy
from overopt.stages.common import load_responses
from overopt.study.chain import build_graph
from overopt.study.presets import load_experiment

SMALL = [
    *("world.kind=sums", "world.n_problems=300", "gold.kind=rubric", "labels.n_pairs=120"),
    *("bon.n_prompts=2", "bon.pool_size=16", "bon.ns=1,2,4,8,16", "method.steps=1"),
    *("method.eval_prompts=4", "method.value_backbone=ladder:sums-0.2m"),
]
SMALL_NET = ["proxy.backbone=ladder:sums-0.2m", "proxy.epochs=1"]
KINDS = {
    "outcome": [*SMALL_NET, "proxy.loss=within_prompt"],
    "process": [
        *SMALL_NET,
        *("proxy.labels=hard_rollouts", "proxy.rollouts=1"),
        *("search.candidates=1,4", "search.n_prompts=4", "bon.also=majority,weighted_majority"),
    ],
    "regression": SMALL_NET,
    "implicit": [],
    "mixture": [*SMALL_NET, "proxy.gate_steps=20", "proxy.gate_width=16"],
    "two_models": SMALL_NET,
    "judge": [*SMALL_NET, "proxy.critique=true", "proxy.samples=2"],
    "pairwise": [*SMALL_NET, "proxy.opponents=2"],
    "rule": [],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store: calibration, pool and comparisons are shared by all kinds."""
    return tmp_path_factory.mktemp("sums") / "store"


def overrides(kind):
    return [*SMALL, f"proxy.kind={kind}", *KINDS[kind]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_runs_to_a_picture(kind, store, tmp_path):
    where = ["--store", str(store), "--results", str(tmp_path), "--workers", "1", "--quiet"]
    assert main(["run", "smoke", *overrides(kind), *where]) == 0
    curves = load_curves(tmp_path)
    more = {"search", "majority", "weighted_majority"} if kind == "process" else set()
    assert {c.meta["method"] for c in curves} == {"bon", "ppo"} | more
    assert all(c.meta["backbone"].startswith(kind.replace("_", " ")) for c in curves)
    bon = next(c for c in curves if c.meta["method"] == "bon")
    assert bon["proxy_gain"][-1] > 0.5
    if kind == "rule":  # a perfect verifier: no gap
        for curve in curves:
            assert np.allclose(curve["gold_gain"], curve["proxy_gain"], atol=1e-5)
            assert np.allclose(curve["gold_score"], curve["intent_score"], atol=1e-5)
    draw(str(tmp_path), tmp_path / "figures")
    assert (tmp_path / "figures" / "fig01_smoke.png").exists()
    assert (tmp_path / "figures" / "search_smoke.png").exists() == bool(more)


@pytest.mark.slow
def test_a_job_gives_the_responses_of_its_comparisons(store, tmp_path):
    """Each once; a bootstrap gives whole prompts, as often as they were drawn."""
    where = ["--store", str(store), "--results", str(tmp_path), "--workers", "1", "--quiet"]
    assert main(["run", "smoke", *overrides("rule"), *where]) == 0
    stages = {s.name: s for s in build_graph(load_experiment("smoke", overrides("rule")))}
    made = stages["bon"].upstream["proxy"]
    path = {role: store / s.name / s.fingerprint for role, s in made.upstream.items()}
    ctx = SimpleNamespace(
        config=made.config,
        inputs={role: SimpleNamespace(path=p) for role, p in path.items()},
        runtime=RuntimeConfig(),
        progress=None,
    )
    job = proxy.job_of(ctx, made.config.proxy, name="proxy")
    labels = files.load_arrays(path["labels"] / "train.npz")
    rows = np.unique(np.concatenate([labels["chosen"], labels["rejected"]]))
    everything = load_responses(path["comparisons"] / "train.npz")
    found = job.responses()
    assert len(rows) == 80 and found.ids.equal(everything.ids[torch.from_numpy(rows)])

    drawn = proxy.job_of(ctx, made.config.proxy, name="proxy", bootstrap=1).responses()
    _, counts = drawn.prompts.prompt_id.unique(return_counts=True)
    assert len(drawn) == 80 and (counts % 4 == 0).all() and counts.max() > 4
