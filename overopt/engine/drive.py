"""The loop between scheduler and executor: hand out what is ready, take in what happened."""

from __future__ import annotations

import functools
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from overopt.base.config import RuntimeConfig
from overopt.engine import failures, signals
from overopt.engine.executor import Executor, Failed, Lost, Settled
from overopt.engine.graph import Stage
from overopt.engine.perform import make_task
from overopt.engine.progress import Reporter
from overopt.engine.schedule import RETRY_S, Limit, OutOfTime, Schedule
from overopt.engine.store import Store
from overopt.engine.task import failure_of


@dataclass(frozen=True)
class Draining:
    """How a worker without a driver behaves, one of several on a store.

    Attributes
    ----------
    store : Store
        Where the workers leave word of stages that failed.
    since : float
        Time (seconds since 1970) from which on a failure that another worker met counts here too.
    leave_s : float
        Seconds that stages get to save a checkpoint before the end.
    """

    store: Store
    since: float
    leave_s: float


@dataclass
class _Driver:
    """What the loop knows: the stages that the executor has, and when they were asked to leave."""

    schedule: Schedule
    executor: Executor
    runtime: RuntimeConfig
    reporter: Reporter
    draining: Draining | None
    running: dict[str, Stage] = field(default_factory=dict)
    leaving_since: float | None = None


def drive(
    schedule: Schedule,
    executor: Executor,
    runtime: RuntimeConfig,
    reporter: Reporter,
    *,
    draining: Draining | None = None,
    stop_at_failure: bool = False,
) -> None:
    """Run the stages of a schedule on an executor, which is closed at the end.

    ``stop_at_failure``: start nothing more once a stage has failed.
    """
    driver = _Driver(schedule, executor, runtime, reporter, draining)
    try:
        while not schedule.over:
            signals.check()
            if schedule.limit.over:
                raise OutOfTime
            _leave_in_time(driver)
            _hand_out(driver)
            _take_in(driver)
            if stop_at_failure and schedule.failures:
                return
    except OutOfTime:
        _cancel_all(driver)
    except BaseException:
        _cancel_all(driver)
        raise
    finally:
        executor.close()


def _leave_in_time(driver: _Driver) -> None:
    """Have stages save a checkpoint when the process was asked to leave, or its time is nearly over.

    Raises
    ------
    OutOfTime
        They were asked long enough ago.
    """
    if driver.draining is None:
        return
    leave_s, now = driver.draining.leave_s, time.monotonic()
    if driver.leaving_since is None:
        if signals.is_leaving() or driver.schedule.limit.seconds_left <= leave_s:
            driver.leaving_since = now
            driver.schedule.close()
            driver.executor.leave()
    elif now - driver.leaving_since > leave_s:
        raise OutOfTime


def _hand_out(driver: _Driver) -> None:
    """Give stages to the executor, as many as it takes and are ready."""
    schedule, reporter = driver.schedule, driver.reporter
    capacity = driver.executor.capacity()
    while len(driver.running) < capacity.tasks:
        stage = schedule.take(capacity.on_device)
        if stage is None:
            return
        companions = schedule.companions(stage)
        for each in (stage, *companions):
            reporter.started(each)
        if driver.draining is not None:
            known = failures.since(driver.draining.store, stage, driver.draining.since)
            if known is not None:
                schedule.fail(stage, known, reporter)
                continue
        report = _checked(schedule.limit, functools.partial(reporter.progress, stage))
        try:
            driver.executor.submit(make_task(stage, driver.runtime, companions), report)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            hint = "a stage's function and config class must be defined at the top of a module"
            error.add_note(hint)
            schedule.fail(stage, failure_of(stage.title, error), reporter)
        else:
            driver.running[stage.fingerprint] = stage


def _take_in(driver: _Driver) -> None:
    """Tell the scheduler what happened."""
    for event in driver.executor.events(RETRY_S):
        stage = driver.running.pop(event.fingerprint)
        match event:
            case Settled(outcomes=outcomes):
                driver.schedule.settle(stage, outcomes, driver.reporter)
            case Failed(failure=failure):
                is_final = driver.schedule.fail(stage, failure, driver.reporter)
                if is_final and driver.draining is not None:
                    failures.note(driver.draining.store, stage, failure)
            case Lost(why=why):
                driver.schedule.lose(stage, why, driver.reporter)


def _cancel_all(driver: _Driver) -> None:
    """End all tasks now: stages in flight keep their checkpoints, and lose the work since."""
    for fingerprint in driver.running:
        driver.executor.cancel(fingerprint)


def _checked(limit: Limit, report: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """``report``, which ends a stage that this process computes once the time is over."""

    def checked(done: int, total: int) -> None:
        signals.check()
        if limit.over:
            raise OutOfTime
        report(done, total)

    return checked
