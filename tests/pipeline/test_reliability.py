"""Success means records: streams that break, signals, races of parts, places that cannot be written."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import pytest
from small_smoke import prompts_file
from torture import living, obey_signals

from overopt.base import files
from overopt.base.errors import CheckpointError, DataError, StoreError
from overopt.cli.main import main
from overopt.engine.manifest import checksum
from overopt.engine.store import Store
from overopt.nets.checkpoints import load_lm
from overopt.records import results as results_module
from overopt.records.results import Tables, held_results, recover, save_results, transaction
from overopt.rewards.kind import Place
from overopt.rewards.kinds.ensemble import EnsembleScorer
from overopt.rewards.load import load_scorer

SMALLER = [
    "gold.kind=rubric", "proxy.backbone=ladder:0.05m", "labels.n_pairs=60", "method=none",
    "bon.n_prompts=3", "bon.pool_size=32", "bon.ns=1,8,32",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Settings of a small run of one curve, the store that it filled, and its results."""
    folder = tmp_path_factory.mktemp("finished")
    settings = [prompts_file(folder / "prompts.jsonl"), *SMALLER]
    places = ["--store", str(folder / "store"), "--results", str(folder / "results")]
    assert main(["run", "smoke", *settings, *places, "--workers", "1", "--quiet"]) == 0
    return settings, folder / "store", folder / "results"


def shell(command, **options):
    """A line of bash, in which ``overopt`` is the command."""
    text = f'overopt() {{ "{sys.executable}" -m overopt "$@"; }}\n{command}'
    how = {"capture_output": True, "text": True, "errors": "replace"}
    return subprocess.run(["bash", "-c", text], **how, **options)


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "streams", ["2>&1 >/dev/null | true", "2>/dev/full", "2>&-", ">&- 2>&- <&-", ">/dev/full"]
)
def test_a_run_whose_progress_nobody_reads_goes_on_to_its_records(finished, tmp_path, streams):
    settings, store, _ = finished
    shutil.copytree(store, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "bon")
    command = ["run", "smoke", *settings, "--store", "store", "--results", "out", "--workers", "2"]
    done = shell(f"overopt {' '.join(command)} {streams}; exit ${{PIPESTATUS[0]}}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert held_results(tmp_path / "out").records


@pytest.mark.parametrize("command", ["fit {results}", "--help"])
def test_output_that_is_lost_is_an_error_unless_its_reader_left(finished, tmp_path, command):
    command = command.format(results=finished[2])
    for streams, status in ((">/dev/full", 1), (">&-", 1), ("| true", 0), (">/dev/null", 0)):
        line = f"overopt {command} {streams}; exit ${{PIPESTATUS[0]}}"
        done = shell(line, cwd=tmp_path)
        assert done.returncode == status, (streams, done.stderr)
        if status:
            assert "standard output could not be written" in done.stderr
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_without_a_place_in_the_encoding_are_replaced(finished, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "20", "NO_COLOR": "1"}
    done = shell(f"overopt fit {finished[2]}", env=environment)
    assert done.returncode == 0 and "?" in done.stdout and done.stderr == ""


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_run_with_records_of_what_is_finished(finished, tmp_path, number, workers):
    settings, store, _ = finished
    shutil.copytree(store, tmp_path / "store")
    more = [s for s in settings if s != "method=none"] + [
        "method.steps=300",
        "method.eval_prompts=4",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "overopt", "run", "smoke", *more, "--workers", str(workers),
         "--store", "store", "--results", "results"],
        cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True,
        preexec_fn=obey_signals,
    )  # fmt: skip
    while not list((tmp_path / "store" / ".scratch").glob("ppo-*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    # To the whole group, as a terminal does, or to the one process, as a batch system may.
    os.killpg(process.pid, number) if workers == 2 else process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "running the same command again" in errors.splitlines()[-1]
    assert "FAILED" not in errors and "Traceback" not in errors
    assert {row["method"] for row in held_results(tmp_path / "results").records} == {"bon"}
    deadline = time.monotonic() + 10
    while living(process.pid):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)


# --- results --------------------------------------------------------------------------------------


def rows(name):
    return Tables([{"run_id": name, "x": 1}], [], [], {f"{name}.gold": files.np.arange(3.0)})


def write_own(folder, name, times):
    """Join one curve to what a folder holds, again and again, as a part of a run does."""
    for _ in range(times):
        with transaction(folder):
            held = held_results(folder)
            if name not in held.run_ids:
                held.add(rows(name))
            time.sleep(0.002)
            save_results(folder, held)


@pytest.mark.parametrize("writers", [2, 4])
def test_writers_of_one_results_directory_lose_nothing(tmp_path, writers):
    code = "import sys, test_reliability as t; from pathlib import Path\n"
    code += "t.write_own(Path(sys.argv[1]), sys.argv[2], 10)"
    path = os.pathsep.join(p for p in sys.path if p)
    here = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{path}"}
    names = [f"run{i}" for i in range(writers)]
    folder = tmp_path / "results"
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(folder), name], env=here)
        for name in names
    ]
    assert [process.wait() for process in running] == [0] * writers
    assert held_results(folder).run_ids == set(names)
    assert sorted(p.name for p in folder.iterdir()) == sorted(results_module.RESULT_FILES)


