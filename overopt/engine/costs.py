"""What stages took, as the manifests in a store tell: it corrects the estimates of those to come.

Compared with the estimate of the same stage, and by the stage's name: a store knows how much faster or
slower than planned its machine trains a proxy. Only stages of the same kind of machine and device count,
computed in one go.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from overopt.base.errors import DataError
from overopt.engine.graph import Plan, Stage
from overopt.engine.manifest import MANIFEST, read_manifest
from overopt.engine.store import Store

LATEST = 20
"""Artefacts of a stage's name that are read: the latest ones."""


class Took(NamedTuple):
    """What stages of one name took.

    factor: measured over estimated seconds. memory_mb, gpu_memory_mb: the largest peak; None where none
    was measured.
    """

    factor: float
    memory_mb: float | None
    gpu_memory_mb: float | None

    @property
    def memory(self) -> str:
        """For a column of a plan."""
        parts = [f"{self.memory_mb:7.0f} MB"] if self.memory_mb is not None else [" " * 10]
        if self.gpu_memory_mb is not None:
            parts.append(f"{self.gpu_memory_mb:7.0f} MB GPU")
        return "".join(parts)


def corrected(plan: Plan, store: Store, device: str = "cpu") -> Plan:
    """The plan with the seconds of stages to come corrected by what their like took."""
    took = measured(store, plan.todo, device)
    return dataclasses.replace(plan, factors={name: each.factor for name, each in took.items()})


def measured(store: Store, stages: Iterable[Stage], device: str = "cpu") -> Mapping[str, Took]:
    """What stages like these took on this kind of machine, by name; absent where none was measured.

    ``device``: where those run that use one.
    """
    found = {}
    for name, place in {s.name: device if s.gpu else "cpu" for s in stages}.items():
        of_name = [m for m in _latest(store.root / name) if _counts(m, place)]
        estimated = sum(m["cost_s"] for m in of_name)
        if estimated > 0:
            found[name] = Took(
                sum(_seconds(m) for m in of_name) / estimated,
                max((m["memory_mb"] for m in of_name if m.get("memory_mb")), default=None),
                max((m["gpu_memory_mb"] for m in of_name if m.get("gpu_memory_mb")), default=None),
            )
    return found


def _latest(folder: Path) -> Iterator[dict[str, Any]]:
    """Manifests of the latest artefacts of a stage's name; damaged ones are passed by."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: -entry.stat().st_mtime_ns)
    except OSError:
        return
    for entry in entries[:LATEST]:
        with contextlib.suppress(DataError):
            yield read_manifest(Path(entry.path) / MANIFEST)


def _counts(manifest: Mapping[str, Any], device: str) -> bool:
    """Whether it says what a stage takes here: not resumed, and on such a machine and device."""
    here = f"{platform.system()} {platform.machine()}"
    cost = manifest.get("cost_s")
    return (
        isinstance(cost, int | float)
        and cost > 0
        and not manifest["resumed"]
        and manifest.get("machine") == here
        and manifest["device"].split(":")[0] == device.split(":")[0]
    )


def _seconds(manifest: Mapping[str, Any]) -> float:
    """CPU seconds on a CPU, where others may have worked beside it; else seconds that passed."""
    return manifest["cpu_s"] if manifest["device"] == "cpu" else manifest["wall_s"]
