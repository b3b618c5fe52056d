"""Identities of the default stages: a change of a default must raise the stage's version."""

import hashlib
import json

from overopt.base.config import to_dict
from overopt.engine.graph import topological
from overopt.study.chain import build_graph
from overopt.study.presets import load_experiment

# stage -> (version, start of the SHA-256 over all resolved settings of its first instance in quick).
# A red test here means: settings or their defaults changed. Raise the stage's version in its file in
# overopt/stages, write the new line, and say in CHANGELOG.md which numbers move. Calibration holds the
# checksums of the shipped models, so a new ladder shows here and needs no new version.
PINNED = {
    "calibration": (2, "bd5097daaa18"),
    "gold": (2, "e0a545d8a58f"),
    "pool": (2, "21494388073e"),
    "comparisons": (2, "589984e9786d"),
    "labels": (1, "cab9f8c301e2"),
    "proxy": (2, "431608fe3e4b"),
    "scores": (1, "05cdef7ebd0d"),
    "bon": (3, "2f688d7fd837"),
    "ppo": (2, "f1b4be8f89f4"),
    "ppo_gold": (2, "5f2914aceb37"),
}
# Identities of the same instances. They leave defaults out, so a setting that is new and does nothing by
# default changes the lines above and not these; what was computed before it stays valid.
FINGERPRINTS = {
    "calibration": "0d58867f681bd858",
    "gold": "4275b834e1180f58",
    "pool": "eba3811feb24ac7b",
    "comparisons": "41f99ce54969284b",
    "labels": "04dcb2633572d8b3",
    "proxy": "8237589a3dd28fe1",
    "scores": "d86aeba000384470",
    "bon": "30b0f9c650cf5370",
    "ppo": "83cba7cfb8111d59",
    "ppo_gold": "a32be052c48ca523",
}


def test_defaults_change_only_with_a_version():
    found = {}
    for stage in topological(build_graph(load_experiment("quick"))):
        text = json.dumps(to_dict(stage.config), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        found.setdefault(stage.name, (stage.version, digest))
    assert found == PINNED


def test_identities_change_only_with_what_is_computed():
    found = {}
    for stage in topological(build_graph(load_experiment("quick"))):
        found.setdefault(stage.name, stage.fingerprint)
    assert found == FINGERPRINTS


def test_a_changed_prompts_file_makes_every_stage_new(tmp_path):
    path = tmp_path / "prompts.jsonl"

    def fingerprints(n_extra):
        lines = [json.dumps(f"One day, Tim saw {i} cats") for i in range(400 + n_extra)]
        path.write_text("\n".join(lines))
        overrides = [f"world.prompts_file={path}", "bon.n_prompts=2", "method.eval_prompts=2"]
        graph = topological(build_graph(load_experiment("smoke", overrides)))
        return {s.title: s.fingerprint for s in graph}

    before, after = fingerprints(0), fingerprints(1)
    assert before.keys() == after.keys()
    assert all(before[title] != after[title] for title in before)