def test_a_writer_that_dies_anywhere_leaves_the_old_results_or_the_new(tmp_path, monkeypatch):
    calls = []

    class DiesError(BaseException):
        pass

    def dying(real, at):
        def call(*args, **kwargs):
            calls.append(args)
            if len(calls) == at:
                raise DiesError
            return real(*args, **kwargs)

        return call

    seen = set()
    for at in range(1, 60):
        folder = tmp_path / f"r{at}"
        with transaction(folder):
            save_results(folder, rows("old"))
        calls.clear()
        real = {name: getattr(os, name) for name in ("replace", "rename", "fsync")}
        for name, function in real.items():
            monkeypatch.setattr(os, name, dying(function, at))
        died = False
        try:
            with transaction(folder):
                save_results(folder, rows("new"))
        except DiesError:
            died = True
        for name, function in real.items():
            monkeypatch.setattr(os, name, function)
        with transaction(folder):
            recover(folder)
        (name,) = held_results(folder).run_ids
        seen.add((died, name))
        if not died:
            break
    assert seen == {(True, "old"), (True, "new"), (False, "new")}


def test_a_run_finishes_what_a_killed_writer_had_decided_on(finished, tmp_path):
    settings, store, results = finished
    own = tmp_path / "results"
    shutil.copytree(results, own)
    (own / ".decided").mkdir()
    for name in results_module.RESULT_FILES[2:]:
        (own / name).rename(own / ".decided" / name)
    command = ["run", "smoke", *settings, "--store", str(store), "--results", str(own), "--quiet"]
    assert main(command) == 0
    for name in results_module.RESULT_FILES:
        if name not in ("costs.jsonl", "checksums.json"):
            assert (own / name).read_bytes() == (results / name).read_bytes()
    assert not (own / ".decided").exists()


def test_damaged_results_are_refused_before_work_and_named(finished, tmp_path, capsys):
    settings, store, results = finished
    own = tmp_path / "results"
    shutil.copytree(results, own)
    for name in results_module.RESULT_FILES:
        content = (own / name).read_bytes()
        for damaged in (content[:-9], None):
            (own / name).unlink()
            if damaged is not None:
                (own / name).write_bytes(damaged)
            if name == "checksums.json" and damaged is None:
                continue  # as of before there were any
            status = main(["run", "smoke", *settings, "--store", str(store), "--results", str(own)])
            if name == "records.jsonl" and damaged is None:
                assert status == 0  # the store has all there was
            else:
                assert status == 2 and name in capsys.readouterr().err
            (own / name).write_bytes(content)


