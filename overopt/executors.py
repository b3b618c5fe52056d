"""Run a graph of stages: in this process, or side by side in a pool of local processes.

Level 3, between ``graph`` (what has to be computed) and ``store`` (where it goes). Which process
computes a stage never shows in the result: a stage gets its inputs from the store, its seeds from
its config, and the same number of threads wherever it runs.

Several runs may work on one store at the same time, even on different experiments: whoever holds
the lock of an artefact computes it, the others go on with something else and reuse it afterwards.

What it does differently from ``concurrent.futures``: a worker that is killed costs its own stage
only and is named in the error, and workers whose parent dies stop by themselves and so give back
their locks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Literal

from overopt import distributed
from overopt.config import RuntimeConfig, require
from overopt.errors import OveroptError, StoreError
from overopt.graph import Plan, Stage, StageContext, critical_path, make_plan, topological
from overopt.memory import keep_freed_memory
from overopt.progress import Reporter, Silent
from overopt.store import Identity, Store

Outcome = Literal["computed", "reused", "busy"]
RETRY_S = 0.3
PROGRESS_S = 0.2
SPARE_MB = 200.0
WIND_DOWN = 0.1
"""Last share of a time limit in which no stage is started: what runs should finish."""


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
class Summary:
    """What ``execute`` did: stages computed here, and stages another process computed meanwhile.

    left: stages that the time limit cut off or kept from starting; 0 without one.
    """

    computed: int
    reused: int
    wall_s: float
    left: int = 0


@dataclass(frozen=True, kw_only=True)
class Task:
    """A stage as it travels to a worker: its inputs are named, not contained.

    companions: tasks that ``stacked`` computes together with this one.
    """

    identity: Identity
    config: Any
    run: Callable[[StageContext], None]
    inputs: Mapping[str, tuple[str, str]]
    runtime: RuntimeConfig
    stacked: Callable[[Sequence[StageContext]], None] | None = None
    companions: tuple[Task, ...] = ()


def execute(
    targets: Sequence[Stage],
    store: Store,
    runtime: RuntimeConfig | None = None,
    *,
    workers: int = 1,
    reporter: Reporter | None = None,
    time_limit_s: float | None = None,
) -> Summary:
    """Compute all ``targets`` that are not in the store yet, and what they need.

    Stages whose inputs are done run side by side, those on the longest remaining path first. If
    one fails, those that need it are skipped, everything else goes on, and one error is raised at
    the end. After a StoreError (a full disk, say) nothing new is started.

    Parameters
    ----------
    targets : sequence of Stage
        Their inputs need not be listed.
    store : Store
        Is created if necessary.
    runtime : RuntimeConfig
        Device, threads and the like for every stage.
    workers : int
        Processes; 0 or 1 runs the stages in this one. A process that a launcher started as one of
        several runs every stage together with the others instead (`overopt.distributed`).
    reporter : Reporter
        Is told what happens; nothing is shown by default.
    time_limit_s : float or None
        Seconds after which to stop. In the last tenth no stage is started; at the end, those that
        run are stopped, as if killed: they keep their checkpoints and lose what came after. In this
        process (``workers`` of 0 or 1) that happens when the stage next reports progress. Not for
        processes of a launcher.

    Raises
    ------
    StoreError
        Before anything runs: the store cannot be written, has too little room, or holds a damaged
        artefact that this graph would use.
    StageError
        At the end: stages failed.
    """
    runtime = runtime or RuntimeConfig()
    if not distributed.launched():
        limit = _Limit(time_limit_s)
        return _execute(targets, store, runtime, workers, reporter or Silent(), limit=limit)
    require(time_limit_s is None, "time_limit", time_limit_s, "leave it out under a launcher")
    started = time.monotonic()
    with _environment(runtime.environment):
        runtime = distributed.connect(runtime)
        if distributed.rank() > 0:
            _pin_torch(runtime.threads)
            tasks = {s.fingerprint: make_task(s, runtime) for s in topological(targets)}
            followed = distributed.follow(tasks, store)
            return Summary(computed=0, reused=followed, wall_s=time.monotonic() - started)
        leader = distributed.Leader()
        try:
            return _execute(targets, store, runtime, 1, reporter or Silent(), leader)
        finally:
            leader.dismiss()


def _execute(
    targets: Sequence[Stage],
    store: Store,
    runtime: RuntimeConfig,
    workers: int,
    reporter: Reporter,
    leader: distributed.Leader | None = None,
    limit: _Limit | None = None,
) -> Summary:
    """`execute` by this process and its workers, or as the leader of a launch."""
    started = time.monotonic()
    plan = prepare(targets, store)
    if leader is not None:  # the processes of a launch run one stage after the other
        runtime = dataclasses.replace(runtime, stack=1)
    schedule = _Schedule(plan, runtime, limit or _Limit(None))
    width = max(1, min(workers, len(plan.todo)))
    if plan.todo:
        reporter.begin(plan, width)
        try:
            with _environment(runtime.environment):
                if workers > 1:
                    _run_pool(schedule, store, runtime, width, reporter)
                else:
                    _run_here(schedule, store, runtime, reporter, leader)
        finally:
            reporter.end()
            store.sweep()
    schedule.raise_failures()
    return Summary(
        computed=schedule.computed,
        reused=schedule.reused,
        wall_s=time.monotonic() - started,
        left=schedule.left,
    )


def check_on_cpu(targets: Sequence[Stage], runtime: RuntimeConfig) -> None:
    """Raise ConfigError where ``runtime.on_cpu`` names no stage of a whole run.

    Not for `execute` to ask, which often gets a part of one: what is left of it, or one phase.
    """
    known = sorted({stage.name for stage in topological(targets)})
    for name in runtime.on_cpu:
        require(name in known, "on_cpu", name, f"is no stage of this run: use {', '.join(known)}")


def prepare(targets: Sequence[Stage], store: Store) -> Plan:
    """The plan for ``targets``, after checking that the store can take and give what it needs.

    Raises
    ------
    StoreError
        The store cannot be written, has too little room, or a finished artefact is damaged.
    """
    store.create()
    plan = make_plan(targets, store)
    for stage in plan.stages:
        if plan.states[stage.fingerprint] == "done":
            store.open(stage.name, stage.fingerprint)
    needed, free = plan.disk_mb + SPARE_MB, store.free_bytes() / 1e6
    if plan.todo and free < needed:
        raise StoreError(
            f"{store.root}: has {free:.0f} MB left, this run needs about {needed:.0f} MB; free some"
            " space or give another --store"
        )
    return plan


# --- one stage ------------------------------------------------------------------------------------


def uses_device(stage: Stage, runtime: RuntimeConfig) -> bool:
    """Whether ``stage`` runs on the runtime's device, and not on the CPU whatever that is."""
    return stage.gpu and stage.name not in runtime.on_cpu


