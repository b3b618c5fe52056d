"""Files of the package: each written whole or not at all, each read with an error that names it.

JSON, records (JSONL), arrays (npz without pickle) and tensors (safetensors). Everything that is kept
passes through here; a write goes to a temporary file beside its target and is renamed once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gzip
import json
import math
import os
import re
import secrets
import socket
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from overopt.base.errors import DataError, StoreError

if TYPE_CHECKING:
    import torch

RESTORE = "; restore it from a copy, or make it again"

_AGAIN = ", then run again: what is finished is kept"
_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space in {place}, or give another directory{option}"
    + _AGAIN,
    errno.EDQUOT: "the disk quota is used up; free some space in {place}, or give another"
    " directory{option}" + _AGAIN,
    errno.EFBIG: "a file may not grow that large here; raise `ulimit -f`" + _AGAIN,
    errno.EROFS: "the file system is read-only; give a writable directory{option}",
    errno.EACCES: "no permission; give a directory you may write to{option}",
    errno.EPERM: "no permission; give a directory you may write to{option}",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "symbolic links lead in a circle; give another path",
    errno.ENOTDIR: "a part of that path is a file; give a directory{option}",
    errno.EEXIST: "a file is in the way; give a directory{option}",
    errno.ENOLCK: "the file system has no locks; give a directory on a local disk{option}",
    errno.ENOTSUP: "the file system has no locks; give a directory on a local disk{option}",
    errno.EIO: "the device failed; check it" + _AGAIN,
}
_GIVEN: dict[Path, str] = {}


def given(folder: Path, option: str) -> None:
    """Remember which option of the command line named ``folder``: errors in it name both."""
    _GIVEN[Path(os.path.abspath(folder))] = option


@contextlib.contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn the failures of a file system (full, read-only, forbidden) into StoreError.

    The message names the file, and the directory around it with the option that gave it (`given`).
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        named = Path(os.path.abspath(error.filename or path))
        place = next((p for p in (named, *named.parents) if p in _GIVEN), None)
        option = f" with {_GIVEN[place]}" if place else ""
        remedy = _REMEDIES[error.errno].format(place=place or named.parent, option=option)
        raise StoreError(f"{error.filename or path}: {error.strerror}: {remedy}") from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; flushed to disk and renamed to it if the block succeeds.

    The file is made here, exclusively, under a random name with host and process in it.
    """
    path = Path(path)
    temporary = path.with_name(temporary_name(path.name))
    with os_errors(path):
        try:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            yield temporary
            fsync(temporary)
            os.replace(temporary, path)
            fsync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def temporary_name(name: str) -> str:
    """A name that no other process uses: ``.NAME.HOST.PID.RANDOM.tmp``, within every limit."""
    shown, host = name.encode()[:40].decode(errors="ignore"), socket.gethostname()[:32]
    return f".{shown}.{host}.{os.getpid()}.{secrets.token_hex(6)}.tmp"


TEMPORARY = re.compile(r"\..+\.(?P<pid>\d{1,9})\.[0-9a-f]{12}\.tmp")


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
    atomic_write(path, _dump(value, f"{path}", indent=1) + b"\n")


def load_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises
    ------
    DataError
        It cannot be read, or is not UTF-8 JSON of finite numbers.
    """
    return parse_json(read_bytes(path), f"{path}:")


def load_object(path: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Content of a JSON file that holds an object with at least ``keys``.

    Raises
    ------
    DataError
        As `load_json`; or it is something else, or a key is missing.
    """
    return need(load_json(path), f"{path}:", keys)


def need(value: Any, where: str, keys: Sequence[str] = ()) -> dict[str, Any]:
    """``value``, which must be an object (a dict) with at least ``keys``."""
    if not isinstance(value, dict):
        raise DataError(f"{where} is a {type(value).__name__}, must be an object{RESTORE}")
    for key in keys:
        if key not in value:
            raise DataError(f"{where} lacks the key {key!r}{RESTORE}")
    return value


def parse_json(data: bytes | str, where: str, *, finite: bool = True) -> Any:
    """``data`` as JSON. Integers beyond all floats are refused: they fit no array. So are halves of
    characters (lone surrogates): they fit no file.

    ``finite``: refuse NaN, infinities and numbers that read as such.

    Raises
    ------
    DataError
        It is not; the message begins with ``where``.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        if finite:
            value = json.loads(
                text, parse_int=_int, parse_float=_float, parse_constant=_no_constant
            )
        else:
            value = json.loads(text, parse_int=_int)
        if "\\ud" in text.lower():  # maybe half a character, which no file could hold
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise DataError(f"{where} is not JSON ({reason}){RESTORE}") from error


def _int(text: str) -> int:
    value = int(text)
    if value.bit_length() > 1023:
        raise ValueError(f"an integer of {len(text)} digits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is beyond those of a float")
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def read_bytes(path: Path) -> bytes:
    """Content of a regular file.

    Raises
    ------
    DataError
        It is absent, no regular file, or cannot be read; the message says which.
    """
    with open_regular(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise _unreadable(path, error) from error


def gunzip(data: bytes, where: str) -> bytes:
    """``data``, unpacked if it is a gzip file.

    Raises
    ------
    DataError
        It begins as one and is damaged; the message begins with ``where``.
    """
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where} is a damaged gzip file ({error}): fetch it again") from error


def open_regular(path: Path) -> BinaryIO:
    """The file opened for reading; raises DataError where it is absent or no regular file."""
    try:
        # Not to wait for a writer where a pipe lies in the place of a file.
        file = open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")  # noqa: SIM115
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing{RESTORE}") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in its name
        raise _unreadable(path, error) from error
    raise DataError(f"{path}: is not a regular file{RESTORE}")


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})")


def save_records(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically.

    Raises
    ------
    DataError
        A number is not finite, or a value has no JSON form; the message names row and column.
    """
    lines = [_dump(dict(row), f"{path}: row {i}") + b"\n" for i, row in enumerate(rows)]
    atomic_write(path, b"".join(lines))


