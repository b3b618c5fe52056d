"""One task from start to commit, in whatever process it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from overopt.base import memory
from overopt.base.config import RuntimeConfig
from overopt.base.locks import Hold
from overopt.engine import attempts, launched, signals
from overopt.engine.attempts import Fenced
from overopt.engine.graph import Stage, StageContext, asked_for
from overopt.engine.manifest import Workspace
from overopt.engine.progress import Throttled
from overopt.engine.store import Store
from overopt.engine.task import Outcome, Task


def uses_device(stage: Stage, runtime: RuntimeConfig) -> bool:
    """Whether ``stage`` runs on the runtime's device, and not on the CPU whatever that is."""
    return stage.gpu and stage.name not in runtime.on_cpu


def make_task(stage: Stage, runtime: RuntimeConfig, companions: Sequence[Stage] = ()) -> Task:
    """``stage`` as a task, with the device that it runs on and the stages that it takes along."""
    return Task(
        identity=stage.identity,
        config=stage.config,
        run=stage.run,
        inputs={role: asked_for(up) for role, up in stage.upstream.items()},
        runtime=runtime
        if uses_device(stage, runtime)
        else dataclasses.replace(runtime, device="cpu"),
        stacked=stage.stacked if companions else None,
        companions=tuple(make_task(other, runtime) for other in companions),
        cost_s=stage.cost_s,
    )


SAY_S = 2.0
"""Seconds between two notes of the progress of a stage in the store."""


class _Attempt(NamedTuple):
    """A task that this process computes: its place among the outcomes, its folders, its lock."""

    position: int
    task: Task
    work: Workspace
    hold: Hold
    context: StageContext


def perform(
    task: Task,
    store: Store,
    progress: Callable[[int, int], None],
    leader: launched.Leader | None = None,
) -> tuple[Outcome, ...]:
    """Compute the artefacts of the task and its companions that do not exist yet.

    Those that another process is at are left to it. Returns an outcome for each, the task's first.

    ``leader``: of the processes that compute it together.
    """
    memory.keep_freed_memory()
    outcomes: list[Outcome] = []
    begun: list[_Attempt] = []
    with contextlib.ExitStack() as held:
        for position, each in enumerate((task, *task.companions)):
            identity = each.identity
            hold = held.enter_context(store.lock(identity.stage, identity.fingerprint))
            # Looked up under the lock: the previous holder may have finished a moment ago.
            if store.has(identity.stage, identity.fingerprint):
                store.open(identity.stage, identity.fingerprint)
                outcomes.append("reused")
                continue
            outcomes.append("busy")
            if hold:
                with contextlib.suppress(Fenced):
                    begun.append(_begin(position, each, store, hold, progress, held))
        if begun:
            pin_torch(task.runtime.threads)
            if leader is not None:
                leader.start(task.identity.fingerprint, begun[0].work.checkpoint)
            _restart_peaks(task.runtime.device)
            if _compute(task, begun):
                for position in _commit(begun, store, task.runtime):
                    outcomes[position] = "computed"
            if leader is not None:
                leader.done()
    return tuple(outcomes)


def _begin(
    position: int,
    task: Task,
    store: Store,
    hold: Hold,
    progress: Callable[[int, int], None],
    held: contextlib.ExitStack,
) -> _Attempt:
    """Inputs and folders for a task, given back when ``held`` is left."""
    inputs = {role: store.fetch(asked) for role, asked in task.inputs.items()}
    work = held.enter_context(store.workspace(task.identity, hold))
    leave = _Leave()
    say = Throttled(functools.partial(attempts.say_progress, work.out), SAY_S)
    context = StageContext(
        config=task.config,
        inputs=inputs,
        out=work.out,
        checkpoint=work.checkpoint,
        runtime=task.runtime,
        progress=functools.partial(_report, hold, leave, say, progress),
        leaving=leave.asked,
    )
    return _Attempt(position, task, work, hold, context)


class _Leave:
    """Whether a stage asks if it should leave, and whether it was told so."""

    def __init__(self) -> None:
        self._asks = self._is_told = False

    def asked(self) -> bool:
        """For the stage: whether its process was asked to leave."""
        self._asks, self._is_told = True, signals.is_leaving()
        return self._is_told

    @property
    def is_ready(self) -> bool:
        """Whether the stage may be ended: it has saved a checkpoint, or never does."""
        return self._is_told or not self._asks


def _report(
    hold: Hold,
    leave: _Leave,
    say: Throttled,
    progress: Callable[[int, int], None],
    done: int,
    total: int,
) -> None:
    """``progress``, which ends a stage that another process has taken over, or that has to leave."""
    if hold.is_lost():
        raise Fenced("another process has taken the stage over")
    if signals.is_leaving() and leave.is_ready:
        raise signals.Leaving
    say(done, total)
    progress(done, total)


def _compute(task: Task, begun: Sequence[_Attempt]) -> bool:
    """Run the stages of the attempts; returns False if another process has taken one over.

    A stage whose folders are taken away can fail in any way, which then says nothing about it.
    """
    runtime = task.runtime
    try:
        with memory.limited(runtime.memory_mb if runtime.device == "cpu" else None):
            if task.stacked is not None and len(begun) > 1:
                task.stacked([attempt.context for attempt in begun])
            else:
                begun[0].task.run(begun[0].context)
    except Exception:
        if all(attempt.work.out.is_dir() and attempt.hold.is_kept() for attempt in begun):
            raise
        return False
    finally:
        _release(runtime.device)
    return True


def _commit(begun: Sequence[_Attempt], store: Store, runtime: RuntimeConfig) -> Iterator[int]:
    """Commit what was computed; yields the places of those that no other process took over."""
    taken = {"memory_mb": memory.peak_mb(), "gpu_memory_mb": _device_peak_mb(runtime.device)}
    for attempt in begun:
        with contextlib.suppress(Fenced):
            measured = {"cost_s": attempt.task.cost_s, **taken}
            store.commit(attempt.work, runtime, together=len(begun), measured=measured)
            yield attempt.position


def _restart_peaks(device: str) -> None:
    """Begin to measure anew how much memory is taken at most."""
    memory.restart_peak()
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda") and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats(device)


def _device_peak_mb(device: str) -> float | None:
    """Megabytes of an accelerator that were allocated at one time, where it is one of CUDA."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated(device) / 1e6


def _release(device: str) -> None:
    """Give memory that a stage no longer uses back to the accelerator, which others share."""
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda") and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def pin_torch(threads: int) -> None:
    """Hold torch to a number of threads."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the block; processes started there inherit them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
