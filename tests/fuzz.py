"""Damaged files and odd settings, in great number: every answer is a value or an error of overopt.

``python tests/fuzz.py [N] [--seed S]`` (``make fuzz``: 100,000 inputs) tries each reader on files that
were damaged at random: bytes changed, cut out, doubled, filled with others, or replaced as a whole. A
traceback, an input that takes longer than 10 s, or more than 1 GB of memory ends it with status 1.
The same inputs, fewer of them, are tried by tests/unit/test_readers.py.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import lzma
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from overopt.base import files
from overopt.base.config import check_types, from_dict, to_dict
from overopt.base.errors import OveroptError
from overopt.base.overrides import apply_overrides
from overopt.base.shown import BEST_OF_N
from overopt.engine import archive
from overopt.engine.manifest import checksum, read_manifest, read_recorded
from overopt.evals import results as evaluations
from overopt.evals.benchmarks import candidates, pairs, processbench, rewardbench, rewardbench2
from overopt.evals.converters import alpaca_eval, gsm8k, hh
from overopt.nets.headers import read_headers
from overopt.pools.replay import open_replay, read_replay
from overopt.records.curves import read_costs
from overopt.records.results import Tables, held_results, read_runs, save_results
from overopt.records.samples import read_samples
from overopt.records.view import view
from overopt.reports import forecast
from overopt.reports.comparison import load_results
from overopt.rewards.labels.people import read_pairs
from overopt.study.fine_tune import read_examples
from overopt.worlds import answers
from overopt.worlds.problems import read_problems
from overopt.worlds.prompts import read_prompts_file

COMMITTED = Path(__file__).parents[1] / "experiments" / "results"
SLOW_S = 10
MEMORY_MB = 1000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of every kind that a setting can have."""

    n: int = 3
    lr: float = 1e-3
    name: str = "x"
    sizes: tuple[int, ...] = (1, 2)
    rate: float | None = None
    flag: bool = True

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class Reader:
    """A reader under test: how a sound file is made, and how any file is read."""

    suffix: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]


def _manifest() -> dict[str, Any]:
    content: dict[str, Any] = {
        "format": 1, "stage": "pool", "version": 2, "fingerprint": "ab", "config": {"n": 3},
        "config_non_default": {}, "upstream": {"gold": "cd"}, "status": "complete",
        "resumed": False, "wall_s": 1.0, "cpu_s": 1.0, "device": "cpu", "threads": 1,
        "files": {"x.npz": {"sha256": "00", "size": 3}},
    }  # fmt: skip
    return {**content, "checksum": checksum(content)}


def _arrays(path: Path) -> None:
    files.save_arrays(path, {"gold": np.arange(6.0).reshape(2, 3), "text": np.array(["a", "bc"])})


def _tensors(path: Path) -> None:
    import torch

    files.save_tensors(
        path, {"w": torch.arange(6.0), "b": torch.zeros(2, 2).bfloat16()}, {"a": "b"}
    )


def _table() -> list[dict[str, Any]]:
    return [
        {"prompt_id": f"p{i // 3}", "gold": 0.5 * i, "proxy": 1.0 - i, "length": i}
        for i in range(6)
    ]


def _parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(_table()), path)


def _rows(*rows: dict[str, Any]) -> Callable[[Path], None]:
    """What writes rows as JSON lines, compressed where the suffix says so."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()

    def make(path: Path) -> None:
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)

    return make


def _csv(delimiter: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(_table()[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(_table())

    return make


def _judged(problems: dict) -> None:
    """Judge each problem's own steps and answer as if they were a response."""
    for problem in problems.values():
        response = "\n".join((*problem.steps, problem.answer))
        answers.numeric("", response, problem.answer)
        answers.steps_hold(problem.steps)
        answers.none_is_missing(response, problem.steps)
        answers.first_correction(problem.steps)


PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad", "subset": "math-prm", "id": 7}
TALK = [{"role": "user", "content": "q π"}, {"role": "assistant", "content": "a"}]
OTHER = [TALK[0], {"role": "assistant", "content": "b"}]
PEOPLE = (
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"chosen": TALK, "rejected": OTHER, "score_chosen": 2.0, "score_rejected": 1.0},
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},
    {"instruction": "q", "completions": [{"response": "a", "overall_score": 1},
                                         {"response": "b", "overall_score": 2}]},
    {"prompt": "p", "response": "a", "helpfulness": 1},
    {"prompt": "p", "response": "b", "helpfulness": 2},
)  # fmt: skip
MANY = {"prompt": "q", "responses": ["a", "b"], "gold": [0, 1]}
BENCHMARKS = {
    pairs: PAIR,
    rewardbench: PAIR,
    rewardbench2: {"id": "3", "prompt": "q", "chosen": ["r"], "rejected": ["a", "b", "c"],
                   "num_correct": 1, "total_completions": 4, "subset": "Math"},
    processbench: {"id": "gsm8k-0", "problem": "q", "steps": ["a", "b"], "label": 1},
    candidates: MANY,
}  # fmt: skip
"""A row in the layout of each benchmark."""


