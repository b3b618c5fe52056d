"""Run a graph of stages: in this process, in a pool of local processes, or on a cluster.

Between ``graph`` (what has to be computed) and ``store`` (where it goes). Which process
computes a stage never shows in the result: a stage gets its inputs from the store, its seeds from
its config, and the same number of threads wherever it runs.

Several runs may work on one store at the same time, even on different experiments: whoever holds
the lock of an artefact computes it, the others go on with something else and reuse it afterwards.

What it does differently from ``concurrent.futures``: a worker that is killed costs its own stage
only and is named in the error, and workers whose parent dies stop by themselves and so give back
their locks.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from overopt.base import folders
from overopt.base.config import RuntimeConfig, require
from overopt.base.errors import ConfigError, StoreError
from overopt.engine import costs, launched, signals
from overopt.engine.drive import Draining, drive
from overopt.engine.executor import Connect, Executor
from overopt.engine.graph import Plan, Stage, make_plan, topological
from overopt.engine.here import Here
from overopt.engine.perform import environment, make_task, pin_torch
from overopt.engine.pool import Pool
from overopt.engine.progress import Reporter, Silent
from overopt.engine.schedule import WIND_DOWN, Limit, Schedule
from overopt.engine.store import Store

SPARE_MB = 200.0
LEAVE_S = 20.0
"""Seconds that the stages of a worker get to save a checkpoint: what batch systems leave between
the request and the kill."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What ``execute`` did: stages computed here, and stages another process computed meanwhile.

    left: stages that the time limit cut off or kept from starting; 0 without one.
    """

    computed: int
    reused: int
    wall_s: float
    left: int = 0


def execute(
    targets: Sequence[Stage],
    store: Store,
    runtime: RuntimeConfig | None = None,
    *,
    workers: int = 1,
    reporter: Reporter | None = None,
    time_limit_s: float | None = None,
    connect: Connect | None = None,
) -> Summary:
    """Compute all ``targets`` that are not in the store yet, and what they need.

    Stages whose inputs are done run side by side, those on the longest remaining path first. If
    one fails, those that need it are skipped, everything else goes on, and one error is raised at
    the end. After a StoreError (a full disk, say) nothing new is started.

    Parameters
    ----------
    targets : sequence of Stage
        Their inputs need not be listed.
    store : Store
        Is created if necessary.
    runtime : RuntimeConfig
        Device, threads and the like for every stage.
    workers : int
        Processes; 0 or 1 runs the stages in this one. A process that a launcher started as one of
        several runs every stage together with the others instead (`overopt.engine.launched`).
    reporter : Reporter
        Is told what happens; nothing is shown by default.
    time_limit_s : float or None
        Seconds after which to stop. In the last tenth no stage is started; at the end, those that
        run are stopped, as if killed: they keep their checkpoints and lose what came after. In this
        process (``workers`` of 0 or 1) that happens when the stage next reports progress. Not for
        processes of a launcher.
    connect : Connect or None
        Makes an executor elsewhere, such as `overopt.engine.on_ray.RayCluster`, which then decides
        how many stages run side by side. Not for processes of a launcher.

    Raises
    ------
    StoreError
        Before anything runs: the store cannot be written, has too little room, or holds a damaged
        artefact that this graph would use.
    StageError
        At the end: stages failed.
    """
    runtime = runtime or RuntimeConfig()
    if not launched.launched():
        limit = Limit(time_limit_s)
        return _execute(
            targets, store, runtime, workers, reporter or Silent(), limit=limit, connect=connect
        )
    require(connect is None, "executor", "of a cluster", "leave it out under a launcher")
    require(time_limit_s is None, "time_limit", time_limit_s, "leave it out under a launcher")
    started = time.monotonic()
    with environment(runtime.environment):
        runtime = launched.connect(runtime)
        if launched.rank() > 0:
            pin_torch(runtime.threads)
            tasks = {s.fingerprint: make_task(s, runtime) for s in topological(targets)}
            followed = launched.follow(tasks, store)
            return Summary(computed=0, reused=followed, wall_s=time.monotonic() - started)
        leader = launched.Leader()
        try:
            return _execute(targets, store, runtime, 1, reporter or Silent(), leader)
        finally:
            leader.dismiss()


def drain(
    targets: Sequence[Stage],
    store: Store,
    runtime: RuntimeConfig | None = None,
    *,
    workers: int = 1,
    reporter: Reporter | None = None,
    deadline_s: float | None = None,
    since: float | None = None,
) -> Summary:
    """`execute` as one of many that work on a store without a driver, and may come and go.

    Each takes the next stage that is ready and that nobody has. SIGUSR2, SIGTERM and the deadline
    make it leave: stages at work save a checkpoint and are left to the others (``left`` in the
    summary). A stage that failed in one worker is not tried by the others.

    Parameters
    ----------
    targets, store, runtime, reporter
        As for `execute`.
    workers : int
        Processes, at least 1: stages always run in processes of their own.
    deadline_s : float or None
        Seconds after which to have left.
    since : float or None
        Time (seconds since 1970) of the first of these workers; failures of before are tried again.
        None: now.

    Raises
    ------
    StoreError, StageError
        As `execute` does.
    """
    leave_s = LEAVE_S if deadline_s is None else min(LEAVE_S, WIND_DOWN * deadline_s)
    begin = time.time() if since is None else since
    with signals.leaving(signal.SIGTERM, signals.LEAVE):
        return _execute(
            targets,
            store,
            runtime or RuntimeConfig(),
            max(1, workers),
            reporter or Silent(),
            limit=Limit(deadline_s),
            draining=Draining(store, begin, leave_s),
        )


def _execute(
    targets: Sequence[Stage],
    store: Store,
    runtime: RuntimeConfig,
    workers: int,
    reporter: Reporter,
    leader: launched.Leader | None = None,
    limit: Limit | None = None,
    draining: Draining | None = None,
    connect: Connect | None = None,
) -> Summary:
    """`execute` by this process and its workers, or as the leader of a launch; or `drain`."""
    started = time.monotonic()
    plan = prepare(targets, store, runtime.device)
    if leader is not None:  # the processes of a launch run one stage after the other
        runtime = dataclasses.replace(runtime, stack=1)
    schedule = Schedule(plan, runtime, limit or Limit(None))
    width = max(1, min(workers, len(plan.todo)))
    if plan.todo:
        try:
            with environment(runtime.environment), folders.group_umask(store.root):
                executor: Executor
                if connect is not None:
                    executor = connect(store, runtime, plan)
                elif workers <= 1 and draining is None:
                    executor = Here(store, leader)
                else:
                    executor = Pool(store, width, runtime.gpu_jobs)
                reporter.begin(plan, min(executor.capacity().tasks, len(plan.todo)))
                drive(
                    schedule,
                    executor,
                    runtime,
                    reporter,
                    draining=draining,
                    # The other processes of a launch wait inside a stage that failed here.
                    stop_at_failure=leader is not None,
                )
        finally:
            reporter.end()
            store.sweep()
    schedule.raise_failures()
    return Summary(
        computed=schedule.computed,
        reused=schedule.reused,
        wall_s=time.monotonic() - started,
        left=schedule.left,
    )


def check_on_cpu(targets: Sequence[Stage], runtime: RuntimeConfig) -> None:
    """Raise ConfigError where ``runtime.on_cpu`` names no stage of a whole run.

    Not for `execute` to ask, which often gets a part of one: what is left of it, or one phase.
    """
    known = sorted({stage.name for stage in topological(targets)})
    for name in runtime.on_cpu:
        require(name in known, "on_cpu", name, f"is no stage of this run: use {', '.join(known)}")


def check_device(device: str) -> None:
    """Raise ConfigError if torch cannot use ``device``, before any stage is started."""
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device = {device!r}: torch cannot use it ({reason}); use --device cpu"
        ) from error


def prepare(targets: Sequence[Stage], store: Store, device: str = "cpu") -> Plan:
    """The plan for ``targets``, after checking that the store can take and give what it needs.

    Raises
    ------
    StoreError
        The store cannot be written, has too little room, or a finished artefact is damaged.
    """
    plan = costs.corrected(make_plan(targets, store), store, device)
    if plan.todo:  # a store that has everything may be read-only
        store.create()
    for stage in plan.stages:
        if plan.states[stage.fingerprint] == "done":
            store.open(stage.name, stage.fingerprint)
    if plan.todo:
        needed, free = plan.disk_mb + SPARE_MB, store.free_bytes() / 1e6
        if free < needed:
            raise StoreError(
                f"{store.root}: has {free:.0f} MB left, this run needs about {needed:.0f} MB; free"
                " some space or give another --store"
            )
    return plan
