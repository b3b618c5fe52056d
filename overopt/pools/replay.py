"""Other people's samples as pools: a file of scored responses becomes (P, N) arrays.

Where it sits: in place of sampling and scoring. What comes out enters ``overopt.estimators`` like
a pool of our own: ``best_of_n(table.proxies["proxy"], {"gold": table.gold}, ns)``.

Two layouts, Parquet or JSONL each:

- *lists*: one row per prompt, with a list of gold scores and lists of proxy scores. The layout of
  the public ``tlc4418/gold_labelled_gens`` of Coste et al. 2023 (``instruction``, ``input``,
  ``answers``, ``gold_scores``, and ``proxy_scores`` once a proxy has scored it).
- *long*: one row per response, with ``prompt_id`` (or ``prompt``), ``gold``, one column per proxy
  whose name begins with ``proxy``, and optionally ``response_id`` and ``length``.

Scores are read a batch of rows at a time and written straight into memory-mapped arrays if a cache
directory is given, so a table larger than memory is no trouble; the text of the responses is only
read on request, to find duplicates. Nothing is dropped, reordered or filled in silently: whatever
does not fit is an error that names row and column.

Parquet needs pyarrow (``pip install 'overopt[replay]'``); JSONL does not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from overopt.base import files
from overopt.base.errors import DataError, StoreError

Layout = Literal["lists", "long"]
BATCH_ROWS: dict[str, int] = {"lists": 16, "long": 65_536}
ROW_NUMBER = "#row"
MANIFEST = "replay.json"
COMMAND_OPTIONS = {"gold", "prompt_id"}
"""What `overopt replay` can name, for messages; proxies have their own."""
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ReplayColumns:
    """Which columns of the file mean what; None finds the column by its usual name."""

    gold: str | None = None
    """Gold scores: ``gold_scores`` (lists) or ``gold`` (long)."""
    proxies: tuple[str, ...] | None = None
    """Proxy scores: every column whose name begins with ``proxy``."""
    length: str | None = None
    """Response lengths in tokens: ``lengths`` (lists) or ``length`` (long), where present."""
    prompt_id: str | None = None
    """Prompt ids: ``prompt_id``, ``prompt``, or ``instruction`` and ``input`` together; with lists
    else the row number, which ``"#row"`` asks for."""
    response_id: str | None = None
    """Response ids, long layout only, unique within a prompt: ``response_id`` where present. Without
    them the responses to a prompt are numbered in the order of the file."""
    response: str | None = None
    """Response texts, to number duplicates: ``answers`` (lists) or ``response`` (long)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReplayTable:
    """Scores of N responses to each of P prompts, aligned; read-only and possibly memory-mapped."""

    prompt_ids: tuple[str, ...]
    """(P,) in order of first appearance."""
    proxies: Mapping[str, NDArray[np.floating]]
    """Proxy scores by column name, each (P, N)."""
    gold: NDArray[np.floating]
    """(P, N) gold scores."""
    length: NDArray[np.floating] | None
    """(P, N) response lengths, if the file has them."""
    duplicate_ids: NDArray[np.integer] | None
    """(P, N) equal where two responses to a prompt have the same text, for
    ``kl_bon_ties(ids=...)``; None unless asked for."""

    @property
    def n_prompts(self) -> int:
        """P."""
        return self.gold.shape[0]

    @property
    def pool_size(self) -> int:
        """N, responses per prompt."""
        return self.gold.shape[1]


