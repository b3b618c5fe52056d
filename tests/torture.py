"""Runs killed, interrupted and raced at random moments; what must hold afterwards, counted.

``python tests/torture.py [--jobs N] [--seed S] [--only NAME …]`` (``make torture``) makes
these trials on the smoke preset over a small world, N side by side. Runs are forked from a process that
has imported what a run imports, which is half of their time; `Run` says how.

- *kill*, 100: SIGKILL to a whole run, 1 or 2 workers, at a moment in one of its stages or in
  the collection of records, each as likely; the run that goes on ends with the records and with every
  file of the store of a run that nobody disturbed.
- *worker*, 10: SIGKILL to one worker process; the run ends by itself or says which stage is lost, and
  then as in *kill*.
- *SIGTERM* 10, *SIGINT* 10, *SIGHUP* 5: to a run or its group; its exit status is 128 + signal, no
  process is left, its records are those of finished curves, and the next run ends as in *kill*.
- *collect*, 5 times 10 kills: SIGKILL to a process that collects records over and over; the results
  directory holds the old records or the new ones, whole, each time.
- *race of 2*, *race of 4*, 50 each: processes that write a part of an experiment each into one results
  directory, let go at the same moment; no curve is lost.
- *planted*: the same races without the lock; curves must be lost, or the races would prove nothing.
- *parts*, 2: two and four ``overopt run --part`` side by side on one results directory.

Prints for each what was tried, what failed, wall time and CPU time; exit status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import importlib
import json
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from small_smoke import prompts_file

from overopt.base.errors import OveroptError
from overopt.records.results import held_results, transaction

SMALLER = [
    "gold.n_prompts=4", "proxy.backbone=ladder:0.05m", "labels.n_pairs=60", "bon.n_prompts=2",
    "bon.pool_size=32", "bon.ns=1,8,32", "method.batch=8", "method.eval_prompts=4",
]  # fmt: skip
COMPARED = ("records.jsonl", "curves.npz", "tilt.jsonl", "samples.jsonl", "shown.json")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
COLLECTING_S = 0.6
"""How long a run takes from its last artefact to its last record: kills are drawn over that too."""
TRIES = 12
"""How often a trial is repeated whose kill came when the run had ended already."""
PARTS = """
from dataclasses import replace
from overopt.stages.settings import Experiment
from overopt.study.presets import load_experiment

def build():
    base = load_experiment("smoke", {settings!r}).runs[0]
    return Experiment(name="parts", runs=tuple(
        replace(base, proxy=replace(base.proxy, rm_seed=i)) for i in range(4)
    ))
"""
COLLECTING = """
import sys
from pathlib import Path
from overopt.engine.store import Store
from overopt.study.collect import collect
from overopt.study.presets import load_experiment
from overopt.study.chain import build_graph
experiment = load_experiment("smoke", sys.argv[3:])
build_graph(experiment)
print("ready", flush=True)
while True:
    collect(experiment, Store(Path(sys.argv[1])), Path(sys.argv[2]))
"""


WARM = """
import atexit, json, runpy, sys
file = sys.argv[1]
sys.argv[:2] = ["overopt"]
atexit.register(lambda: open(file, "w").write(json.dumps([*sys.modules])))
runpy.run_module("overopt", run_name="__main__", alter_sys=True)
"""
RACING = """
import contextlib, sys
from pathlib import Path
from overopt.engine.store import Store
from overopt.study import collect
from overopt.study.chain import build_graph
from overopt.study.presets import load_experiment
experiment = load_experiment(sys.argv[1], [])
build_graph(experiment)
if int(sys.argv[3]):
    collect.transaction = lambda folder: contextlib.nullcontext(folder.mkdir(exist_ok=True))
print("ready", flush=True)
for line in sys.stdin:
    try:
        collect.collect(experiment, Store(Path(sys.argv[2])), Path(line.strip()), partial=True)
        print("done", flush=True)
    except Exception as error:
        print("failed:", repr(error), flush=True)
