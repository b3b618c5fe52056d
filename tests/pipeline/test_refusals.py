"""What a user meets when the disk, the store or the numbers give up: one screen, and a way on.

Every test is the real command on the real pipe, over a small world.
"""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from small_smoke import prompts_file

from overopt.base.files import load_json, load_tensors, save_json, save_tensors
from overopt.cli.main import main
from overopt.engine import store as store_module
from overopt.nets.sources import checkpoint_dir

SMALLER = [
    "gold.kind=rubric", "proxy.backbone=ladder:0.05m", "labels.n_pairs=60", "bon=none",
    "method.steps=2", "method.eval_prompts=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The arguments of a small run, and the store that it filled."""
    folder = tmp_path_factory.mktemp("finished")
    settings = [prompts_file(folder / "prompts.jsonl"), *SMALLER]
    store = folder / "store"
    places = ["--store", str(store), "--results", str(folder / "results")]
    assert main(["run", "smoke", *settings, *places, "--workers", "1", "--quiet"]) == 0
    return settings, store


@pytest.fixture
def run(finished, tmp_path, capsys):
    """A function (overrides, copy=…) -> exit status and message of a run on a store of its own."""
    settings, store = finished
    own = tmp_path / "store"

    def go(*overrides, without=(), settings=settings):
        if not own.exists():
            shutil.copytree(store, own)
            for stage in without:
                shutil.rmtree(own / stage)
        status = main(
            ["run", "smoke", *settings, *overrides, "--store", str(own), "--workers", "1",
             "--results", str(tmp_path / "results"), "--quiet"]
        )  # fmt: skip
        return status, capsys.readouterr().err

    go.store = own
    return go


def assert_one_screen(error):
    assert error.startswith("overopt: error: "), error
    assert "Traceback" not in error
    assert sum(1 + len(line) // 120 for line in error.splitlines()) <= 24, error


# --- the disk -------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace", "rename", "write"])
def test_a_disk_that_fills_up_keeps_what_is_finished(run, monkeypatch, call):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":
        # The probe that proves a store writable passes; the first file of a stage does not.
        write = Path.write_bytes
        monkeypatch.setattr(
            Path, "write_bytes", lambda p, data: write(p, data) if len(data) < 100 else refuse()
        )
    else:
        real, calls = getattr(os, call), []

        def later(*args, **kwargs):
            calls.append(args)
            return real(*args, **kwargs) if call != "rename" and len(calls) < 4 else refuse()

        monkeypatch.setattr(os, call, later)
    status, error = run(without=["proxy", "ppo", "ppo_gold"])
    monkeypatch.undo()
    assert status in (1, 2)
    assert_one_screen(error)
    assert "disk is full" in error and "--store" in error
    assert not (run.store / "proxy").exists() or not any((run.store / "proxy").iterdir())
    status, error = run()
    assert (status, error) == (0, "")


def test_a_file_size_limit_of_the_system_is_one_message(finished, tmp_path):
    settings, store = finished
    own = tmp_path / "store"
    shutil.copytree(store, own)
    for stage in ("proxy", "ppo", "ppo_gold"):
        shutil.rmtree(own / stage)
    command = [
        sys.executable, "-m", "overopt", "run", "smoke", *settings, "--store", str(own),
        "--results", str(tmp_path / "results"), "--workers", "1", "--quiet",
    ]  # fmt: skip
    limit = 200_000  # the weights of the proxy are larger
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert_one_screen(done.stderr)
    assert "model.safetensors" in done.stderr and "ulimit -f" in done.stderr
    assert not list(own.glob("proxy/*")) and not list(own.glob(".scratch/*-*"))


def test_too_little_room_is_said_before_any_work(run, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: usage(2**30, 2**30, 10**6))
    status, error = run(without=["proxy", "ppo", "ppo_gold"])
    assert status == 2 and error.count("\n") == 1
    assert_one_screen(error)
    assert "has 1 MB left, this run needs about" in error and "--store" in error
    assert not (run.store / "proxy").exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_store_that_cannot_be_written_is_one_message(run, finished, monkeypatch, capsys, code):
    # Modes do not bind root, so the calls that write refuse.
    settings, store = finished
    real_open = os.open

    def refuse(path, *rest, **kwargs):
        raise OSError(code, os.strerror(code), str(path))

    def read_only_open(path, flags, *rest, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse(path)
        return real_open(path, flags, *rest, **kwargs)

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(os, "open", read_only_open)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    places = ["--store", str(store), "--results", "unused", "--workers", "1", "--quiet"]
    status = main(["run", "smoke", *settings, "proxy.lr=1e-3", *places])
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1
    assert_one_screen(error)
    assert "give a" in error and "--store" in error
    # What only looks needs no permission.
    for command in ("plan", "status"):
        assert main([command, "smoke", *settings, "--store", str(store)]) == 0
    seen = capsys.readouterr().out
    assert " done" in seen and "to do" not in seen


# --- the store ------------------------------------------------------------------------------------


def test_a_store_of_another_version_is_one_message(run):
    run("proxy.lr=2e-3", "method=none", "bon=none", settings=[])  # makes the copy; nothing to run
    save_json(run.store / "store.json", {"format": 2})
    before = sorted(run.store.rglob("*"))
    status, error = run()
    assert status == 2 and error.count("\n") == 1
    assert_one_screen(error)
    assert "format = 2, this overopt reads format 1" in error and "--store" in error
    assert sorted(run.store.rglob("*")) == before


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "stage", "words"),
    [
        ("proxy.lr=1e30", "proxy", ["at step 1 of 3", "lower the learning rate", "lr=1e+30"]),
        ("method.lr=1e30", "ppo", ["at step", "lower method.lr", "lr=1e+30"]),
        ("method.value_lr=1e30", "ppo", ["at step 0", "method.value_lr = 1e+30"]),
    ],
)
def test_a_loss_that_is_not_finite_stops_with_step_config_and_weights(run, override, stage, words):
    status, error = run(override)
    assert status == 1
    assert_one_screen(error)
    for word in [*words, "not run because of it" if stage == "proxy" else "other stages finished"]:
        assert word in error, word
    (weights,) = run.store.glob(f".inflight/{stage}-*/diverged.safetensors")
    assert str(weights) in error
    assert load_tensors(weights)
    kept = load_json(weights.with_suffix(".json"))
    assert "1e+30" in kept["config"]
    assert any(word in kept["error"] for word in ("loss is nan", "loss is inf"))


def test_heads_that_diverge_keep_their_weights(run):
    status, error = run("reward.members=2", "reward.members_by=heads", "proxy.lr=1e30")
    assert status == 1
    assert_one_screen(error)
    (weights,) = run.store.glob(".inflight/heads-*/diverged.safetensors")
    assert str(weights) in error and load_tensors(weights)


def test_a_gold_that_diverged_is_named(run, finished):
    settings = [s for s in finished[0] if not s.startswith("gold.")]
    status, error = run(
        "gold.source=ladder:0.05m", "gold.n_prompts=8", "gold.lr=1e30", settings=settings
    )
    assert status == 1
    assert_one_screen(error)
    # One step of 8 prompts: the weights are beyond use only after the last loss.
    assert "stage 'gold' failed" in error and "not finite" in error and "gold.lr" in error
    assert "lr=1e+30" in error
    (weights,) = run.store.glob(".inflight/gold-*/diverged.safetensors")
    assert str(weights) in error


def test_weights_that_are_not_numbers_are_named(run, tmp_path):
    source, broken = checkpoint_dir("ladder:policy-0.8m"), tmp_path / "broken"
    broken.mkdir()
    shutil.copy(source / "config.json", broken)
    weights = load_tensors(source / "model.safetensors")
    name = sorted(weights)[0]
    weights[name][0, 0] = torch.nan
    save_tensors(broken / "model.safetensors", weights)
    status, error = run(f"world.policy={broken}")
    assert status in (1, 2)
    assert_one_screen(error)
    assert str(broken) in error and name in error and "not finite" in error
    assert not list(run.store.glob(".inflight/*/diverged*")), "it was trained on"