def read_replay(
    path: str | os.PathLike[str],
    *,
    columns: ReplayColumns | None = None,
    pool_size: int | None = None,
    find_duplicates: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> ReplayTable:
    """Scores in a Parquet or JSONL file as arrays (P, N), layout recognised by its columns.

    Parameters
    ----------
    path
        ``*.parquet``, ``*.jsonl`` or ``*.ndjson``.
    columns
        Names of columns where they differ from the usual ones.
    pool_size
        Keep the first N responses of each prompt; None demands that all prompts have equally many.
    find_duplicates
        Also read the texts and number the distinct ones.
    cache_dir
        A directory, made if absent, for the arrays as ``.npy`` files; they are then memory-mapped
        and ``open_replay`` opens them again without the source file.

    Raises
    ------
    DataError
        For an empty file, a missing column, an unreadable line, a score that is not a finite
        number, duplicate ids, or prompts with different numbers of responses. The message names
        row (counted from 1) and column.
    StoreError
        If ``cache_dir`` already holds a table.
    """
    path = Path(path)
    source = _open_source(path)
    plan = _plan(source, columns or ReplayColumns(), find_duplicates)
    index = _index_lists(source, plan) if plan.layout == "lists" else _index_long(source, plan)
    size = _common_size(source, index, pool_size)
    sink = _Sink(cache_dir, (len(index.prompt_ids), size))
    arrays = {name: sink.allocate(name, np.float64) for name in plan.scores}
    if plan.response is not None:
        arrays[plan.response] = sink.allocate(plan.response, np.int64)
    if plan.layout == "lists":
        _fill_from_lists(source, plan, arrays)
    else:
        _fill_from_long(source, plan, arrays, index)
    return sink.finish(plan, index.prompt_ids)


def open_replay(cache_dir: str | os.PathLike[str]) -> ReplayTable:
    """The table that ``read_replay`` left in ``cache_dir``, memory-mapped read-only.

    Raises
    ------
    StoreError
        If the directory holds no complete table, or one of another version.
    """
    folder = Path(cache_dir)
    try:
        manifest = files.load_object(folder / MANIFEST, ("format_version",))
        version = manifest["format_version"]
    except DataError as error:
        raise StoreError(
            f"{folder / MANIFEST}: no complete replay table here ({error}); "
            "run read_replay with this cache_dir"
        ) from error
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{folder / MANIFEST}: format_version {version} is not {FORMAT_VERSION}; "
            "delete the directory and run read_replay again"
        )
    try:
        files.need(manifest, f"{folder / MANIFEST}:", ("shape", "files", "roles", "prompt_ids"))
        shape, columns = tuple(manifest["shape"]), files.need(manifest["files"], "files")
        files.need(manifest["roles"], "roles", ("gold", "proxies", "length", "response"))
        named = [manifest["roles"]["gold"], *manifest["roles"]["proxies"]]
        named += [manifest["roles"][r] for r in ("length", "response") if manifest["roles"][r]]
        is_whole = set(named) <= set(columns) and len(manifest["prompt_ids"]) == shape[0]
        if not is_whole or any(Path(file).name != file for file in columns.values()):
            raise DataError("its columns and files do not belong together")
    except (DataError, TypeError, IndexError) as error:
        raise StoreError(
            f"{folder / MANIFEST}: is damaged ({error}); delete the directory and run read_replay"
            " again"
        ) from error
    arrays = {}
    for name, file in columns.items():
        try:
            arrays[name] = np.load(folder / file, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # parsers of damaged bytes raise anything
            raise StoreError(
                f"{folder / file}: array of column {name!r} cannot be read ({error}); "
                "delete the directory and run read_replay again"
            ) from error
        if getattr(arrays[name], "shape", None) != shape:
            raise StoreError(
                f"{folder / file}: shape {getattr(arrays[name], 'shape', None)} is not the table's"
                f" {shape}; delete the directory and run read_replay again"
            )
    return _as_table(manifest["roles"], tuple(manifest["prompt_ids"]), arrays)


class _Batch(NamedTuple):
    first_row: int  # counted from 1
    cells: dict[str, Any]  # column -> list or array of one cell per row


# ---------------------------------------------------------------------------------------- sources


class _Source(NamedTuple):
    """A file as batches of rows."""

    path: Path
    columns: tuple[str, ...]
    lists: frozenset[str]  # columns whose cells are lists
    # (wanted columns, rows per batch) -> batches; a batch maps each column to a list of cells.
    batches: Callable[[tuple[str, ...], int], Iterator[_Batch]]


def _open_source(path: Path) -> _Source:
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


def _parquet_source(path: Path) -> _Source:
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

    def batches(wanted: tuple[str, ...], n_rows: int) -> Iterator[_Batch]:
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
                yield _Batch(first_row, cells)
                first_row += batch.num_rows

    lists = {f.name for f in schema if pa.types.is_list(f.type) or pa.types.is_large_list(f.type)}
    return _Source(path, tuple(schema.names), frozenset(lists), batches)


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


def _jsonl_source(path: Path) -> _Source:
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

    def batches(wanted: tuple[str, ...], n_rows: int) -> Iterator[_Batch]:
        # Rows keep their line numbers: a batch ends where blank lines would break the count.
        cells: dict[str, list[Any]] = {name: [] for name in wanted}
        first_row, expected = 1, 1
        for number, row in rows():
            filled = expected - first_row
            if filled and (filled == n_rows or number != expected):
                yield _Batch(first_row, cells)
                cells, filled = {name: [] for name in wanted}, 0
            if not filled:
                first_row = number
            for name in wanted:
                if name not in row:
                    raise DataError(f"{path}: row {number} has no column {name!r}")
                cells[name].append(row[name])
            expected = number + 1
        yield _Batch(first_row, cells)

    lists = {name for name, cell in first[1].items() if isinstance(cell, list)}
    return _Source(path, tuple(first[1]), frozenset(lists), batches)


# ------------------------------------------------------------------------------- layout and index


class _Plan(NamedTuple):
    """Which columns to read, and what for."""

    layout: Layout
    prompt: tuple[str, ...]  # columns that make the prompt id; empty for row numbers
    response_id: str | None
    gold: str
    proxies: tuple[str, ...]
    length: str | None
    response: str | None

    @property
    def scores(self) -> tuple[str, ...]:
        return (self.gold, *self.proxies, *([] if self.length is None else [self.length]))


class _Index(NamedTuple):
    """Where the rows of the file go."""

    prompt_ids: tuple[str, ...]
    sizes: NDArray[np.integer]  # (P,) responses per prompt
    prompt: NDArray[np.integer]  # (rows,) prompt of each row, long layout
    position: NDArray[np.integer]  # (rows,) place of each row within its prompt, long layout


def _plan(source: _Source, columns: ReplayColumns, find_duplicates: bool) -> _Plan:
    present = source.columns
    layout: Layout = "lists" if source.lists else "long"
    is_long = layout == "long"

    def chosen(name: str | None, usual: Sequence[str], option: str) -> str:
        wanted = next((n for n in usual if n in present), usual[0]) if name is None else name
        if wanted not in present:
            per = "response" if is_long else "prompt, with lists of scores"
            raise DataError(
                f"{source.path}: no column {wanted!r}; present: {', '.join(present)} (one row per "
                f"{per}). Name the column with ReplayColumns({option}=...)"
                + (f" or --{option.replace('_', '-')}" if option in COMMAND_OPTIONS else "")
            )
        return wanted

    usual_gold = ("gold", "gold_scores") if is_long else ("gold_scores", "gold")
    gold = chosen(columns.gold, usual_gold, "gold")
    proxies = columns.proxies
    if proxies is None:
        proxies = tuple(name for name in present if name.startswith("proxy") and name != gold)
    if not proxies:
        raise DataError(
            f"{source.path}: no column begins with 'proxy'; present: {', '.join(present)}. "
            "Score the responses with a proxy first, or name its column with "
            "ReplayColumns(proxies=...) or --proxy"
        )
    usual_length = "length" if is_long else "lengths"
    length = columns.length
    if length is not None or usual_length in present:
        length = chosen(length, (usual_length,), "length")
    response = None
    if find_duplicates:
        response = chosen(columns.response, ("response" if is_long else "answers",), "response")
    proxies = tuple(chosen(name, (name,), "proxies") for name in proxies)
    scores = [gold, *proxies, *([] if length is None else [length])]
    if len(set(scores)) < len(scores):
        raise DataError(f"columns: {scores} names a column twice; gold, proxies and length differ")
    return _Plan(
        layout=layout,
        prompt=_prompt_columns(columns.prompt_id, present, is_long, chosen),
        response_id=_response_id(columns.response_id, present, chosen),
        gold=gold,
        proxies=proxies,
        length=length,
        response=response,
    )


def _prompt_columns(
    name: str | None, present: tuple[str, ...], is_long: bool, chosen: Callable[..., str]
) -> tuple[str, ...]:
    if name == ROW_NUMBER and not is_long:
        return ()
    texts = tuple(column for column in ("instruction", "input") if column in present)
    if name is None and not {"prompt_id", "prompt"} & set(present) and (texts or not is_long):
        return texts
    return (chosen(name, ("prompt_id", "prompt"), "prompt_id"),)


def _response_id(
    name: str | None, present: tuple[str, ...], chosen: Callable[..., str]
) -> str | None:
    if name is None and "response_id" not in present:
        return None
    return chosen(name, ("response_id",), "response_id")


def _index_lists(source: _Source, plan: _Plan) -> _Index:
    """Prompt ids and list lengths; every row is a prompt."""
    rows: dict[str, int] = {}
    sizes: list[int] = []
    for batch in source.batches((*plan.prompt, plan.gold), BATCH_ROWS["lists"]):
        for i, gold in enumerate(batch.cells[plan.gold]):
            row = batch.first_row + i
            if plan.prompt:
                prompt = "\n".join(str(batch.cells[name][i]) for name in plan.prompt)
            else:
                prompt = str(row)
            if prompt in rows:
                raise DataError(
                    f"{source.path}: row {row}, column {'+'.join(plan.prompt)}: {prompt[:60]!r} "
                    f"is also the prompt of row {rows[prompt]}; drop one of them, or pass "
                    f"ReplayColumns(prompt_id={ROW_NUMBER!r}) if they are separate prompts"
                )
            rows[prompt] = row
            sizes.append(_list_length(source, row, plan.gold, gold))
    nothing = np.empty(0, dtype=np.int64)
    return _Index(tuple(rows), np.array(sizes), nothing, nothing)


def _index_long(source: _Source, plan: _Plan) -> _Index:
    """Prompt and place within the prompt of every row, in order of appearance."""
    codes: dict[str, int] = {}
    seen: list[dict[str, int]] = []
    prompts, positions = [], []
    wanted = plan.prompt if plan.response_id is None else (*plan.prompt, plan.response_id)
    for batch in source.batches(wanted, BATCH_ROWS["long"]):
        names = zip(*(batch.cells[name] for name in plan.prompt), strict=True)
        for i, prompt in enumerate(names):
            row = batch.first_row + i
            code = codes.setdefault("\n".join(map(str, prompt)), len(codes))
            if code == len(seen):
                seen.append({})
            rows = seen[code]
            response = str(row if plan.response_id is None else batch.cells[plan.response_id][i])
            if response in rows:
                raise DataError(
                    f"{source.path}: row {row}, column {plan.response_id}: {response[:60]!r} "
                    f"of prompt {str(prompt[0])[:60]!r} is also the id of row "
                    f"{rows[response]}; ids must be unique within a prompt"
                )
            prompts.append(code)
            positions.append(len(rows))
            rows[response] = row
    sizes = np.array([len(rows) for rows in seen])
    return _Index(tuple(codes), sizes, np.array(prompts), np.array(positions))


def _common_size(source: _Source, index: _Index, pool_size: int | None) -> int:
    if not len(index.sizes):  # its metadata may say otherwise
        raise DataError(f"{source.path}: the file has no rows")
    smallest, largest = int(index.sizes.min()), int(index.sizes.max())
    name = index.prompt_ids[int(index.sizes.argmin())][:60]
    if smallest == 0:
        raise DataError(f"{source.path}: prompt {name!r} has no responses; drop it")
    if pool_size is None:
        if smallest < largest:
            other = index.prompt_ids[int(index.sizes.argmax())][:60]
            raise DataError(
                f"{source.path}: prompt {name!r} has {smallest} responses and {other!r} has "
                f"{largest}; pass pool_size={smallest} (--pool-size) to keep the first ones of each, "
                "or drop the short prompts"
            )
        return largest
    if pool_size < 1:
        raise DataError(f"pool_size: {pool_size} is below 1")
    if pool_size > smallest:
        raise DataError(
            f"pool_size: {pool_size} exceeds the {smallest} responses of prompt {name!r}; "
            f"pass at most {smallest}, or drop the short prompts"
        )
    return pool_size


# ---------------------------------------------------------------------------------------- filling


def _fill_from_lists(source: _Source, plan: _Plan, arrays: dict[str, NDArray]) -> None:
    size = arrays[plan.gold].shape[1]
    prompt = 0
    for batch in source.batches(tuple(arrays), BATCH_ROWS["lists"]):
        for i, gold in enumerate(batch.cells[plan.gold]):
            row = batch.first_row + i
            for name, array in arrays.items():
                cell = batch.cells[name][i]
                length = _list_length(source, row, name, cell)
                if length != len(gold):
                    raise DataError(
                        f"{source.path}: row {row}, column {name} has {length} entries but "
                        f"{plan.gold} has {len(gold)}; the lists of a row belong together"
                    )
                if name == plan.response:
                    codes: dict[str, int] = {}
                    array[prompt] = [codes.setdefault(str(x), len(codes)) for x in cell[:size]]
                else:
                    place = f"row {row}, entry"
                    array[prompt] = _finite(source, name, cell[:size], place=place, first=1)
            prompt += 1


def _fill_from_long(
    source: _Source, plan: _Plan, arrays: dict[str, NDArray], index: _Index
) -> None:
    n_prompts, size = arrays[plan.gold].shape
    codes: list[dict[str, int]] = [{} for _ in range(n_prompts)]
    start = 0
    for batch in source.batches(tuple(arrays), BATCH_ROWS["long"]):
        rows = slice(start, start + len(batch.cells[plan.gold]))
        start = rows.stop
        prompt, position = index.prompt[rows], index.position[rows]
        kept = position < size
        for name, array in arrays.items():
            if name == plan.response:
                cells: Any = [
                    codes[p].setdefault(str(x), len(codes[p]))
                    for p, x in zip(prompt, batch.cells[name], strict=True)
                ]
            else:
                cells = _finite(source, name, batch.cells[name], place="row", first=batch.first_row)
            array[prompt[kept], position[kept]] = np.asarray(cells)[kept]


def _list_length(source: _Source, row: int, name: str, cell: Any) -> int:
    if not isinstance(cell, list | np.ndarray):
        raise DataError(
            f"{source.path}: row {row}, column {name}: {str(cell)[:60]!r} is not a list, as scores "
            "are in the file's first row; write one row per prompt with lists, or one per response"
        )
    return len(cell)


def _finite(source: _Source, name: str, cells: Any, *, place: str, first: int) -> NDArray:
    """Cells as float64, or a DataError naming the first bad one; cell j is ``first + j``."""
    remedy = "score the response again or drop its prompt"
    if not isinstance(cells, np.ndarray):
        for j, cell in enumerate(cells):
            if isinstance(cell, bool) or not isinstance(cell, int | float):
                raise DataError(
                    f"{source.path}: {place} {first + j}, column {name}: {cell!r} is not a "
                    f"number; {remedy}"
                )
    scores = np.asarray(cells, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise DataError(
            f"{source.path}: {place} {first + bad[0]}, column {name}: {scores[bad[0]]} is not "
            f"finite; {remedy}"
        )
    return scores


# ------------------------------------------------------------------------------------------- sink


class _Sink:
    """Where the arrays go: memory, or ``.npy`` files that count only once the manifest is there."""

    def __init__(self, cache_dir: str | os.PathLike[str] | None, shape: tuple[int, int]) -> None:
        self.folder = None if cache_dir is None else Path(cache_dir)
        self.shape = shape
        self.arrays: dict[str, NDArray] = {}
        self.files: dict[str, str] = {}
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / MANIFEST).exists():
                raise StoreError(
                    f"{self.folder}: already holds a replay table; use open_replay, or another "
                    "cache_dir, or delete this one"
                )

    def allocate(self, name: str, dtype: type) -> NDArray:
        if self.folder is None:
            self.arrays[name] = np.empty(self.shape, dtype=dtype)
        else:
            # Numbered, because a column's name need not be a file's.
            self.files[name] = f"column_{len(self.files):03d}.npy"
            self.arrays[name] = np.lib.format.open_memmap(
                self.folder / self.files[name], mode="w+", dtype=dtype, shape=self.shape
            )
        return self.arrays[name]

    def finish(self, plan: _Plan, prompt_ids: tuple[str, ...]) -> ReplayTable:
        roles = {
            "gold": plan.gold,
            "proxies": list(plan.proxies),
            "length": plan.length,
            "response": plan.response,
        }
        if self.folder is None:
            for array in self.arrays.values():
                array.flags.writeable = False
            return _as_table(roles, prompt_ids, self.arrays)
        for array in self.arrays.values():
            assert isinstance(array, np.memmap)
            array.flush()
        manifest = {
            "format_version": FORMAT_VERSION,
            "shape": self.shape,
            "roles": roles,
            "files": self.files,
            "prompt_ids": prompt_ids,
        }
        # The manifest appears last and by one rename: without it the directory is no table.
        partial = self.folder / (MANIFEST + ".partial")
        partial.write_text(json.dumps(manifest), encoding="utf-8")
        os.replace(partial, self.folder / MANIFEST)
        return open_replay(self.folder)


def _as_table(
    roles: Mapping[str, Any], prompt_ids: tuple[str, ...], arrays: Mapping[str, NDArray]
) -> ReplayTable:
    length, response = roles["length"], roles["response"]
    return ReplayTable(
        prompt_ids=prompt_ids,
        proxies={name: arrays[name] for name in roles["proxies"]},
        gold=arrays[roles["gold"]],
        length=None if length is None else arrays[length],
        duplicate_ids=None if response is None else arrays[response],
    )
