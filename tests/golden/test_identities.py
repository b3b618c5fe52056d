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
    "calibration": (3, "dea5305005f1"),
    "gold": (2, "bcc6094519fa"),
    "pool": (2, "5a5927d37b9d"),
    "comparisons": (2, "28f3b40e42dd"),
    "labels": (1, "a865c860b425"),
    "proxy": (2, "8dee94c0c783"),
    "scores": (1, "f632b55552ef"),
    "bon": (3, "f642bcb1eaa4"),
    "ppo": (2, "44f6f7d8d660"),
    "ppo_gold": (2, "cf59d9467044"),
}
# Identities of the same instances. They leave defaults out, so a setting that is new and does nothing by
# default changes the lines above and not these; what was computed before it stays valid.
FINGERPRINTS = {
    "calibration": "1841774c7484272a",
    "gold": "945578c66318594e",
    "pool": "e1818f0bc58aa98f",
    "comparisons": "028e198c3de81eea",
    "labels": "fd4f24252c5ec4f3",
    "proxy": "2d12ffd708804904",
    "scores": "7feda8f1fcbd17ec",
    "bon": "173e3eaf8d6ec3b2",
    "ppo": "48984f93a466d89d",
    "ppo_gold": "c202e042c8c7cac6",
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
