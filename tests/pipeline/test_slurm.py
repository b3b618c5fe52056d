"""A real SLURM of two nodes: records of workers that come, go and die are those of one serial run."""

from __future__ import annotations

import getpass
import os
import shutil
import signal

import pytest
from slurm_trials import (
    PPO,
    SMALL,
    TWO_NODES,
    Trials,
    bring_back,
    cluster,
    committed_once,
    hasten,
    jobs,
    overopt,
    run_serially,
    same_records,
    slurm,
    slurmd,
    submit,
    wait_for,
    wait_for_the_end,
)
from small_smoke import prompts_file

from overopt.base.files import load_json, save_json
from overopt.engine.store import Store

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
TOOLS = ("sbatch", "slurmctld", "slurmd", "munged", "runuser")
missing = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.skipif(getpass.getuser() != "root", reason="starting SLURM needs root"),
]


@pytest.fixture(scope="module", autouse=True)
def on_slurm(tmp_path_factory):
    """SLURM on two nodes of this machine, bound to the loopback address."""
    pytest.importorskip("submitit")
    with cluster(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return Trials(tmp_path_factory.mktemp("trials"), seed=1)


@pytest.fixture(scope="module")
def sixty(tmp_path_factory):
    """An experiment of 60 stages, run serially; its file and the place of its results."""
    place = tmp_path_factory.mktemp("sixty")
    settings = [prompts_file(place / "prompts.jsonl"), *SMALL, "method=none"]
    file = place / "sixty.py"
    file.write_text(SIXTY.format(settings=settings))
    run_serially(place, [str(file)])
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
    run_serially(expected, what)
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
    os.kill(int(pid), signal.SIGSTOP)
    os.kill(slurmd(node), signal.SIGKILL)
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        wait_for(lambda: hasten(known["array"]) or not working.exists())
    finally:
        os.kill(int(pid), signal.SIGCONT)
    wait_for_the_end(tmp_path, known)
    same_records(tmp_path, expected)
    bring_back(node)


@pytest.mark.parametrize("kind", ["worker", "preempt", "submitter"])
def test_trials(trials, kind):
    """The short form of `slurm_trials.py`; requeued and lost nodes are above."""
    assert trials.trial(kind)


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
    known = submit(tmp_path, [str(file)], *options)
    (sent,) = (tmp_path / "store" / ".slurm").glob(f"*/{known['array']}_submission.sh")
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
