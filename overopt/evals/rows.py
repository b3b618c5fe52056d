"""Rows of a benchmark's file, checked column by column before any model is loaded.

Parquet and JSON lines are told apart by the suffix; ``datasets:NAME[:SPLIT]`` is a data set of a hub,
through the package datasets. A column is what it must hold (`Column`): the first row that does not
is an error that names file, row and column. Rows are counted from 1; of JSON lines they are lines.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from overopt.base.errors import DataError
from overopt.evals.question import Dialogue, Turn
from overopt.pools.replay_source import open_source

_ROWS_AT_ONCE = 1024
_ROLES = ("system", "user", "assistant")


class Misfit(Exception):
    """A cell that is not what its column must hold: what it must be."""


class Column(NamedTuple):
    """A column: its name, what turns a cell into a value or raises `Misfit`, whether it must be there.

    empty : the value where the file has no such column, for one that need not be there.
    """

    name: str
    read: Callable[[Any], Any]
    needed: bool = True
    empty: Any = None


@dataclass(frozen=True)
class Row:
    """The values of one row, by column, and where it stands."""

    file: str
    number: int
    values: dict[str, Any]

    def __getitem__(self, column: str) -> Any:
        return self.values[column]

    def error(self, column: str, found: object, remedy: str) -> DataError:
        """An error at ``column`` of this row."""
        return DataError(
            f"{self.file}: row {self.number}, column {column!r} = {shown(found)}: {remedy}"
        )


def read_rows(source: str, columns: Sequence[Column]) -> list[Row]:
    """All rows of a file or data set.

    Raises
    ------
    DataError
        It cannot be read, has no rows or lacks a column, or a cell is not what its column must hold.
    """
    found = []
    for number, cells in _raw_rows(source, columns):
        row = Row(source, number, {})
        for column in columns:
            if column.name not in cells:
                row.values[column.name] = column.empty
                continue
            try:
                row.values[column.name] = column.read(_plain(cells[column.name]))
            except Misfit as misfit:
                raise row.error(column.name, cells[column.name], f"must be {misfit}") from None
        found.append(row)
    return found


def _raw_rows(source: str, columns: Sequence[Column]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and raw cells of each row, of the columns that are there."""
    if source.startswith("datasets:"):
        table = _dataset(source)
        wanted = _wanted(source, list(table.column_names), columns)
        for i in range(len(table)):
            row = table[i]
            yield i + 1, {name: row[name] for name in wanted}
        return
    opened = open_source(Path(source))
    wanted = _wanted(source, opened.columns, columns)
    for batch in opened.batches(tuple(wanted), _ROWS_AT_ONCE):
        for i in range(len(batch.cells[wanted[0]])):
            yield batch.first_row + i, {name: batch.cells[name][i] for name in wanted}


def _wanted(source: str, present: Sequence[str], columns: Sequence[Column]) -> list[str]:
    for column in columns:
        if column.needed and column.name not in present:
            raise DataError(
                f"{source}: has no column {column.name!r}, it has {', '.join(present)}: rename one, or"
                " give the file of another benchmark to its own command"
            )
    return [column.name for column in columns if column.name in present]


def _dataset(source: str) -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"{source}: needs the package datasets: pip install 'overopt[datasets]', or give a Parquet"
            " or JSON lines file"
        )
    import datasets

    name, split, *_ = (*source.split(":")[1:], "")
    try:
        table = datasets.load_dataset(name, split=split or "test")
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["no reason"])[0][:200]
        raise DataError(
            f"{source}: cannot be loaded ({reason}): name it as datasets:NAME:SPLIT, or give a file"
        ) from error
    if len(table) == 0:
        raise DataError(f"{source}: has no rows; name another split as datasets:NAME:SPLIT")
    return table


def _plain(cell: Any) -> Any:
    """A cell of a Parquet file as what JSON would have: numpy's numbers and arrays as Python's."""
    if isinstance(cell, np.ndarray):
        return cell.tolist()
    return cell.item() if isinstance(cell, np.generic) else cell


def shown(value: object) -> str:
    """A cell in a message, cut to a length that can be read."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- what a column may hold -----------------------------------------------------------------------


def text(cell: Any) -> str:
    """A text, which may be empty."""
    if not isinstance(cell, str):
        raise Misfit("a text")
    return cell


def filled(cell: Any) -> str:
    """A text with something in it."""
    if not isinstance(cell, str) or not cell.strip():
        raise Misfit("a text that is not empty")
    return cell


def texts(cell: Any) -> tuple[str, ...]:
    """A list of one text or more."""
    if not isinstance(cell, list | tuple) or len(cell) == 0:
        raise Misfit("a list of one text or more")
    if not all(isinstance(item, str) for item in cell):
        raise Misfit("a list of texts, without anything else in it")
    return tuple(cell)


def dialogue(cell: Any) -> Dialogue:
    """What is asked: a text, or the messages before the response as objects of role and content."""
    if isinstance(cell, str):
        return (Turn("user", filled(cell)),)
    if not isinstance(cell, list | tuple) or len(cell) == 0:
        raise Misfit("a text, or a list of messages {role, content}")
    turns = []
    for message in cell:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise Misfit("a text, or a list of messages {role, content}")
        if message["role"] not in _ROLES:
            raise Misfit(f"messages of the roles {', '.join(_ROLES)}")
        turns.append(Turn(message["role"], text(message["content"])))
    if turns[-1].role == "assistant":
        raise Misfit("messages that end before the assistant's answer")
    return tuple(turns)


def whole(cell: Any) -> int:
    """A whole number; a float that is one counts."""
    if isinstance(cell, bool) or not isinstance(cell, int | float) or cell != cell // 1:
        raise Misfit("a whole number")
    return int(cell)


def number(cell: Any) -> float:
    """A finite number."""
    if isinstance(cell, bool) or not isinstance(cell, int | float) or not math.isfinite(cell):
        raise Misfit("a finite number")
    return float(cell)


def numbers(cell: Any) -> tuple[float, ...]:
    """A list of one finite number or more."""
    if not isinstance(cell, list | tuple) or len(cell) == 0:
        raise Misfit("a list of one number or more")
    return tuple(number(item) for item in cell)


def truth(cell: Any) -> bool:
    """True or false."""
    if not isinstance(cell, bool):
        raise Misfit("true or false")
    return cell


def identifier(cell: Any) -> str:
    """A text or a whole number, as text."""
    return str(whole(cell)) if isinstance(cell, int | float) else filled(cell)
