"""Workers of a real SLURM killed, requeued, preempted and stopped at random moments; what must hold.

``python tests/slurm_trials.py [--trials N] [--seed S] [KIND ...]`` starts a SLURM of two nodes on this
machine (root; Debian's slurm-wlm and munge) and repeats six trials in turn, on four small runs, one with
PPO:

- *worker*: SIGKILL to a worker and its stage;
- *node*: SIGKILL to the slurmd of a node, which is then marked down while its processes live on;
- *requeue*: ``scontrol requeue`` of a running task;
- *preempt*: a job of a higher partition takes a whole node;
- *submitter*: SIGKILL to ``overopt submit``, which is then given again;
- *zombie*: SIGSTOP to all processes of a task until another has taken its stage, then SIGCONT.

After each the records are those of one serial run, byte for byte, and no artefact was committed twice:
neither by what the logs say, nor by the files, which are watched. Prints what was tried, how often it
hit a run at work, and what failed; exit status 1 if anything did.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from small_smoke import prompts_file

from overopt.base.files import load_json, save_json
from overopt.engine import attempts
from overopt.engine.store import Store

SCRIPT = Path(__file__).parent / "cluster" / "slurm.sh"
RESULTS = ("records.jsonl", "curves.npz", "tilt.jsonl")
SMALL = ["gold.kind=rubric", "proxy.backbone=ladder:0.05m", "labels.n_pairs=60",
         "labels.n_validation_prompts=6", "proxy.epochs=1", "bon.n_prompts=3", "bon.pool_size=16",
         "bon.ns=1,4,16"]  # fmt: skip
PPO = ["method.steps=40", "method.batch=4", "method.eval_prompts=4", "method.eval_every=20"]
FOUR = """
from dataclasses import replace
from overopt.stages.settings import Experiment
from overopt.study.presets import load_experiment

def build():
    small, ppo = {small!r}, {ppo!r}
    plain = load_experiment("smoke", small + ["method=none"]).runs[0]
    with_ppo = load_experiment("smoke", small + ppo).runs[0]
    return Experiment(name="four", runs=tuple(
        replace(base, proxy=replace(base.proxy, rm_seed=i))
        for i, base in enumerate((with_ppo, plain, plain, plain))
    ))
"""
TWO_NODES = ("--array", "2", "--cpus", "3", "--workers", "1")  # of the 4 cores that each node has
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}
LEASE_S = 3.0


@contextlib.contextmanager
def cluster(root: Path) -> Iterator[None]:
    """SLURM on two nodes of this machine, bound to the loopback address, with its files in ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    for folder in (root, *root.parents):  # munged runs as another user
        if not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(0o755)
    os.environ["SLURM_CONF"] = str(root / "slurm.conf")
    try:
        subprocess.run([SCRIPT, "up", root], check=True, timeout=300)
        yield
    finally:
        subprocess.run([SCRIPT, "down", root], timeout=300)
        del os.environ["SLURM_CONF"]


