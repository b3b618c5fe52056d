"""Workers as jobs of SLURM: an array that is queued again when it is preempted or out of time.

Every task of the array runs ``overopt worker`` on the store, so there is no driver whose death would end
the run, and a task that dies costs what it was at. The jobs are made and submitted by submitit. SLURM
sends SIGUSR2 some time before a task's time is over, and SIGTERM when it is preempted or queued
again: the worker has its stages save checkpoints and leaves. A last job, which starts when all
tasks have ended well, collects the records.

What is known of a submission lies in the store: ``root/.slurm/<name>/jobs.json``, with the logs.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from overopt.base.config import require
from overopt.base.errors import ConfigError, OveroptError
from overopt.base.files import load_object, save_json

FOLDER = ".slurm"
LEAVE_S = 90
"""Seconds between SLURM's request to leave and the end of a job's time."""
LEFT = 3
"""Exit status of a worker that left before everything was done."""
REQUEUES = 1_000
"""How often a job that was out of time may be queued again."""


class SlurmError(OveroptError, RuntimeError):
    """SLURM, or what is needed to speak to it, is not there or refused."""


@dataclass(frozen=True, kw_only=True)
class Array:
    """What an array of workers asks of SLURM.

    Attributes
    ----------
    tasks : int
        Workers, at least 1.
    cpus : int
        Cores of each, at least 1.
    gpus : int
        GPUs of each.
    memory_mb : int or None
        Memory of each; None leaves it to the partition.
    minutes : int
        Time limit of each, at least 3: the last 90 seconds are for leaving.
    partition, account, qos : str or None
        As ``sbatch`` takes them.
    setup : tuple of str
        Shell commands before the worker is started, such as ``module load cuda``.
    """

    tasks: int = 1
    cpus: int = 1
    gpus: int = 0
    memory_mb: int | None = None
    minutes: int = 60
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    setup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.tasks >= 1, "--array", self.tasks, "must be at least 1")
        require(self.cpus >= 1, "--cpus", self.cpus, "must be at least 1")
        require(self.minutes >= 3, "--minutes", self.minutes, "must be at least 3")
        known = self.memory_mb
        require(known is None or known >= 1, "--memory", known, "must be at least 1 (megabytes)")

    def parameters(self, name: str, dependency: str | None = None) -> dict[str, Any]:
        """The parameters of submitit's executor."""
        asked = {
            "job_name": name,
            "time": self.minutes,
            "nodes": 1,
            "ntasks_per_node": 1,
            "cpus_per_task": self.cpus,
            "gpus_per_node": self.gpus or None,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "setup": list(self.setup) or None,
            "signal_delay_s": LEAVE_S,
            "array_parallelism": self.tasks,
            "stderr_to_stdout": True,
            "dependency": dependency,
        }
        more: dict[str, Any] = {"requeue": True}
        if dependency:
            more["kill-on-invalid-dep"] = "yes"
        if self.memory_mb is not None:
            more["mem"] = f"{self.memory_mb}M"
        return {k: v for k, v in asked.items() if v is not None} | {"additional_parameters": more}


class Submission(NamedTuple):
    """Jobs that were submitted: the array, and the job that collects (None: there is none)."""

    name: str
    experiment: str
    array: str
    collect: str | None
    command: list[str]
    submitted: float


@dataclass
class Command:
    """An overopt command as a job: what submitit pickles, and calls on a node."""

    arguments: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Run it to its end; a worker that was asked to leave ends the job, which is queued again.

        A partition that preempts after a time of grace sends SIGTERM and queues a job again only if
        it is still there at the end of that time: a worker that has left by then has to ask for it.

        Raises
        ------
        SlurmError
            It did not end with status 0, so that nothing that depends on the job starts.
        """
        self.process = subprocess.Popen([sys.executable, "-u", "-m", "overopt", *self.arguments])
        # Polled and not waited for: `checkpoint` interrupts this, and waits itself.
        while (status := self.process.poll()) is None:
            time.sleep(0.2)
        if status == LEFT and _queue_again():
            sys.exit(1)
        if status != 0:
            raise SlurmError(f"overopt {self.arguments[0]} ended with status {status}")

    def checkpoint(self) -> Any:
        """Have the command leave; returns it as what is to be run when the job starts again."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGUSR2)
            while self.process.poll() is None:
                time.sleep(0.2)
        return DelayedSubmission(Command(self.arguments))


def sbatch_text(array: Array, name: str, folder: Path) -> str:
    """The script that `submit` hands to ``sbatch`` for the array of workers."""
    slurm = _submitit_slurm()
    command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder)])
    parameters = array.parameters(name)
    if array.tasks > 1:
        parameters["map_count"] = array.tasks
    return slurm._make_sbatch_string(command=command, folder=folder, **parameters)


