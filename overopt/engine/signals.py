"""Signals that ask a run to end: SIGINT, SIGTERM and SIGHUP are one thing, told apart at the end.

The first is raised as KeyboardInterrupt, as Python does with SIGINT; `check` raises it once more
where a library swallowed it. `deferred` is for the seconds in which records are written.

A process of a batch system is asked more gently (`leaving`): SIGUSR2 some time before the end of its
time, SIGTERM before it is preempted. It then has the stages at work save a checkpoint, and ends.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LEAVE = signal.SIGUSR2
"""Asks a process that computes stages to have them save a checkpoint, and stop."""


class _State:
    """The signal that came, if one did; whether it may interrupt now; whether it is being obeyed."""

    received: int | None = None
    is_deferred = False
    is_leaving = False
    is_obeyed = False


def received() -> int | None:
    """The signal that asked this process to end, if one did."""
    return _State.received


def check() -> None:
    """Raise KeyboardInterrupt if a signal came and nobody has obeyed it."""
    if _State.received is not None and not _State.is_obeyed and not _State.is_deferred:
        _State.is_obeyed = True
        raise KeyboardInterrupt


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.received is None or not _State.is_deferred:
        _State.received = number
    if not _State.is_deferred:
        raise KeyboardInterrupt


def settle() -> None:
    """After a KeyboardInterrupt was obeyed: let the exit status be the one that the program returns.

    CPython remembers an interrupt that left a string of code under `exec` or `eval` (the bodies of
    dataclasses are such) as one that nobody handled, and ends ``python -m`` by SIGINT whatever
    the status. Running another string takes that back.
    """
    exec("")


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Handle the signals inside the block, where this is the main thread.

    One that this process was started to ignore (``nohup``) stays ignored.
    """
    _State.received, _State.is_obeyed = None, False
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    plain = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in ENDING}
    mine = [number for number, handler in before.items() if handler in plain]
    for number in mine:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let no signal interrupt the block: what it writes is short and worth having."""
    before, _State.is_deferred = _State.is_deferred, True
    try:
        yield
    finally:
        _State.is_deferred = before


class Leaving(BaseException):
    """Ends a stage that has saved a checkpoint, because its process was asked to leave."""


def is_leaving() -> bool:
    """Whether this process was asked to leave."""
    return _State.is_leaving


def _ask(number: int, frame: FrameType | None) -> None:
    _State.is_leaving = True


@contextlib.contextmanager
def leaving(*numbers: signal.Signals) -> Iterator[None]:
    """Take the signals inside the block as a request to leave, which `is_leaving` tells of."""
    _State.is_leaving = False
    before = {number: signal.signal(number, _ask) for number in numbers}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield
    finally:
        _State.is_leaving = False
        for number, handler in before.items():
            signal.signal(number, handler)
