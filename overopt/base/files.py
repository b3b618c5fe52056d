"""Files of the package: each written whole or not at all, each read with an error that names it.

JSON, records (JSONL), arrays (npz without pickle) and tensors (safetensors). Everything that is kept
passes through here; a write goes to a temporary file beside its target and is renamed once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from overopt.base.errors import DataError, StoreError

if TYPE_CHECKING:
    import torch


_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or give another --store, then run again: what"
    " is finished is kept",
    errno.EDQUOT: "the disk quota is used up; free some space or give another --store",
    errno.EFBIG: "a file may not grow that large here; raise `ulimit -f`, then run again: what is"
    " finished is kept",
    errno.EROFS: "the file system is read-only; give a writable directory with --store",
    errno.EACCES: "no permission; give a directory you may write to with --store",
    errno.EPERM: "no permission; give a directory you may write to with --store",
    errno.ENOTDIR: "a part of that path is a file; give a directory with --store",
    errno.EEXIST: "a file is in the way; give a directory with --store",
    errno.ENOLCK: "the file system has no locks; put the store on a local disk with --store",
    errno.ENOTSUP: "the file system has no locks; put the store on a local disk with --store",
    errno.EIO: "the device failed; check it, then run again: what is finished is kept",
}


@contextlib.contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn the failures of a file system (full, read-only, forbidden) into StoreError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise StoreError(
            f"{error.filename or path}: {error.strerror}: {_REMEDIES[error.errno]}"
        ) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; flushed to disk and renamed to it if the block succeeds."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os_errors(path):
        try:
            yield temporary
            fsync(temporary)
            os.replace(temporary, path)
            fsync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old content or the new, never a part."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def save_json(path: Path, value: Any) -> None:
    """Write ``value`` as UTF-8 JSON, atomically; numpy scalars become plain numbers.

    Raises
    ------
    DataError
        A number is not finite, or a value has no JSON form; the message names the entry.
    """
    atomic_write(path, (_dump(value, f"{path}", indent=1) + "\n").encode())


def load_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises
    ------
    DataError
        It is not UTF-8 JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error})") from error


def save_records(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically.

    Raises
    ------
    DataError
        A number is not finite, or a value has no JSON form; the message names row and column.
    """
    lines = [_dump(dict(row), f"{path}: row {i}") + "\n" for i, row in enumerate(rows)]
    atomic_write(path, "".join(lines).encode())


def load_records(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file.

    Raises
    ------
    DataError
        A line is not a JSON object; the message names the line.
    """
    rows = []
    for i, line in enumerate(Path(path).read_bytes().splitlines()):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {i + 1} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {i + 1} is a {type(row).__name__}, must be an object")
        rows.append(row)
    return rows


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as an uncompressed ``.npz``, atomically; equal arrays, equal bytes.

    Raises
    ------
    DataError
        An array holds Python objects, which would need pickle.
    """
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise DataError(f"{path}: array {name!r} holds Python objects; store numbers or text")
    # np.savez takes names as keyword arguments, some of which it reserves for itself.
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", allowZip64=True) as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)


def load_arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Named arrays of an ``.npz`` file, read into memory, without pickle.

    ``names``: those to read; None: all.

    Raises
    ------
    DataError
        It is not an ``.npz`` file of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in (archive.files if names is None else names)}
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is not an .npz file of plain arrays ({error})") from error


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors as safetensors, atomically; shared tensors are stored once per name."""
    from safetensors.torch import save

    plain: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        t = tensor.detach().cpu().contiguous()
        storage = t.untyped_storage()
        # safetensors refuses tensors that share memory; only those are copied.
        if storage.data_ptr() in seen or storage.nbytes() != t.nbytes:
            t = t.clone()
        seen.add(t.untyped_storage().data_ptr())
        plain[name] = t
    # Not `save_file`: it reports a full disk as an error of its own kind, without errno.
    atomic_write(path, save(plain, metadata=dict(metadata or {})))


def load_tensors(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Named tensors of a safetensors file.

    Raises
    ------
    DataError
        It is not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device=device)
    except SafetensorError as error:
        raise DataError(f"{path}: is not a safetensors file ({error})") from error


def _dump(value: Any, where: str, indent: int | None = None) -> str:
    try:
        return json.dumps(
            value, allow_nan=False, ensure_ascii=False, indent=indent, default=_number
        )
    except (TypeError, ValueError) as error:
        bad = _find_bad(value, "")
        raise DataError(
            f"{where}{': ' + bad if bad else ''}: cannot be written as JSON ({error}); an"
            " unavailable number is None, never NaN"
        ) from error


def _number(item: Any) -> Any:
    """A numpy scalar as a plain one, for `json.dumps`."""
    if isinstance(item, np.generic):
        return item.item()
    raise TypeError(f"a {type(item).__name__} has no JSON form")


def _find_bad(value: Any, where: str) -> str | None:
    if isinstance(value, Mapping):
        pairs = [(f"{where}.{key}" if where else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [(f"{where}[{i}]", item) for i, item in enumerate(value)]
    elif isinstance(value, float | np.floating):
        return None if np.isfinite(value) else f"{where} = {value}"
    else:
        return None if isinstance(value, str | int | np.generic | None) else where
    return next((bad for name, item in pairs if (bad := _find_bad(item, name)) is not None), None)


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def plain(value: Any, *, infinite: Literal["null", "text"] = "null") -> Any:
    """Dataclasses, mappings, sequences and arrays as JSON types.

    nan becomes null, and so do infinities; with ``infinite="text"`` those become "inf" and "-inf".
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: plain(getattr(value, f.name), infinite=infinite) for f in fields}
    if isinstance(value, Mapping):
        return {str(k): plain(v, infinite=infinite) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, infinite=infinite) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), infinite=infinite)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value) if infinite == "text" and math.isinf(value) else None
    return value
