"""Every reader turns every damage into an error that names the file; nothing is ever unpickled."""

import math
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import fuzz
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as how
from hypothesis import strategies as st

from overopt.base import files, folders
from overopt.base.config import from_dict, to_dict
from overopt.base.errors import ConfigError, DataError, OveroptError, StoreError
from overopt.engine.manifest import checksum, read_manifest

often = how(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readers")


@pytest.mark.parametrize("name", fuzz.READERS)
@given(data=st.binary(max_size=300))
@example(data=b"[" * 20_000)
@example(data=pickle.dumps({"a": 1}))
@often
def test_any_bytes_are_a_value_or_an_error_that_names_the_file(folder, name, data):
    path = folder / f"any{fuzz.READERS[name].suffix}"
    path.write_bytes(data)
    try:
        fuzz.READERS[name].read(path)
    except OveroptError as error:
        assert str(path) in str(error)


def test_damaged_files_and_odd_settings_are_answered(tmp_path):
    refused = fuzz.fuzz(tmp_path, 1000)
    assert all(refused.values())


numbers = st.one_of(
    st.integers(), st.integers(min_value=2**1023), st.floats(), st.booleans(), st.none(), st.text()
)
fields = st.dictionaries(st.sampled_from(["n", "lr", "name", "sizes", "rate", "flag"]), numbers)


@given(data=fields)
@example(data={"lr": 10**400})
@example(data={"n": -(10**5000)})
@often
def test_settings_are_refused_or_fit_a_float(data):
    try:
        made = from_dict(fuzz.Settings, data)
    except ConfigError as error:
        assert any(name in str(error) for name in data)
        return
    assert math.isfinite(float(made.n)) and math.isfinite(made.lr)
    assert from_dict(fuzz.Settings, to_dict(made)) == made


class Explosive:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_is_not_opened_whatever_it_is_called(tmp_path):
    trap = tmp_path / "trap"
    np.save(tmp_path / "x.npy", np.array([Explosive(trap)], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.write(tmp_path / "x.npy", "gold.npy")
    for name, reader in fuzz.READERS.items():
        for content in (tmp_path / "x.npy", tmp_path / "zip.npz"):
            path = tmp_path / f"in-{name}{reader.suffix}"
            path.write_bytes(content.read_bytes())
            with pytest.raises(OveroptError):
                reader.read(path)
        path.write_bytes(pickle.dumps(Explosive(trap)))
        with pytest.raises(OveroptError):
            reader.read(path)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["json", "records", "arrays", "tensors"])
def test_what_is_no_file_is_refused_and_nothing_hangs(tmp_path, name):
    reader = fuzz.READERS[name]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for place in ("pipe", "folder", "circle", "absent", "x" * 300):
        with pytest.raises(DataError) as caught:
            reader.read(tmp_path / place)
        assert str(tmp_path / place) in str(caught.value)


def test_a_missing_key_row_or_array_is_named(tmp_path):
    files.save_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises(DataError, match=r"a\.json: lacks the key 'c'"):
        files.load_object(tmp_path / "a.json", ("b", "c"))
    files.save_arrays(tmp_path / "a.npz", {"gold": np.zeros(2)})
    with pytest.raises(DataError, match=r"a\.npz: array 'proxy'"):
        files.load_arrays(tmp_path / "a.npz", ("proxy",))
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\n{"a": "\xff"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl: line 3 is not JSON .*utf-8"):
        files.load_records(tmp_path / "a.jsonl")


def test_a_manifest_of_a_newer_format_or_without_a_key_says_so(tmp_path):
    sound = {k: v for k, v in fuzz._manifest().items() if k != "checksum"}
    path = tmp_path / "manifest.json"

    def write(content):
        files.save_json(path, {**content, "checksum": checksum(content)})

    write(sound)
    assert read_manifest(path)["stage"] == "pool"
    write({**sound, "format": 2, "new": []})
    with pytest.raises(DataError, match="format = 2, this overopt reads 1: use the overopt that"):
        read_manifest(path)
    for key in ("stage", "upstream", "files", "wall_s"):
        write({k: v for k, v in sound.items() if k != key})
        with pytest.raises(DataError, match=f"lacks the key '{key}'"):
            read_manifest(path)
        write({**sound, key: []})
        with pytest.raises(DataError, match=f"{key} = \\[\\]"):
            read_manifest(path)


def test_places_for_output_are_tried_and_left_as_they_were(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "deeper")
    (tmp_path / "taken" / "records.jsonl").mkdir(parents=True)
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped" / "records.jsonl")  # a device too would be replaced by a file
    before = sorted(tmp_path.rglob("*"))
    for place in ("file", "file/in", "circle", "nowhere", "x" * 300, "taken", "piped", "/proc/o"):
        with pytest.raises(StoreError, match="--results"):
            folders.check_folder(tmp_path / place, "--results", "records.jsonl")
    folders.check_folder(tmp_path / "new" / "deep", "--results", "records.jsonl")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_another_trial_took_away_is_tried_again(tmp_path, monkeypatch):
    """Two commands that try one new folder at the same moment: each takes away what it made."""
    real, gone = tempfile.TemporaryDirectory, []

    def once(*args, **options):
        if not gone:
            gone.append(options["dir"])
            raise FileNotFoundError(2, "No such file or directory", options["dir"])
        return real(*args, **options)

    monkeypatch.setattr(tempfile, "TemporaryDirectory", once)
    folders.check_folder(tmp_path / "r", "--results", "records.jsonl")
    assert gone == [tmp_path / "r"]


def test_temporary_files_are_exclusive_and_those_of_the_dead_are_swept(tmp_path):
    with files.atomic_path(tmp_path / ("n" * 250)) as first:
        with files.atomic_path(tmp_path / ("n" * 250)) as second:
            assert first != second and str(os.getpid()) in first.name
            assert len(first.name) < 255
            second.write_text("b")
        first.write_text("a")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["a"]
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout.strip()
    left = files.temporary_name("records.jsonl")
    (tmp_path / left.replace(f".{os.getpid()}.", f".{dead}.")).write_text("")
    (tmp_path / left).write_text("")
    with folders.locked(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted([".lock", left, "n" * 250])
