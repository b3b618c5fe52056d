"""Other people's samples as pools: a file of scored responses becomes (P, N) arrays.

Where it sits: in place of sampling and scoring. What comes out enters ``overopt.pools`` like
a pool of our own: ``best_of_n(table.proxies["proxy"], {"gold": table.gold}, ns)``.

Two layouts, in CSV, TSV, JSON arrays, JSONL (compressed or not) or Parquet each:

- *lists*: one row per prompt, with a list of gold scores and lists of proxy scores. The layout of
  the public ``tlc4418/gold_labelled_gens`` of Coste et al. 2023 (``instruction``, ``input``,
  ``answers``, ``gold_scores``, and ``proxy_scores`` once a proxy has scored it).
- *long*: one row per response, with ``prompt_id`` (or ``prompt``), ``gold``, one column per proxy
  whose name begins with ``proxy``, and optionally ``response_id`` and ``length``.

Scores are read a batch of rows at a time and written straight into memory-mapped arrays if a cache
directory is given, so a table larger than memory is no trouble; the text of the responses is only
read on request, to find duplicates. Nothing is dropped, reordered or filled in silently: whatever
does not fit is an error that names row and column.

Parquet needs pyarrow (``pip install 'overopt[replay]'``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overopt.base import files
from overopt.base.errors import DataError, StoreError
from overopt.pools.replay_layout import (
    Plan,
    ReplayColumns,
    common_size,
    fill,
    index_rows,
    plan_reading,
)
from overopt.pools.replay_source import open_source

MANIFEST = "replay.json"
FORMAT_VERSION = 1


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
    """Scores in a file as arrays (P, N), format by its suffix, layout recognised by its columns.

    Parameters
    ----------
    path
        ``*.csv``, ``*.tsv``, ``*.json`` (an array of objects), ``*.jsonl`` or ``*.ndjson``, each also
        with ``.gz``, ``.bz2`` or ``.xz`` behind, or ``*.parquet``.
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
    source = open_source(path)
    plan = plan_reading(source, columns or ReplayColumns(), find_duplicates)
    index = index_rows(source, plan)
    size = common_size(source, index, pool_size)
    sink = _Sink(cache_dir, (len(index.prompt_ids), size))
    arrays = {name: sink.allocate(name, np.float64) for name in plan.scores}
    if plan.response is not None:
        arrays[plan.response] = sink.allocate(plan.response, np.int64)
    fill(source, plan, index, arrays)
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
            arrays[name] = files.map_array(folder / file)
        except DataError as error:
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

    def finish(self, plan: Plan, prompt_ids: tuple[str, ...]) -> ReplayTable:
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
