"""The settings behind each curve of a results directory, as text to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from overopt.records.curves import Curve

DEFAULT = "default"
"""What a setting reads as where a run leaves it alone and another does not."""
_COLUMNS = (
    *("n_params", "backbone", "n_pairs", "label_rule", "label_flip_rate", "mitigation"),
    *("reward_members", "members_by", "reward_combine", "reward_strength", "length_control"),
    *("length_penalty", "length_coef", "length_budget", "shaping", "shaping_scale", "rounds"),
    *("kl_coef", "kl_target", "proxy_lr", "method_lr", "ppo_lr", "data_seed", "rm_seed"),
    *("method_seed", "ppo_seed"),
)
"""Columns of the records that are settings, for results without runs.jsonl."""


class Settings(NamedTuple):
    """Settings of several curves.

    shared : name -> value, of what is the same in all; apart : name -> one value a curve.
    """

    shared: dict[str, str]
    apart: dict[str, list[str]]


def settings_of(curves: Sequence[Curve], runs: Mapping[str, Mapping[str, Any]]) -> Settings:
    """What curves share, and what sets them apart.

    From runs.jsonl, where every curve is in it: settings that differ from the defaults in one run at
    least. From the columns of the records otherwise.
    """
    if all(c.meta["run_id"] in runs for c in curves):
        of = [runs[c.meta["run_id"]]["settings"] for c in curves]
    else:
        of = [{n: c.meta[n] for n in _COLUMNS if c.meta[n] is not None} for c in curves]
    names = list(dict.fromkeys(name for settings in of for name in settings))
    values = {
        name: [_text(settings[name]) if name in settings else DEFAULT for settings in of]
        for name in names
    }
    return Settings(
        shared={name: same[0] for name, same in values.items() if len(set(same)) == 1},
        apart={name: same for name, same in values.items() if len(set(same)) > 1},
    )


def _text(value: Any) -> str:
    """A value as an override writes it."""
    if value is None:
        return "none"
    return ",".join(map(_text, value)) if isinstance(value, list) else str(value)


def provenance_of(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """By what curves were computed, from the rows of runs.jsonl: commit, device, versions."""
    if not runs:
        return {"computed by": "not recorded: written before there was runs.jsonl"}
    called = {"commit": "commit", "dirty": "code differs from the commit", "device": "device"}
    found = {
        words: ", ".join(dict.fromkeys(_text(run.get(name)) for run in runs.values()))
        for name, words in called.items()
    }
    versions = (f"{k} {_text(v)}" for run in runs.values() for k, v in run["versions"].items())
    return {**found, "versions": ", ".join(dict.fromkeys(versions))}
