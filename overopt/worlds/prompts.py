"""Prompts from the package, a file or a data set."""

import importlib.util
import json
import lzma
from functools import lru_cache
from importlib import resources
from pathlib import Path

from overopt.base.errors import DataError
from overopt.nets.sources import ladder_dir


@lru_cache(maxsize=1)
def load_openings() -> tuple[str, ...]:
    """The shipped story openings, in their fixed random order."""
    return _read_openings("openings.json.xz")


@lru_cache(maxsize=1)
def load_train_openings() -> tuple[str, ...]:
    """More openings, written by the 6m rung, for the train split alone."""
    return _read_openings("openings_train.json.xz")


def _read_openings(name: str) -> tuple[str, ...]:
    with lzma.open(ladder_dir() / name, "rt", encoding="utf-8") as f:
        return tuple(json.load(f))


def load_instructions() -> list[str]:
    """The shipped instructions, prompts for models that follow them."""
    return read_prompts_file(str(instructions_file()))


def instructions_file() -> Path:
    """Where the shipped instructions are."""
    return Path(str(resources.files("overopt") / "worlds" / "instructions.jsonl"))


def read_prompts(name: str) -> list[str]:
    """Prompts of a JSONL file, or of ``datasets:NAME[:SPLIT[:COLUMN]]``."""
    if name.startswith("datasets:"):
        return _read_dataset(name)
    return read_prompts_file(name)


def _read_dataset(name: str) -> list[str]:
    """Distinct texts of a column of a dataset, in its order (split train, column prompt)."""
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"prompts {name!r} need the package datasets: pip install 'overopt[datasets]', or give a "
            "JSONL file"
        )
    import datasets

    dataset, split, column, *_ = (*name.split(":")[1:], *["", ""])
    split, column = split or "train", column or "prompt"
    try:
        table = datasets.load_dataset(dataset, split=split)
    except (OSError, ValueError) as e:
        reason = str(e).strip().splitlines()[0][:200]
        raise DataError(f"prompts {name!r} cannot be loaded ({reason})") from e
    if column not in table.column_names:
        raise DataError(
            f"prompts {name!r}: no column {column!r}, there are {table.column_names}: name one as "
            "datasets:NAME:SPLIT:COLUMN"
        )
    texts = [t for t in table[column] if isinstance(t, str) and t.strip()]
    if not texts:
        raise DataError(f"prompts {name!r}: column {column!r} holds no text")
    return list(dict.fromkeys(texts))


def read_prompts_file(path: str) -> list[str]:
    """Prompts of a JSONL file: strings, or objects with a text field "prompt".

    Raises
    ------
    DataError
        The file is absent, empty, not UTF-8, or has an empty, repeated or malformed line; the
        message names the line.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as e:
        raise DataError(f"prompts file {path!r} cannot be read: {e.strerror}") from e
    prompts: dict[str, int] = {}
    for number, line in enumerate(raw.splitlines(), start=1):
        where = f"prompts file {path!r}, line {number}"
        try:
            item = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as e:
            raise DataError(f"{where}: byte {e.start} is not valid UTF-8: save it as UTF-8") from e
        except ValueError as e:
            raise DataError(f"{where}: not valid JSON ({e}): one JSON string a line") from e
        text = item.get("prompt") if isinstance(item, dict) else item
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: no text: give a JSON string or an object with 'prompt'")
        if text in prompts:
            raise DataError(f"{where}: repeats line {prompts[text]}: splits must be disjoint")
        prompts[text] = number
    if not prompts:
        raise DataError(f"prompts file {path!r} is empty")
    return list(prompts)
