"""Stages in worker processes of this machine.

Workers are started once and fed through pipes; one that dies costs the stage that it was at.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any

from overopt.base import userfile
from overopt.base.errors import OveroptError
from overopt.engine import signals
from overopt.engine.executor import Capacity, Event, Failed, Settled
from overopt.engine.perform import perform
from overopt.engine.progress import Throttled
from overopt.engine.store import Store
from overopt.engine.task import (
    CannotStart,
    Failure,
    Task,
    WorkerDied,
    WorkerKilled,
    left_by,
    portable,
)


@dataclass(eq=False)
class _Worker:
    """A process, the pipe to it, and the task it is working on."""

    process: Any
    pipe: connection.Connection
    fingerprint: str | None = None
    progress: Callable[[int, int], None] = lambda done, total: None
    ready: bool = False


class Pool:
    """An executor of ``width`` worker processes of this machine, started as they are needed."""

    def __init__(self, store: Store, width: int, gpu_jobs: int) -> None:
        self._store = store
        self._capacity = Capacity(tasks=width, on_device=gpu_jobs)
        self._workers: list[_Worker] = []

    def capacity(self) -> Capacity:
        """A task for each worker."""
        return self._capacity

    def submit(self, task: Task, progress: Callable[[int, int], None]) -> None:
        """Give the task to an idle worker, or to a new one."""
        # A user's files first: settings of their kinds are pickled by name.
        message = pickle.dumps((userfile.loaded_kinds(), pickle.dumps(task)))
        worker = next((worker for worker in self._workers if worker.fingerprint is None), None)
        if worker is None:
            worker = _start_worker(self._store.root)
            self._workers.append(worker)
        worker.fingerprint, worker.progress = task.identity.fingerprint, progress
        # If it died meanwhile, `events` will read the end of its pipe.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.pipe.send_bytes(message)

    def events(self, timeout_s: float) -> Iterator[Event]:
        """What the workers say, and which of them died."""
        handles: dict[Any, _Worker] = {worker.pipe: worker for worker in self._workers}
        handles |= {worker.process.sentinel: worker for worker in self._workers}
        ready = connection.wait(list(handles), timeout=timeout_s)
        heard = [handles[handle] for handle in ready]
        for worker in [worker for worker in self._workers if worker in heard]:
            try:
                while worker.pipe.poll():
                    yield from _listen(worker)
                alive = worker.process.is_alive() or worker.pipe.poll()
            except (EOFError, OSError):
                alive = False
            if not alive:
                self._workers.remove(worker)
                yield from _bury(worker)

    def cancel(self, fingerprint: str) -> None:
        """Kill the worker that has the task."""
        for worker in self._workers:
            if worker.fingerprint == fingerprint:
                worker.fingerprint = None
                worker.process.kill()

    def leave(self) -> None:
        """Signal the workers; one that is still starting finds the signal when it has started."""
        for worker in self._workers:
            if worker.fingerprint is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process.pid, signals.LEAVE)

    def close(self) -> None:
        """End the workers: an idle one reads the end of its pipe and returns."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join()


def _start_worker(root: Path) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, root), daemon=False)
    # Blocked signals stay blocked in the child: Ctrl-C, and a signal to the whole group (a closed
    # terminal, a batch system), are the parent's to handle. The child unblocks LEAVE when it can.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*signals.ENDING, signals.LEAVE))
    try:
        resource_tracker.ensure_running()  # the first time it unblocks SIGINT and SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.ENDING)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Worker(process, ours)


def _listen(worker: _Worker) -> Iterator[Event]:
    """Take in one message of a worker."""
    kind, content = worker.pipe.recv()
    if kind == "ready":
        worker.ready = True
        return
    if worker.fingerprint is None:  # its task was cancelled
        return
    if kind == "progress":
        worker.progress(*content)
        return
    fingerprint, worker.fingerprint = worker.fingerprint, None
    yield Failed(fingerprint, content) if kind == "failed" else Settled(fingerprint, content)


def _bury(worker: _Worker) -> Iterator[Event]:
    """Clear up after a worker that died, with the task that it was at."""
    worker.pipe.close()
    worker.process.join()
    if worker.fingerprint is None:
        return
    code = worker.process.exitcode
    if not worker.ready:
        error: OveroptError = CannotStart(
            f"a worker process could not start (exit code {code}); a script that starts workers"
            " needs `if __name__ == '__main__':` around its entry point, or workers=1"
        )
    elif code == -signal.SIGKILL:
        error = WorkerKilled(
            "its process was killed (signal 9); if the machine ran out of memory, use fewer"
            " --workers or a smaller micro_batch"
        )
    else:
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        error = WorkerDied(f"its process died ({how})")
    yield Failed(worker.fingerprint, Failure("", error))


def _serve(pipe: connection.Connection, root: Path) -> None:
    """Life of a worker: perform the tasks that come through the pipe until it is closed."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with signals.leaving(signals.LEAVE):
        _perform_all(pipe, Store(root))


def _perform_all(pipe: connection.Connection, store: Store) -> None:
    """Perform what comes through the pipe."""
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
        except signals.Leaving:
            pipe.send(("settled", left_by(task)))
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
