"""Commands for more than one machine: what they refuse, and what they would submit."""

from __future__ import annotations

import builtins
import importlib.util
import os
import shlex
import shutil

import pytest

from overopt.cli.main import main
from overopt.engine import slurm
from overopt.engine.store import Store

SMOKE = ["smoke", "gold.kind=rubric"]


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine on which no program of SLURM is installed."""
    monkeypatch.setenv("PATH", str(tmp_path))


def refused(capsys, *words: str) -> str:
    assert main(list(words)) == 2
    return capsys.readouterr().err


def test_a_worker_joins_a_store_and_makes_none(tmp_path, capsys):
    said = refused(capsys, "worker", str(tmp_path / "runs"), *SMOKE)
    assert (
        f"{tmp_path / 'runs'}: there is no store here" in said
        and "shared with this machine" in said
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("nowhere")
def test_without_slurm_the_way_out_is_named(tmp_path, capsys):
    pytest.importorskip("submitit")
    said = refused(capsys, "submit", "slurm", *SMOKE, "--store", str(tmp_path / "runs"))
    assert "sbatch: not found on this machine" in said and "--executor slurm" in said


def test_without_submitit_the_extra_is_named(tmp_path, capsys, monkeypatch):
    plain = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("submitit"):
            raise ModuleNotFoundError("No module named 'submitit'")
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    said = refused(capsys, "submit", "slurm", *SMOKE, "--store", str(tmp_path / "runs"))
    assert "No module named 'submitit'" in said and "pip install 'overopt[slurm]'" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus", "2"], "--gpus = 2: a worker uses one GPU; ask for more jobs with --array"),
        (["--array", "0"], "--array = 0: must be at least 1"),
        (["--minutes", "2"], "--minutes = 2: must be at least 3"),
        (["--memory", "0"], "--memory = 0: must be at least 1"),
        (["--on-cpu", "pppo"], "on_cpu = 'pppo': is no stage of this run"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(tmp_path, capsys, options, words):
    said = refused(capsys, "submit", "slurm", *SMOKE, "--store", str(tmp_path / "runs"), *options)
    assert words in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("nowhere")
def test_a_dry_run_prints_the_script_and_writes_nothing(tmp_path, capsys):
    pytest.importorskip("submitit")
    place = tmp_path / "a store"
    asked = ["--array", "8", "--gpus", "1", "--gpu-jobs", "4", "--cpus", "4", "--memory", "9000",
             "--partition", "low", "--setup", "module load cuda", "--dry-run"]  # fmt: skip
    assert main(["submit", "slurm", *SMOKE, "--store", str(place), *asked]) == 0
    out = capsys.readouterr().out
    for line in ("--array=0-7%8", "--gpus-per-node=1", "--mem=9000M", "--partition=low", "--requeue",
                 "--signal=USR2@90"):  # fmt: skip
        assert f"#SBATCH {line}\n" in out
    assert "\nmodule load cuda\n" in out
    worker = next(line for line in out.splitlines() if line.startswith("# each of 8: "))
    words = shlex.split(worker.removeprefix("# each of 8: overopt "))
    assert words[:4] == ["worker", str(place), *SMOKE]
    assert words[words.index("--device") + 1] == "cuda"
    assert words[words.index("--workers") + 1] == "4"
    assert f"# afterok: overopt run {shlex.join(SMOKE)} --store" in out
    assert not place.exists()


def test_nothing_submitted_is_nothing_to_cancel(tmp_path, capsys):
    Store(tmp_path / "runs").create()
    said = refused(capsys, "cancel", *SMOKE, "--store", str(tmp_path / "runs"))
    assert "nothing was submitted here for 'smoke gold.kind=rubric'" in said


def test_a_command_that_fails_fails_its_job_and_leaves_when_it_is_asked(monkeypatch, tmp_path):
    with pytest.raises(slurm.SlurmError, match="overopt worker ended with status 2"):
        slurm.Command(("worker", str(tmp_path / "none"), *SMOKE))()


@pytest.mark.parametrize(("state", "again"), [("RUNNING", True), ("CANCELLED", False)])
def test_a_worker_that_left_queues_its_job_again_unless_it_was_cancelled(
    monkeypatch, tmp_path, state, again
):
    """A partition that preempts forgets a job that ends within the time of grace."""
    tool = tmp_path / "scontrol"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho JobState={state}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    monkeypatch.setattr(slurm.sys, "executable", shutil.which("false"))
    monkeypatch.setattr(slurm, "LEFT", 1)  # the status of `false`
    with pytest.raises(SystemExit if again else slurm.SlurmError):
        slurm.Command(("worker",))()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["show job 12_0", "requeue 12_0"][: 1 + again]


def with_ray(monkeypatch, present: bool) -> None:
    plain = importlib.util.find_spec

    def find(name, *args):
        if name == "ray":
            return plain("json") if present else None
        return plain(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", find)


@pytest.mark.parametrize("command", ["run", "plan"])
def test_without_ray_the_extra_is_named(tmp_path, capsys, monkeypatch, command):
    with_ray(monkeypatch, False)
    place = ["--store", str(tmp_path / "runs"), "--executor", "ray"]
    said = refused(capsys, command, *SMOKE, *place)
    assert "ray cannot be imported" in said and "pip install 'overopt[ray]'" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ray-address", "auto"], "--ray-address = 'auto': add --executor ray"),
        (["--executor", "ray", "--ray-address", "ray://head:10001"], "give host:port or auto"),
        (
            ["--executor", "ray", "--device", "mps"],
            "device = 'mps': with --executor ray use cpu or",
        ),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_what_ray_cannot_serve_is_refused(tmp_path, capsys, monkeypatch, command, options, words):
    with_ray(monkeypatch, True)
    assert words in refused(capsys, command, *SMOKE, "--store", str(tmp_path / "runs"), *options)
    assert not (tmp_path / "runs").exists()


def test_a_plan_says_what_tasks_ask_of_ray(tmp_path, capsys, monkeypatch):
    with_ray(monkeypatch, True)
    asked = ["--executor", "ray", "--ray-address", "head:6379", "--device", "cuda", "--gpu-jobs", "3",
             "--threads", "2", "--memory-limit", "3000"]  # fmt: skip
    assert main(["plan", *SMOKE, "--store", str(tmp_path / "runs"), *asked]) == 0
    out = capsys.readouterr().out
    assert "tasks for Ray (head:6379):" in out
    assert "proxy: num_cpus=2, num_gpus=0.3333\n" in out
    assert "1  labels: num_cpus=2, num_gpus=0, memory=3000000000\n" in out
