"""From rows of a file to places in (P, N) arrays: which columns mean what, and which row goes where.

Two layouts: *lists*, a row per prompt with lists of scores, and *long*, a row per response; see
`overopt.pools.replay`. A file is read twice, ids first, so that arrays have their size before the
scores come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from overopt.base.errors import DataError
from overopt.pools.replay_source import Source

Layout = Literal["lists", "long"]
BATCH_ROWS: dict[str, int] = {"lists": 16, "long": 65_536}
ROW_NUMBER = "#row"
COMMAND_OPTIONS = {"gold", "prompt_id"}
"""What `overopt replay` can name, for messages; proxies have their own."""


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


class Plan(NamedTuple):
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
        """Columns of numbers, each of which becomes an array."""
        return (self.gold, *self.proxies, *([] if self.length is None else [self.length]))


class Index(NamedTuple):
    """Where the rows of the file go."""

    prompt_ids: tuple[str, ...]
    sizes: NDArray[np.integer]  # (P,) responses per prompt
    prompt: NDArray[np.integer]  # (rows,) prompt of each row, long layout
    position: NDArray[np.integer]  # (rows,) place of each row within its prompt, long layout


def plan_reading(source: Source, columns: ReplayColumns, find_duplicates: bool) -> Plan:
    """The columns to read, named by the caller or found by their usual names."""
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
    return Plan(
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


def index_rows(source: Source, plan: Plan) -> Index:
    """Prompt ids, and where each row goes: one pass over the ids alone."""
    return _index_lists(source, plan) if plan.layout == "lists" else _index_long(source, plan)


def _index_lists(source: Source, plan: Plan) -> Index:
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
    return Index(tuple(rows), np.array(sizes), nothing, nothing)


def _index_long(source: Source, plan: Plan) -> Index:
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
    return Index(tuple(codes), sizes, np.array(prompts), np.array(positions))


def common_size(source: Source, index: Index, pool_size: int | None) -> int:
    """N, responses of every prompt: ``pool_size``, or what all prompts have."""
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


def fill(source: Source, plan: Plan, index: Index, arrays: dict[str, NDArray]) -> None:
    """Write the scores of every row to its place in ``arrays`` (P, N), by column."""
    if plan.layout == "lists":
        _fill_from_lists(source, plan, arrays)
    else:
        _fill_from_long(source, plan, arrays, index)


def _fill_from_lists(source: Source, plan: Plan, arrays: dict[str, NDArray]) -> None:
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


def _fill_from_long(source: Source, plan: Plan, arrays: dict[str, NDArray], index: Index) -> None:
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


def _list_length(source: Source, row: int, name: str, cell: Any) -> int:
    if not isinstance(cell, list | np.ndarray):
        raise DataError(
            f"{source.path}: row {row}, column {name}: {str(cell)[:60]!r} is not a list, as scores "
            "are in the file's first row; write one row per prompt with lists, or one per response"
        )
    return len(cell)


def _finite(source: Source, name: str, cells: Any, *, place: str, first: int) -> NDArray:
    """Cells as float64, or a DataError naming the first bad one; cell j is ``first + j``."""
    remedy = "score the response again or drop its prompt"
    if source.is_text:
        cells = [_as_number(cell) for cell in cells]
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


def _as_number(cell: Any) -> Any:
    """A cell of text as the number that it writes; the cell itself where it is none."""
    try:
        return float(cell) if isinstance(cell, str) else cell
    except ValueError:
        return cell
