"""Stages in this process, one after the other."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable

from overopt.base.config import RuntimeConfig
from overopt.engine import launched, signals
from overopt.engine.perform import make_task, perform, pin_torch
from overopt.engine.pool import Throttled
from overopt.engine.progress import Reporter
from overopt.engine.schedule import RETRY_S, Limit, OutOfTime, Schedule
from overopt.engine.store import Store
from overopt.engine.task import failure_of


def run_here(
    schedule: Schedule,
    store: Store,
    runtime: RuntimeConfig,
    reporter: Reporter,
    leader: launched.Leader | None = None,
) -> None:
    """Run the stages of a schedule in this process, one after the other."""
    torch = sys.modules.get("torch")
    threads_before = None if torch is None else torch.get_num_threads()
    try:
        while not schedule.over:
            signals.check()
            stage = schedule.take()
            if stage is None:
                time.sleep(RETRY_S / 3)
                continue
            companions = schedule.companions(stage)
            for each in (stage, *companions):
                reporter.started(each)
            report = Throttled(_until(schedule.limit, functools.partial(reporter.progress, stage)))
            try:
                task = make_task(stage, runtime, companions)
                outcomes = perform(task, store, report, leader)
            except OutOfTime:
                return
            except Exception as error:  # whatever a stage raises is reported with its name
                schedule.fail(stage, failure_of(stage.title, error), reporter)
                if leader is not None:
                    return  # the other processes wait inside this stage: the run is over
            else:
                schedule.settle(stage, outcomes, reporter)
    finally:
        if threads_before is not None:
            pin_torch(threads_before)


def _until(limit: Limit, report: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """``report``, which ends the stage that calls it once the time is over."""

    def checked(done: int, total: int) -> None:
        signals.check()
        if limit.over:
            raise OutOfTime
        report(done, total)

    return checked
