"""What a run shows while it works: one line a stage, and the time left for all of them.

On a terminal the lines of the running stages, each with a bar, and one for the whole are redrawn in
place; elsewhere (a log file, a notebook, a batch job) a line is written when a stage starts or ends, and
now and then in between. The time left comes from the stages' costs, as they were measured on this
machine before or else estimated, and from how fast each kind of stage proved to be so far.
"""

from __future__ import annotations

import heapq
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TextIO

from overopt.base import escape
from overopt.base.durations import duration
from overopt.engine.graph import Plan, Stage, critical_path

REDRAW_S = 0.1
LOG_EVERY_S = 10.0
BAR_WIDTH = 24
PRIOR = 0.02
"""Weight of what all stages took beside what those of one name did, as a share of the name's work."""
OVERDUE = 0.1
"""Share of its time that a stage still takes which is over it, where it does not tell how far it is."""


class Throttled:
    """Calls ``report(done, total)`` at most every ``pause_s`` seconds."""

    def __init__(self, report: Callable[[int, int], None], pause_s: float = 0.2) -> None:
        self._report = report
        self._pause_s = pause_s
        self._last = float("-inf")

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= self._pause_s:
            self._last = now
            self._report(done, total)


class Reporter(Protocol):
    """Told by an executor what happens; must return quickly."""

    def begin(self, plan: Plan, workers: int) -> None:
        """Work on ``plan`` starts."""

    def started(self, stage: Stage) -> None:
        """A stage was given to a worker."""

    def progress(self, stage: Stage, done: int, total: int) -> None:
        """A running stage has done ``done`` of ``total`` steps."""

    def waiting(self, stage: Stage) -> None:
        """Another process is computing the stage; it will be tried again."""

    def left(self, stage: Stage) -> None:
        """The stage stopped, having saved a checkpoint if it does: its process was asked to leave."""

    def apart(self, stage: Stage, error: BaseException) -> None:
        """A computation of several stages failed; this one of them will be tried alone."""

    def lost(self, stage: Stage, why: str) -> None:
        """Where the stage ran is gone; it will be tried elsewhere."""

    def finished(self, stage: Stage, computed: bool) -> None:
        """A stage's artefact is in the store; ``computed`` says whether by this run."""

    def failed(self, stage: Stage, error: BaseException) -> None:
        """A stage raised, or its process died."""

    def end(self) -> None:
        """Nothing more will be reported."""


class Silent:
    """A reporter that shows nothing."""

    def begin(self, plan: Plan, workers: int) -> None: ...
    def started(self, stage: Stage) -> None: ...
    def progress(self, stage: Stage, done: int, total: int) -> None: ...
    def waiting(self, stage: Stage) -> None: ...
    def left(self, stage: Stage) -> None: ...
    def apart(self, stage: Stage, error: BaseException) -> None: ...
    def lost(self, stage: Stage, why: str) -> None: ...
    def finished(self, stage: Stage, computed: bool) -> None: ...
    def failed(self, stage: Stage, error: BaseException) -> None: ...
    def end(self) -> None: ...