# --- places ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["file", "file/deep", "circle", "n" * 300, "/proc/overopt"])
def test_a_place_that_cannot_be_written_is_refused_before_work(finished, tmp_path, capsys, place):
    settings, _, results = finished
    (tmp_path / "file").write_text("x")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    bad = str(tmp_path / place)
    store = ["--store", str(tmp_path / "store")]
    assert main(["run", "smoke", *settings, *store, "--results", bad]) == 2
    assert list((tmp_path / "store").glob("[a-z]*/*")) == []
    assert main(["figures", str(results), "--out", bad]) == 2
    assert main(["forecast", str(results), "--n-params", "9e9", "--out", f"{bad}/x.json"]) == 2
    assert main(["run", "smoke", *settings, "--store", bad, "--results", str(tmp_path / "r")]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith("overopt: error: ") and bad in line


def test_the_directory_around_a_file_that_is_asked_for_is_made(finished, tmp_path, monkeypatch):
    settings, store, results = finished
    monkeypatch.chdir(tmp_path)
    fuzz._evaluation(tmp_path / "evaluation.json")
    for i, line in enumerate(
        (
            f"export smoke {' '.join(settings)} --store {store} --results {results} --out NEW/x.zip",
            f"table {results} --out NEW/x.csv --format csv",
            f"report {results} --out NEW/x.html",
            "eval table evaluation.json --out NEW/x.md",
            f"figures {results} --out NEW/x",
            "init NEW/x.py",
        )
    ):
        assert main(line.replace("NEW", f"new{i}/deep").split()) == 0, line
        assert len(list((tmp_path / f"new{i}" / "deep").glob("x*"))) == 1, line


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 kB; skips where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    size = ["-t", "tmpfs", "-o", "size=24k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(["mount", *size], check=False).returncode:
        pytest.skip("needs to be allowed to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("run smoke {settings} --store {store} --results {disk}/new", "--results"),
        ("figures {results} --out {disk}/new", "--out"),
        ("export smoke {settings} --store {store} --out {disk}/x.zip", "--out"),
        ("sft --model ladder:0.05m --data {tmp}/data.jsonl --out {disk}/new/model", "--out"),
    ],
)
def test_a_full_disk_is_named_with_the_option_that_gave_it(
    finished, small_disk, tmp_path, capsys, command, option
):
    settings, store, results = finished
    (tmp_path / "data.jsonl").write_text('{"prompt": "One day", "response": " it rained"}\n' * 4)
    own = tmp_path / "store"  # exporting and running write a line into it
    shutil.copytree(store, own)
    line = command.format(
        settings=" ".join(settings), disk=small_disk, tmp=tmp_path, store=own, results=results
    )
    assert main(line.split()) in (1, 2)
    error = capsys.readouterr().err
    place = small_disk if "x.zip" in command else small_disk / "new"
    remedy = f"the disk is full; free some space in {place}, or give another directory"
    assert f"{remedy} with {option}, then run again" in error
    assert "Traceback" not in error


def reading(command, folder):
    """The command with all that root may do but writing where modes forbid it."""
    less = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    return subprocess.run(
        [*less, sys.executable, "-m", "overopt", *command],
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv"
)
def test_a_complete_store_that_may_only_be_read_can_be_run_planned_and_read(finished, tmp_path):
    settings, store, results = finished
    own = tmp_path / "ro"
    shutil.copytree(store, own)
    for path in (own, *own.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    run = ["smoke", *settings, "--store", str(own)]
    done = reading(["run", *run, "--results", "r", "--workers", "1"], tmp_path)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "r" / "records.jsonl"
    assert made.read_bytes() == (results / "records.jsonl").read_bytes()
    assert reading(["plan", *run], tmp_path).returncode == 0
    assert reading(["verify", str(own)], tmp_path).returncode == 0
    other = ["bon.ns=1,4" if s.startswith("bon.ns=") else s for s in run]
    done = reading(["run", *other, "--results", "r2"], tmp_path)
    assert done.returncode == 2 and str(own) in done.stderr and "--store" in done.stderr
    assert not (tmp_path / "r2").exists()
    for path in (own, *own.rglob("*")):
        path.chmod(0o755)


# --- a store is data ------------------------------------------------------------------------------

EVIL = """
from pathlib import Path
Path({trap!r}).write_text("run")
def reward(inputs, *, strength):
    return inputs.scores.mean(0)
"""


def poisoned(store, stage, trap):
    """Make every artefact of a stage an ensemble with a user's file, with fitting checksums."""
    for folder in (store / stage).iterdir():
        scorer = files.load_json(folder / "scorer.json")
        member = folder / "member-0"
        member.mkdir()
        for file in ("scorer.json", "model.safetensors"):
            if (folder / file).exists():
                shutil.copy(folder / file, member / file)
        (folder / "transform.py").write_text(EVIL.format(trap=str(trap)))
        info = {
            "kind": "ensemble", "n_parts": 1, "ref_tokens": 9.0, "center": 0.0, "spread": 1.0,
            "reward": {"transform": "transform.py"},
        }  # fmt: skip
        files.save_json(folder / "scorer.json", scorer | info)
        seal(folder)


def seal(folder):
    """Write a manifest that fits the files of an artefact, whatever they are."""
    manifest = files.load_json(folder / "manifest.json")
    manifest["files"] = {
        str(p.relative_to(folder)): {
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
            "size": p.stat().st_size,
        }
        for p in folder.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }
    files.save_json(folder / "manifest.json", {**manifest, "checksum": checksum(manifest)})


@pytest.mark.parametrize("stage", ["proxy", "gold"])
def test_a_store_that_was_turned_into_code_is_not_run(finished, tmp_path, capsys, stage):
    settings, store, _ = finished
    own, trap = tmp_path / "store", tmp_path / "trap"
    shutil.copytree(store, own)
    poisoned(own, stage, trap)
    for users in ("scores", "bon", "pool", "comparisons", "labels", "proxy"):
        if users != stage:
            shutil.rmtree(own / users)
    places = ["--store", str(own), "--results", str(tmp_path / "results"), "--workers", "1"]
    assert main(["run", "smoke", *settings, *places, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert "kind = 'ensemble'" in error and "scorer.json" in error
    assert not trap.exists()


def test_a_transform_runs_only_if_it_is_the_one_that_the_settings_name(tmp_path):
    trap = tmp_path / "trap"
    scorer = EnsembleScorer((), (), 1.0)
    scorer.save(tmp_path, {"reward": {"transform": "mine.py"}})
    content = EVIL.format(trap=str(trap)).encode()
    (tmp_path / "transform.py").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    for trusted in ("", hashlib.sha256(b"other").hexdigest()):
        place = Place(tmp_path, None, "cpu", frozenset(), trusted)
        with pytest.raises(StoreError, match=r"transform\.py: SHA-256 .* is not run"):
            load_scorer(tmp_path, place)
        assert not trap.exists()
    load_scorer(tmp_path, Place(tmp_path, None, "cpu", frozenset(), digest))
    assert trap.exists()
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"kind": "classifier", "source": "evil/model", "mean": 0, "std": 1}, "evil/model"),
        ({"kind": "../../evil"}, "kind = '../../evil'"),
        ({"kind": ["rubric"]}, "kind = "),
        ({"kind": "reward_model"}, "model.safetensors"),
        ({"kind": "ensemble", "n_parts": "x"}, "does not describe a ensemble"),
    ],
)
def test_an_artefact_cannot_name_what_is_loaded(tmp_path, info, words):
    files.save_json(tmp_path / "scorer.json", info)
    with pytest.raises((StoreError, DataError), match=words.replace("[", r"\[")):
        load_scorer(tmp_path, Place(tmp_path, None, "cpu"))


