"""Where tasks are computed: what the scheduler asks of a process, a pool or a cluster.

An executor is handed one task after another and tells what became of each. It decides nothing: which
stage goes next, what goes together and what is tried again is the scheduler's (`schedule`, `drive`).
Results pass through the store only, so an executor moves no data and may lose everything it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from overopt.base.config import RuntimeConfig
from overopt.engine.graph import Plan
from overopt.engine.store import Store
from overopt.engine.task import Failure, Outcome, Task


class Capacity(NamedTuple):
    """How many tasks may be in hand at the same time, and how many of them on the device."""

    tasks: int
    on_device: int


@dataclass(frozen=True)
class Settled:
    """A task came to its end: an outcome for it and for each of its companions.

    fingerprint: of the task, which is how it was submitted.
    """

    fingerprint: str
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Failed:
    """A task raised, or what it needs to start is not there: trying again would end the same way."""

    fingerprint: str
    failure: Failure


@dataclass(frozen=True)
class Lost:
    """The place where a task ran is gone, which says nothing about the task; ``why`` in a few words."""

    fingerprint: str
    why: str


Event = Settled | Failed | Lost


class Executor(Protocol):
    """Computes tasks somewhere."""

    def capacity(self) -> Capacity:
        """How much it takes now; may change while it works."""

    def submit(self, task: Task, progress: Callable[[int, int], None]) -> None:
        """Take a task in hand; ``progress(done, total)`` is called from within `events`.

        Raises
        ------
        TypeError, AttributeError, pickle.PicklingError
            The task cannot travel to where it would be computed.
        """

    def events(self, timeout_s: float) -> Iterable[Event]:
        """What happened, after waiting up to ``timeout_s`` seconds for something to happen."""

    def cancel(self, fingerprint: str) -> None:
        """End a task now, as a kill would: it keeps its checkpoint, and no event tells of it."""

    def leave(self) -> None:
        """Ask all tasks to save a checkpoint and end; events tell of each."""

    def close(self) -> None:
        """Give back processes and connections."""


Connect = Callable[[Store, RuntimeConfig, Plan], Executor]
"""Makes the executor of a run, when it is known that there is something to compute."""
