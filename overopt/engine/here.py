"""Stages in this process, one after the other."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

from overopt.engine import launched, signals
from overopt.engine.executor import Capacity, Event, Failed, Settled
from overopt.engine.perform import perform, pin_torch
from overopt.engine.progress import Throttled
from overopt.engine.schedule import RETRY_S
from overopt.engine.store import Store
from overopt.engine.task import Task, failure_of, left_by


class Here:
    """An executor that computes a task while it is asked for events."""

    def __init__(self, store: Store, leader: launched.Leader | None = None) -> None:
        self._store = store
        self._leader = leader
        self._task: Task | None = None
        self._progress: Callable[[int, int], None] = lambda done, total: None
        torch = sys.modules.get("torch")
        self._threads_before = None if torch is None else torch.get_num_threads()

    def capacity(self) -> Capacity:
        """One task."""
        return Capacity(tasks=1, on_device=1)

    def submit(self, task: Task, progress: Callable[[int, int], None]) -> None:
        """Keep the task for `events`."""
        self._task, self._progress = task, progress

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Compute the task that was submitted; without one, wait a little."""
        if self._task is None:
            time.sleep(min(timeout_s, RETRY_S / 3))
            return
        task, self._task = self._task, None
        fingerprint = task.identity.fingerprint
        try:
            outcomes = perform(task, self._store, Throttled(self._progress), self._leader)
        except signals.Leaving:
            yield Settled(fingerprint, left_by(task))
        except Exception as error:  # whatever a stage raises is reported with its name
            yield Failed(fingerprint, failure_of("", error))
        else:
            yield Settled(fingerprint, outcomes)

    def cancel(self, fingerprint: str) -> None:
        """Nothing: what ends this process's work is an exception inside it."""

    def leave(self) -> None:
        """Nothing: a stage of this process finds out by itself."""

    def close(self) -> None:
        """Give torch its threads back."""
        if self._threads_before is not None:
            pin_torch(self._threads_before)
