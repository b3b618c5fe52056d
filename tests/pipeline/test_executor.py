"""Running graphs: the same results for any number of workers, and honest failures."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
import signal
import threading
import time
from dataclasses import dataclass

import fake_graph
import pytest
from fake_graph import build, contents

from overopt.base.config import RuntimeConfig
from overopt.base.errors import DivergenceError, StoreError
from overopt.base.files import load_json
from overopt.engine.execute import execute
from overopt.engine.executor import Lost
from overopt.engine.graph import (
    Plan,
    Stage,
    check_not_stale,
    critical_path,
    find_stale,
    make_plan,
    snapshot,
    topological,
)
from overopt.engine.here import Here
from overopt.engine.progress import Clock, TextReporter, duration
from overopt.engine.store import Store
from overopt.engine.task import StageError

FAST = {"steps": 8, "pause_s": 0.0}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def states(stages, store):
    plan = make_plan(stages, store)
    return [plan.states[stage.fingerprint] for stage in stages]


# --- the graph ------------------------------------------------------------------------------------


def test_identity_follows_config_version_and_inputs_but_not_labels():
    first, second = build(**FAST), build(**FAST)
    assert [a.fingerprint for a in first] == [b.fingerprint for b in second]
    source = first[0]
    relabeled = dataclasses.replace(source, label="other", cost_s=9.0, disk_mb=5.0, gpu=True)
    assert relabeled.fingerprint == source.fingerprint
    newer = dataclasses.replace(source, version=2)
    assert newer.fingerprint != source.fingerprint
    user = dataclasses.replace(first[1], upstream={"source": newer})
    assert user.fingerprint != first[1].fingerprint


def test_topological_order_puts_inputs_first_and_each_identity_once():
    stages = build(**FAST)
    twin = build(**FAST)
    order = topological([stages[-1], *twin])
    fps = [stage.fingerprint for stage in order]
    assert len(fps) == len(set(fps)) == 5
    for stage in order:
        for source in stage.upstream.values():
            assert fps.index(source.fingerprint) < fps.index(stage.fingerprint)


def test_critical_path_is_the_longest_chain_of_costs():
    a = Stage(name="a", version=1, config=fake_graph.MergeConfig(), run=print, cost_s=1)
    b = Stage(name="b", version=1, config=a.config, run=print, cost_s=10, upstream={"a": a})
    c = Stage(name="c", version=1, config=a.config, run=print, cost_s=2, upstream={"a": a})
    d = Stage(name="d", version=1, config=a.config, run=print, cost_s=3, upstream={"b": b, "c": c})
    length = critical_path([a, b, c, d])
    assert [length[stage.fingerprint] for stage in (a, b, c, d)] == [14, 13, 5, 3]


def test_an_absent_input_is_only_computed_if_something_needs_it(store):
    stages = build(**FAST)
    execute(stages, store)
    shutil.rmtree(store.path("train", stages[1].fingerprint))
    merge = [stages[-1]]
    assert make_plan(merge, store).todo == ()
    assert make_plan(merge, store).states[stages[1].fingerprint] == "not needed"
    other = build(**FAST, fates=("finish",) * 4)[4]
    assert [s.label for s in make_plan([*merge, other], store).todo] == ["train 3"]
    shutil.rmtree(store.path("merge", stages[-1].fingerprint))
    assert [s.label for s in make_plan(merge, store).todo] == ["train 0", "merge"]
    assert execute(merge, store).computed == 2


def test_changed_settings_under_one_experiment_name_are_stale(store):
    old = build(**FAST)
    assert find_stale("exp", old, store) == {}
    execute(old, store)
    store.record("exp", snapshot(old))
    check_not_stale("exp", old, store)
    new = build(steps=9, pause_s=0.0)
    stale = find_stale("exp", new, store)
    assert set(stale) == {"train 0", "train 1", "train 2", "merge"}
    assert "steps 8 -> 9" in stale["train 1"]
    assert "input train0 changed" in stale["merge"]
    with pytest.raises(StoreError, match=r"(?s)'exp'.*steps 8 -> 9.*--accept-changes"):
        check_not_stale("exp", new, store)
    fewer = build(**FAST, fates=("finish",) * 2)
    assert find_stale("exp", fewer, store)["train 2"] == "is no longer part of the experiment"


# --- execution ------------------------------------------------------------------------------------


def test_results_do_not_depend_on_the_number_of_workers(tmp_path):
    found = []
    for workers in (0, 1, 2, 3):
        store = Store(tmp_path / f"runs{workers}")
        summary = execute(build(**FAST), store, workers=workers)
        assert (summary.computed, summary.reused) == (5, 0)
        found.append(contents(store.root))
    assert len(found[0]) == 8
    assert all(other == found[0] for other in found[1:])


def test_what_is_done_is_not_computed_again(store):
    assert states(build(**FAST), store) == ["missing"] * 5
    assert execute(build(**FAST), store).computed == 5
    assert states(build(**FAST), store) == ["done"] * 5
    assert execute(build(**FAST), store).computed == 0
    longer = build(**FAST, fates=("finish",) * 4)
    assert execute(longer, store, workers=2).computed == 2


def test_workers_are_other_processes_with_the_threads_asked_for(store):
    stages = build(**FAST, fates=("pid", "pid"))
    before = dict(os.environ)
    execute(stages, store, RuntimeConfig(threads=3), workers=2)
    assert dict(os.environ) == before
    for stage in stages[1:3]:
        artefact = store.open("train", stage.fingerprint)
        assert load_json(artefact.path / "pid.json") != os.getpid()
        assert load_json(artefact.path / "summary.json")["omp"] == "3"
        assert artefact.manifest["threads"] == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_stage_costs_only_what_needs_it(store, workers):
    stages = build(**FAST, fates=("diverge", "finish", "finish"))
    after = dataclasses.replace(stages[-1], label="after", upstream={"train": stages[-1]})
    with pytest.raises(StageError) as caught:
        execute([*stages, after], store, workers=workers)
    message = str(caught.value)
    assert "stage 'train 0' failed: loss = nan at step 3; lower lr" in message
    assert "not run because of it: 'merge', 'after'\n" in message
    assert "3 other stages finished and are kept" in message
    assert "Traceback" not in message
    assert isinstance(caught.value.__cause__, DivergenceError)
    assert states(stages, store) == ["done", "missing", "done", "done", "missing"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bug_in_a_stage_keeps_its_traceback(store, workers):
    with pytest.raises(StageError) as caught:
        execute(build(**FAST, fates=("bug", "finish", "diverge")), store, workers=workers)
    message = str(caught.value)
    assert "stage 'train 0' failed: ZeroDivisionError: division by zero" in message
    assert "in run_train" in message
    assert "stage 'train 2' failed: loss = nan" in message
    assert {failure.title for failure in caught.value.failures} == {"train 0", "train 2"}


@pytest.mark.parametrize(
    ("fate", "words"),
    [("killed", ["signal 9", "fewer --workers"]), ("exit", ["its process died (exit code 3)"])],
)
def test_a_worker_that_dies_is_reported_and_replaced(store, fate, words):
    stages = build(**FAST, fates=(fate, "finish", "finish"))
    with pytest.raises(StageError) as caught:
        execute(stages, store, workers=2)
    for word in ("stage 'train 0' failed", *words):
        assert word in str(caught.value)
    assert states(stages, store) == ["done", "missing", "done", "done", "missing"]
    assert not store.is_running("train", stages[1].fingerprint)


class UnpicklableError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class Losing(Here):
    """An executor whose place is lost a number of times with every task that it has."""

    def __init__(self, store, losses):
        super().__init__(store)
        self.losses = losses

    def events(self, timeout_s):
        if self._task is not None and self.losses > 0:
            self.losses -= 1
            task, self._task = self._task, None
            yield Lost(task.identity.fingerprint, "its node was lost")
        else:
            yield from super().events(timeout_s)


def test_a_task_whose_place_is_lost_is_tried_again_three_times(store):
    stages = build(**FAST, fates=("finish",))
    stream = io.StringIO()

    def run(losses):
        def connect(store, runtime, plan):
            return Losing(store, losses)

        return execute(stages, store, connect=connect, reporter=TextReporter(stream))

    with pytest.raises(
        StageError, match=r"'source' failed: its node was lost, 4 times; running the"
    ):
        run(4)
    assert stream.getvalue().count("again  source: its node was lost\n") == 3
    assert run(3).computed == 3


def raise_unpicklable(context):
    raise UnpicklableError("this", "that")


def test_an_exception_that_cannot_be_pickled_still_arrives(store):
    stages = build(**FAST, fates=("finish",))
    odd = dataclasses.replace(stages[0], name="odd", label="odd", run=raise_unpicklable)
    with pytest.raises(StageError, match=r"(?s)'odd' failed: .*UnpicklableError: this and that"):
        execute([odd, stages[-1]], store, workers=2)
    assert states(stages, store) == ["done"] * 3


def test_a_function_that_cannot_travel_is_named(store):
    stages = build(**FAST, fates=("finish",))
    local = dataclasses.replace(stages[0], name="local", label="local", run=lambda context: None)
    with pytest.raises(StageError, match=r"(?s)'local' failed.*top of a module"):
        execute([local, *stages], store, workers=2)
    assert states(stages, store) == ["done"] * 3


def fill_the_disk(context):
    import errno

    from overopt.base.files import os_errors

    with os_errors(context.out):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(context.out / "x"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_stops_the_run(store, workers):
    stages = build(**FAST)
    full = dataclasses.replace(stages[0], run=fill_the_disk, name="full", label="full", cost_s=99)
    users = [dataclasses.replace(s, upstream={"source": full}) for s in stages[1:3]]
    with pytest.raises(StageError, match=r"'full' failed: .*disk is full.*\n.*train 0"):
        execute([full, *users, stages[0], stages[3]], store, workers=workers)
    if workers == 1:  # two workers may have finished it while the other was failing
        assert not store.has("train", stages[3].fingerprint), "work went on against a full disk"


def test_a_damaged_artefact_stops_the_run_before_it_starts(store):
    stages = build(**FAST)
    execute(stages[:2], store)
    path = store.path("train", stages[1].fingerprint) / "final.npz"
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match=r"final.npz: is damaged"):
        execute(stages, store)
    assert states(stages, store) == ["done", "done", "missing", "missing", "missing"]


def test_too_little_room_stops_the_run_before_it_starts(store):
    stages = [dataclasses.replace(build(**FAST)[0], disk_mb=1e9)]
    with pytest.raises(StoreError, match=r"needs about 1000000200 MB; free some space"):
        execute(stages, store)


@dataclass(frozen=True, kw_only=True)
class Nothing:
    index: int = 0


STARTED: list[str] = []
DEVICES: list[str] = []


def note(context):
    STARTED.append(context.config.index)
    DEVICES.append(context.runtime.device)


def test_longest_remaining_path_goes_first_and_devices_follow_the_flag(store):
    STARTED.clear()
    DEVICES.clear()
    costs = [1.0, 5.0, 3.0]
    stages = [
        Stage(name="n", version=1, config=Nothing(index=i), run=note, cost_s=cost, gpu=i == 2)
        for i, cost in enumerate(costs)
    ]
    last = Stage(
        name="n",
        version=1,
        config=Nothing(index=9),
        run=note,
        cost_s=7.0,
        upstream={"a": stages[0]},
    )
    execute([*stages, last], store, RuntimeConfig(device="meta"))
    assert STARTED == [0, 9, 1, 2]
    assert DEVICES == ["cpu", "cpu", "cpu", "meta"]


@pytest.fixture
def interrupts():
    """Python's own handler of SIGINT, which background jobs of a shell start without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_keeps_what_is_finished_and_resumes(store, workers):
    stages = build(steps=400, pause_s=0.005)

    class InterruptAfterProgress(TextReporter):
        def progress(self, stage, done, total):
            if done > 8:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        execute(stages, store, workers=workers, reporter=InterruptAfterProgress(io.StringIO()))
    assert store.has("source", stages[0].fingerprint)
    assert "in-flight" in states(stages, store)
    assert "running" not in states(stages, store)
    assert list((store.root / ".scratch").iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stage_that_another_run_computes_is_awaited_and_reused(store, tmp_path, workers):
    stages = build(**FAST)
    key = ("train", stages[1].fingerprint)
    elsewhere = Store(tmp_path / "elsewhere")
    execute(stages, elsewhere)
    store.create()
    locked, noticed = threading.Event(), threading.Event()

    def other_run():
        with store.lock(*key) as mine:
            assert mine
            locked.set()
            noticed.wait(30)
            shutil.copytree(elsewhere.path(*key), store.path(*key))

    class Noticing(TextReporter):
        def waiting(self, stage):
            super().waiting(stage)
            noticed.set()

    stream = io.StringIO()
    other = threading.Thread(target=other_run)
    other.start()
    locked.wait(30)
    assert states(stages, store)[1] == "running"
    summary = execute(stages, store, workers=workers, reporter=Noticing(stream))
    other.join()
    assert (summary.computed, summary.reused) == (4, 1)
    assert stream.getvalue().count("wait   train 0 (another process is computing it)") == 1
    assert "reuse  train 0" in stream.getvalue()


# --- progress -------------------------------------------------------------------------------------


class FakeClock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_time_left_scales_costs_by_the_measured_speed():
    stages = build(steps=100, pause_s=0.1)  # trains cost 10 s each
    plan = Plan(stages=tuple(stages), states={stage.fingerprint: "missing" for stage in stages})
    time_ = FakeClock()
    clock = Clock(plan, 2, time_)
    assert clock.seconds_left() == pytest.approx(
        0.01 + 2 * 10 + 0.01
    )  # the third waits for a worker
    clock.finished(stages[0], False)
    clock.started(stages[1])
    time_.now = 20.0
    clock.finished(stages[1], True)  # took twice as long as estimated
    assert clock.seconds_left() == pytest.approx(2 * (10 + 0.01))  # the longest chain
    clock.started(stages[2])
    clock.progress(stages[2], 0.5)  # resumed half-way
    time_.now = 30.0
    clock.progress(stages[2], 0.75)
    # 30 s for 12.5 s of cost; 2.5 + 10 s of cost left on two workers, the longest chain is 10.01.
    assert clock.seconds_left() == pytest.approx(30 / 12.5 * 10.01)


def test_without_a_terminal_lines_come_now_and_then():
    stages = build(steps=100, pause_s=0.1)
    plan = Plan(stages=tuple(stages), states={stage.fingerprint: "missing" for stage in stages})
    stream, time_ = io.StringIO(), FakeClock()
    reporter = TextReporter(stream, time_)
    reporter.begin(plan, 1)
    reporter.started(stages[0])
    reporter.finished(stages[0], True)
    reporter.started(stages[1])
    for step in range(1, 101):
        time_.now += 0.3
        reporter.progress(stages[1], step, 100)
    reporter.finished(stages[1], True)
    reporter.failed(stages[2], ValueError("no\nmore"))
    reporter.end()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("5 of 5 stages to compute on 1 worker, about 30 s")
    assert sum("train 0 (" in line for line in lines) == 2  # at 10 s and at 20 s
    assert any(line.startswith("   34% train 0 (10 s)") for line in lines)
    assert "done   train 0 in 30 s [2/5" in stream.getvalue()
    assert lines[-1] == "FAILED train 1: no"
    assert "\x1b" not in stream.getvalue()


def test_on_a_terminal_lines_are_redrawn_in_place(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stages = build(steps=100, pause_s=0.1)
    plan = Plan(stages=tuple(stages), states={stage.fingerprint: "missing" for stage in stages})
    stream, time_ = Terminal(), FakeClock()
    reporter = TextReporter(stream, time_)
    reporter.begin(plan, 2)
    for stage in stages[1:3]:
        time_.now += 1
        reporter.started(stage)
    for step in range(100):
        time_.now += 0.01
        reporter.progress(stages[1], step, 100)
    text = stream.getvalue()
    assert "\x1b[3F\x1b[J" in text
    assert text.count("train 0 (") < 20, "redrawn more often than ten times a second"
    last = text.split("\x1b[J")[-1].splitlines()
    assert re.match(r"  \[#{22,24}\.{0,2}\]  9\d% train 0 \(", last[0])
    # Of 30.02 s of cost, 9 to 10 are behind: a third of the whole.
    assert re.match(r"  \[#{7,8}\.{16,17}\] 0/5 stages, about", last[-1])
    reporter.end()
    assert stream.getvalue().endswith("\x1b[3F\x1b[J")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
