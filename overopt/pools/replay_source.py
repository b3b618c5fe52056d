"""A file of scored responses as batches of rows, whatever its format and their layout.

CSV, TSV, JSON arrays and JSONL, compressed (gzip, bzip2, xz) or not, need nothing; Parquet needs
pyarrow (``pip install 'overopt[replay]'``).
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from overopt.base import files
from overopt.base.errors import DataError


class Batch(NamedTuple):
    """Some rows of a file."""

    first_row: int  # counted from 1
    cells: dict[str, Any]  # column -> list or array of one cell per row


class Source(NamedTuple):
    """A file as batches of rows."""

    path: Path
    columns: tuple[str, ...]
    lists: frozenset[str]  # columns whose cells are lists
    # (wanted columns, rows per batch) -> batches; a batch maps each column to a list of cells.
    batches: Callable[[tuple[str, ...], int], Iterator[Batch]]
    is_text: bool = False  # whether numbers are written as text, as in CSV


def _plain(path: Path) -> IO[bytes]:
    return path.open("rb")


_COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
"""Suffix behind the format's -> how to open what is inside."""
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a damaged file of these raises."""
LONGEST_CELL = 1 << 24
"""Characters of a cell in CSV: the longest response that is read."""


def open_source(path: Path) -> Source:
    """The file at ``path``, by its suffix; `DataError` where it cannot be read or has no rows."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSED else ""
    opened = _COMPRESSED.get(packed, _plain)
    match suffixes[-1] if suffixes else "":
        case ".parquet" if not packed:
            return _parquet_source(path)
        case ".jsonl" | ".ndjson":
            return _rows_source(path, lambda: _jsonl_rows(path, opened))
        case ".json":
            rows = _json_rows(path, opened)
            return _rows_source(path, lambda: iter(rows))
        case ".csv":
            return _csv_source(path, opened, ",")
        case ".tsv" | ".tab":
            return _csv_source(path, opened, "\t")
    raise DataError(
        f"{path}: suffix {''.join(path.suffixes[-2:])!r} is not .csv, .tsv, .json, .jsonl, .ndjson"
        f" (also with {', '.join(_COMPRESSED)} behind) or .parquet; convert or rename the file"
    )


def _parquet_source(path: Path) -> Source:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow; run pip install 'overopt[replay]', "
            "or convert the file to JSONL"
        ) from error
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except Exception as error:  # parsers of damaged bytes raise anything
        raise DataError(f"{path}: not a readable Parquet file ({error})") from error
    if file.metadata.num_rows == 0:
        raise DataError(f"{path}: the file has no rows")

    def batches(wanted: tuple[str, ...], n_rows: int) -> Iterator[Batch]:
        first_row = 1
        for group in range(file.num_row_groups):
            of_group = file.iter_batches(n_rows, row_groups=[group], columns=list(wanted))
            while True:
                try:
                    batch = next(of_group, None)
                    if batch is None:
                        break
                    cells = {name: _arrow_cells(batch.column(name)) for name in wanted}
                except Exception as error:  # parsers of damaged bytes raise anything
                    raise DataError(
                        f"{path}: cannot be read from row {first_row} on ({error}): it is damaged,"
                        " or has a column of a kind that is not read; write it again"
                    ) from error
                yield Batch(first_row, cells)
                first_row += batch.num_rows

    lists = {f.name for f in schema if pa.types.is_list(f.type) or pa.types.is_large_list(f.type)}
    return Source(path, tuple(schema.names), frozenset(lists), batches)