class Clock:
    """Seconds left of a plan, from its costs and the speed measured so far.

    Stages of a name take their planned seconds times a rate. What finished and running stages of the
    name took gives the rate; what all stages took stands in where there are none yet, with the weight
    of `PRIOR` of the name's work. What is left is then laid on the workers in the scheduler's order.
    """

    def __init__(self, plan: Plan, workers: int, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._workers = max(1, workers)
        self._seconds = plan.seconds
        self._path = critical_path(plan.todo, plan.seconds)
        self._left = {stage.fingerprint: stage for stage in plan.todo}
        self._total = sum(map(plan.seconds, plan.todo))
        self._planned: dict[str, float] = {}
        for stage in plan.todo:
            self._planned[stage.name] = self._planned.get(stage.name, 0.0) + plan.seconds(stage)
        self._fraction: dict[str, float] = {}
        self._started: dict[str, float] = {}
        self._first: dict[str, tuple[float, float]] = {}  # fraction and time of the first report
        self._took: dict[str, tuple[float, float]] = {}  # by name: wall seconds, planned seconds

    def started(self, stage: Stage) -> None:
        """The stage begins now."""
        self._started[stage.fingerprint] = self._now()

    def stopped(self, stage: Stage) -> None:
        """The stage was put back."""
        self._started.pop(stage.fingerprint, None)
        self._fraction.pop(stage.fingerprint, None)
        self._first.pop(stage.fingerprint, None)

    def progress(self, stage: Stage, fraction: float) -> None:
        """The stage has done ``fraction`` of its steps."""
        # A resumed stage begins somewhere in the middle: only what it did since counts as speed.
        self._first.setdefault(stage.fingerprint, (fraction, self._now()))
        self._fraction[stage.fingerprint] = fraction

    def finished(self, stage: Stage, computed: bool) -> None:
        """The stage is done."""
        fp = stage.fingerprint
        if computed and fp in self._started:
            first, at = self._first.get(fp, (1.0, 0.0))
            if first == 1:  # it told of its end only
                first, at = 0.0, self._started[fp]
            _add(self._took, stage.name, self._now() - at, self._seconds(stage) * (1 - first))
        self._left.pop(fp, None)
        self.stopped(stage)

    @property
    def share(self) -> float:
        """Share of the plan's estimated cost that is behind."""
        costs = (
            self._seconds(s) * (1 - self._fraction.get(fp, 0.0)) for fp, s in self._left.items()
        )
        return 1 - sum(costs) / self._total if self._total > 0 else 1.0

    def seconds_left(self) -> float:
        """Estimated wall seconds until everything is done."""
        rates = self._rates()
        left = {fp: self._stage_left(fp, rates[stage.name]) for fp, stage in self._left.items()}
        running = [fp for fp in self._left if fp in self._started]
        return makespan(self._left, left, running, self._path, self._workers)

    def _rates(self) -> dict[str, float]:
        """By name of stages: wall seconds for a planned one."""
        took = dict(self._took)
        for fp, stage in self._left.items():
            first, at = self._first.get(fp, (0.0, 0.0))
            advance = self._fraction.get(fp, 0.0) - first
            if fp in self._started and advance > 0:
                _add(took, stage.name, self._now() - at, self._seconds(stage) * advance)
        wall, cost = (sum(pair[i] for pair in took.values()) for i in (0, 1))
        overall = wall / cost if cost > 0 else 1.0
        rates = {}
        for name, planned in self._planned.items():
            mine, of = took.get(name, (0.0, 0.0))
            weight = PRIOR * planned
            rates[name] = (mine + overall * weight) / (of + weight) if of + weight > 0 else overall
        return rates

    def _stage_left(self, fp: str, rate: float) -> float:
        """Wall seconds that a stage still takes once it runs."""
        whole = rate * self._seconds(self._left[fp])
        if fp not in self._started or fp in self._fraction:
            return whole * (1 - self._fraction.get(fp, 0.0))
        # It tells nothing of its steps. One that is over its time has some of it left all the same.
        elapsed = self._now() - self._started[fp]
        return max(whole - elapsed, OVERDUE * min(elapsed, whole))


def _add(took: dict[str, tuple[float, float]], name: str, wall: float, cost: float) -> None:
    before = took.get(name, (0.0, 0.0))
    took[name] = (before[0] + wall, before[1] + cost)


def makespan(
    stages: Mapping[str, Stage],
    seconds: Mapping[str, float],
    running: Iterable[str],
    path: Mapping[str, float],
    workers: int,
) -> float:
    """Seconds until ``workers`` have done the stages: of those that can start, the longest path first.

    All by fingerprint. ``running``: those that have a worker already. Inputs that are not among
    ``stages`` are there.
    """
    waits = {
        fp: {source.fingerprint for source in stage.upstream.values()} & stages.keys()
        for fp, stage in stages.items()
    }
    users: dict[str, list[str]] = {}
    for fp, sources in waits.items():
        for source in sources:
            users.setdefault(source, []).append(fp)
    ends = [(seconds[fp], fp) for fp in running]
    busy = {fp for _, fp in ends}
    ready = [(-path[fp], fp) for fp, sources in waits.items() if not sources and fp not in busy]
    heapq.heapify(ends)
    heapq.heapify(ready)
    now = 0.0
    while ends or ready:
        while ready and len(ends) < workers:
            _, fp = heapq.heappop(ready)
            heapq.heappush(ends, (now + seconds[fp], fp))
        now, done = heapq.heappop(ends)
        for fp in users.get(done, ()):
            waits[fp].discard(done)
            if not waits[fp] and fp not in busy:
                heapq.heappush(ready, (-path[fp], fp))
    return now


class TextReporter:
    """Progress as lines of text on ``stream`` (default: standard error)."""

    def __init__(
        self, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream: TextIO | None = stream or sys.stderr
        self._live = self._stream is not None and self._stream.isatty()
        self._now = now
        self._running: dict[str, tuple[Stage, int, int, float]] = {}
        self._waiting: set[str] = set()
        self._drawn = 0
        self._last = float("-inf")
        self._count = self._total = 0

    def begin(self, plan: Plan, workers: int) -> None:
        """Say how much there is to do."""
        self._clock = Clock(plan, workers, self._now)
        self._count, self._total = len(plan.stages) - len(plan.todo), len(plan.stages)
        self._line(
            f"{len(plan.todo)} of {len(plan.stages)} stages to compute on {workers}"
            f" worker{'s' * (workers > 1)}, about {duration(self._clock.seconds_left())}"
        )

    def started(self, stage: Stage) -> None:
        """Show the stage as running."""
        self._running[stage.fingerprint] = (stage, 0, 0, self._now())
        self._clock.started(stage)
        if self._live:
            self._redraw()
        elif stage.fingerprint not in self._waiting:
            self._line(f"start  {stage.title}")

    def progress(self, stage: Stage, done: int, total: int) -> None:
        """Update the stage's percentage."""
        _, _, _, since = self._running[stage.fingerprint]
        self._running[stage.fingerprint] = (stage, done, total, since)
        if total > 0:
            self._clock.progress(stage, min(1.0, done / total))
        if self._live:
            self._redraw()
        elif self._now() - self._last >= LOG_EVERY_S:
            for line in self._status():
                self._line(line)

    def waiting(self, stage: Stage) -> None:
        """Say once that another process has the stage."""
        self._running.pop(stage.fingerprint, None)
        self._clock.stopped(stage)
        if stage.fingerprint not in self._waiting:
            self._waiting.add(stage.fingerprint)
            self._line(f"wait   {stage.title} (another process is computing it)")

    def left(self, stage: Stage) -> None:
        """Say that the stage stopped."""
        self._running.pop(stage.fingerprint, None)
        self._clock.stopped(stage)
        self._line(f"leave  {stage.title}")

    def apart(self, stage: Stage, error: BaseException) -> None:
        """Say that the stage will be tried alone."""
        self._running.pop(stage.fingerprint, None)
        self._clock.stopped(stage)
        self._line(f"again  {stage.title}, alone: together with others it failed ({error})")

    def lost(self, stage: Stage, why: str) -> None:
        """Say that the stage will be tried elsewhere."""
        self._running.pop(stage.fingerprint, None)
        self._clock.stopped(stage)
        self._line(f"again  {stage.title}: {why}")

    def finished(self, stage: Stage, computed: bool) -> None:
        """Say that the stage is done, how long it took and what is left."""
        _, _, _, since = self._running.pop(stage.fingerprint, (stage, 0, 0, self._now()))
        took = self._now() - since
        self._clock.finished(stage, computed)
        self._count += 1
        what = f"done   {stage.title} in {duration(took)}" if computed else f"reuse  {stage.title}"
        self._line(f"{what} [{self._count}/{self._total}{self._left()}]")

    def failed(self, stage: Stage, error: BaseException) -> None:
        """Say that the stage failed, in one line; the executor raises the full story."""
        self._running.pop(stage.fingerprint, None)
        self._clock.finished(stage, False)
        first = (str(error) or type(error).__name__).splitlines()[0]
        self._line(f"FAILED {stage.title}: {first}")

    def end(self) -> None:
        """Clear the lines of running stages."""
        self._running.clear()
        self._erase()

    def _left(self) -> str:
        seconds = self._clock.seconds_left()
        return f", about {duration(seconds)} left" if seconds > 0 else ""

    def _status(self) -> list[str]:
        lines = []
        for stage, done, total, since in self._running.values():
            part = min(done, total) / total if total > 0 else 0.0
            share = f"{part:4.0%}" if total > 0 else "    "
            lines.append(
                f"  {self._bar(part)}{share} {stage.title} ({duration(self._now() - since)})"
            )
        whole = self._bar(self._clock.share)
        return [*lines, f"  {whole}{self._count}/{self._total} stages{self._left()}"]

    def _bar(self, share: float) -> str:
        """A bar on a terminal, in characters that every one has; nothing elsewhere."""
        filled = round(share * BAR_WIDTH)
        return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] " if self._live else ""

    def _line(self, text: str) -> None:
        self._erase()
        self._write(escape.line(text) + "\n")
        self._last = self._now()
        if self._live and self._running:
            self._redraw(force=True)

    def _redraw(self, force: bool = False) -> None:
        if not force and self._now() - self._last < REDRAW_S:
            return
        self._erase()
        size = shutil.get_terminal_size()
        shown = [escape.line(line)[: max(1, size.columns - 1)] for line in self._status()]
        lines = shown[-max(1, size.lines - 1) :]
        self._write("".join(line + "\n" for line in lines))
        self._drawn, self._last = len(lines), self._now()

    def _erase(self) -> None:
        if self._drawn:
            self._write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0

    def _write(self, text: str) -> None:
        """Write, or from the first failure on be silent: nobody reads it, and the work goes on."""
        if self._stream is None:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: it was closed
            self._stream = None
