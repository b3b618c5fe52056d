"""All benchmarks in one report: `overopt bench`.

Groups are measured one after the other; one that fails leaves its reason in its rows and the others
their numbers. Peers are measured where a directory for their environments is given. A group is the
file of its name in ``groups/`` (`overopt.bench.setting`).
"""

import gc
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from overopt import __version__
from overopt.base.errors import ConfigError
from overopt.base.memory import keep_freed_memory
from overopt.bench.harness import (
    REPORT_VERSION,
    ROW_FIELDS,
    BenchError,
    copy_bandwidth,
    not_measured,
    rows_or_reason,
)
from overopt.bench.names import DEFAULT_GROUPS, GROUPS, module_of
from overopt.bench.opponent import PeerSource
from overopt.bench.peers import environment_python, wheel_site
from overopt.bench.setting import Group, Setting
from overopt.bench.sizes import Sizes

REPORT_FIELDS = ("version", "clock", "device", "device_name", "threads", "versions", "rows")


def run_suite(
    *,
    threads: int,
    device: str = "cpu",
    peers: Path | None = None,
    constraints: Path | None = None,
    wheels: Path | None = None,
    budget_s: float | None = None,
    sizes: Sizes | None = None,
    groups: Sequence[str] = DEFAULT_GROUPS,
    say: Callable[[str], None] = lambda line: None,
    save: Callable[[dict[str, Any]], None] = lambda report: None,
    root_seed: int = 0,
) -> dict[str, Any]:
    """The report of all ``groups``: machine, versions and rows (`REPORT_FIELDS`, `ROW_FIELDS`).

    Parameters
    ----------
    threads : of this process and of the peers
    peers : directory for the peers' environments; None leaves the peers out
    constraints : pip constraints file for those environments, or None
    wheels : directory of local wheels from which the peers are installed, without a network, on top
        of this environment's own torch and transformers (`wheel_site`); None: from pip's index
    budget_s : no group starts when so many seconds have passed; None: no limit
    sizes : of the rows at the shape of a checkpoint; None: those of a GPU on CUDA, else the ladder's
    say : called with the name of a group when it starts
    save : called with the report so far when a group is done: an interrupted run keeps those
    """
    if unknown := sorted(set(groups) - set(GROUPS)):
        raise ConfigError(f"bench group {unknown[0]!r} is not known: use {', '.join(GROUPS)}")
    torch.set_num_threads(threads)
    keep_freed_memory()  # as a run does
    _quiet_transformers()

    if sizes is None and device.startswith("cuda"):
        sizes = Sizes()
    started = time.monotonic()
    setting = Setting(
        root_seed=root_seed,
        device=device,
        sizes=sizes,
        peer=lru_cache(lambda requirement: _peer(requirement, peers, constraints, wheels)),
    )
    report = _empty_report(device, threads)
    chosen = _groups(groups, setting)
    if not chosen:
        raise ConfigError(f"bench group {groups[0]!r} needs a GPU: use --device cuda")
    for name, group in chosen.items():
        spent = time.monotonic() - started
        if budget_s is not None and spent > budget_s:
            late = f"not started: {spent:.0f} s of a budget of {budget_s:.0f} s were spent"
            report["rows"] += [not_measured(row, late) for row in group.names]
        else:
            say(name)
            report["rows"] += rows_or_reason(group.names, group.measure)
        report["seconds"][name] = time.monotonic() - started - spent
        check_report(report)
        save(report)
        _free_memory(device)
    return report


def _groups(names: Sequence[str], setting: Setting) -> dict[str, Group]:
    """The groups of ``names`` that ``setting`` has a place for, in the order of `GROUPS`."""
    made = {name: import_module(module_of(name)).group(setting) for name in GROUPS if name in names}
    return {name: group for name, group in made.items() if group is not None}


def _peer(
    requirement: str, peers: Path | None, constraints: Path | None, wheels: Path | None
) -> PeerSource:
    """Where ``requirement`` is installed, installed first where it is not; or why it is not."""
    if peers is None:
        return PeerSource(None, f"{requirement} was not asked for: use --peers")
    try:
        folder = peers.absolute()
        if wheels is not None:
            site = wheel_site(folder, requirement, wheels.absolute())
            return PeerSource(Path(sys.executable), site=site)
        return PeerSource(environment_python(folder, requirement, constraints=constraints))
    except BenchError as error:
        return PeerSource(None, str(error))


def _empty_report(device: str, threads: int) -> dict[str, Any]:
    """The report before any row: the machine and the versions."""
    return {
        "version": REPORT_VERSION,
        "clock": "CPU seconds of the process" if device == "cpu" else "wall seconds, synchronized",
        "device": device,
        "device_name": _device_name(device),
        "copy_gb_per_s": None if device == "cpu" else copy_bandwidth(device) / 1e9,
        "threads": threads,
        "versions": {
            "python": platform.python_version(),
            "overopt": __version__,  # runs from a source tree as well
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
        },
        "fields": ROW_FIELDS,
        "seconds": {},
        "rows": [],
    }


def check_report(report: dict[str, Any]) -> None:
    """Raise BenchError where ``report`` lacks a field or a row does not have exactly `ROW_FIELDS`."""
    for name in REPORT_FIELDS:
        if name not in report:
            raise BenchError(f"the report has no field {name!r}")
    for row in report["rows"]:
        if set(row) != set(ROW_FIELDS):
            odd = sorted(set(row) ^ set(ROW_FIELDS))
            raise BenchError(f"row {row.get('name')!r}: fields {odd} are missing or unknown")
        if row["ratio"] is None and not row["reason"]:
            raise BenchError(f"row {row['name']!r} has neither a ratio nor a reason")


def _free_memory(device: str) -> None:
    """Give the next group, and its peer's process, the memory of the last one."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _device_name(device: str) -> str:
    if device != "cpu":
        index = torch.device(device).index or 0
        return torch.cuda.get_device_name(index) if torch.cuda.is_available() else device
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
