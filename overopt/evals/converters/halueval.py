"""HaluEval (Li et al. 2023, arXiv 2305.11747): right answers and hallucinated ones.

``path`` is the folder data of a copy of RUCAIBox/HaluEval, or one of its files qa_data.json,
dialogue_data.json and summarization_data.json, JSON lines with 10,000 samples each. What is known is
put in front of what is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overopt.base import files
from overopt.base.errors import DataError
from overopt.evals.converter import (
    Converted,
    ConverterSettings,
    Pair,
    as_pairs,
    check_count,
    text_in,
)

SAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Settings(ConverterSettings):
    """Nothing to set."""


def _question(get: Callable[[str], str]) -> str:
    return f"{get('knowledge')}\n\n{get('question')}"


def _dialogue(get: Callable[[str], str]) -> str:
    return f"{get('knowledge')}\n\n{get('dialogue_history')}"


def _document(get: Callable[[str], str]) -> str:
    return f"Summarize:\n\n{get('document')}"


TASKS: dict[str, tuple[Callable[[Callable[[str], str]], str], str]] = {
    "qa": (_question, "answer"),
    "dialogue": (_dialogue, "response"),
    "summarization": (_document, "summary"),
}


def convert(settings: Settings, path: Path) -> list[Converted]:
    """The tasks whose files are there, one file of pairs.

    Raises
    ------
    DataError
        None is, or a sample lacks a text.
    """
    found = {
        task: file
        for task in TASKS
        if (file := path / f"{task}_data.json" if path.is_dir() else path).is_file()
        and file.name == f"{task}_data.json"
    }
    if not found:
        names = ", ".join(f"{task}_data.json" for task in TASKS)
        raise DataError(f"{path}: holds none of {names}: give the folder data of HaluEval")
    pairs: list[Pair] = []
    notes: list[str] = []
    for task, file in found.items():
        samples = files.load_records(file)
        check_count(str(file), len(samples), SAMPLES, notes)
        pairs += [_pair(task, i, sample, file) for i, sample in enumerate(samples, start=1)]
    return [Converted("halueval", "pairs", as_pairs(pairs, notes), notes)]


def _pair(task: str, i: int, sample: dict[str, Any], file: Path) -> Pair:
    asks, what = TASKS[task]

    def get(key: str) -> str:
        return text_in(sample, key, f"{file}: line {i}")

    right, wrong = get(f"right_{what}"), get(f"hallucinated_{what}")
    return Pair(asks(get), right, wrong, f"halueval-{task}", f"halueval-{task}-{i}")