"""


class Run:
    """An overopt command in a session of its own: a new Python, or a fork of this one if ``warm``.

    A fork runs the same module as ``python -m overopt`` does, and leaves through the end of this
    interpreter: nobody between here and the top may catch SystemExit.
    """

    def __init__(self, args: list[str], errors: Path, *, warm: bool) -> None:
        self.errors, self.returncode = errors, None
        if not warm:
            with open(errors, "w") as file:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "overopt", *args],
                    start_new_session=True, stdout=subprocess.DEVNULL, stderr=file,
                )  # fmt: skip
            self.pid = self._process.pid
            return
        self._process = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            for number, (path, how) in enumerate(
                (
                    (os.devnull, os.O_RDONLY),
                    (os.devnull, os.O_WRONLY),
                    (errors, os.O_WRONLY | os.O_CREAT),
                )
            ):
                os.dup2(os.open(path, how, 0o600), number)
            sys.argv = ["overopt", *args]
            runpy.run_module("overopt", run_name="__main__", alter_sys=True)
            sys.exit(0)

    def poll(self) -> int | None:
        """Exit status, minus the signal that ended it; None while it runs."""
        if self._process is not None:
            self.returncode = self._process.poll()
        elif self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout_s: float = 1200.0) -> str:
        """Wait for its end; returns what it wrote to standard error."""
        end = time.monotonic() + timeout_s
        while self.poll() is None:
            assert time.monotonic() < end, f"no end within {timeout_s:.0f} s"
            time.sleep(0.005)
        return self.errors.read_text(errors="replace")


class Trials:
    """A place for trials: settings, a run that nobody disturbed, and when its stages were done."""

    def __init__(self, folder: Path, seed: int = 0, *, warm: bool = False) -> None:
        obey_signals()
        self.folder, self.seed, self.warm = folder, seed, False
        self.settings = [prompts_file(folder / "prompts.jsonl"), *SMALLER]
        self.whole = folder / "whole"
        self.whole.mkdir()
        if warm:
            self.warm_up()
        self.finish(self.start(self.whole, 1))
        begun = (self.whole / "store" / "store.json").stat().st_mtime
        done = (file.stat().st_mtime for file in manifests(self.whole))
        self.done_s = sorted(max(0.0, time - begun) for time in done)

    def warm_up(self) -> None:
        """Import what a run imports, found out by one that says so; later runs are forks."""
        place = self.fresh("warm", 0)
        with place as (folder, _):
            args = self.smoke(folder, 1)
            subprocess.run([sys.executable, "-c", WARM, str(folder / "m"), *args], check=True)
            for name in json.loads((folder / "m").read_text()):
                with contextlib.suppress(Exception):  # some are there for other systems
                    importlib.import_module(name)
        self.warm = True

    def smoke(self, place: Path, workers: int) -> list[str]:
        """The arguments of a run into ``place``."""
        return [
            "run", "smoke", *self.settings, "--workers", str(workers), "--quiet",
            "--store", str(place / "store"), "--results", str(place / "results"),
        ]  # fmt: skip

    def start(self, place: Path, workers: int) -> Run:
        """``overopt run smoke`` into ``place``, in a process group of its own."""
        return Run(self.smoke(place, workers), place / "errors.txt", warm=self.warm)

    def finish(self, process: Run) -> None:
        """Wait for a command that must succeed."""
        errors = process.wait()
        assert process.returncode == 0, errors

    def check_whole(self, place: Path) -> None:
        """Finish the run in ``place``; it must equal the one that nobody disturbed."""
        self.finish(self.start(place, 1))
        for name in COMPARED:
            mine, expected = place / "results" / name, self.whole / "results" / name
            assert mine.read_bytes() == expected.read_bytes(), f"{name} differs"
        assert artefacts(place) == artefacts(self.whole), "artefacts differ"
        for left in (".scratch", ".inflight", ".locks"):
            assert list((place / "store" / left).iterdir()) == [], f"{left} is not empty"

    @contextlib.contextmanager
    def fresh(self, kind: str, i: int) -> Iterator[tuple[Path, random.Random]]:
        """An empty place for the ``i``-th trial of a kind, and its random numbers."""
        place = self.folder / f"{kind}-{i}"
        place.mkdir()
        yield place, random.Random(f"{self.seed} {kind} {i}")
        shutil.rmtree(place)  # what failed stays, for a look at it

    def wait(self, process: Run, place: Path, moment_s: float) -> bool:
        """Wait until a run is where the undisturbed one was ``moment_s`` after its beginning.

        Finished stages are counted, so that a busy machine moves the moment by less than a stage.
        Returns whether the run is still going.
        """
        n = bisect.bisect_right(self.done_s, moment_s)
        while process.poll() is None and not (
            (place / "store" / "store.json").exists() and len(manifests(place)) >= n
        ):
            time.sleep(0.005)
        end = time.monotonic() + moment_s - (self.done_s[n - 1] if n else 0.0)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        return process.poll() is None

    def moment(self, rng: random.Random, *, collecting: bool = False) -> float:
        """A moment in one of the stages, each as likely, or in the collection of records."""
        times = [0.0, *self.done_s, self.done_s[-1] + COLLECTING_S]
        n = rng.randrange(len(self.done_s) + collecting)
        return rng.uniform(times[n], times[n + 1])

    def kill(self, i: int) -> str:
        """See *kill* above; returns where it hit."""
        for again in range(TRIES):
            with self.fresh("kill", TRIES * i + again) as (place, rng):
                process = self.start(place, 1 + i % 2)
                hit = self.wait(process, place, self.moment(rng, collecting=True))
                if hit:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                done = len(manifests(place))
                self.check_whole(place)
                if hit:
                    return f"after {done} of {len(self.done_s)} stages"
        raise AssertionError("no kill hit a run at work")

    def worker(self, i: int) -> str:
        """See *worker* above; returns how the run took it."""
        for again in range(TRIES):
            with self.fresh("worker", TRIES * i + again) as (place, rng):
                process = self.start(place, 2)
                hit = self.wait(process, place, self.moment(rng))
                victims = workers_of(process.pid) if hit else []
                if victims:
                    os.kill(rng.choice(victims), signal.SIGKILL)
                errors = process.wait()
                assert process.returncode == 0 or (
                    process.returncode == 1 and "was killed" in errors
                ), f"status {process.returncode}: {errors}"
                self.check_whole(place)
                if victims:
                    return f"status {process.returncode}"
        raise AssertionError("no kill hit a worker")

    def signal(self, number: signal.Signals, i: int) -> str:
        """See *SIGTERM* above; returns the status."""
        for again in range(TRIES):
            with self.fresh(number.name, TRIES * i + again) as (place, rng):
                status = self._signal(number, place, rng, workers=1 + i % 2)
                self.check_whole(place)
                if status == 128 + number:
                    return f"status {status}"
        raise AssertionError("no signal hit a run at work")

    def _signal(self, number: signal.Signals, place: Path, rng: random.Random, workers: int) -> int:
        process = self.start(place, workers)
        if self.wait(process, place, self.moment(rng)):
            with contextlib.suppress(ProcessLookupError):
                rng.choice((os.kill, os.killpg))(process.pid, number)
        errors = process.wait(300)
        # Before the first stage and at the very end a signal may end Python itself.
        status = process.returncode
        assert status in (128 + number, 0, -number), f"status {status}: {errors}"
        assert "Traceback" not in errors, errors
        if status == 128 + number:
            assert "running the same command again" in errors, errors
        deadline = time.monotonic() + 5
        while living(process.pid):
            assert time.monotonic() < deadline, "a process is left"
            time.sleep(0.05)
        if (place / "results").exists():
            held_results(place / "results")
        return status

    def collect(self, i: int, kills: int = 10) -> str:
        """See *collect* above."""
        expected = held_results(self.whole / "results").run_ids
        seen = 0
        with self.fresh("collect", i) as (place, rng):

            def found() -> bool:
                return any((place / "r" / name).exists() for name in ("records.jsonl", ".decided"))

            for k in range(kills):
                process = subprocess.Popen(
                    [sys.executable, "-c", COLLECTING, str(self.whole / "store"),
                     str(place / "r"), *self.settings],
                    stdout=subprocess.PIPE,
                )  # fmt: skip
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                end = time.monotonic() + 60
                while k > 0 and not found() and time.monotonic() < end:
                    time.sleep(0.01)  # all but the first fall upon records, however slow it is
                time.sleep(rng.uniform(0, 0.3))
                process.kill()
                process.communicate()
                if found():
                    seen += 1
                    with transaction(place / "r"):  # finishes what the killed one had decided on
                        assert held_results(place / "r").run_ids == expected, "curves are lost"
        return f"{kills} kills, {seen} found records"

    def parts(self) -> Path:
        """An experiment file of four runs; beside it the store that it filled, and its records."""
        folder = self.folder / "parts"
        file = folder / "parts.py"
        if not file.exists():
            folder.mkdir()
            settings = [s for s in self.settings if not s.startswith(("gold.", "method."))]
            settings += ["gold.kind=rubric", "method=none"]
            file.write_text(PARTS.format(settings=settings))
            places = ["--store", str(folder / "store"), "--results", str(folder / "results")]
            args = ["run", str(file), *places, "--quiet", "--workers", "1"]
            self.finish(Run(args, folder / "errors.txt", warm=self.warm))
        return file

    def stores(self, writers: int) -> list[Path]:
        """A store for each writer, with the curves of its part of the runs and no others."""
        folder = self.parts().parent
        run_ids = [row["run_id"] for row in held_results(folder / "results").records]
        curves = list(dict.fromkeys(run_ids))
        made = []
        for part in range(writers):
            own = folder / f"store-{part + 1}-of-{writers}"
            if not own.exists():
                shutil.copytree(folder / "store", own)
                share = len(curves) // writers
                for other in set(curves) - set(curves[part * share : (part + 1) * share]):
                    shutil.rmtree(own / "bon" / other)
            made.append(own)
        return made

    def race(self, writers: int, times: int = 50, *, planted: bool = False) -> int:
        """See *race* above: each writes its part, all let go at once; returns in how many of
        ``times`` races curves were lost.

        ``planted``: without the lock that such writers take.
        """
        stores, file = self.stores(writers), self.parts()
        expected = held_results(file.parent / "results").run_ids
        lost = 0
        with self.fresh(f"race-{planted}", writers) as (place, _):
            running = [
                subprocess.Popen(
                    [sys.executable, "-c", RACING, str(file), str(store), str(int(planted))],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
                for store in stores
            ]  # fmt: skip
            assert all(say(process) == "ready" for process in running)
            for i in range(times):
                for process in running:
                    assert process.stdin is not None
                    process.stdin.write(f"{place / str(i)}\n")
                    process.stdin.flush()
                said = [say(process) for process in running]
                assert planted or said == ["done"] * writers, said
                try:
                    lost += held_results(place / str(i)).run_ids != expected
                except OveroptError:
                    assert planted
                    lost += 1
            for process in running:
                process.communicate()
        return lost

    def commands(self, writers: int) -> str:
        """See *parts* above."""
        stores, file = self.stores(writers), self.parts()
        with self.fresh("parts", writers) as (place, _):
            running = [
                Run(["run", str(file), "--store", str(store), "--results", str(place / "r"),
                     "--quiet", "--workers", "1", "--part", f"{i}/{writers}"],
                    place / f"errors-{i}.txt", warm=self.warm)
                for i, store in enumerate(stores, start=1)
            ]  # fmt: skip
            for process in running:
                self.finish(process)
            expected = held_results(file.parent / "results").run_ids
            assert held_results(place / "r").run_ids == expected, "curves are lost"
        return f"{writers} writers"


def say(process: subprocess.Popen[str]) -> str:
    """The next line of a process."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def obey_signals() -> None:
    """Undo what a shell does to what it starts in the background: children would ignore it too."""
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def manifests(place: Path) -> list[Path]:
    """Of the artefacts that are finished."""
    return list((place / "store").glob("[a-z]*/*/manifest.json"))