def _benchmark_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([MANY] * 3), path)


def _evaluation(path: Path) -> None:
    entry = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    rows = [{"id": str(i), "subset": "a", "credit": 0.5 * i} for i in range(3)]
    files.save_json(path, {
        "format": 1, "benchmark": "pairs", "model": "m", "headline": "accuracy", "n_params": 9,
        "scores": {"all": {"accuracy": entry}}, "rows": rows, "tied": 0.0,
    })  # fmt: skip


def _read_evaluation(path: Path) -> None:
    found = evaluations.read_result(path)
    evaluations.html(evaluations.board([found]))
    evaluations.agreement(found, found)


def _forecast(path: Path) -> None:
    forecast.forecast(COMMITTED / "exp001_figure1", n_params=9e6, out=path)


def _read_forecast(path: Path) -> None:
    forecast.read(path)


def _archive(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for name in ("store/gold/ab/scorer.json", "results/records.jsonl"):
            made[name] = Path(folder, str(len(made)))
            made[name].write_text('{"a": 1}\n')
        archive.write(path, made, {"experiment": "x", "stages": {}})


def _read_archive(path: Path) -> None:
    with archive.opened(path) as opened, tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for i, name in enumerate(opened.sums):
            opened.extract(name, Path(folder, str(i)))


def _headers(path: Path) -> None:
    """A file of tensors without torch, whose header is most of it."""
    header = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))


READERS = {
    "json": Reader(".json", lambda p: files.save_json(p, {"a": [1, 2.5, None], "b": {"c": "π"}}),
                   files.load_json),
    "object": Reader(".json", lambda p: files.save_json(p, {"a": 1}),
                     lambda p: files.load_object(p, ("a",))),
    "records": Reader(".jsonl", lambda p: files.save_records(p, [{"run_id": "a", "x": 0.5}] * 3),
                      files.load_records),
    "arrays": Reader(".npz", _arrays, lambda p: files.load_arrays(p, ("gold", "text"))),
    "tensors": Reader(".safetensors", _tensors, lambda p: files.load_tensors(p, names=("w",))),
    "manifest": Reader(".json", lambda p: files.save_json(p, _manifest()), read_manifest),
    "recorded": Reader(
        ".json",
        lambda p: files.save_json(
            p, {"experiment": "x", "stages": {"a": {"stage": "b", "fingerprint": "c"}}}
        ),
        read_recorded,
    ),
    "table": Reader(".jsonl", lambda p: files.save_records(p, _table()), read_replay),
    "parquet": Reader(".parquet", _parquet, read_replay),
    "prompts": Reader(".jsonl", lambda p: p.write_text('"a π"\n{"prompt": "b"}\n', "utf-8"),
                      lambda p: read_prompts_file(str(p))),
    "csv": Reader(".csv", _csv(","), read_replay),
    "tsv": Reader(".tsv", _csv("\t"), read_replay),
    "array": Reader(".json", lambda p: files.save_json(p, _table()), read_replay),
    "table.gz": Reader(".jsonl.gz", _rows(*_table()), read_replay),
    "array.xz": Reader(".json.xz", lambda p: p.write_bytes(
        lzma.compress(json.dumps(_table()).encode())), read_replay),
    "people": Reader(".jsonl", _rows(*PEOPLE), lambda p: read_pairs(str(p))),
    "problems": Reader(
        ".jsonl",
        _rows({"prompt": "1 + 1?", "answer": 2, "steps": ["1 + 1 = 2"]},
              {"question": "2 + 1?", "answer": "2 + 1 = 3\n#### 3"}),
        lambda p: _judged(read_problems(str(p), "numeric")[1]),
    ),
    "prompts.gz": Reader(".jsonl.gz", _rows({"prompt": "a π"}, {"messages": TALK[:1]}),
                         lambda p: read_prompts_file(str(p))),
    **{
        b.__name__.rpartition(".")[2]: Reader(
            ".jsonl", _rows(row, row), lambda p, b=b: b.read(b.Settings(), [str(p)])
        )
        for b, row in BENCHMARKS.items()
    },
    "benchmark.parquet": Reader(".parquet", _benchmark_parquet,
                                lambda p: candidates.read(candidates.Settings(), [str(p)])),
    "hh": Reader(".jsonl.gz", _rows(PEOPLE[2]), lambda p: hh.convert(hh.Settings(), p)),
    "alpaca_eval": Reader(
        ".json",
        lambda p: files.save_json(p, [
            {"preference": 1, "output_1": "a", "output_2": "b", "instruction": "q"}]),
        lambda p: alpaca_eval.convert(alpaca_eval.Settings(), p)),
    "gsm8k": Reader(
        ".jsonl",
        _rows({"question": "q"} | {m: {"solution": "a <<1>>", "is_correct": True}
                                   for m in gsm8k.MODELS}),
        lambda p: gsm8k.convert(gsm8k.Settings(), p)),
    "evaluation": Reader(".json", _evaluation, _read_evaluation),
    "forecast": Reader(".json", _forecast, _read_forecast),
    "export": Reader(".zip", _archive, _read_archive),
    "headers": Reader(".safetensors", _headers, lambda p: read_headers([p])),
    "examples": Reader(".jsonl", lambda p: files.save_records(p, [{"prompt": "a", "response": "b"}]),
                       read_examples),
}  # fmt: skip