def test_a_store_with_links_or_pipes_in_it_is_refused(finished, tmp_path):
    _, store, _ = finished
    own = tmp_path / "store"
    shutil.copytree(store, own)
    (folder,) = (own / "gold").iterdir()
    target = folder / "scorer.json"
    content = target.read_bytes()
    target.unlink()
    (tmp_path / "elsewhere").write_bytes(content)
    target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is not a regular file"):
        Store(own).open("gold", folder.name)
    target.unlink()
    os.mkfifo(target)
    with pytest.raises(StoreError, match="is not a regular file"):
        Store(own).open("gold", folder.name)


def test_names_from_a_store_do_not_reach_the_terminal_as_they_are(finished, tmp_path):
    settings, store, _ = finished
    own = tmp_path / "store"
    shutil.copytree(store, own)
    for note in (own / "experiments").iterdir():
        content = json.loads(note.read_text())
        content["stages"] = {"\x1b[2Jgone\u202e": {"stage": "bon", "fingerprint": "x"}}
        note.write_text(json.dumps(content))
    done = shell(f"overopt status smoke {' '.join(settings)} --store {own}")
    assert done.returncode == 0 and "\\x1b[2Jgone\\u202e" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"_attn_implementation": "evil/kernel"}),
        ("config.json", {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}),
        ("config.json", []),
        ("model.safetensors.index.json", {"weight_map": {"a": "../../elsewhere.safetensors"}}),
        ("model.safetensors.index.json", {"weight_map": [1]}),
    ],
)
def test_a_checkpoint_cannot_bring_code_or_lead_elsewhere(tmp_path, file, content):
    trap = tmp_path / "trap"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(trap)!r}, 'w')\nclass Config: pass\n")
    (folder / "model.safetensors").write_bytes(b"")
    files.save_json(folder / "config.json", {"model_type": "llama"})
    files.save_json(folder / file, content)
    with pytest.raises(CheckpointError):
        load_lm(str(folder))
    assert not trap.exists()