def overopt(*words: object, status: int = 0) -> str:
    """Output of an overopt command, which must end with that status."""
    command = [sys.executable, "-m", "overopt", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_serially(place: Path, what: list[str]) -> None:
    """``overopt run`` in one process; results are in ``place``."""
    overopt("run", *what, *places(place), "--workers", "1", "--quiet")


def places(place: Path) -> list[str]:
    return ["--store", str(place / "store"), "--results", str(place / "results")]


def slurm(*words: str) -> str:
    """Output of a command of SLURM."""
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


def submit(place: Path, what: list[str], *options: str) -> dict:
    """Submit an experiment; returns what is known of the jobs."""
    overopt("submit", "slurm", *what, *places(place), "--minutes", "30", *options)
    (file,) = (place / "store" / ".slurm").glob("*/jobs.json")
    return load_json(file)


def jobs(*ids: str) -> dict[str, str]:
    """State by job, of those that SLURM still knows."""
    lines = slurm("squeue", "-h", "-r", "-o", "%i %T", "-t", "all").splitlines()
    known = dict(line.split() for line in lines)
    return {job: state for job, state in known.items() if job.split("_")[0] in ids}


def wait_for(
    condition: Callable[[], object], patience_s: float = 600.0, *, pause_s: float = 0.3
) -> None:
    """Wait until a condition holds, which is asked every ``pause_s`` seconds."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, slurm("squeue", "-t", "all")
        time.sleep(pause_s)


def hasten(*ids: str) -> None:
    """Start jobs now that were queued again: SLURM holds them for two minutes."""
    for line in slurm("squeue", "-h", "-r", "-t", "PD", "-o", "%i %r").splitlines():
        job, reason = line.split(maxsplit=1)
        if job.split("_")[0] in ids and reason == "BeginTime":
            command = ["scontrol", "update", f"jobid={job}", "starttime=now"]
            subprocess.run(command, capture_output=True)


def wait_for_the_end(place: Path, known: dict) -> None:
    """Wait for the job that collects."""

    def over() -> bool:
        hasten(known["array"])
        found = jobs(known["collect"])
        assert not {"FAILED", "CANCELLED"} & set(found.values()), logs(place)
        return found.get(known["collect"], "COMPLETED") == "COMPLETED"

    wait_for(over)


def logs(place: Path) -> str:
    """What all jobs for a store said."""
    return "\n".join(p.read_text() for p in (place / "store" / ".slurm").glob("*/*log*"))


def same_records(place: Path, expected: Path) -> None:
    """The records are those of the serial run, byte for byte."""
    for name in RESULTS:
        made = (place / "results" / name).read_bytes()
        assert made == (expected / "results" / name).read_bytes(), f"{name} differs"


def committed_once(place: Path) -> None:
    """No attempt wrote over another: what the logs say was computed is each there once."""
    said = [line for line in logs(place).splitlines() if line.startswith("done ")]
    titles = [line.split(" in ")[0] for line in said]
    twice = {title for title in titles if titles.count(title) > 1}
    assert not twice, f"computed twice: {twice}"


def slurmd(node: str) -> int:
    """Process of a node's daemon."""
    folder = Path(os.environ["SLURM_CONF"]).with_name("run")
    return int((folder / f"slurmd-{node}.pid").read_text())


def bring_back(node: str) -> None:
    """A node whose slurmd was killed; ReturnToService=2 in slurm.sh lets it work as soon as it is up."""
    subprocess.run(["slurmd", "-f", os.environ["SLURM_CONF"], "-N", node], check=True)
    wait_for(lambda: slurm("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D").strip() == "2")


def restarts(job: str) -> int:
    """How often a job was queued again."""
    said = slurm("scontrol", "show", "job", job)
    return int(said.partition("Restarts=")[2].split()[0])


def parent(pid: int) -> int:
    """Of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def tell(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes; some may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def family(pid: int) -> list[int]:
    """A process and what it started, parents first."""
    found = [pid]
    for known in found:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{known}/task/{known}/children").read_text()
            found += [int(child) for child in children.split()]
    return found


class Watch:
    """Notes every manifest of a store when it appears: another commit would change its file."""

    def __init__(self, root: Path) -> None:
        self._root, self._seen, self._end = root, {}, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _stats(self) -> dict[Path, tuple[int, int]]:
        found = {}
        for path in self._root.glob("*/*/manifest.json"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                found[path] = (stat.st_ino, stat.st_mtime_ns)
        return found

    def _look(self) -> None:
        while not self._end.wait(0.1):
            self._seen = self._stats() | self._seen

    def check(self) -> None:
        """End; raise AssertionError if a manifest is not the one that appeared first."""
        self._end.set()
        self._thread.join()
        changed = [str(path) for path, stat in self._stats().items()
                   if self._seen.get(path, stat) != stat]  # fmt: skip
        assert not changed, f"committed twice: {changed}"


class Trials:
    """Trials on a SLURM that runs; each returns whether it hit jobs at work."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        file = folder / "four.py"
        small = [prompts_file(folder / "prompts.jsonl"), *SMALL]
        file.write_text(FOUR.format(small=small, ppo=["method.steps=20", *PPO[1:]]))
        self.what = [str(file)]
        self.expected = folder / "expected"
        run_serially(self.expected, self.what)
        self.lost: str | None = None  # a node whose slurmd was killed
        self.kinds: dict[str, Callable[[Path, dict], bool]] = {
            "worker": self.worker,
            "node": self.node,
            "requeue": self.requeue,
            "preempt": self.preempt,
            "submitter": self.submitter,
            "zombie": self.zombie,
        }

    def trial(self, kind: str) -> bool:
        """One trial from an empty store to its records."""
        place = self.folder / "trial"
        shutil.rmtree(place, ignore_errors=True)
        marker = Store(place / "store").create().root / "store.json"
        save_json(marker, load_json(marker) | {"lease_s": LEASE_S})
        watch = Watch(place / "store")
        known = {} if kind == "submitter" else submit(place, self.what, *TWO_NODES)
        try:
            hit = self.kinds[kind](place, known)
            self.finish(place)
        finally:
            if self.lost is not None:
                bring_back(self.lost)
                self.lost = None
        same_records(place, self.expected)
        committed_once(place)
        watch.check()
        return hit

    def finish(self, place: Path) -> None:
        """Wait until all jobs are over; collect where a task that failed kept SLURM from it."""

        def over() -> bool:
            mine = jobs(*self.ids(place))
            hasten(*self.ids(place))
            return set(mine.values()) <= OVER

        wait_for(over)
        if not (place / "results" / "records.jsonl").exists():
            overopt("run", *self.what, *places(place), "--workers", "1", "--quiet")

    def ids(self, place: Path) -> set[str]:
        """All jobs that were submitted for a store."""
        scripts = (place / "store" / ".slurm").glob("*/*_submission.sh")
        return {script.name.split("_")[0] for script in scripts}

    def at_work(self, place: Path, pause_s: float = 6.0) -> attempts.Working | None:
        """An attempt at a stage some seconds after the first began; None if all is done by then."""
        root = place / "store"
        wait_for(lambda: attempts.working(root) or jobs(*self.ids(place)) == {})
        time.sleep(self.rng.uniform(0, pause_s))
        found = [each for each in attempts.working(root) if Path(f"/proc/{each.pid}").exists()]
        return self.rng.choice(found) if found else None

    def job_of(self, place: Path, node: str) -> str | None:
        """The task that runs on a node."""
        running = slurm("squeue", "-h", "-r", "-t", "R", "-w", node, "-o", "%i").split()
        return next((job for job in running if job.split("_")[0] in self.ids(place)), None)

    def worker(self, place: Path, known: dict) -> bool:
        """See the module, as for all that follow."""
        each = self.at_work(place)
        if each is None:
            return False
        for pid in (parent(each.pid), each.pid):
            os.kill(pid, signal.SIGKILL)
        return True

    def node(self, place: Path, known: dict) -> bool:
        each = self.at_work(place)
        if each is None:
            return False
        self.lost = each.host
        os.kill(slurmd(each.host), signal.SIGKILL)
        slurm("scontrol", "update", f"nodename={each.host}", "state=down", "reason=trial")
        return True

    def requeue(self, place: Path, known: dict) -> bool:
        each = self.at_work(place)
        job = each and self.job_of(place, each.host)
        if not job:
            return False
        subprocess.run(["scontrol", "requeue", job], capture_output=True)
        return restarts(job) > 0

    def preempt(self, place: Path, known: dict) -> bool:
        each = self.at_work(place)
        job = each and self.job_of(place, each.host)
        if not job:
            return False
        asked = ["--partition=high", "--exclusive", f"--nodelist={each.host}", "--output=/dev/null"]
        high = slurm("sbatch", "--parsable", *asked, "--wrap=sleep 1").strip()
        wait_for(lambda: set(jobs(high).values()) <= OVER)
        return restarts(job) > 0

    def submitter(self, place: Path, known: dict) -> bool:
        words = ["submit", "slurm", *self.what, *places(place), "--minutes", "30", *TWO_NODES]
        process = subprocess.Popen(
            [sys.executable, "-m", "overopt", *words],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        folder = place / "store" / ".slurm"
        wait_for(lambda: list(folder.glob("*/*")) or process.poll() is not None, pause_s=0.002)
        time.sleep(
            self.rng.uniform(0, 0.15)
        )  # it goes on for 0.2 s at least: sbatch is asked twice
        hit = process.poll() is None
        process.kill()
        process.wait()
        overopt(*words)
        return hit

    def zombie(self, place: Path, known: dict) -> bool:
        each = self.at_work(place)
        if each is None:
            return False
        stopped = family(parent(each.pid))
        scratch = place / "store" / ".scratch"
        mine = f"{each.stage}-{each.fingerprint}.{each.host}.{each.pid}.*"
        tell(stopped, signal.SIGSTOP)
        try:  # its lease expires, and the other worker takes its folders away
            found = bool(list(scratch.glob(mine)))
            wait_for(lambda: not list(scratch.glob(mine)), 120)
        finally:
            tell(reversed(stopped), signal.SIGCONT)
        return found


def main() -> int:
    """The long mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="of trials (default: all)")
    args = parser.parse_args()
    hits: dict[str, list[bool]] = {}
    failed = 0
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder, "slurm")):
        trials = Trials(Path(folder), args.seed)
        for i in range(args.trials):
            kinds = args.kinds or list(trials.kinds)
            kind = kinds[i % len(kinds)]
            started = time.monotonic()
            try:
                hits.setdefault(kind, []).append(trials.trial(kind))
                said = "hit" if hits[kind][-1] else "missed"
            except AssertionError as error:
                failed += 1
                said = f"FAILED: {error}"
            sys.stdout.write(f"{kind}: {said} ({time.monotonic() - started:.0f} s)\n")
            sys.stdout.flush()
    for kind, found in hits.items():
        sys.stdout.write(f"{kind}: {len(found)} trials, {sum(found)} hits\n")
    sys.stdout.write(f"{failed} failures\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