def artefacts(place: Path) -> dict[str, bytes]:
    """Every file of every artefact but the manifests, which tell of times and processes."""
    store = place / "store"
    return {
        str(file.relative_to(store)): file.read_bytes()
        for file in store.glob("[a-z]*/*/*")
        if file.name != "manifest.json"
    }


def processes() -> Iterator[tuple[int, list[str]]]:
    """Process id and fields from the third on (state, parent, group, session …) of all that live."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended a moment ago
            continue
        if fields[0] != "Z":
            yield int(stat.parent.name), fields


def living(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    return [pid for pid, fields in processes() if int(fields[3]) == session]


def workers_of(run: int) -> list[int]:
    """Worker processes of a run."""
    found = []
    for pid, fields in processes():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if int(fields[1]) == run and b"spawn_main" in command:
                found.append(pid)
    return found


@dataclass
class Part:
    """One kind of trial, and how often."""

    name: str
    times: int
    trial: Callable[[int], object]

    def carry_out(self, folder: Path, jobs: int) -> int:
        """All trials, ``jobs`` side by side; returns how many failed."""
        started, before = time.monotonic(), cpu_s()
        children = [
            self._fork(folder / f"job-{job}", range(job, self.times, jobs)) for job in range(jobs)
        ]
        for child in children:
            os.waitpid(child, 0)
        told = [json.loads(line) for job in range(jobs)
                for line in (folder / f"job-{job}").read_text().splitlines()]  # fmt: skip
        failures = [text for failed, text in told if failed] + ["no answer"] * (
            self.times - len(told)
        )
        said = dict(sorted(Counter(text for failed, text in told if not failed).items()))
        sys.stdout.write("".join(f"FAILED {self.name} {f}\n" for f in failures))
        sys.stdout.write(
            f"{self.name}: {self.times} trials, {len(failures)} failures,"
            f" {time.monotonic() - started:.0f} s, {cpu_s() - before:.0f} s of CPU time; {said}\n"
        )
        sys.stdout.flush()
        return len(failures)

    def _fork(self, answers: Path, numbers: range) -> int:
        """A process that makes some of the trials, one after the other."""
        sys.stdout.flush()
        child = os.fork()
        if child:
            return child
        with open(answers, "w") as file:
            for i in numbers:
                try:
                    answer = False, str(self.trial(i))
                except Exception as error:
                    answer = True, f"{i}: {type(error).__name__}: {error}"
                file.write(json.dumps(answer) + "\n")
                file.flush()
        os._exit(0)


def cpu_s() -> float:
    """CPU time of this process and of its ended children; killed workers are in nobody's account."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def must_lose(lost: int) -> str:
    """What races without the lock must show."""
    assert lost > 0, "races without the lock lost nothing: they prove nothing"
    return f"curves lost in {lost} of 50 races"