WHOLE = (
    b"", b"\x00", b"{", b"[" * 20_000, b'{"a":' * 5_000 + b"1" + b"}" * 5_000, b"\xff\xfe{}",
    b"1" + b"0" * 400, b"1" * 5_000, b"1e999", b"NaN", b'"a"', b"[]", b"{}", b"null\n{}",
    b"\xed\xa0\x80", b'{"a": "\\ud800"}', b"PK\x03\x04" + b"\x00" * 30, b"PAR1" + b"\x00" * 8 + b"PAR1",
    pickle.dumps({"a": 1}), b"\xff" * 8, (1 << 40).to_bytes(8, "little") + b"{}", b"\x93NUMPY\x01\x00",
)  # fmt: skip
"""Contents that are something else altogether."""


def odd_zips(folder: Path) -> list[bytes]:
    """Archives that are no ``.npz`` of ours: pickles, claims of a huge shape, bombs, other files."""
    entries: list[tuple[str, bytes, int]] = [
        ("gold.npy", b"text", zipfile.ZIP_STORED),
        ("gold.npy", b"\x00" * 50_000_000, zipfile.ZIP_DEFLATED),
        ("gold.txt", b"x", zipfile.ZIP_STORED),
    ]
    for shape in ("(1000000000000,)", "(-1,)", "(2, 'x')", "(" * 300):
        head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
        entry = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
        entries.append(("gold.npy", entry, zipfile.ZIP_STORED))
    made = []
    path = folder / "odd.npz"
    for name, content, how in entries:
        with zipfile.ZipFile(path, "w", how) as archive:
            archive.writestr(name, content)
        made.append(path.read_bytes())
    np.savez(path, gold=np.array([{}], dtype=object))
    made.append(path.read_bytes())
    return made


def damaged(data: bytes, rng: random.Random) -> bytes:
    """``data`` after one to four random changes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, n = rng.randrange(len(changed) + 1), rng.choice((1, 1, 2, 8, 64))
        match rng.randrange(6):
            case 0:
                del changed[at:]
            case 1:
                del changed[at : at + n]
            case 2:
                changed[at:at] = changed[at : at + n]
            case 3:
                changed[at : at + n] = rng.randbytes(len(changed[at : at + n]))
            case 4:
                changed[at:at] = rng.choice(
                    (b"9" * 350, b"[" * 50, b"-", b"e999", b'"', b"\xff", b"{")
                )
            case 5:
                for i in range(at, min(at + 1, len(changed))):
                    changed[i] ^= 1 << rng.randrange(8)
    return bytes(changed)


def odd_number(rng: random.Random) -> Any:
    """A number that some setting does not take."""
    return rng.choice(
        (
            0,
            -1,
            10**400,
            -(10**5000),
            2**63,
            2**1023,
            1e308,
            float("inf"),
            float("nan"),
            True,
            None,
            "1",
        )
    )


def try_settings(rng: random.Random) -> None:
    """Settings from data and from the command line, and back."""
    names = ("n", "lr", "name", "sizes", "rate", "flag", "m")
    texts = (
        "1e400",
        "9" * 5000,
        "nan",
        "1,2,1e400",
        "none",
        "",
        "٣",
        "1_0",
        "0x10",
        "true",
        "(",
        "\x00",
    )
    try:
        if rng.random() < 0.5:
            data = {rng.choice(names): odd_number(rng) for _ in range(2)}
            if rng.random() < 0.3:
                data["sizes"] = [odd_number(rng) for _ in range(2)]
            made = from_dict(Settings, data)
        else:
            made = apply_overrides(Settings(), [f"{rng.choice(names)}={rng.choice(texts)}"])
    except OveroptError:
        return
    json.dumps(to_dict(made), allow_nan=False)
    float(made.n), float(made.lr), sum(map(float, made.sizes))


def read_curves(folder: Path) -> None:
    """What a reader of records asks for: curves, costs, the tilt, the methods' descriptions."""
    seen = view(folder)
    assert seen.curves and seen.groups
    read_samples(folder), read_runs(folder)
    read_costs(folder), seen.costs, seen.tilts  # noqa: B018


