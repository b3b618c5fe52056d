"""A Parquet or JSONL file of scored responses as batches of rows, whatever their layout.

Parquet needs pyarrow (``pip install 'overopt[replay]'``); JSONL does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

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


def open_source(path: Path) -> Source:
    """The file at ``path``, by its suffix; `DataError` where it cannot be read or has no rows."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    match path.suffix.lower():
        case ".parquet":
            return _parquet_source(path)
        case ".jsonl" | ".ndjson":
            return _jsonl_source(path)
    raise DataError(
        f"{path}: suffix {path.suffix!r} is not .parquet, .jsonl or .ndjson; convert the file"
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


def _jsonl_source(path: Path) -> Source:
    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = files.parse_json(line, "", finite=False)  # what is not: by its column
                except DataError as error:
                    raise DataError(
                        f"{path}: line {number} is not valid JSON ({error.__cause__}); "
                        "write one JSON object per line"
                    ) from error
                if not isinstance(row, dict):
                    raise DataError(
                        f"{path}: line {number} is a {type(row).__name__}, not an object; "
                        "write one JSON object per line"
                    )
                yield number, row

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
