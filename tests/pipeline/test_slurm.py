"""A real SLURM of two nodes: records of workers that come, go and die are those of one serial run."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_smoke import prompts_file

from overopt.base.files import load_json, save_json
from overopt.engine.store import Store

SCRIPT = Path(__file__).parents[1] / "cluster" / "slurm.sh"
RESULTS = ("records.jsonl", "curves.npz", "tilt.jsonl")
SMALL = ["gold.kind=rubric", "proxy.backbone=ladder:0.05m", "labels.n_pairs=60",
         "labels.n_validation_prompts=6", "proxy.epochs=1", "bon.n_prompts=3", "bon.pool_size=16",
         "bon.ns=1,4,16"]  # fmt: skip
PPO = ["method.steps=40", "method.batch=4", "method.eval_prompts=4", "method.eval_every=20"]
SIXTY = """
from dataclasses import replace
from overopt.stages.settings import Experiment
from overopt.study.presets import load_experiment

def build():
    base = load_experiment("smoke", {settings!r}).runs[0]
    seeds = range(28)
    return Experiment(name="sixty", runs=tuple(
        replace(base, proxy=replace(base.proxy, rm_seed=i)) for i in seeds
    ))
"""
TWO_NODES = ("--array", "2", "--cpus", "3", "--workers", "1")  # of the 4 cores that each node has
TOOLS = ("sbatch", "slurmctld", "slurmd", "munged", "runuser")
missing = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.skipif(getpass.getuser() != "root", reason="starting SLURM needs root"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """SLURM on two nodes of this machine, bound to the loopback address."""
    pytest.importorskip("submitit")
    root = tmp_path_factory.mktemp("slurm")
    for folder in (root, *root.parents[:2]):
        folder.chmod(0o755)  # munged runs as another user
    os.environ["SLURM_CONF"] = str(root / "slurm.conf")
    try:
        subprocess.run([SCRIPT, "up", root], check=True, timeout=300)
        yield root
    finally:
        subprocess.run([SCRIPT, "down", root], timeout=300)
        del os.environ["SLURM_CONF"]


def overopt(*words: object, status: int = 0) -> str:
    """Output of an overopt command, which must end with that status."""
    command = [sys.executable, "-m", "overopt", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def slurm(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def submit(place: Path, what: list[str], *options: str) -> dict:
    overopt("submit", "slurm", *what, "--store", place / "store", "--results", place / "results",
            "--minutes", "30", *options)  # fmt: skip
    (file,) = (place / "store" / ".slurm").glob("*/jobs.json")
    return load_json(file)


def jobs(*ids: str) -> dict[str, str]:
    """State by job of those that are not over."""
    lines = slurm("squeue", "-h", "-r", "-o", "%i %T", "-t", "all").splitlines()
    known = dict(line.split() for line in lines)
    return {job: state for job, state in known.items() if job.split("_")[0] in ids}


def wait_for(condition, patience_s: float = 600.0) -> None:
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, slurm("squeue", "-t", "all")
        time.sleep(0.5)


def hasten(known: dict) -> None:
    """Start jobs now that were queued again: SLURM holds them for two minutes."""
    for job, state in jobs(known["array"]).items():
        if state in ("PENDING", "REQUEUED"):
            command = ["scontrol", "update", f"jobid={job}", "starttime=now"]
            subprocess.run(command, capture_output=True)


def wait_for_the_end(place: Path, known: dict) -> None:
    """Wait for the job that collects."""

    def over() -> bool:
        hasten(known)
        found = jobs(known["collect"])
        assert not {"FAILED", "CANCELLED"} & set(found.values()), logs(place)
        return found.get(known["collect"], "COMPLETED") == "COMPLETED"

    wait_for(over)


def logs(place: Path) -> str:
    return "\n".join(p.read_text() for p in (place / "store" / ".slurm").glob("*/*log*"))


def same_records(place: Path, expected: Path) -> None:
    for name in RESULTS:
        made = (place / "results" / name).read_bytes()
        assert made == (expected / "results" / name).read_bytes(), name


def committed_once(place: Path) -> None:
    """No attempt wrote over another: what the logs say was computed is each there once."""
    said = [line for line in logs(place).splitlines() if line.startswith("done ")]
    titles = [line.split(" in ")[0] for line in said]
    assert len(titles) == len(set(titles))


@pytest.fixture(scope="module")
def sixty(tmp_path_factory):
    """An experiment of 60 stages, run serially; its file and the place of its results."""
    place = tmp_path_factory.mktemp("sixty")
    settings = [prompts_file(place / "prompts.jsonl"), *SMALL, "method=none"]
    file = place / "sixty.py"
    file.write_text(SIXTY.format(settings=settings))
    overopt("run", file, "--store", place / "store", "--results", place / "results",
            "--workers", "1", "--quiet")  # fmt: skip
    assert len(list((place / "store").glob("*/*/manifest.json"))) >= 60
    return file, place


def test_sixty_stages_on_two_nodes(sixty, tmp_path):
    file, expected = sixty
    known = submit(tmp_path, [str(file)], *TWO_NODES)
    said = overopt("watch", file, "--store", tmp_path / "store", "--every", "1")
    wait_for_the_end(tmp_path, known)
    assert "job" in said and "RUNNING" in said
    same_records(tmp_path, expected)
    committed_once(tmp_path)
    assert "(n1 " in said and "(n2 " in said


def test_smoke_with_ppo_requeued_in_the_middle(tmp_path_factory, tmp_path):
    """`scontrol requeue` in the middle of PPO: the stage goes on from the step it had reached."""
    expected = tmp_path_factory.mktemp("smoke")
    what = ["smoke", prompts_file(expected / "prompts.jsonl"), *SMALL, *PPO]
    overopt("run", *what, "--store", expected / "store", "--results", expected / "results",
            "--workers", "1", "--quiet")  # fmt: skip
    known = submit(tmp_path, what, *TWO_NODES)
    scratch = tmp_path / "store" / ".scratch"
    wait_for(
        lambda: any(int(p.read_text().split()[0]) > 2 for p in scratch.glob(".ppo-*.progress"))
    )
    (working,) = scratch.glob("ppo-*")
    node = working.name.split(".")[1]
    running = slurm("squeue", "-h", "-r", "-t", "R", "-w", node, "-o", "%i").split()
    slurm("scontrol", "requeue", ",".join(running))
    wait_for_the_end(tmp_path, known)
    same_records(tmp_path, expected)
    committed_once(tmp_path)
    (manifest,) = (tmp_path / "store").glob("ppo/*/manifest.json")
    assert load_json(manifest)["resumed"], "it began again"


def test_a_node_is_lost_and_its_zombie_wakes_up(sixty, tmp_path):
    """The node is given up while its processes live on, stopped for longer than their leases."""
    file, expected = sixty
    marker = Store(tmp_path / "store").create().root / "store.json"
    save_json(marker, load_json(marker) | {"lease_s": 3.0})
    known = submit(tmp_path, [str(file)], "--array", "1")
    wait_for(lambda: list((tmp_path / "store" / ".scratch").glob("proxy-*")))
    (working, *_) = (tmp_path / "store" / ".scratch").glob("proxy-*")
    node, pid = working.name.split(".")[1:3]
    daemon = int(Path(os.environ["SLURM_CONF"]).with_name("run").joinpath(
        f"slurmd-{node}.pid").read_text())  # fmt: skip
    os.kill(int(pid), signal.SIGSTOP)
    os.kill(daemon, signal.SIGKILL)
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        wait_for(lambda: hasten(known) or not working.exists())
    finally:
        os.kill(int(pid), signal.SIGCONT)
    wait_for_the_end(tmp_path, known)
    same_records(tmp_path, expected)
    conf = os.environ["SLURM_CONF"]
    subprocess.run(["slurmd", "-f", conf, "-N", node], check=True)
    slurm("scontrol", "update", f"nodename={node}", "state=resume")
    wait_for(lambda: slurm("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D").strip() == "2")


def test_cancel_ends_the_jobs_and_keeps_what_is_finished(sixty, tmp_path):
    file, _ = sixty
    known = submit(tmp_path, [str(file)], "--array", "2")
    wait_for(lambda: list((tmp_path / "store").glob("calibration/*/manifest.json")))
    said = overopt("cancel", file, "--store", tmp_path / "store")
    assert f"jobs {known['array']} and {known['collect']}" in said
    wait_for(lambda: set(jobs(known["array"], known["collect"]).values()) <= {"CANCELLED"}, 60)
    assert " done" in overopt("status", file, "--store", tmp_path / "store")


def test_the_script_of_the_plan_is_the_one_that_is_sent(sixty, tmp_path):
    file, _ = sixty
    options = ["--array", "2", "--cpus", "2", "--minutes", "30", "--partition", "low"]
    plan = overopt("plan", file, "--store", tmp_path / "store", "--executor", "slurm", *options)
    submit(tmp_path, [str(file)], *options)
    (sent,) = (tmp_path / "store" / ".slurm").glob("*/*_submission.sh")
    shown = {line for line in plan.splitlines() if line.startswith("#SBATCH")}
    real = {line for line in sent.read_text().splitlines() if line.startswith("#SBATCH")}
    paths = ("--output", "--job-name")
    assert {x for x in shown if not any(p in x for p in paths)} == {
        x for x in real if not any(p in x for p in paths)
    }
    overopt("cancel", file, "--store", tmp_path / "store")


def test_what_sbatch_refuses_is_said(sixty, tmp_path):
    file, _ = sixty
    said = overopt("submit", "slurm", file, "--store", tmp_path / "store", "--partition", "none",
                   status=2)  # fmt: skip
    assert "sbatch refused the job" in said and "partition" in said
