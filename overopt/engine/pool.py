"""Stages in worker processes of this machine.

Workers are started once and fed through pipes; one that dies costs the stage that it was at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from overopt.base import userfile
from overopt.base.config import RuntimeConfig
from overopt.base.errors import OveroptError
from overopt.engine import signals
from overopt.engine.graph import Stage
from overopt.engine.perform import make_task, perform
from overopt.engine.progress import Reporter
from overopt.engine.schedule import RETRY_S, Schedule
from overopt.engine.store import Store
from overopt.engine.task import CannotStart, Failure, WorkerDied, failure_of, portable

PROGRESS_S = 0.2


class Throttled:
    """Calls ``report(done, total)`` at most every PROGRESS_S seconds."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self._report = report
        self._last = float("-inf")

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_S:
            self._last = now
            self._report(done, total)


@dataclass(eq=False)
class _Worker:
    """A process, the pipe to it, and the stage it is working on."""

    process: Any
    pipe: connection.Connection
    stage: Stage | None = None
    ready: bool = False


def run_pool(
    schedule: Schedule, store: Store, runtime: RuntimeConfig, width: int, reporter: Reporter
) -> None:
    """Run the stages of a schedule in worker processes."""
    workers: list[_Worker] = []
    try:
        while not schedule.over:
            signals.check()
            if schedule.limit.over:
                _kill(workers)
                break
            _hand_out(schedule, workers, store, runtime, width, reporter)
            handles: dict[Any, _Worker] = {worker.pipe: worker for worker in workers}
            handles |= {worker.process.sentinel: worker for worker in workers}
            ready = connection.wait(list(handles), timeout=RETRY_S)
            heard = [handles[handle] for handle in ready]
            for worker in [worker for worker in workers if worker in heard]:
                if not _listen(worker, schedule, reporter):
                    workers.remove(worker)
                    _bury(worker, schedule, reporter)
    except BaseException:
        _kill(workers)
        raise
    finally:
        for worker in workers:
            worker.pipe.close()  # an idle worker reads the end of the pipe and returns
        for worker in workers:
            worker.process.join()


def _kill(workers: Sequence[_Worker]) -> None:
    """End all workers now: stages in flight keep their checkpoints, and lose the work since."""
    for worker in workers:
        worker.process.kill()


def _hand_out(
    schedule: Schedule,
    workers: list[_Worker],
    store: Store,
    runtime: RuntimeConfig,
    width: int,
    reporter: Reporter,
) -> None:
    """Give stages to idle workers, starting workers up to ``width`` as they are needed."""
    while True:
        idle = next((worker for worker in workers if worker.stage is None), None)
        if idle is None and len(workers) >= width:
            return
        stage = schedule.take()
        if stage is None:
            return
        companions = schedule.companions(stage)
        for each in (stage, *companions):
            reporter.started(each)
        try:
            task = pickle.dumps(make_task(stage, runtime, companions))
            # A user's files first: settings of their kinds are pickled by name.
            message = pickle.dumps((userfile.loaded_kinds(), task))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            hint = "a stage's function and config class must be defined at the top of a module"
            error.add_note(hint)
            schedule.fail(stage, failure_of(stage.title, error), reporter)
            continue
        if idle is None:
            idle = _start_worker(store.root)
            workers.append(idle)
        idle.stage = stage
        # If it died meanwhile, the loop will read the end of its pipe.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            idle.pipe.send_bytes(message)


def _start_worker(root: Path) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, root), daemon=False)
    # Blocked signals stay blocked in the child: Ctrl-C, and a signal to the whole group (a closed
    # terminal, a batch system), are the parent's to handle.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.ENDING)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Worker(process, ours)


def _listen(worker: _Worker, schedule: Schedule, reporter: Reporter) -> bool:
    """Take in all messages of a worker; returns whether it is still alive."""
    try:
        while worker.pipe.poll():
            kind, content = worker.pipe.recv()
            if kind == "ready":
                worker.ready = True
                continue
            stage = worker.stage
            assert stage is not None, "a worker without a stage has nothing to say"
            if kind == "progress":
                reporter.progress(stage, *content)
                continue
            worker.stage = None
            if kind == "failed":
                failure = dataclasses.replace(content, title=stage.title)
                schedule.fail(stage, failure, reporter)
            else:
                schedule.settle(stage, content, reporter)
    except (EOFError, OSError):
        return False
    return worker.process.is_alive() or worker.pipe.poll()


def _bury(worker: _Worker, schedule: Schedule, reporter: Reporter) -> None:
    worker.pipe.close()
    worker.process.join()
    if worker.stage is None:
        return
    code = worker.process.exitcode
    if not worker.ready:
        error: OveroptError = CannotStart(
            f"a worker process could not start (exit code {code}); a script that starts workers"
            " needs `if __name__ == '__main__':` around its entry point, or workers=1"
        )
    elif code == -signal.SIGKILL:
        error = WorkerDied(
            "its process was killed (signal 9); if the machine ran out of memory, use fewer"
            " --workers or a smaller micro_batch"
        )
    else:
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        error = WorkerDied(f"its process died ({how})")
    schedule.fail(worker.stage, Failure(worker.stage.title, error), reporter)


def _serve(pipe: connection.Connection, root: Path) -> None:
    """Life of a worker: perform the tasks that come through the pipe until it is closed."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    store = Store(root)
    pipe.send(("ready", None))
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        try:
            own_kinds, content = pickle.loads(message)
            for file, source in own_kinds:
                userfile.load_source(file, source)
            task = pickle.loads(content)
            report = Throttled(lambda done, total: pipe.send(("progress", (done, total))))
            outcomes = perform(task, store, report)
        except Exception as error:  # crosses to the parent, which raises it with the stage's name
            pipe.send(("failed", portable(error)))
        else:
            pipe.send(("settled", outcomes))


def _die_with_parent() -> None:
    """End this process at once, in whatever it is doing, when its parent is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
