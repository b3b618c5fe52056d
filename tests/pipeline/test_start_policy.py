"""A policy that is optimised in place of the one whose responses proxies learned from."""

import shutil

import numpy as np
import pytest
import torch
from small_smoke import prompts_file

from overopt.base.errors import CheckpointError, ConfigError
from overopt.base.files import load_arrays
from overopt.base.seeding import derive_seed
from overopt.cli.main import main
from overopt.engine.graph import topological
from overopt.engine.store import Store
from overopt.nets import examine, sampling, sources
from overopt.nets.checkpoints import load_lm, n_params
from overopt.records.curves import load_curves
from overopt.records.series import group_curves
from overopt.stages.common import load_responses
from overopt.study.chain import build_graph
from overopt.study.presets import load_experiment
from overopt.worlds import draws
from overopt.worlds.load import load_world

SMALL = [
    "gold.kind=rubric", "labels.n_pairs=60", "labels.n_validation_prompts=6",
    "proxy.backbone=ladder:0.05m", "bon.n_prompts=3", "bon.pool_size=8", "bon.ns=1,2,8",
    "method.steps=2", "method.batch=8", "method.eval_prompts=3", "world.max_response_tokens=16",
]  # fmt: skip
OTHER = "start_policy=ladder:0.05m"
OF_POLICY = {"pool", "scores", "bon", "ppo", "ppo_gold"}
"""Stages that see the policy that is optimised."""


def stages(overrides):
    """By name, of the first run."""
    experiment = load_experiment("smoke", overrides)
    return {s.name: s for s in topological(build_graph(experiment)[:2])}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results and store of one run of the world's policy, and of one of another, in one experiment."""
    folder = tmp_path_factory.mktemp("start")
    overrides = [prompts_file(folder / "prompts.jsonl"), *SMALL]
    file = folder / "both.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from overopt.stages.settings import Experiment\n"
        "from overopt.study.presets import load_experiment\n"
        "def build():\n"
        f"    base = load_experiment('smoke', {overrides!r}).runs[0]\n"
        f"    other = replace(base, start_policy='ladder:0.05m')\n"
        "    return Experiment(name='both', runs=(base, other))\n"
    )
    places = ["--store", str(folder / "store"), "--results", str(folder / "results")]
    assert main(["run", str(file), "--workers", "1", "--quiet", *places]) == 0
    return folder, overrides


def test_proxies_are_shared_and_what_the_policy_does_is_not(finished):
    _, overrides = finished
    own, other = stages(overrides), stages([*overrides, OTHER])
    same = {name for name in own if own[name].fingerprint == other[name].fingerprint}
    assert same == set(own) - OF_POLICY and "proxy" in same
    assert other["ppo"].label.count("policy ladder:0.05m") == 1
    assert other["pool"].label.endswith("of ladder:0.05m")


def test_responses_and_kl_are_those_of_the_other_policy(finished):
    folder, overrides = finished
    run, pool = (
        load_experiment("smoke", [*overrides, OTHER]).runs[0],
        stages([*overrides, OTHER])["pool"],
    )
    pooled = load_responses(
        Store(folder / "store").path("pool", pool.fingerprint) / "responses.npz"
    )
    of_first = sampling.sample(
        load_lm("ladder:0.05m"),
        draws.eval_prompts(load_world(run.world), 1, 0),
        n_tokens=run.world.max_response_tokens,
        seed=derive_seed(run.root_seed, "pool", 0),
        copies=8,
    )
    assert torch.equal(pooled.ids[:8], of_first.ids)
    # At the start a policy is its own reference, from which KL is measured.
    kl = {c.meta["start_policy"]: c["kl_seq_nats"] for c in load_curves(folder / "results")[1::2]}
    assert set(kl) == {"none", "ladder:0.05m"}
    for values in kl.values():
        assert values[0] == pytest.approx(0, abs=1e-6) and values[-1] > 1e-4


def test_records_and_legends_name_it(finished):
    folder, _ = finished
    curves = load_curves(folder / "results")
    named = {c.meta["start_policy"]: c.meta["policy_params"] for c in curves}
    sizes = {p: n_params(load_lm(p))["n_params"] for p in ("ladder:policy-0.8m", "ladder:0.05m")}
    assert named == {"none": sizes["ladder:policy-0.8m"], "ladder:0.05m": sizes["ladder:0.05m"]}
    for by_series in group_curves(curves).values():
        assert list(by_series) == ["0.056M proxy", "0.056M proxy, policy ladder:0.05m"]
        assert all(len(same) == 1 for same in by_series.values())
    # Zero and unit of scores are those of the world's policy: curves start where each policy is.
    starts = {c.meta["start_policy"]: c["gold_score"][0] for c in curves if c.is_bon}
    gains = [c["gold_gain"][0] for c in curves]
    assert starts["none"] != starts["ladder:0.05m"] and np.allclose(gains, 0)


def test_a_file_that_changes_makes_its_curves_new_and_no_proxy(finished, tmp_path):
    _, overrides = finished
    checkpoint = tmp_path / "policy"
    shutil.copytree(sources.checkpoint_dir("ladder:0.05m"), checkpoint)
    shared = sources.tokenizer_files("ladder:0.05m")
    for file in shared:
        shutil.copy(file, checkpoint / file.name)
    before = stages([*overrides, f"start_policy={checkpoint}"])
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    save_file({k: w * 1.01 for k, w in weights.items()}, checkpoint / "model.safetensors")
    after = stages([*overrides, f"start_policy={checkpoint}"])
    new = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    assert new == OF_POLICY


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("ladder:nope", CheckpointError, "start_policy = 'ladder:nope': .* is not shipped"),
        ("ladder:sums-0.2m", ConfigError, "start_policy = .*another tokenizer than world.policy"),
        ("/nowhere", CheckpointError, "start_policy = '/nowhere'"),
    ],
)
def test_what_cannot_be_the_policy_is_refused(value, error, message):
    with pytest.raises(error, match=message):
        build_graph(load_experiment("smoke", [f"start_policy={value}"]))


def test_parameters_are_counted_from_headers():
    for source in ("ladder:0.05m", "ladder:3m", "ladder:sums-0.2m"):
        assert examine.policy_params(source) == n_params(load_lm(source))["n_params"]


def test_evaluations_are_on_the_same_prompts(finished):
    folder, overrides = finished
    store = Store(folder / "store")
    tables = [
        load_arrays(sorted(store.path("ppo", s["ppo"].fingerprint).glob("eval-*.npz"))[0])
        for s in (stages(overrides), stages([*overrides, OTHER]))
    ]
    assert np.array_equal(tables[0]["prompt_ids"], tables[1]["prompt_ids"])


def test_estimates_grow_with_the_policy(finished):
    _, overrides = finished
    own, other = (stages([*overrides, *extra]) for extra in ([], ["start_policy=ladder:3m"]))
    assert other["ppo"].cost_s == pytest.approx(own["ppo"].cost_s * (2_988_000 / 803_968) ** 0.75)
    assert other["pool"].cost_s > own["pool"].cost_s
    assert other["comparisons"].cost_s == own["comparisons"].cost_s
