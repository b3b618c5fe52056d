"""Time left, by a clock that is simulated: within a factor of 1.5 after the first tenth."""

import heapq
import random
from dataclasses import dataclass
from itertools import count

import pytest

from overopt.engine.graph import Plan, Stage, critical_path
from overopt.engine.progress import Clock, makespan


@dataclass(frozen=True)
class Number:
    """What tells stages of a name apart."""

    i: int


def nothing(ctx):
    """A stage's function, never called."""


def chain(n, *, uneven=0.0):
    """A graph as an experiment's: one start, ``n`` times proxy -> method -> judge, and best-of-n."""
    numbers, draw = count(), random.Random(3)

    def stage(name, cost, **upstream):
        return Stage(
            name=name, version=1, config=Number(next(numbers)), run=nothing, upstream=upstream,
            cost_s=cost * draw.uniform(1 - uneven, 1 + uneven),
        )  # fmt: skip

    start = stage("start", 6)
    stages = [start]
    for _ in range(n):
        proxy = stage("proxy", 10, start=start)
        method = stage("method", 40, proxy=proxy)
        stages += [proxy, method, stage("judge", 8, method=method), stage("bon", 12, proxy=proxy)]
    return stages


def guesses(stages, true, *, workers, factors=None, silent=()):
    """(time, time left that the clock said, time left in truth) along a simulated run."""
    states = {stage.fingerprint: "missing" for stage in stages}
    plan = Plan(stages=tuple(stages), states=states, factors=factors or {})
    now, ends, said = 0.0, [], []
    clock = Clock(plan, workers, lambda: now)
    path = critical_path(plan.todo, plan.seconds)
    waiting = {stage.fingerprint: stage for stage in stages}
    running = {}
    while waiting or running:
        ready = [
            s for s in waiting.values()
            if not any(u.fingerprint in {*waiting, *running} for u in s.upstream.values())
        ]  # fmt: skip
        for stage in sorted(ready, key=lambda s: -path[s.fingerprint])[: workers - len(running)]:
            running[stage.fingerprint] = (waiting.pop(stage.fingerprint), now)
            clock.started(stage)
            heapq.heappush(ends, (now + true(stage), stage.fingerprint))
        end, done = heapq.heappop(ends)
        begin = now
        for k in range(1, 5):  # looks on the way to the next end
            now = begin + (end - begin) * k / 5
            for stage, since in running.values():
                if stage.name not in silent:
                    clock.progress(stage, (now - since) / true(stage))
            said.append((now, clock.seconds_left()))
        now = end
        clock.finished(running.pop(done)[0], True)
        said.append((now, clock.seconds_left()))
    return [(at, left, now - at) for at, left in said]


def worst(found):
    """The largest factor between what was said and the truth, from the first tenth to the last 2 %."""
    whole = found[-1][0]
    factors = [
        max(left, truth) / max(min(left, truth), 1e-9)
        for at, left, truth in found
        if 0.1 * whole <= at <= 0.98 * whole
    ]
    assert len(factors) > 50
    return max(factors)


KINDS = {"start": 1.0, "proxy": 3.0, "method": 0.4, "judge": 2.0, "bon": 0.7}
PATTERNS = {
    "as planned": (lambda s: s.cost_s, {}),
    "four times as fast": (lambda s: s.cost_s / 4, {}),
    "six times as slow": (lambda s: s.cost_s * 6, {}),
    "each kind otherwise, measured before": (
        lambda s: s.cost_s * KINDS[s.name],
        {"factors": KINDS},
    ),
    "measured before, and now three times as slow": (
        lambda s: s.cost_s * KINDS[s.name] * 3,
        {"factors": KINDS},
    ),
    "each stage by chance": (
        lambda s: s.cost_s * 2 * random.Random(s.fingerprint).uniform(0.5, 1.5),
        {},
    ),
    "stages that say nothing of their steps": (
        lambda s: s.cost_s * 3,
        {"silent": ("method", "judge")},
    ),
}


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_time_left_is_within_half_after_the_first_tenth(pattern, workers):
    true, options = PATTERNS[pattern]
    assert worst(guesses(chain(15, uneven=0.3), true, workers=workers, **options)) < 1.5


def test_a_kind_that_was_never_measured_is_known_by_its_first_steps():
    """The second of two kinds is 7 times as dear as planned, and its first tenth shows it."""
    stages = chain(1)
    plan = Plan(stages=tuple(stages), states={s.fingerprint: "missing" for s in stages})
    start, proxy, method, judge, bon = stages
    now = 0.0
    clock = Clock(plan, 1, lambda: now)
    for stage in (start, proxy):
        clock.started(stage)
        now += stage.cost_s
        clock.finished(stage, True)
    assert clock.seconds_left() == pytest.approx(60)
    clock.started(method)
    clock.progress(method, 0.0)
    now += 28
    clock.progress(method, 0.1)
    assert clock.seconds_left() == pytest.approx(0.9 * 280 + 20, rel=0.2)


def test_a_first_report_late_in_a_stage_is_no_speed():
    """A resumed stage begins in the middle, and one of few steps tells first of a quarter."""
    stages = chain(1)[:1]
    plan = Plan(stages=tuple(stages), states={stages[0].fingerprint: "missing"})
    now = 0.0
    clock = Clock(plan, 1, lambda: now)
    clock.started(stages[0])
    for k in range(1, 4):
        now += 6 * 0.25
        clock.progress(stages[0], 0.25 * k)
        assert clock.seconds_left() == pytest.approx(6 * (1 - 0.25 * k))


def test_stages_are_laid_on_workers_in_the_order_of_the_scheduler():
    stages = {s.fingerprint: s for s in chain(3)}
    seconds = {fp: s.cost_s for fp, s in stages.items()}
    path = critical_path(list(stages.values()))
    alone = makespan(stages, seconds, (), path, 1)
    assert alone == pytest.approx(sum(seconds.values()))
    assert makespan(stages, seconds, (), path, 50) == pytest.approx(6 + 10 + 40 + 8)
    # Two workers: start to 6, proxies to 16 and 26, methods from 16, 26 and 56 to 96; beside the last
    # three best-of-n from 66 to 102; judges from 96 to 104, from 102 to 110 and from 104 to 112.
    assert makespan(stages, seconds, (), path, 2) == pytest.approx(112)