def _arrow_cells(column: Any) -> Any:
    """Cells of an Arrow column; numbers and lists of numbers as numpy arrays, nulls as nan."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return column.to_numpy(zero_copy_only=False)
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    ):
        return [
            None if not cell.is_valid else cell.values.to_numpy(zero_copy_only=False)
            for cell in column
        ]
    return column.to_pylist()


Rows = Iterator[tuple[int, dict[str, Any]]]
"""Row numbers, from 1, and the cells of each row by column."""


def _jsonl_rows(path: Path, opened: Callable[[Path], IO[bytes]]) -> Rows:
    with _reading(path), opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                yield number, _parsed(line, f"{path}: line {number}")


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    remedy = "write one JSON object per line"
    try:
        row = files.parse_json(line, "", finite=False)  # what is not: by its column
    except DataError as error:
        raise DataError(f"{where} is not valid JSON ({error.__cause__}); {remedy}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where} is a {type(row).__name__}, not an object; {remedy}")
    return row


def _json_rows(path: Path, opened: Callable[[Path], IO[bytes]]) -> list[tuple[int, dict[str, Any]]]:
    """The objects of an array, all at once: an array has no lines to read one by one."""
    with _reading(path), opened(path) as file:
        data = file.read().removeprefix(codecs.BOM_UTF8)
    try:
        array = files.parse_json(data, "", finite=False)
    except DataError as error:
        raise DataError(
            f"{path}: is not valid JSON ({error.__cause__}); a file with one object per line is named"
            " .jsonl"
        ) from error
    if not isinstance(array, list):
        raise DataError(f"{path}: is a {type(array).__name__}, not an array of objects")
    for number, row in enumerate(array, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: entry {number} is a {type(row).__name__}, not an object")
    return list(enumerate(array, start=1))


def _csv_source(path: Path, opened: Callable[[Path], IO[bytes]], delimiter: str) -> Source:
    """Rows below a header, numbered from 1; cells are text, or lists where they are JSON lists."""

    def rows() -> Rows:
        csv.field_size_limit(LONGEST_CELL)
        with _reading(path), opened(path) as raw:
            text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            header = next(reader, [])
            if len(set(header)) < len(header) or "" in header:
                raise DataError(
                    f"{path}: the header {delimiter.join(header)!r} has an empty name or one twice;"
                    " name every column"
                )
            number = 0
            for cells in reader:
                if not cells:
                    continue
                number += 1
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}: row {number} has {len(cells)} cells and the header {len(header)};"
                        " put quotes around text with separators in it"
                    )
                yield number, {k: _list_or_text(c) for k, c in zip(header, cells, strict=True)}

    return _rows_source(path, rows)._replace(is_text=True)


def _list_or_text(cell: str) -> Any:
    """A list where the cell is one in JSON, as pandas writes lists; else the text."""
    if cell.startswith("[") and cell.endswith("]"):
        with contextlib.suppress(DataError):
            found = files.parse_json(cell, "", finite=False)
            if isinstance(found, list):
                return found
    return cell


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise DataError(
            f"{path}: cannot be read ({error}); it is damaged, write it again"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is not a table in UTF-8 ({error}); write it again") from error


def _rows_source(path: Path, rows: Callable[[], Rows]) -> Source:
    """A source of rows that come one by one."""
    first = next(rows(), None)
    if first is None:
        raise DataError(f"{path}: the file has no rows")

    def batches(wanted: tuple[str, ...], n_rows: int) -> Iterator[Batch]:
        # Rows keep their line numbers: a batch ends where blank lines would break the count.
        cells: dict[str, list[Any]] = {name: [] for name in wanted}
        first_row, expected = 1, 1
        for number, row in rows():
            filled = expected - first_row
            if filled and (filled == n_rows or number != expected):
                yield Batch(first_row, cells)
                cells, filled = {name: [] for name in wanted}, 0
            if not filled:
                first_row = number
            for name in wanted:
                if name not in row:
                    raise DataError(f"{path}: row {number} has no column {name!r}")
                cells[name].append(row[name])
            expected = number + 1
        yield Batch(first_row, cells)

    lists = {name for name, cell in first[1].items() if isinstance(cell, list)}
    return Source(path, tuple(first[1]), frozenset(lists), batches)
