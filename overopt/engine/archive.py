"""Many files as one, with the SHA-256 of each: what `overopt export` writes and `import` reads.

A zip archive without compression, equal for equal files. It may come from anywhere, so nothing in it
is believed: every name must be a plain relative path, every file must be listed in ``export.json``
with its size and checksum, and whatever else a zip can hold (links, modes, owners) is passed by.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from overopt.base import files
from overopt.base.errors import DataError, OveroptError

FORMAT = 1
INDEX = "export.json"
_PART = re.compile(r"[A-Za-z0-9_=,+-][A-Za-z0-9._=,+-]*")
"""Of a name between two slashes: no dot at its beginning, nothing that some system takes for more."""
_BLOCK = 1 << 20


def write(path: Path, members: Mapping[str, Path], about: Mapping[str, Any]) -> None:
    """Write the files ``members`` (by their names in the archive) and ``about`` to ``path``, whole."""
    sums = {}
    for name, file in sorted(members.items()):
        _check_name(name, path)
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        sums[name] = {"sha256": digest, "size": file.stat().st_size}
    index = json.dumps({"format": FORMAT, **about, "files": sums}, indent=1, ensure_ascii=False)
    with (
        files.atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", allowZip64=True) as archive,
    ):
        archive.writestr(zipfile.ZipInfo(INDEX), index + "\n")
        for name in sums:
            with (
                archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as target,
                open(members[name], "rb") as source,
            ):
                shutil.copyfileobj(source, target, _BLOCK)


class Archive:
    """An open archive whose index was checked; ``index``: what `write` was told, and the files."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            _check_name(info.filename, path)
            if info.filename in self._infos:
                raise DataError(f"{path}: holds {info.filename!r} twice{files.RESTORE}")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise DataError(f"{path}: {info.filename!r} is compressed{files.RESTORE}")
            self._infos[info.filename] = info
        if INDEX not in self._infos:
            raise DataError(f"{path}: has no {INDEX}: was not written by `overopt export`")
        where = f"{path}: {INDEX}:"
        content = files.parse_json(archive.read(INDEX), where)
        self.index = files.need(content, where, ("format", "files"))
        if self.index["format"] != FORMAT:
            raise DataError(
                f"{where} format = {self.index['format']!r}, this overopt reads {FORMAT}: use the"
                " overopt that wrote it"
            )
        self.sums = files.need(self.index["files"], where)
        for name in self.sums.keys() ^ (self._infos.keys() - {INDEX}):
            raise DataError(f"{path}: {name!r} and {INDEX} do not agree{files.RESTORE}")

    def extract(self, name: str, target: Path) -> None:
        """Write one file, making its folder, and compare it with its checksum."""
        expected = files.need(self.sums[name], f"{self._path}: {name}", ("sha256", "size"))
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with self._archive.open(self._infos[name]) as source, open(target, "xb") as out:
            while block := source.read(_BLOCK):
                digest.update(block)
                size += len(block)
                out.write(block)
        if expected != {"sha256": digest.hexdigest(), "size": size}:
            raise DataError(f"{self._path}: {name!r} is damaged{files.RESTORE}")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The archive at ``path``.

    Raises
    ------
    DataError
        It cannot be read, is no archive of `write`, is damaged, or has names that lead elsewhere.
    """
    try:
        with files.open_regular(path) as file, zipfile.ZipFile(file) as archive:
            yield Archive(path, archive)
    except OveroptError:
        raise
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, OSError) as error:
        # A damaged place of an entry is a seek to where there is nothing; other OSErrors are the disk's.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise DataError(f"{path}: is no archive of `overopt export` ({error})") from error


def _check_name(name: str, path: Path) -> None:
    if len(name) > 1000 or not all(_PART.fullmatch(part) for part in name.split("/")):
        raise DataError(f"{path}: {name!r} is no name that is written or read in an archive")
