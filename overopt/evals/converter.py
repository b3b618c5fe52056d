"""Public data as rows of a benchmark's layout.

A converter is one file in ``converters/`` (or a user's own) that defines

    Settings                            what can be set; inherit `ConverterSettings`
    convert(settings, path) -> list[Converted]   what the files below ``path`` hold, checked

The data are the user's own copies of public files; nothing is fetched. Counts that are published are
checked, and a difference is said: of a changed copy, scores compare with nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from overopt.base import files
from overopt.base.errors import DataError
from overopt.base.kinds import Kind


@dataclass(frozen=True, kw_only=True)
class ConverterSettings:
    """What the settings of every converter have: nothing yet."""


AnyConverter = Annotated[
    ConverterSettings, Kind("overopt.evals.converters", "llmbar", needs=("convert",))
]
"""A setting that holds the settings of one converter."""


@dataclass(frozen=True)
class Converted:
    """Rows of one file to write.

    name : of the file, without suffix; rows : JSON objects; benchmark : which layout they have;
    notes : what was left out, and where counts differ from the published ones.
    """

    name: str
    benchmark: str
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


class Pair(NamedTuple):
    """A pair before it is known to be one."""

    prompt: Any
    chosen: str
    rejected: str
    subset: str
    id: str


def as_pairs(pairs: Sequence[Pair], notes: list[str]) -> list[dict[str, Any]]:
    """Rows of pairs; those whose two responses are the same or empty are left out, and counted."""
    kept = [p for p in pairs if p.chosen.strip() and p.rejected.strip() and p.chosen != p.rejected]
    if len(kept) < len(pairs):
        notes.append(
            f"{len(pairs) - len(kept)} of {len(pairs)} left out: the two responses are equal"
        )
    return [p._asdict() for p in kept]


def check_count(name: str, found: int, published: int, notes: list[str]) -> None:
    """Add a note where a file has not the published number of rows."""
    if found != published:
        notes.append(f"{name} has {found} rows, the published file {published}")


def need_list(path: Path) -> list[dict[str, Any]]:
    """A JSON file that holds a list of objects.

    Raises
    ------
    DataError
        It is something else; names the entry.
    """
    found = files.load_json(path)
    if not isinstance(found, list) or not found:
        raise DataError(f"{path}: must be a list of objects")
    return [files.need(item, f"{path}: entry {i}") for i, item in enumerate(found, start=1)]


def text_in(item: dict[str, Any], key: str, where: str) -> str:
    """A text under ``key``; DataError names the place."""
    value = item.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where}, {key!r} = {value!r}: must be a text")
    return value
