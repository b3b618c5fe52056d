"""One task from start to commit, in whatever process it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from overopt.base.config import RuntimeConfig
from overopt.base.memory import keep_freed_memory
from overopt.engine import launched
from overopt.engine.graph import Stage, StageContext, asked_for
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
    )


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
    keep_freed_memory()
    outcomes: list[Outcome] = []
    with contextlib.ExitStack() as held:
        tasks, works, contexts = [], [], []
        for each in (task, *task.companions):
            key = (each.identity.stage, each.identity.fingerprint)
            mine = held.enter_context(store.lock(*key))
            # Looked up under the lock: the previous holder may have finished a moment ago.
            if store.has(*key):
                store.open(*key)
                outcomes.append("reused")
                continue
            if not mine:
                outcomes.append("busy")
                continue
            outcomes.append("computed")
            inputs = {role: store.fetch(asked) for role, asked in each.inputs.items()}
            work = held.enter_context(store.workspace(each.identity))
            context = StageContext(
                config=each.config,
                inputs=inputs,
                out=work.out,
                checkpoint=work.checkpoint,
                runtime=each.runtime,
                progress=progress,
            )
            tasks.append(each)
            works.append(work)
            contexts.append(context)
        if works:
            pin_torch(task.runtime.threads)
            if leader is not None:
                leader.start(task.identity.fingerprint, works[0].checkpoint)
            try:
                if task.stacked is not None and len(tasks) > 1:
                    task.stacked(contexts)
                else:
                    tasks[0].run(contexts[0])
            finally:
                _release(task.runtime.device)
            for work in works:
                store.commit(work, task.runtime, together=len(works))
            if leader is not None:
                leader.done()
    return tuple(outcomes)


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