def load_records(path: Path, columns: Mapping[str, type] | None = None) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file with at least ``columns``, each of its type (float: any number).

    Blank lines are passed by.

    Raises
    ------
    DataError
        It cannot be read, or a line is no JSON object with ``columns``; the message names the line.
    """
    columns = columns or {}
    rows = [(at, need(row, at, tuple(columns))) for at, row in load_lines(path)]
    for at, row in rows:
        for name, kind in columns.items():
            allowed = (int, float) if kind is float else (kind,)
            if type(row[name]) not in allowed:
                raise DataError(f"{at}: {name} = {row[name]!r} is no {kind.__name__}{RESTORE}")
    return [row for _, row in rows]


def load_lines(path: Path) -> list[tuple[str, Any]]:
    """What each line of a JSON-lines file holds, behind its place ("x.jsonl: line 3").

    Blank lines are passed by, and count.

    Raises
    ------
    DataError
        It cannot be read, or a line is not JSON in UTF-8; the message names the line.
    """
    lines = read_bytes(path).split(b"\n")
    numbered = ((f"{path}: line {i}", line) for i, line in enumerate(lines, start=1))
    return [(at, parse_json(line, at)) for at, line in numbered if line.strip()]


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
    """Named arrays of an ``.npz`` file, read into memory, without pickle and without compression.

    ``names``: those to read; None: all.

    Raises
    ------
    DataError
        It cannot be read, is not an ``.npz`` file of plain arrays, or lacks one of ``names``.
    """
    entry = ""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            held = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
            arrays = {}
            for entry in held if names is None else names:
                if entry not in held:
                    raise KeyError(f"no array {entry!r}")
                if held[entry].compress_type != zipfile.ZIP_STORED:
                    raise ValueError("is compressed")
                with archive.open(held[entry]) as packed:
                    arrays[entry] = _read_array(packed, held[entry].file_size)
            return arrays
    except DataError:
        raise
    except Exception as error:  # parsers of damaged bytes raise anything
        where = f"{path}: array {entry!r}" if entry else f"{path}"
        raise DataError(
            f"{where}: is not an .npz file of plain arrays ({error}){RESTORE}"
        ) from error


def map_array(path: Path) -> np.ndarray:
    """The one array of an ``.npy`` file, mapped into memory read-only, without pickle.

    Raises
    ------
    DataError
        It cannot be read, or is not an ``.npy`` file of numbers or text.
    """
    open_regular(path).close()
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # parsers of damaged bytes raise anything
        raise DataError(
            f"{path}: is not an .npy file of a plain array ({error}){RESTORE}"
        ) from error


def _read_array(file: Any, size: int) -> np.ndarray:
    """An array in numpy's format, whose header must agree with the ``size`` of its entry in bytes."""
    fmt = np.lib.format
    version = fmt.read_magic(file)
    read_header = {(1, 0): fmt.read_array_header_1_0, (2, 0): fmt.read_array_header_2_0}[version]
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("holds Python objects, which would be unpickled")
    n_bytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or n_bytes != size - file.tell():
        raise ValueError(f"shape {shape} of {dtype} does not fit an entry of {size} bytes")
    flat = np.empty(math.prod(shape), dtype)
    data, at = flat.view(np.uint8) if n_bytes else np.empty(0, np.uint8), 0
    while block := file.read(1 << 20):  # to the end, where the checksum of the entry is compared
        data[at : at + len(block)] = np.frombuffer(block, np.uint8)
        at += len(block)
    if at != n_bytes:
        raise ValueError("is cut off")
    return flat.reshape(shape, order="F" if is_fortran else "C")


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


def load_tensors(
    path: Path, device: str = "cpu", names: Sequence[str] = ()
) -> dict[str, torch.Tensor]:
    """Named tensors of a safetensors file; ``names``: those that it must hold, beside others.

    Raises
    ------
    DataError
        It cannot be read, is not a safetensors file, or lacks one of ``names``.
    """
    from safetensors.torch import load_file

    if not os.path.isfile(path):
        read_bytes(path)  # says why not
    try:
        tensors = load_file(path, device=device)
    except Exception as error:  # parsers of damaged bytes raise anything
        raise DataError(f"{path}: is not a safetensors file ({error}){RESTORE}") from error
    for name in names:
        if name not in tensors:
            raise DataError(f"{path}: has no tensor {name!r}{RESTORE}")
    return tensors


def _dump(value: Any, where: str, indent: int | None = None) -> bytes:
    try:
        return json.dumps(
            value, allow_nan=False, ensure_ascii=False, indent=indent, default=_number
        ).encode()
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
    """Wait until a file or directory is on the disk."""
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
