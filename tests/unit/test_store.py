"""The store: whole or absent artefacts, checked on opening; locks that die with their holder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from overopt.base.config import RuntimeConfig
from overopt.base.errors import DataError, StoreError
from overopt.base.files import (
    atomic_path,
    load_arrays,
    load_json,
    load_records,
    save_arrays,
    save_json,
    save_records,
)
from overopt.engine.manifest import FORMAT_VERSION, Identity
from overopt.engine.store import Store

IDENTITY = Identity(
    stage="pool",
    version=2,
    canonical={"n": 3},
    config={"n": 3, "root_seed": 7},
    upstream={"gold": "ab"},
)
KEY = (IDENTITY.stage, IDENTITY.fingerprint)
RUNTIME = RuntimeConfig()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs").create()


def put(store, identity=IDENTITY):
    with store.lock(identity.stage, identity.fingerprint) as mine:
        assert mine
        with store.workspace(identity) as work:
            save_arrays(work.out / "scores.npz", {"gold": np.arange(4.0)})
            (work.out / "sub").mkdir()
            save_json(work.out / "sub" / "meta.json", {"a": 1})
            save_json(work.checkpoint / "state.json", {"step": 1})
            return store.commit(work, RUNTIME)


def test_a_committed_artefact_opens_with_a_full_manifest(store):
    artefact = put(store)
    again = Store(store.root).open(*KEY)
    assert again == artefact
    assert artefact.path == store.root / "pool" / IDENTITY.fingerprint
    manifest = artefact.manifest
    assert artefact.fingerprint == IDENTITY.fingerprint
    assert manifest["config"] == {"n": 3, "root_seed": 7}
    assert manifest["config_non_default"] == {"n": 3}
    assert manifest["upstream"] == {"gold": "ab"}
    assert manifest["root_seed"] == 7
    assert manifest["status"] == "complete"
    assert manifest["resumed"] is False
    assert manifest["versions"]["numpy"] == np.__version__
    assert set(manifest["git"]) == {"commit", "dirty", "diff_sha256"}
    assert manifest["wall_s"] >= 0 and manifest["cpu_s"] >= 0
    assert set(manifest["files"]) == {"scores.npz", "sub/meta.json"}
    assert (
        manifest["files"]["sub/meta.json"]["size"]
        == (artefact.path / "sub" / "meta.json").stat().st_size
    )
    assert not store.has_checkpoint(*KEY)
    assert list((store.root / ".scratch").iterdir()) == []
    assert list((store.root / ".locks").iterdir()) == []


def test_a_stage_that_raises_leaves_its_checkpoints_and_nothing_else(store):
    with pytest.raises(RuntimeError, match="midway"), store.workspace(IDENTITY) as work:
        save_json(work.checkpoint / "state.json", {"step": 1})
        save_json(work.out / "half.json", {})
        raise RuntimeError("midway")
    assert not store.has(*KEY)
    assert store.has_checkpoint(*KEY)
    assert list((store.root / ".scratch").iterdir()) == []
    with store.workspace(IDENTITY) as work:
        assert work.resumed
        assert load_json(work.checkpoint / "state.json") == {"step": 1}
        assert store.commit(work, RUNTIME).manifest["resumed"] is True


def flip(path, position=-1):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["scores.npz", "sub/meta.json"])
def test_a_flipped_byte_is_reported_with_the_name_of_its_file(store, name):
    path = put(store).path
    store.open(*KEY)
    flip(path / name)
    with pytest.raises(StoreError, match=rf"{name}: is damaged \(SHA-256.*delete the directory"):
        store.open(*KEY)
    assert (path / name).exists()


@pytest.mark.parametrize("word", ["wall_s", "version", "sha256", "gold"])
def test_a_changed_manifest_is_reported(store, word):
    path = put(store).path / "manifest.json"
    data = path.read_bytes()
    flip(path, data.index(word.encode()))
    with pytest.raises(StoreError, match=r"manifest.json: is damaged"):
        store.open(*KEY)


def test_truncated_missing_and_foreign_files_are_reported(store):
    path = put(store).path
    whole = (path / "scores.npz").read_bytes()
    (path / "scores.npz").write_bytes(whole[:-1])
    with pytest.raises(StoreError, match=r"scores.npz: is damaged \(\d+ bytes, manifest says"):
        store.open(*KEY)
    (path / "scores.npz").unlink()
    with pytest.raises(StoreError, match=r"scores.npz: is missing"):
        store.open(*KEY)
    (path / "scores.npz").write_bytes(whole)
    (path / "extra.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"extra.txt: does not belong"):
        store.open(*KEY)
    (path / "extra.txt").unlink()
    assert store.open(*KEY).fingerprint == IDENTITY.fingerprint
    for content in (None, b"", b"{"):
        (path / "manifest.json").unlink()
        if content is not None:
            (path / "manifest.json").write_bytes(content)
        with pytest.raises(StoreError, match=r"manifest.json"):
            store.open(*KEY)
        (path / "manifest.json").touch()


def test_an_artefact_moved_to_another_identity_is_reported(store):
    path = put(store).path
    path.rename(path.with_name("0" * 16))
    with pytest.raises(StoreError, match=rf"belongs to pool/{IDENTITY.fingerprint}"):
        store.open("pool", "0" * 16)
    with pytest.raises(StoreError, match="no such artefact"):
        store.open(*KEY)


def test_a_file_is_hashed_once_while_it_does_not_change(store, monkeypatch):
    put(store)
    Store(store.root).open(*KEY)
    opened = []
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: opened.append(args) or pytest.fail())
    store.open(*KEY)
    assert opened == []


def test_the_loser_of_a_race_uses_the_artefact_of_the_winner(store, tmp_path):
    winner = put(Store(tmp_path / "other").create())
    with store.workspace(IDENTITY) as work:
        save_json(work.out / "mine.json", {})
        shutil.copytree(winner.path, store.path(*KEY))
        artefact = store.commit(work, RUNTIME)
    assert set(artefact.manifest["files"]) == {"scores.npz", "sub/meta.json"}
    assert list((store.root / ".scratch").iterdir()) == []


def test_the_loser_of_a_race_refuses_a_damaged_winner(store):
    with store.workspace(IDENTITY) as work:
        save_json(work.checkpoint / "state.json", {"step": 1})
        store.path(*KEY).mkdir(parents=True)
        (store.path(*KEY) / "junk").write_text("?")
        with pytest.raises(StoreError, match=r"manifest.json: is missing"):
            store.commit(work, RUNTIME)
    assert (store.path(*KEY) / "junk").read_text() == "?"
    assert store.has_checkpoint(*KEY)


def test_a_store_of_another_format_is_refused(store):
    save_json(store.root / "store.json", {"format": 99})
    with pytest.raises(StoreError, match=r"store.json: format = 99.*--store"):
        Store(store.root)


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(StoreError, match=r"f: is a file; give a directory with --store"):
        Store(tmp_path / "f")
    with pytest.raises(StoreError, match=r"--store"):
        Store(tmp_path / "f" / "runs").create()


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
    ],
)
@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace", "rename"])
def test_a_disk_that_refuses_is_a_store_error_with_a_remedy(
    tmp_path, monkeypatch, code, word, call
):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code), str(tmp_path / "runs"))

    store = Store(tmp_path / "runs")
    if call in ("fsync", "rename"):
        store.create()
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StoreError, match=rf"runs.*{word}"):
        store.create()
        put(store)
    monkeypatch.undo()
    assert not store.has(*KEY)
    assert put(store.create()).manifest["status"] == "complete"


def test_a_lock_is_exclusive_and_leaves_no_file(store):
    assert not store.is_running(*KEY)
    with store.lock(*KEY) as mine:
        assert mine
        assert store.is_running(*KEY)
        with Store(store.root).lock(*KEY) as second:
            assert not second
        assert store.is_running(*KEY)
    assert not store.is_running(*KEY)
    assert list((store.root / ".locks").iterdir()) == []


def test_the_lock_and_scratch_of_a_killed_process_are_free_again(store):
    script = (
        "import sys, time, pathlib\n"
        "from overopt.base.files import save_json\n"
        "from overopt.engine.manifest import Identity\n"
        "from overopt.engine.store import Store\n"
        "identity = Identity(stage='pool', version=2, canonical={'n': 3},"
        " config={'n': 3, 'root_seed': 7}, upstream={'gold': 'ab'})\n"
        "store = Store(pathlib.Path(sys.argv[1]))\n"
        "with store.lock('pool', identity.fingerprint), store.workspace(identity) as work:\n"
        "    (work.out / 'half').write_text('x')\n"
        "    save_json(work.checkpoint / 'state.json', 5)\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(store.root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "ready\n"
        (scratch,) = (store.root / ".scratch").glob("-".join(KEY) + ".*")
        assert store.is_running(*KEY)
        store.create()
        assert scratch.exists(), "the scratch directory of a living process was removed"
    finally:
        holder.kill()
        holder.communicate()
    assert not store.is_running(*KEY)
    assert store.has_checkpoint(*KEY)
    store.create()
    assert not scratch.exists()
    assert store.has_checkpoint(*KEY)
    assert put(store).manifest["resumed"] is True


def test_the_file_of_a_free_lock_is_swept_and_a_held_one_stays(store):
    """As of a worker that was killed between taking its lock and making its folder."""
    store.create()
    free = store._lock_path("m", "f" * 16)
    free.touch()
    with store.lock("m", "0" * 16) as mine:
        assert mine
        store.sweep()
        assert not free.exists() and store._lock_path("m", "0" * 16).exists()
    assert not any((store.root / ".locks").iterdir())


def test_checkpoints_of_a_finished_artefact_are_swept(store):
    put(store)
    left = store.root / ".inflight" / "-".join(KEY)
    left.mkdir()
    save_json(left / "state.json", 1)
    store.sweep()
    assert not left.exists()


def test_experiment_records_take_any_name(store):
    assert store.recorded("quick") is None
    for name in ("quick", "quick a.b=1", "quick a.b=2", "../up"):
        store.record(name, {"label": {"stage": "pool", "fingerprint": name}})
    for name in ("quick", "quick a.b=1", "quick a.b=2", "../up"):
        assert store.recorded(name)["stages"]["label"]["fingerprint"] == name
    assert len(list((store.root / "experiments").iterdir())) == 4


def test_arrays_survive_and_equal_arrays_give_equal_bytes(tmp_path):
    arrays = {
        "file": np.arange(6, dtype=np.int16).reshape(2, 3),
        "names": np.array(["a", "bcd"]),
        "scalar": np.float32(2.5),
        "none": np.zeros((0, 3), dtype=bool),
    }
    save_arrays(tmp_path / "a.npz", arrays)
    save_arrays(tmp_path / "b.npz", arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = load_arrays(tmp_path / "a.npz")
    assert list(loaded) == list(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == np.asarray(array).dtype
        np.testing.assert_array_equal(loaded[name], array)
    with pytest.raises(DataError, match="array 'o' holds Python objects"):
        save_arrays(tmp_path / "o.npz", {"o": np.array([{}])})
    (tmp_path / "a.npz").write_bytes(b"PK rubbish")
    with pytest.raises(DataError, match=r"a.npz: is not an .npz file"):
        load_arrays(tmp_path / "a.npz")


def test_json_refuses_what_json_cannot_hold_and_names_it(tmp_path):
    path = tmp_path / "x.json"
    save_json(path, {"a": np.float32(0.5), "b": [np.int64(3), None], "c": "π"})
    assert load_json(path) == {"a": 0.5, "b": [3, None], "c": "π"}
    with pytest.raises(DataError, match=r"b\.c\[1\] = nan"):
        save_json(path, {"b": {"c": [1.0, float("nan")]}})
    with pytest.raises(DataError, match=r"x.json: a: cannot be written"):
        save_json(path, {"a": {1, 2}})
    assert load_json(path)["c"] == "π", "a failed write must leave the old file"
    assert os.listdir(tmp_path) == ["x.json"]


def test_records_are_lines_and_errors_name_the_row(tmp_path):
    path = tmp_path / "records.jsonl"
    rows = [{"n": 1, "gold": 0.1}, {"n": 2, "gold": None, "text": "line\u2028end\n"}]
    save_records(path, rows)
    assert path.read_bytes().count(b"\n") == 2
    assert load_records(path) == rows
    with pytest.raises(DataError, match=r"row 1: gold = inf"):
        save_records(path, [rows[0], {"gold": float("inf")}])
    path.write_text('{"n": 1}\n[1]\n')
    with pytest.raises(DataError, match=r"line 2 is a list"):
        load_records(path)
    path.write_text('{"n": 1}\n{"n": \n')
    with pytest.raises(DataError, match=r"line 2 is not JSON"):
        load_records(path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    save_json(path, 1)
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("2")
        raise KeyboardInterrupt
    assert load_json(path) == 1
    assert os.listdir(tmp_path) == ["x.json"]


def test_tensors_survive(tmp_path):
    torch = pytest.importorskip("torch")
    from overopt.base.files import load_tensors, save_tensors

    base = torch.arange(6.0).reshape(2, 3)
    save_tensors(tmp_path / "w.safetensors", {"a": base, "tied": base, "t": base.T})
    loaded = load_tensors(tmp_path / "w.safetensors")
    assert torch.equal(loaded["tied"], base) and torch.equal(loaded["t"], base.T)
    (tmp_path / "w.safetensors").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"w.safetensors: is not a safetensors file"):
        load_tensors(tmp_path / "w.safetensors")


def test_the_store_needs_no_torch():
    code = "import sys, overopt.engine.execute, overopt.engine.graph, overopt.cli.main;"
    code += "assert not {'torch', 'transformers', 'pandas', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_manifest_is_plain_json(store):
    path = put(store).path / "manifest.json"
    assert json.loads(path.read_text())["format"] == FORMAT_VERSION
