"""All benchmarks in one report: `overopt bench`.

Groups are measured one after the other; one that fails leaves its reason in its rows and the others
their numbers. Peers are measured where a directory for their environments is given.
"""

import gc
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from overopt import __version__
from overopt.base.errors import ConfigError
from overopt.base.memory import keep_freed_memory
from overopt.base.seeding import torch_generator
from overopt.bench import gpu, pools, sampling, scoring, training
from overopt.bench.gpu import Sizes
from overopt.bench.harness import (
    REPORT_VERSION,
    ROW_FIELDS,
    BenchError,
    Row,
    copy_bandwidth,
    make_row,
    not_measured,
    rows_or_reason,
)
from overopt.bench.peers import environment_python, wheel_site
from overopt.bench.training import PeerSource, PpoTask
from overopt.nets.checkpoints import load_lm
from overopt.nets.heads import ScalarHeadModel

GROUPS = (
    "estimators",
    "sampling",
    "scoring",
    "reward",
    "ppo",
    "ppo-defaults",
    "stacked",
    "mfu",
    "pool",
    "quick",
)
REWARD_PEER, PPO_PEER = "trl==1.16.0", "trl==1.12.0"  # the second: the last release with PPO
QUICK_BUDGET_S = 600.0
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
    groups: Sequence[str] = GROUPS[:-1],
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

    @lru_cache
    def peer(requirement: str) -> PeerSource:
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

    @lru_cache(maxsize=1)
    def task() -> PpoTask:
        return training.story_task(root_seed=root_seed)

    def at_size() -> dict[str, tuple[Sequence[str], Callable[[], Sequence[Row]]]]:
        """Groups at the shape of a checkpoint instead of the ladder's."""
        if sizes is None:
            return {}
        where: dict[str, Any] = {"root_seed": root_seed, "device": device}
        as_trained: dict[str, Any] = where | {"precision": sizes.precision}
        return {
            "sampling": (
                gpu.SAMPLING_NAMES,
                lambda: gpu.sampling_rows(sizes, **where),
            ),
            "scoring": (
                scoring.NAMES,
                lambda: scoring.scoring_rows(
                    gpu.random_reward_model(sizes.model, seed=root_seed),
                    n_responses=sizes.n_scored,
                    **where,
                ),
            ),
            "reward": (
                training.REWARD_NAMES,
                lambda: training.reward_rows(
                    gpu.random_lm(sizes.model, seed=root_seed),
                    peer(REWARD_PEER),
                    n_pairs=sizes.n_pairs,
                    n_tokens=sizes.n_tokens,
                    **as_trained,
                ),
            ),
            "ppo": (
                training.PPO_NAMES,
                lambda: training.ppo_rows(
                    gpu.random_task(sizes, root_seed=root_seed),
                    peer(PPO_PEER),
                    batch=sizes.ppo_batch,
                    **as_trained,
                ),
            ),
            "mfu": (gpu.MFU_NAMES, lambda: gpu.mfu_rows(sizes, **where)),
            "pool": (
                gpu.POOL_NAMES,
                lambda: gpu.pool_rows(scalar_model(), n_responses=sizes.n_pool, **where),
            ),
        }

    def scalar_model() -> ScalarHeadModel:
        model = ScalarHeadModel(load_lm("ladder:0.8m"))
        model.init_head(torch_generator(root_seed, "scoring"))
        return model

    measures: dict[str, tuple[Sequence[str], Callable[[], Sequence[Row]]]] = {
        "estimators": (("estimators",), lambda: pools.run_all(root_seed=root_seed)),
        "sampling": (
            ("sample_vs_generate", "sample_vs_products"),
            lambda: [
                {"against": "limit" if row["name"].endswith("products") else "implementation"} | row
                for row in sampling.sampling_rows(
                    load_lm("ladder:policy-0.8m"), root_seed=root_seed
                )
            ],
        ),
        "scoring": (
            scoring.NAMES,
            lambda: scoring.scoring_rows(scalar_model(), root_seed=root_seed, device=device),
        ),
        "reward": (
            training.REWARD_NAMES,
            lambda: training.reward_rows(
                load_lm("ladder:0.8m"), peer(REWARD_PEER), root_seed=root_seed, device=device
            ),
        ),
        "ppo": (
            training.PPO_NAMES,
            lambda: training.ppo_rows(task(), peer(PPO_PEER), root_seed=root_seed, device=device),
        ),
        "ppo-defaults": (
            training.DEFAULT_PPO_NAMES,
            lambda: training.ppo_defaults_rows(
                task(), peer(PPO_PEER), root_seed=root_seed, device=device
            ),
        ),
        "stacked": (
            gpu.STACKED_NAMES,
            lambda: gpu.stacked_rows(root_seed=root_seed, device=device),
        ),
        "quick": (("quick_preset",), lambda: [quick_row()]),
    } | at_size()
    report: dict[str, Any] = {
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
    if not set(groups) & set(measures):
        raise ConfigError(f"bench group {groups[0]!r} needs a GPU: use --device cuda")
    for group in (g for g in GROUPS if g in groups and g in measures):
        names, measure = measures[group]
        spent = time.monotonic() - started
        if budget_s is not None and spent > budget_s:
            late = f"not started: {spent:.0f} s of a budget of {budget_s:.0f} s were spent"
            report["rows"] += [not_measured(name, late) for name in names]
        else:
            say(group)
            report["rows"] += rows_or_reason(names, measure)
        report["seconds"][group] = time.monotonic() - started - spent
        check_report(report)
        save(report)
        _free_memory(device)
    return report


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


def quick_row() -> Row:
    """Wall seconds of the whole quick preset in an empty store, against its budget."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "overopt", "run", "quick", "--quiet"]
        command += ["--store", f"{folder}/runs", "--results", f"{folder}/results"]
        before = os.times()
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall = time.perf_counter() - start
        after = os.times()
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return not_measured("quick_preset", f"exit status {done.returncode}: {last[0]}")
    cpu = sum(
        getattr(after, name) - getattr(before, name)
        for name in ("children_user", "children_system")
    )
    return make_row(
        "quick_preset",
        [wall],
        [QUICK_BUDGET_S],
        against="budget",
        target=1.0,
        note=f"wall seconds on {os.cpu_count()} cores with default workers; {cpu:.0f} CPU seconds;"
        f" reference: its budget of {QUICK_BUDGET_S:.0f} s",
        details={"cpu_s": cpu},
    )


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