def submit(
    root: Path,
    name: str,
    experiment: str,
    array: Array,
    worker: Sequence[str],
    collect: Sequence[str] | None,
) -> Submission:
    """Submit an array of workers, and a job that collects when all have ended well.

    Parameters
    ----------
    root : Path
        Of the store, which all nodes must see under this path.
    name : str
        Of the submission and its jobs.
    experiment : str
        What is computed, for `cancel` to find it.
    array : Array
        What is asked for.
    worker, collect : sequence of str
        Arguments of overopt for each task of the array, and for the last job (None: there is none).

    Raises
    ------
    SlurmError
        submitit or sbatch is missing, or SLURM refused the jobs.
    """
    folder = root / FOLDER / name
    first = _executor(folder, array.parameters(name))
    with _refusals():
        with first.batch():
            jobs = [first.submit(Command(tuple(worker))) for _ in range(array.tasks)]
        array_id = jobs[0].job_id.split("_")[0]
    last = None
    known = Submission(name, experiment, array_id, None, list(worker), time.time())
    save_json(folder / "jobs.json", known._asdict())  # also where the next step is refused
    if collect is not None:
        small = Array(
            minutes=array.minutes, partition=array.partition, account=array.account,
            qos=array.qos, setup=array.setup,
        )  # fmt: skip
        after = _executor(folder, small.parameters(f"{name}-collect", f"afterok:{array_id}"))
        with _refusals():
            last = after.submit(Command(tuple(collect))).job_id
        known = known._replace(collect=last)
        save_json(folder / "jobs.json", known._asdict())
    return known


def submissions(root: Path) -> list[Submission]:
    """What was submitted for a store, the latest last."""
    found = []
    for path in (root / FOLDER).glob("*/jobs.json"):
        content = load_object(path, Submission._fields)
        found.append(Submission(**{key: content[key] for key in Submission._fields}))
    return sorted(found, key=lambda known: known.submitted)


def states(known: Submission) -> dict[str, str]:
    """State by job, as ``squeue`` says it; empty where it is missing, or all ended a while ago."""
    squeue = shutil.which("squeue")
    if squeue is None:
        return {}
    jobs = ",".join(filter(None, (known.array, known.collect)))
    done = subprocess.run(
        [squeue, "-h", "-r", "-o", "%i %T %N", "-j", jobs], capture_output=True, text=True
    )
    if done.returncode != 0:  # "Invalid job id": all have ended
        return {}
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip()]
    return {job: state.strip() for job, state in lines}


def cancel(known: Submission) -> None:
    """End the jobs of a submission: workers get SIGTERM, so stages at work save checkpoints.

    Raises
    ------
    SlurmError
        scancel is missing, or refused.
    """
    jobs = [*filter(None, (known.collect, known.array))]
    done = subprocess.run([_tool("scancel"), *jobs], capture_output=True, text=True)
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        raise SlurmError(f"scancel {' '.join(jobs)}: {done.stderr.strip()}")


def _queue_again() -> bool:
    """Queue the job that this is again; False if there is none, or SLURM has ended it already."""
    array, index = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    # The number of an array's first task is that of the array.
    job = os.environ.get("SLURM_JOB_ID") if array is None else f"{array}_{index}"
    if job is None:
        return False
    scontrol = _tool("scontrol")
    known = subprocess.run([scontrol, "show", "job", job], capture_output=True, text=True)
    if "JobState=RUNNING" not in known.stdout:  # cancelled, or queued again already
        return False
    return subprocess.run([scontrol, "requeue", job], capture_output=True).returncode == 0


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SlurmError(
            f"{name}: not found on this machine; run this on a login node of the cluster, or see what"
            " would be submitted with `overopt plan EXPERIMENT --executor slurm`"
        )
    return found


def _submitit_slurm() -> Any:
    try:
        from submitit.slurm import slurm
    except ImportError as error:
        raise SlurmError(
            f"submitit cannot be imported ({error}); install it with `pip install 'overopt[slurm]'`"
        ) from error
    return slurm


def _executor(folder: Path, parameters: dict[str, Any]) -> Any:
    """submitit's executor for jobs with their logs in ``folder``."""
    slurm = _submitit_slurm()
    for tool in ("sbatch", "srun"):
        _tool(tool)
    executor = slurm.SlurmExecutor(folder, max_num_timeout=REQUEUES)
    try:
        executor.update_parameters(**parameters)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"submitit: {error}") from error
    return executor


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What sbatch says against a job, as SlurmError."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    before = os.umask(0o077)  # the pickles are run when the jobs start: nobody else may write them
    try:
        yield
    except (FailedSubmissionError, FailedJobError, subprocess.CalledProcessError) as error:
        raise SlurmError(f"sbatch refused the job: {error}") from error
    finally:
        os.umask(before)
