"""What travels between the scheduler and the process that computes: a task, and how it ended."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from overopt.base.config import RuntimeConfig
from overopt.base.errors import OveroptError
from overopt.engine.graph import StageContext
from overopt.engine.manifest import Asked, Identity

Outcome = Literal["computed", "reused", "busy", "left"]
"""How a stage ended without an error: "busy" is left to another process, "left" to a later one."""


class StageError(OveroptError, RuntimeError):
    """One or more stages failed; everything else that could be computed is in the store.

    Attributes
    ----------
    failures : tuple of Failure
        What went wrong, in the order in which it happened.
    """

    def __init__(self, message: str, failures: tuple[Failure, ...] = ()) -> None:
        super().__init__(message)
        self.failures = failures

    def __reduce__(self) -> tuple:
        return (type(self), (self.args[0], self.failures))


@dataclass(frozen=True)
class Failure:
    """Why a stage failed: its title, the exception, and the traceback as text.

    The traceback is empty where the exception is one that overopt raises on purpose, and where
    there is none because the process died.
    """

    title: str
    error: BaseException
    trace: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A stage as it travels to a worker: its inputs are named, not contained.

    companions: tasks that ``stacked`` computes together with this one. cost_s: the stage's estimate.
    """

    identity: Identity
    config: Any
    run: Callable[[StageContext], None]
    inputs: Mapping[str, Asked]
    runtime: RuntimeConfig
    stacked: Callable[[Sequence[StageContext]], None] | None = None
    companions: tuple[Task, ...] = ()
    cost_s: float = 1.0


def left_by(task: Task) -> tuple[Outcome, ...]:
    """Outcomes of a task whose process left before it was done."""
    left: Outcome = "left"
    return (left,) * (1 + len(task.companions))


class CannotStart(OveroptError, RuntimeError):
    """A worker process died before it was ready."""


class WorkerDied(OveroptError, RuntimeError):
    """A worker process died while it ran a stage."""


class WorkerKilled(WorkerDied):
    """A worker process was killed from outside: by the system that ran out of memory, as a rule."""


_NO_MEMORY = ("OutOfMemoryError", "can't allocate memory", "out of memory", "Unable to allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a stage failed for lack of memory, of the machine or of an accelerator."""
    if isinstance(error, WorkerKilled | MemoryError):
        return True
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, RuntimeError) and any(word in text for word in _NO_MEMORY)


def describe_error(error: BaseException) -> str:
    """An error as one line."""
    return str(error) if isinstance(error, OveroptError) else f"{type(error).__name__}: {error}"


def failure_of(title: str, error: BaseException) -> Failure:
    """How a stage failed, in a form that crosses processes."""
    trace = "" if isinstance(error, OveroptError) else "".join(traceback.format_exception(error))
    return Failure(title, error, trace)


def portable(error: Exception) -> Failure:
    """The failure in a form that survives the way to the parent process."""
    failure = failure_of("", error)
    try:
        pickle.loads(pickle.dumps(failure))
    except Exception:  # a foreign exception may fail to pickle in any way
        return Failure("", RuntimeError(f"{type(error).__name__}: {error}"), failure.trace)
    return failure