def a_curve(folder: Path) -> None:
    """A results directory with three points of one committed curve."""
    source = COMMITTED / "exp001_figure1"
    (run_id, *_) = (row["run_id"] for row in files.load_records(source / "records.jsonl"))
    tables = [
        [row for row in files.load_records(source / f"{name}.jsonl") if row["run_id"] == run_id][:3]
        for name in ("records", "tilt", "costs")
    ]
    arrays = files.load_arrays(source / "curves.npz")
    kept = {name: a[:3] for name, a in arrays.items() if name.startswith(run_id)}
    folder.mkdir()
    samples = [{
        "run_id": run_id, "value": 1, "shown_for": ["gold"], "prompt": "a", "response": "b π",
        "tokens": 3, "ended": True, "gold": 0.5, "proxy": 1, "intent": None,
    }]  # fmt: skip
    runs = [{"run_id": run_id, "settings": {"n": 3}, "versions": {"overopt": "0.1"}}]
    save_results(folder, Tables(*tables, kept, {"bon": BEST_OF_N}, samples, runs))
    (folder / "checksums.json").unlink()  # readers that only read do not ask for it


def a_comparison(folder: Path) -> None:
    """What a committed comparison says of its runs, and their records."""
    shutil.copytree(COMMITTED / "exp005_leaderboard", folder)
    load_results(folder)


def try_folders(folder: Path, rng: random.Random) -> None:
    """A results directory, one curve and the cache of a table, one file of each damaged."""
    rows = [{"run_id": "a", "x": 1}]
    results, cache, curve = folder / "results", folder / "cache", folder / "curve"
    compared = folder / "compared"
    if not results.exists():
        results.mkdir()
        save_results(results, Tables(rows, rows, rows, {"a.gold": np.arange(3.0)}))
        files.save_records(folder / "t.jsonl", _table())
        read_replay(folder / "t.jsonl", cache_dir=cache)
        a_curve(curve)
        read_curves(curve)
        a_comparison(compared)
    places = [(results, held_results), (cache, open_replay), (curve, read_curves)]
    if rng.random() < 0.02:  # one takes as long as a hundred others
        places = [(compared, load_results)]
    for place, read in places:
        file = rng.choice(sorted(p for p in place.iterdir() if p.is_file()))
        before = file.read_bytes()
        try:
            file.write_bytes(damaged(before, rng))
            read(place)
        except OveroptError:
            pass
        finally:
            file.write_bytes(before)


def fuzz(folder: Path, n: int, seed: int = 0) -> dict[str, int]:
    """Try ``n`` inputs in ``folder``; returns how many of each kind were refused.

    Anything but an error of overopt is raised, with what it was found on in ``folder``.
    """
    rng = random.Random(seed)
    sound: dict[str, bytes] = {}
    for name, reader in READERS.items():
        reader.make(folder / f"sound-{name}{reader.suffix}")
        sound[name] = (folder / f"sound-{name}{reader.suffix}").read_bytes()
        reader.read(folder / f"sound-{name}{reader.suffix}")
    others = [*WHOLE, *odd_zips(folder)]
    refused = dict.fromkeys([*READERS, "settings", "folders"], 0)
    fixed = [(name, other) for name in READERS for other in others]
    for i in range(n):
        signal.alarm(SLOW_S)
        if i >= len(fixed) and i % 10 == 0:
            try_settings(rng)
            refused["settings"] += 1
        elif i >= len(fixed) and i % 10 == 1:
            try_folders(folder, rng)
            refused["folders"] += 1
        else:
            is_fixed = i < len(fixed)
            name, data = fixed[i] if is_fixed else (rng.choice(list(READERS)), b"")
            if not is_fixed:
                data = damaged(sound[name], rng)
            path = folder / f"input-{name}{READERS[name].suffix}"
            path.write_bytes(data)
            try:
                READERS[name].read(path)
            except OveroptError:
                refused[name] += 1
    signal.alarm(0)
    return refused


def peak_mb() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> int:
    """The long mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", nargs="?", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.monotonic()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a disk would be what is timed
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        refused = fuzz(Path(folder), args.n, args.seed)
    took = time.monotonic() - started
    sys.stdout.write(
        f"{args.n} inputs in {took:.0f} s, {peak_mb():.0f} MB at most, no traceback; refused:"
        f" {refused}\n"
    )
    return int(peak_mb() > MEMORY_MB)


if __name__ == "__main__":
    sys.exit(main())
