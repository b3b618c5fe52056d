"""Runs killed, interrupted and raced at random moments; what must hold afterwards, counted.

``python tests/torture.py [--minutes M] [--seed S]`` (``make torture``: 30 minutes) repeats four trials
in turn, on the smoke preset over a small world, until the time is up:

- *kill*: SIGKILL to a whole run, 1 or 2 workers, at a moment drawn over its length; at the end its
  records and every file of its store are those of a run that nobody disturbed.
- *collect*: SIGKILL to a process that collects records over and over; the results directory holds
  the old records or the new ones, whole, each time.
- *signal*: SIGTERM, SIGINT or SIGHUP to a run or its group; its exit status is 128 + signal, no process
  is left, its records are those of finished curves, and the next run ends as in *kill*.
- *race*: two and four runs with a ``--part`` each, a store each and one results directory at the same
  time; no curve is lost.

Prints what was tried and what failed; exit status 1 if anything did.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from small_smoke import prompts_file

from overopt.records.results import held_results

SMALLER = ["proxy.backbone=ladder:0.05m", "gold.n_prompts=8", "bon.pool_size=32", "bon.ns=1,8,32"]
COMPARED = ("records.jsonl", "curves.npz", "tilt.jsonl")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
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


class Trials:
    """A place for trials: settings, a run that nobody disturbed, and how long it took."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.settings = [prompts_file(folder / "prompts.jsonl"), *SMALLER]
        self.whole = folder / "whole"
        started = time.monotonic()
        self.finish(self.start(self.whole, 2))
        self.length_s = time.monotonic() - started
        self.starting_s = 0.4 * min(self.length_s, 8.0)

    def start(self, place: Path, workers: int) -> subprocess.Popen[str]:
        """``overopt run smoke`` into ``place``, in a process group of its own."""
        options = ["--workers", str(workers), "--quiet"]
        return self.command(
            "run", "smoke", *self.settings, *options,
            "--store", str(place / "store"), "--results", str(place / "results"),
        )  # fmt: skip

    def command(self, *args: str) -> subprocess.Popen[str]:
        """An overopt command, in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "overopt", *args],
            start_new_session=True,
            preexec_fn=obey_signals,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> None:
        """Wait for a command that must succeed."""
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors

    def check_whole(self, place: Path) -> None:
        """Finish the run in ``place``; it must equal the one that nobody disturbed."""
        self.finish(self.start(place, 2))
        for name in COMPARED:
            mine, expected = place / "results" / name, self.whole / "results" / name
            assert mine.read_bytes() == expected.read_bytes(), f"{name} differs"
        assert artefacts(place) == artefacts(self.whole), "artefacts differ"
        for left in (".scratch", ".inflight", ".locks"):
            assert list((place / "store" / left).iterdir()) == [], f"{left} is not empty"

    def fresh(self) -> Path:
        """An empty place for a trial."""
        place = self.folder / "trial"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def kill(self, kills: int = 3) -> int:
        """See *kill* above; returns how many kills hit a run at work."""
        place, hit = self.fresh(), 0
        for _ in range(kills):
            process = self.start(place, self.rng.choice((1, 2)))
            end = time.monotonic() + self.starting_s + self.rng.uniform(0, 1) * self.length_s / 2
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            hit += process.poll() is None
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        self.check_whole(place)
        return hit

    def collect(self, kills: int = 10) -> int:
        """See *collect* above."""
        place = self.fresh()
        expected = {row["run_id"] for row in held_results(self.whole / "results").records}
        for _ in range(kills):
            process = subprocess.Popen(
                [sys.executable, "-c", COLLECTING, str(self.whole / "store"), str(place / "r"),
                 *self.settings],
                stdout=subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(self.rng.uniform(0, 0.3))
            process.kill()
            process.communicate()
            if (place / "r" / "records.jsonl").exists():
                held = held_or_recovered(place / "r")
                assert held == expected, "curves are lost"
        return kills

    def signal(self) -> int:
        """See *signal* above."""
        place = self.fresh()
        number = self.rng.choice(SIGNALS)
        process = self.start(place, self.rng.choice((1, 2)))
        scratch = place / "store" / ".scratch"
        while process.poll() is None and not (scratch.is_dir() and any(scratch.glob("*-*"))):
            time.sleep(0.01)
        time.sleep(self.rng.uniform(0, 0.6) * self.length_s)
        ended = process.poll() is not None
        if not ended:
            send = self.rng.choice((os.kill, os.killpg))
            send(process.pid, number)
        _, errors = process.communicate(timeout=120)
        # At the very end, when the work is done, a signal may come too late, or end Python itself.
        status = process.returncode
        assert status in (128 + number, 0, -number), f"status {status}: {errors}"
        assert "Traceback" not in errors, errors
        if status == 128 + number:
            assert "running the same command again" in errors
        deadline = time.monotonic() + 5
        while living(process.pid):
            assert time.monotonic() < deadline, "a process is left"
            time.sleep(0.05)
        if (place / "results").exists():
            held_results(place / "results")
        self.check_whole(place)
        return int(status == 128 + number)

    def race(self, writers: int) -> int:
        """See *race* above; the stores are filled once, so that all collect at about one time."""
        file = self.folder / "parts.py"
        settings = [s for s in self.settings if not s.startswith("gold.")]
        settings += ["gold.kind=rubric", "method=none"]
        file.write_text(PARTS.format(settings=settings))
        filled = self.folder / "filled"
        if not filled.exists():
            self.finish(self.command("run", str(file), "--store", str(filled), "--quiet",
                                     "--results", str(self.folder / "parts")))  # fmt: skip
        place = self.fresh()
        running = [
            self.command("run", str(file), "--store", str(filled), "--results", str(place / "r"),
                         "--quiet", "--workers", "1", "--part", f"{i}/{writers}")
            for i in range(1, writers + 1)
        ]  # fmt: skip
        for process in running:
            self.finish(process)
        expected = {row["run_id"] for row in held_results(self.folder / "parts").records}
        lost = expected - held_results(place / "r").run_ids
        assert not lost, f"{len(lost)} of {len(expected)} curves are lost"
        return writers


def obey_signals() -> None:
    """In a child: a shell in the background ignores SIGINT, and its children would too."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def held_or_recovered(folder: Path) -> set[str]:
    """Curves in ``folder``, after what a killed writer had decided on was finished."""
    from overopt.records.results import transaction

    with transaction(folder):
        return held_results(folder).run_ids


def artefacts(place: Path) -> dict[str, bytes]:
    """Every file of every artefact but the manifests, which tell of times and processes."""
    store = place / "store"
    return {
        str(file.relative_to(store)): file.read_bytes()
        for file in store.glob("[a-z]*/*/*")
        if file.name != "manifest.json"
    }


def living(session: int) -> list[str]:
    """Processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def main() -> int:
    """The long mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    tried: dict[str, list[int]] = {}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder), args.seed)
        kinds: dict[str, Callable[[], int]] = {
            "kill": trials.kill,
            "collect": trials.collect,
            "signal": trials.signal,
            "race of 2": lambda: trials.race(2),
            "race of 4": lambda: trials.race(4),
        }
        while time.monotonic() < end:
            for name, trial in kinds.items():
                if time.monotonic() >= end:
                    break
                try:
                    tried.setdefault(name, []).append(trial())
                except AssertionError as error:
                    failed += 1
                    sys.stdout.write(f"FAILED {name}: {error}\n")
        for name, hits in tried.items():
            sys.stdout.write(f"{name}: {len(hits)} trials, {sum(hits)} hits\n")
    sys.stdout.write(f"{failed} failures\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
