"""HH-RLHF (Bai et al. 2022, arXiv 2204.05862): dialogues with a chosen and a rejected last answer.

``path`` is one of its files (.jsonl or .jsonl.gz), such as harmless-base/test.jsonl.gz with 2,312 pairs.
A transcript is split at its last "\\n\\nAssistant:"; what stands before must be the same on both sides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from overopt.base import files
from overopt.base.config import check_types
from overopt.base.errors import DataError
from overopt.evals.converter import (
    Converted,
    ConverterSettings,
    Pair,
    as_pairs,
    check_count,
    text_in,
)

PUBLISHED = {"harmless-base/test": 2312}
_TURN = re.compile(r"\n\n(Human|Assistant): ?")


@dataclass(frozen=True, kw_only=True)
class Settings(ConverterSettings):
    """How the dialogue is written.

    Attributes
    ----------
    messages : bool
        The dialogue as messages, for chat templates; otherwise as the transcript that it is.
    """

    messages: bool = True

    def __post_init__(self) -> None:
        check_types(self)


def convert(settings: Settings, path: Path) -> list[Converted]:
    """The file as pairs; those whose dialogues differ before the last answer are left out.

    Raises
    ------
    DataError
        A line is no object with two transcripts, or one of them has no answer.
    """
    data = files.gunzip(files.read_bytes(path), str(path))
    subset = f"{path.parent.name}/{path.name.split('.')[0]}"
    pairs, notes, n_lines, differ = [], list[str](), 0, 0
    for i, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        where, n_lines = f"{path}: line {i}", n_lines + 1
        item = files.need(files.parse_json(line, where), where)
        sides = [split_last(text_in(item, key, where), where) for key in ("chosen", "rejected")]
        if sides[0][0] != sides[1][0]:
            differ += 1
            continue
        prompt = as_messages(sides[0][0]) if settings.messages else sides[0][0] + "\n\nAssistant:"
        pairs.append(Pair(prompt, sides[0][1], sides[1][1], subset, f"{subset}-{i}"))
    check_count(str(path), n_lines, PUBLISHED.get(subset, n_lines), notes)
    if differ:
        notes.append(f"{differ} of {n_lines} left out: the dialogues differ before the last answer")
    name = f"hh_{subset.replace('/', '_').replace('-', '_')}"
    return [Converted(name, "pairs", as_pairs(pairs, notes), notes)]


def split_last(transcript: str, where: str) -> tuple[str, str]:
    """What stands before the last "\\n\\nAssistant:", and the answer behind it."""
    before, mark, answer = transcript.rpartition("\n\nAssistant:")
    if not mark:
        raise DataError(f"{where}: {transcript[:40]!r}: has no answer behind '\\n\\nAssistant:'")
    return before, answer.removeprefix(" ")


def as_messages(transcript: str) -> list[dict[str, str]]:
    """A transcript as messages; what stands before the first mark is dropped if it is blank."""
    first, *rest = _TURN.split(transcript)
    turns = [
        {"role": "user" if who == "Human" else "assistant", "content": said}
        for who, said in zip(rest[::2], rest[1::2], strict=True)
    ]
    return ([{"role": "system", "content": first.strip()}] if first.strip() else []) + turns