def must_keep(lost: int) -> str:
    """What races with the lock must show."""
    assert lost == 0, f"curves lost in {lost} races"
    return "nothing lost in 50 races"


def all_parts(trials: Trials) -> list[Part]:
    """Everything that the long mode does."""
    return [
        Part("race of 2", 1, lambda _: must_keep(trials.race(2))),
        Part("race of 4", 1, lambda _: must_keep(trials.race(4))),
        Part("planted of 2", 1, lambda _: must_lose(trials.race(2, planted=True))),
        Part("planted of 4", 1, lambda _: must_lose(trials.race(4, planted=True))),
        Part("parts", 2, lambda i: trials.commands(2 + 2 * i)),
        Part("collect", 5, trials.collect),
        Part("worker", 10, trials.worker),
        Part("SIGTERM", 10, lambda i: trials.signal(signal.SIGTERM, i)),
        Part("SIGINT", 10, lambda i: trials.signal(signal.SIGINT, i)),
        Part("SIGHUP", 5, lambda i: trials.signal(signal.SIGHUP, i)),
        Part("kill", 100, trials.kill),
    ]


def main() -> int:
    """The long mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    args = parser.parse_args()
    started = time.monotonic()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a disk would be what is timed
    folder = tempfile.mkdtemp(prefix="torture-", dir=memory)
    trials = Trials(Path(folder), args.seed, warm=True)
    parts = [p for p in all_parts(trials) if not args.only or p.name in args.only]
    failed = sum(part.carry_out(Path(folder), args.jobs) for part in parts)
    sys.stdout.write(f"{failed} failures in {time.monotonic() - started:.0f} s\n")
    if failed:
        sys.stdout.write(f"what failed is in {folder}\n")
    else:
        shutil.rmtree(folder)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