def make_task(stage: Stage, runtime: RuntimeConfig, companions: Sequence[Stage] = ()) -> Task:
    """``stage`` as a task, with the device that it runs on and the stages that it takes along."""
    return Task(
        identity=stage.identity,
        config=stage.config,
        run=stage.run,
        inputs={role: (up.name, up.fingerprint) for role, up in stage.upstream.items()},
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
    leader: distributed.Leader | None = None,
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
            inputs = {role: store.open(*source) for role, source in each.inputs.items()}
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
            _pin_torch(task.runtime.threads)
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


def _pin_torch(threads: int) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
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


# --- the order of work ----------------------------------------------------------------------------


class _OutOfTime(BaseException):
    """The time limit has passed; stops a stage in this process as a kill would."""


class _Limit:
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
    def over(self) -> bool:
        """Whether everything stops."""
        return time.monotonic() >= self._end


class _Schedule:
    """Which stage comes next, and what became of the others."""

    def __init__(self, plan: Plan, runtime: RuntimeConfig, limit: _Limit) -> None:
        self.limit = limit
        self._waiting = {stage.fingerprint: stage for stage in plan.todo}
        self._length = critical_path(plan.todo)
        self._running: dict[str, Stage] = {}
        self._companions: dict[str, tuple[Stage, ...]] = {}  # of a running stage
        self._alone: set[str] = set()  # what failed in company
        self._stack = runtime.stack
        self._retry: dict[str, float] = {}
        self._skipped: list[Stage] = []
        self._gpu_slots = runtime.gpu_jobs if runtime.device != "cpu" else len(plan.stages)
        self._uses_device = functools.partial(uses_device, runtime=runtime)
        self._stopped = False
        self.failures: list[Failure] = []
        self.computed = self.reused = 0

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing can be started any more."""
        return not self._running and (not self._waiting or self.limit.winding_down)

    @property
    def left(self) -> int:
        """Stages that were neither finished nor given up after a failure."""
        return len(self._running) + len(self._waiting)

    def take(self) -> Stage | None:
        """The most urgent stage that can start now, which then counts as running."""
        if self.limit.winding_down:
            return None
        along = {s.fingerprint for others in self._companions.values() for s in others}
        on_device = sum(self._uses_device(s) for fp, s in self._running.items() if fp not in along)
        gpu_full = on_device >= self._gpu_slots
        pending = self._waiting.keys() | self._running.keys()
        now = time.monotonic()
        ready = [
            stage
            for fp, stage in self._waiting.items()
            if self._retry.get(fp, now) <= now
            and not (gpu_full and self._uses_device(stage))
            and not any(source.fingerprint in pending for source in stage.upstream.values())
        ]
        if not ready:
            return None
        ready.sort(key=lambda stage: -self._length[stage.fingerprint])
        stage = ready[0]
        others = [other for other in ready[1:] if self._go_together(stage, other)]
        self._companions[stage.fingerprint] = tuple(others[: self._stack - 1])
        for each in (stage, *self._companions[stage.fingerprint]):
            self._running[each.fingerprint] = self._waiting.pop(each.fingerprint)
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
            self.computed += outcome == "computed"
            self.reused += outcome == "reused"
            reporter.finished(each, outcome == "computed")

    def put_back(self, stage: Stage) -> None:
        """Try the stage again a little later."""
        self._running.pop(stage.fingerprint, None)
        self._waiting[stage.fingerprint] = stage
        self._retry[stage.fingerprint] = time.monotonic() + RETRY_S

    def fail(self, stage: Stage, failure: Failure, reporter: Reporter) -> None:
        """The stage failed: skip what needs it. In company: all are tried again, each alone."""
        together = (stage, *self._companions.pop(stage.fingerprint))
        if len(together) > 1 and not isinstance(failure.error, StoreError | _CannotStart):
            for each in together:
                self._alone.add(each.fingerprint)
                self.put_back(each)
                reporter.apart(each, failure.error)
            return
        for companion in together[1:]:
            self.put_back(companion)
        del self._running[stage.fingerprint]
        self.failures.append(failure)
        reporter.failed(stage, failure.error)
        lost = {stage.fingerprint}
        for fp, other in list(self._waiting.items()):  # inputs come before users
            if any(source.fingerprint in lost for source in other.upstream.values()):
                lost.add(fp)
                self._skipped.append(self._waiting.pop(fp))
        if isinstance(failure.error, StoreError | _CannotStart):
            self._skipped += self._waiting.values()
            self._waiting.clear()

    def raise_failures(self) -> None:
        """Raise one StageError that tells of all failures, if there were any."""
        if not self.failures:
            return
        lines = []
        for failure in self.failures:
            lines.append(f"stage {failure.title!r} failed: {_describe(failure.error)}")
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


class _CannotStart(OveroptError, RuntimeError):
    """A worker process died before it was ready."""


class _WorkerDied(OveroptError, RuntimeError):
    """A worker process died while it ran a stage."""


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, OveroptError) else f"{type(error).__name__}: {error}"


def _failure(title: str, error: BaseException) -> Failure:
    trace = "" if isinstance(error, OveroptError) else "".join(traceback.format_exception(error))
    return Failure(title, error, trace)


# --- in this process ------------------------------------------------------------------------------


def _run_here(
    schedule: _Schedule,
    store: Store,
    runtime: RuntimeConfig,
    reporter: Reporter,
    leader: distributed.Leader | None = None,
) -> None:
    torch = sys.modules.get("torch")
    threads_before = None if torch is None else torch.get_num_threads()
    try:
        while not schedule.over:
            stage = schedule.take()
            if stage is None:
                time.sleep(RETRY_S / 3)
                continue
            companions = schedule.companions(stage)
            for each in (stage, *companions):
                reporter.started(each)
            report = _Throttled(_until(schedule.limit, functools.partial(reporter.progress, stage)))
            try:
                task = make_task(stage, runtime, companions)
                outcomes = perform(task, store, report, leader)
            except _OutOfTime:
                return
            except Exception as error:  # whatever a stage raises is reported with its name
                schedule.fail(stage, _failure(stage.title, error), reporter)
                if leader is not None:
                    return  # the other processes wait inside this stage: the run is over
            else:
                schedule.settle(stage, outcomes, reporter)
    finally:
        if threads_before is not None:
            _pin_torch(threads_before)


def _until(limit: _Limit, report: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """``report``, which ends the stage that calls it once the time is over."""

    def checked(done: int, total: int) -> None:
        if limit.over:
            raise _OutOfTime
        report(done, total)

    return checked


class _Throttled:
    """Calls ``report(done, total)`` at most every PROGRESS_S seconds."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self._report = report
        self._last = float("-inf")

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_S:
            self._last = now
            self._report(done, total)


# --- in worker processes --------------------------------------------------------------------------


@dataclass(eq=False)
class _Worker:
    """A process, the pipe to it, and the stage it is working on."""

    process: Any
    pipe: connection.Connection
    stage: Stage | None = None
    ready: bool = False


def _run_pool(
    schedule: _Schedule, store: Store, runtime: RuntimeConfig, width: int, reporter: Reporter
) -> None:
    workers: list[_Worker] = []
    try:
        while not schedule.over:
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
    schedule: _Schedule,
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
            message = pickle.dumps(make_task(stage, runtime, companions))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            hint = "a stage's function and config class must be defined at the top of a module"
            error.add_note(hint)
            schedule.fail(stage, _failure(stage.title, error), reporter)
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
    # Blocked signals stay blocked in the child: Ctrl-C is the parent's to handle.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Worker(process, ours)


def _listen(worker: _Worker, schedule: _Schedule, reporter: Reporter) -> bool:
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


def _bury(worker: _Worker, schedule: _Schedule, reporter: Reporter) -> None:
    worker.pipe.close()
    worker.process.join()
    if worker.stage is None:
        return
    code = worker.process.exitcode
    if not worker.ready:
        error: OveroptError = _CannotStart(
            f"a worker process could not start (exit code {code}); a script that starts workers"
            " needs `if __name__ == '__main__':` around its entry point, or workers=1"
        )
    elif code == -signal.SIGKILL:
        error = _WorkerDied(
            "its process was killed (signal 9); if the machine ran out of memory, use fewer"
            " --workers or a smaller micro_batch"
        )
    else:
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        error = _WorkerDied(f"its process died ({how})")
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
            task = pickle.loads(message)
            report = _Throttled(lambda done, total: pipe.send(("progress", (done, total))))
            outcomes = perform(task, store, report)
        except Exception as error:  # crosses to the parent, which raises it with the stage's name
            pipe.send(("failed", _portable(error)))
        else:
            pipe.send(("settled", outcomes))


def _portable(error: Exception) -> Failure:
    """The failure in a form that survives the way to the parent process."""
    failure = _failure("", error)
    try:
        pickle.loads(pickle.dumps(failure))
    except Exception:  # a foreign exception may fail to pickle in any way
        return Failure("", RuntimeError(f"{type(error).__name__}: {error}"), failure.trace)
    return failure


def _die_with_parent() -> None:
    """End this process at once, in whatever it is doing, when its parent is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
