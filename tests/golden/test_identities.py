"""Identities of the default stages: a change of a default must raise the stage's version."""

import hashlib
import json

from overopt.base.config import to_dict
from overopt.engine.graph import topological
from overopt.study.chain import build_graph
from overopt.study.presets import load_experiment

# stage -> (version, start of the SHA-256 over all resolved settings of its first instance in quick).
# A red test here means: settings or their defaults changed. Raise the stage's version in
# pipeline.py, write the new line, and say in CHANGELOG.md which numbers move. Calibration holds the
# checksums of the shipped models, so a new ladder shows here and needs no new version.
PINNED = {
    "calibration": (2, "6fccc9569e08"),
    "gold": (2, "ac7506b8f8fa"),
    "pool": (2, "5caf7a124fa3"),
    "comparisons": (2, "4445fed61b09"),
    "labels": (1, "cab9f8c301e2"),
    "proxy": (2, "258a3c83036f"),
    "scores": (1, "5a42185f00a0"),
    "bon": (3, "78a696f6145f"),
    "ppo": (2, "5a4cf893c62b"),
    "ppo_gold": (2, "65bf2c1a6d11"),
}


def test_defaults_change_only_with_a_version():
    found = {}
    for stage in topological(build_graph(load_experiment("quick"))):
        text = json.dumps(to_dict(stage.config), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        found.setdefault(stage.name, (stage.version, digest))
    assert found == PINNED


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
