"""Which stage goes next: longest way to the end first, within the limits of device and time."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence

from overopt.base.config import RuntimeConfig
from overopt.base.errors import StoreError
from overopt.engine.graph import Plan, Stage, critical_path
from overopt.engine.perform import uses_device
from overopt.engine.progress import Reporter
from overopt.engine.task import (
    CannotStart,
    Failure,
    Outcome,
    StageError,
    WorkerDied,
    describe_error,
    is_out_of_memory,
)

RETRY_S = 0.3


WIND_DOWN = 0.1
"""Last share of a time limit in which no stage is started: what runs should finish."""
LOSSES = 3
"""How often a stage is started again whose place was lost."""


class OutOfTime(BaseException):
    """The time limit has passed; stops a stage in this process as a kill would."""


class Limit:
    """The end of the time that a run may take."""

    def __init__(self, seconds: float | None) -> None:
        now = time.monotonic()
        self._start_until = self._end = float("inf")
        if seconds is not None:
            self._start_until, self._end = now + (1 - WIND_DOWN) * seconds, now + seconds

    @property
    def winding_down(self) -> bool:
        """Whether nothing more is started."""
        return time.monotonic() >= self._start_until

    @property
    def seconds_left(self) -> float:
        """Seconds until everything stops."""
        return self._end - time.monotonic()

    @property
    def over(self) -> bool:
        """Whether everything stops."""
        return self.seconds_left <= 0


class Schedule:
    """Which stage comes next, and what became of the others."""

    def __init__(self, plan: Plan, runtime: RuntimeConfig, limit: Limit) -> None:
        self.limit = limit
        self._waiting = {stage.fingerprint: stage for stage in plan.todo}
        self._length = critical_path(plan.todo, plan.seconds)
        self._running: dict[str, Stage] = {}
        self._companions: dict[str, tuple[Stage, ...]] = {}  # of a running stage
        self._alone: set[str] = set()  # what failed in company
        self._beside: set[str] = set()  # what ran beside others
        self._solo: set[str] = set()  # what ran out of memory beside others: nothing runs beside it
        self._stack = runtime.stack
        self._retry: dict[str, float] = {}
        self._losses: dict[str, int] = {}
        self._skipped: list[Stage] = []
        self._has_device = runtime.device != "cpu"
        self._uses_device = functools.partial(uses_device, runtime=runtime)
        self._is_closed = False
        self.failures: list[Failure] = []
        self.computed = self.reused = 0

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing can be started any more."""
        return not self._running and (
            not self._waiting or self._is_closed or self.limit.winding_down
        )

    def close(self) -> None:
        """Start nothing more."""
        self._is_closed = True

    @property
    def left(self) -> int:
        """Stages that were neither finished nor given up after a failure."""
        return len(self._running) + len(self._waiting)

    def take(self, on_device: int) -> Stage | None:
        """The most urgent stage that can start now, which then counts as running.

        ``on_device``: how many calls may use the accelerator at the same time.
        """
        if self._is_closed or self.limit.winding_down:
            return None
        along = {s.fingerprint for others in self._companions.values() for s in others}
        used = sum(self._uses_device(s) for fp, s in self._running.items() if fp not in along)
        gpu_full = self._has_device and used >= on_device
        pending = self._waiting.keys() | self._running.keys()
        now = time.monotonic()
        ready = [
            stage
            for fp, stage in self._waiting.items()
            if self._retry.get(fp, now) <= now
            and not (gpu_full and self._uses_device(stage))
            and not any(source.fingerprint in pending for source in stage.upstream.values())
        ]
        apart = [stage for stage in ready if stage.fingerprint in self._solo]
        ready = [stage for stage in ready if stage.fingerprint not in self._solo]
        if self._running.keys() & self._solo:
            return None
        if not ready and not self._running:
            ready = apart[:1]
        if not ready:
            return None
        ready.sort(key=lambda stage: -self._length[stage.fingerprint])
        stage = ready[0]
        others = [other for other in ready[1:] if self._go_together(stage, other)]
        self._companions[stage.fingerprint] = tuple(others[: self._stack - 1])
        for each in (stage, *self._companions[stage.fingerprint]):
            self._running[each.fingerprint] = self._waiting.pop(each.fingerprint)
        if len(self._running) > 1:
            self._beside |= self._running.keys()
        return stage

    def _go_together(self, stage: Stage, other: Stage) -> bool:
        """Whether one call may compute both."""
        return (
            stage.stacked is not None
            and stage.alike != ""
            and (stage.name, stage.alike) == (other.name, other.alike)
            and not {stage.fingerprint, other.fingerprint} & self._alone
        )

    def companions(self, stage: Stage) -> tuple[Stage, ...]:
        """What a stage that was taken takes along."""
        return self._companions[stage.fingerprint]

    def settle(self, stage: Stage, outcomes: Sequence[Outcome], reporter: Reporter) -> None:
        """A worker came back with the stage and its companions."""
        together = (stage, *self._companions.pop(stage.fingerprint))
        for each, outcome in zip(together, outcomes, strict=True):
            del self._running[each.fingerprint]
            if outcome == "busy":
                self.put_back(each)
                reporter.waiting(each)
                continue
            if outcome == "left":
                self.put_back(each)
                reporter.left(each)
                continue
            self.computed += outcome == "computed"
            self.reused += outcome == "reused"
            reporter.finished(each, outcome == "computed")

    def put_back(self, stage: Stage) -> None:
        """Try the stage again a little later."""
        self._running.pop(stage.fingerprint, None)
        self._waiting[stage.fingerprint] = stage
        self._retry[stage.fingerprint] = time.monotonic() + RETRY_S

    def lose(self, stage: Stage, why: str, reporter: Reporter) -> None:
        """Where the stage and its companions ran is gone: they are tried again, `LOSSES` times."""
        losses = self._losses[stage.fingerprint] = self._losses.get(stage.fingerprint, 0) + 1
        if losses > LOSSES:
            error = WorkerDied(f"{why}, {losses} times; running the same command again continues")
            self.fail(stage, Failure("", error), reporter)
            return
        for each in (stage, *self._companions.pop(stage.fingerprint)):
            self.put_back(each)
            reporter.lost(each, why)

    def fail(self, stage: Stage, failure: Failure, reporter: Reporter) -> bool:
        """The stage failed: skip what needs it. In company: all are tried again, each alone.

        What ran out of memory beside other stages is tried once more with nothing beside it.
        Returns whether the failure is final.
        """
        together = (stage, *self._companions.pop(stage.fingerprint))
        if len(together) > 1 and not isinstance(failure.error, StoreError | CannotStart):
            for each in together:
                self._alone.add(each.fingerprint)
                self.put_back(each)
                reporter.apart(each, failure.error)
            return False
        for companion in together[1:]:
            self.put_back(companion)
        fp = stage.fingerprint
        if is_out_of_memory(failure.error) and fp in self._beside and fp not in self._solo:
            self._solo.add(fp)
            self.put_back(stage)
            reporter.apart(stage, failure.error)
            return False
        del self._running[stage.fingerprint]
        failure = dataclasses.replace(failure, title=stage.title)
        self.failures.append(failure)
        reporter.failed(stage, failure.error)
        lost = {stage.fingerprint}
        for fp, other in list(self._waiting.items()):  # inputs come before users
            if any(source.fingerprint in lost for source in other.upstream.values()):
                lost.add(fp)
                self._skipped.append(self._waiting.pop(fp))
        if isinstance(failure.error, StoreError | CannotStart):
            self._skipped += self._waiting.values()
            self._waiting.clear()
        return True

    def raise_failures(self) -> None:
        """Raise one StageError that tells of all failures, if there were any."""
        if not self.failures:
            return
        lines = []
        for failure in self.failures:
            lines.append(f"stage {failure.title!r} failed: {describe_error(failure.error)}")
            if failure.trace:
                lines.append(failure.trace.rstrip())
        if self._skipped:
            names = ", ".join(repr(stage.title) for stage in self._skipped[:5])
            more = f" and {len(self._skipped) - 5} more" if len(self._skipped) > 5 else ""
            lines.append(f"not run because of it: {names}{more}")
        lines.append(
            f"{self.computed + self.reused} other stages finished and are kept; running the same"
            " command again continues from here"
        )
        raise StageError("\n".join(lines), tuple(self.failures)) from self.failures[0].error
