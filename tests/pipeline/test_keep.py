"""House-keeping: nothing that is needed is deleted, no damage is overlooked, no path escapes."""

import json
import os
import shutil
import stat
import time
import zipfile
from pathlib import Path

import pytest
from small_smoke import prompts_file

from overopt.base import files
from overopt.base.errors import DataError
from overopt.cli.main import main
from overopt.engine import archive, keeping
from overopt.engine.store import Store
from overopt.records.results import RESULT_FILES, held_results

SMALLER = [
    "gold.kind=rubric", "proxy.backbone=ladder:0.05m", "labels.n_pairs=60", "method=none",
    "bon.n_prompts=3", "bon.pool_size=32", "bon.ns=1,8,32",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Settings of a small run, the store that it filled, and its results."""
    folder = tmp_path_factory.mktemp("keep")
    settings = [prompts_file(folder / "prompts.jsonl"), *SMALLER]
    places = ["--store", str(folder / "store"), "--results", str(folder / "results")]
    assert main(["run", "smoke", *settings, *places, "--workers", "1", "--quiet"]) == 0
    return settings, folder / "store", folder / "results"


@pytest.fixture
def own(finished, tmp_path):
    """A copy of the store, to be changed."""
    shutil.copytree(finished[1], tmp_path / "own")
    return tmp_path / "own"


def listing(store):
    return {str(p.relative_to(store)) for p in store.rglob("*") if p.is_file()}


# --- gc -------------------------------------------------------------------------------------------


def test_gc_shows_first_and_deletes_only_what_no_kept_experiment_needs(finished, own, capsys):
    settings, _, _ = finished
    before = listing(own)
    assert main(["gc", str(own)]) == 0
    assert "0 of 8 are not needed" in capsys.readouterr().out
    places = ["--store", str(own), "--results", str(own.parent / "r"), "--quiet"]
    more = [*settings, "proxy.rm_seed=1"]
    assert main(["run", "smoke", *more, *places, "--accept-changes"]) == 0
    both = listing(own)
    assert main(["gc", str(own)]) == 0
    keep = " ".join(["smoke", *settings])
    assert main(["gc", str(own), "--keep", keep]) == 0
    out = capsys.readouterr().out
    assert "3 of 11 are not needed" in out and "add --delete" in out and "MB" in out
    assert listing(own) == both
    assert main(["gc", str(own), "--keep", keep, "--delete"]) == 0
    assert before <= listing(own)
    assert len(keeping.entries(Store(own))) == 8
    assert main(["verify", str(own)]) == 0
    assert list((own / ".scratch").iterdir()) == [] and list((own / ".locks").iterdir()) == []


def test_gc_refuses_what_it_cannot_know_or_may_not_touch(own, tmp_path, capsys):
    store = Store(own)
    with store.lock("pool", "0" * 16) as mine:
        assert mine
        assert main(["gc", str(own), "--keep", "quick", "--delete"]) == 2
    assert "a run is computing pool-" in capsys.readouterr().err
    for note in (own / "experiments").iterdir():
        note.unlink()
    assert main(["gc", str(own)]) == 2
    assert "name what to keep with --keep" in capsys.readouterr().err
    assert main(["gc", str(tmp_path)]) == 2
    assert "is no store" in capsys.readouterr().err
    assert len(keeping.entries(store)) == 8


# --- verify ---------------------------------------------------------------------------------------


def test_verify_finds_every_flipped_byte(finished, own, tmp_path, capsys):
    _, store, results = finished
    assert main(["verify", str(store)]) == 0
    assert main(["verify", str(results)]) == 0
    assert "8 artefacts and 1 notes of experiments checked, 0 damaged" in capsys.readouterr().out
    shutil.copytree(results, tmp_path / "results")
    for root in (own, tmp_path / "results"):
        for file in sorted(p for p in root.rglob("*") if p.is_file() and p.stat().st_size):
            if file.name == "store.json":
                continue
            content, stat = file.read_bytes(), file.stat()
            file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
            status = main(["verify", str(root)])
            out = capsys.readouterr().out
            file.write_bytes(content)
            os.utime(file, ns=(stat.st_atime_ns, time.time_ns()))
            if file.parent.name == "experiments":
                continue  # a note has no checksum of its own
            assert status == 1 and "DAMAGED" in out and str(file.parent) in out, file
    assert main(["verify", str(own)]) == 0


def test_the_results_that_are_shipped_can_be_read(capsys):
    shipped = Path(__file__).parents[2] / "experiments" / "results"
    assert main(["verify", str(shipped)]) == 0
    assert "of before there were checksums" in capsys.readouterr().out


# --- export and import ----------------------------------------------------------------------------


def test_an_exported_experiment_comes_back_whole(finished, tmp_path, capsys):
    settings, store, results = finished
    out = tmp_path / "x.zip"
    command = ["export", "smoke", *settings, "--store", str(store), "--results", str(results)]
    assert main([*command, "--out", str(out)]) == 0
    assert main([*command, "--out", str(tmp_path / "y.zip")]) == 0
    assert out.read_bytes() == (tmp_path / "y.zip").read_bytes()
    assert main(["verify", str(out)]) == 0
    there = ["--store", str(tmp_path / "new"), "--results", str(tmp_path / "r")]
    for added in (8, 0):
        assert main(["import", str(out), *there]) == 0
        assert f"{added} artefacts added" in capsys.readouterr().out
    assert listing(tmp_path / "new") == listing(store)
    for name in RESULT_FILES:
        assert (tmp_path / "r" / name).read_bytes() == (results / name).read_bytes()
    assert main(["run", "smoke", *settings, *there, "--quiet"]) == 0
    assert main(["status", "smoke", *settings, "--store", str(tmp_path / "new")]) == 0
    assert "8 done" in capsys.readouterr().out


def exported(finished, path):
    settings, store, results = finished
    places = ["--store", str(store), "--results", str(results)]
    assert main(["export", "smoke", *settings, *places, "--out", str(path)]) == 0


def test_a_damaged_export_leaves_nothing_behind(finished, tmp_path, capsys):
    exported(finished, tmp_path / "x.zip")
    content = (tmp_path / "x.zip").read_bytes()
    for at in range(100, len(content), len(content) // 12):
        (tmp_path / "x.zip").write_bytes(
            content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        )
        there = ["--store", str(tmp_path / f"s{at}"), "--results", str(tmp_path / f"r{at}")]
        assert main(["import", str(tmp_path / "x.zip"), *there]) == 2
        assert "x.zip" in capsys.readouterr().err
        if (tmp_path / f"s{at}").exists():
            assert main(["verify", str(tmp_path / f"s{at}")]) == 0
        assert not (tmp_path / f"r{at}").exists()
    (tmp_path / "x.zip").write_bytes(content[: len(content) // 2])
    assert main(["import", str(tmp_path / "x.zip"), *there]) == 2


@pytest.mark.parametrize(
    "name",
    ["../evil", "/tmp/evil", "store/gold/../../evil", "store/./x/y", "results/../evil", "a\\b",
     "store//x/y", "store/gold/.evil/x", "store/experiments/a/b", "results/other", "C:/evil"],
)  # fmt: skip
def test_no_path_of_an_import_escapes(tmp_path, name):
    sums = {name: {"sha256": "0" * 64, "size": 1}}
    index = {"format": 1, "experiment": "../../x", "stages": {}, "files": sums}
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as made:
        made.writestr("export.json", json.dumps(index))
        made.writestr(name, "x")
    before = listing(tmp_path)
    places = ["--store", str(tmp_path / "s" / "t"), "--results", str(tmp_path / "r")]
    assert main(["import", str(tmp_path / "x.zip"), *places]) == 2
    assert listing(tmp_path) == before


def test_a_member_that_claims_to_be_a_link_is_a_file(tmp_path):
    (tmp_path / "a").write_text("/etc/passwd")
    archive.write(tmp_path / "x.zip", {"store/gold/ab/a": tmp_path / "a"}, {})
    with (
        zipfile.ZipFile(tmp_path / "x.zip") as sound,
        zipfile.ZipFile(tmp_path / "y.zip", "w") as made,
    ):
        for info in sound.infolist():
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o4777) << 16
            made.writestr(info, sound.read(info.filename))
    with archive.opened(tmp_path / "y.zip") as opened:
        opened.extract("store/gold/ab/a", tmp_path / "out" / "a")
    mode = (tmp_path / "out" / "a").lstat().st_mode
    assert stat.S_ISREG(mode) and not mode & 0o7111


def test_an_archive_that_does_not_agree_with_its_index_is_refused(tmp_path):
    def write(files_, index):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as made:
            for name, content in files_:
                made.writestr(name, content)
            made.writestr("export.json", json.dumps(index))

    for content, index, words in (
        ([("a", "x")], {"format": 1, "files": {}}, "do not agree"),
        ([], {"format": 1, "files": {"a": {}}}, "do not agree"),
        ([], {"format": 2, "files": {}}, "format = 2"),
        ([], [], "must be an object"),
    ):
        write(content, index)
        with pytest.raises(DataError, match=words), archive.opened(tmp_path / "x.zip"):
            pass
    with (
        pytest.warns(UserWarning),
        zipfile.ZipFile(tmp_path / "x.zip", "w") as made,
    ):
        made.writestr("a", "x")
        made.writestr("a", "y")
    with pytest.raises(DataError, match="twice"), archive.opened(tmp_path / "x.zip"):
        pass


def test_an_import_does_not_replace_other_records(finished, tmp_path, capsys):
    exported(finished, tmp_path / "x.zip")
    there = tmp_path / "r"
    shutil.copytree(finished[2], there)
    held = held_results(there)
    for row in held.records:
        row["run_id"] = "f" * 16
    files.save_records(there / "records.jsonl", held.records)
    (there / "checksums.json").unlink()
    arrays = {f"{'f' * 16}.{k.partition('.')[2]}": v for k, v in held.arrays.items()}
    files.save_arrays(there / "curves.npz", arrays)
    before = (there / "records.jsonl").read_bytes()
    places = ["--store", str(tmp_path / "s"), "--results", str(there)]
    assert main(["import", str(tmp_path / "x.zip"), *places]) == 2
    assert "it holds 1 other curves" in capsys.readouterr().err
    assert (there / "records.jsonl").read_bytes() == before
