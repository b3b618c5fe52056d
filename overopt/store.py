"""Fingerprint-addressed artefacts on disk: whole or absent, checked on opening, never overwritten.

Level 3: with ``pipeline`` and ``cli`` the only code that touches files. An artefact is a directory
``root/<stage>/<fingerprint>/`` with a ``manifest.json`` that says how it came about and holds a
checksum of every file::

    root/store.json                      format version of the store
    root/<stage>/<fingerprint>/          finished artefacts
    root/.scratch/<stage>-<fingerprint>  files of a stage that is running; renamed when it is done
    root/.inflight/<stage>-<fingerprint> its checkpoints, which survive the process
    root/.locks/<stage>-<fingerprint>    held by the process that computes it
    root/experiments/<name>.json         fingerprints that an experiment was last finished with

Safety rests on two operations of the file system: ``rename`` of a directory, which happens or does
not, and ``flock``, which the kernel releases when its holder dies in whatever way. Scratch files
belong to whoever holds the lock of their artefact, so left-overs of a killed process are
recognised without guessing from process numbers or clocks.

What it does differently from a cache: nothing here is ever deleted or recomputed behind the user's
back. A damaged artefact is an error that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from overopt.config import RuntimeConfig, fingerprint
from overopt.errors import DataError, StoreError

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_PACKAGES = (
    "overopt", "numpy", "scipy", "torch", "transformers", "tokenizers", "safetensors", "accelerate",
)  # fmt: skip
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


# --- the store ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What an artefact is: everything that enters its fingerprint, and the full config beside it.

    Attributes
    ----------
    stage : str
        Name of the stage; a directory of the store.
    version : int
        Version of the stage's code.
    canonical : dict
        The config without default-valued fields.
    config : dict
        The full config.
    upstream : dict
        Fingerprints of the inputs, by role.
    """

    stage: str
    version: int
    canonical: Mapping[str, Any]
    config: Mapping[str, Any]
    upstream: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """16 hex digits; see ``config.fingerprint``."""
        return fingerprint(self.stage, self.version, self.canonical, self.upstream)


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A finished, checked directory of results.

    Attributes
    ----------
    path : Path
        The directory; read-only by convention.
    manifest : dict
        Content of ``manifest.json``.
    """

    path: Path
    manifest: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Identity of the artefact."""
        return self.manifest["fingerprint"]


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Where a running stage writes: ``out`` becomes the artefact, ``checkpoint`` survives a kill.

    ``resumed`` says whether checkpoints of an earlier attempt were found.
    """

    identity: Identity
    out: Path
    checkpoint: Path
    resumed: bool
    started: float = field(default_factory=time.time)
    started_cpu: float = field(default_factory=time.process_time)


@dataclass(frozen=True)
class Store:
    """Artefacts under ``root``.

    Making the object checks the format of an existing store and writes nothing; ``create`` makes
    the directory.

    Raises
    ------
    StoreError
        ``root`` is not a directory, or holds a store of another format version.
    """

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.root}: is a file; give a directory with --store")
        marker = self.root / "store.json"
        if marker.exists():
            found = load_json(marker)
            version = found.get("format") if isinstance(found, dict) else None
            if version != FORMAT_VERSION:
                raise StoreError(
                    f"{marker}: format = {version!r}, this overopt reads format {FORMAT_VERSION};"
                    " give a new directory with --store, or use the overopt that made it"
                )

    def create(self) -> Store:
        """Make the store's directories, prove that they can be written, drop dead scratch files."""
        with os_errors(self.root):
            for name in (".scratch", ".inflight", ".locks", "experiments"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            if not (self.root / "store.json").exists():
                save_json(self.root / "store.json", {"format": FORMAT_VERSION})
            probe = self.root / ".scratch" / f".probe-{socket.gethostname()}-{os.getpid()}"
            atomic_write(probe, b"writable")
            probe.unlink()
            self.sweep()
        return self

    def path(self, stage: str, fp: str) -> Path:
        """Where the artefact is, or would be."""
        return self.root / stage / fp

    def has(self, stage: str, fp: str) -> bool:
        """Whether something is there under that identity (``open`` says whether it is sound)."""
        return self.path(stage, fp).exists()

    def has_checkpoint(self, stage: str, fp: str) -> bool:
        """Whether an unfinished attempt left checkpoints to resume from."""
        directory = self.root / ".inflight" / f"{stage}-{fp}"
        return directory.is_dir() and any(directory.iterdir())

    def is_running(self, stage: str, fp: str) -> bool:
        """Whether some process is computing the artefact at this moment."""
        path = self._lock_path(stage, fp)
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def open(self, stage: str, fp: str) -> Artefact:
        """The artefact, after comparing every file with its checksum.

        A file is hashed once per process, and again if its size, inode or time changed.

        Raises
        ------
        StoreError
            It is absent, damaged, incomplete, or holds files that are not its own; the message
            names the file.
        """
        directory = self.path(stage, fp)
        if not directory.exists():
            raise StoreError(f"{directory}: no such artefact; compute it with `overopt run`")
        remedy = f"; delete the directory {directory} to have it computed again"
        manifest_path = directory / MANIFEST
        try:
            manifest = load_json(manifest_path)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(f"{manifest_path}: is missing{remedy}") from None
        except DataError as error:
            raise StoreError(f"{error}{remedy}") from error
        if not isinstance(manifest, dict) or manifest.get("checksum") != _checksum(manifest):
            raise StoreError(f"{manifest_path}: is damaged (its checksum does not fit){remedy}")
        if (manifest["stage"], manifest["fingerprint"]) != (stage, fp):
            raise StoreError(
                f"{manifest_path}: belongs to {manifest['stage']}/{manifest['fingerprint']}{remedy}"
            )
        if manifest["status"] != "complete":
            raise StoreError(f"{manifest_path}: status = {manifest['status']!r}{remedy}")
        present = set(_files(directory)) - {MANIFEST}
        for name in sorted(present - set(manifest["files"])):
            raise StoreError(f"{directory / name}: does not belong to the artefact{remedy}")
        for name, expected in manifest["files"].items():
            if name not in present:
                raise StoreError(f"{directory / name}: is missing{remedy}")
            stat = os.stat(directory / name)
            if stat.st_size != expected["size"]:
                raise StoreError(
                    f"{directory / name}: is damaged ({stat.st_size} bytes, manifest says"
                    f" {expected['size']}){remedy}"
                )
            digest = _sha256(str(directory / name), stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if digest != expected["sha256"]:
                raise StoreError(
                    f"{directory / name}: is damaged (SHA-256 {digest[:12]}…, manifest says"
                    f" {expected['sha256'][:12]}…){remedy}"
                )
        return Artefact(path=directory, manifest=manifest)

    @contextlib.contextmanager
    def lock(self, stage: str, fp: str) -> Iterator[bool]:
        """Try to become the only process that computes the artefact; yields whether it did.

        The kernel releases the lock of a process that dies. The file is removed on release, while
        still locked, which is why a taken lock is only good if its file is still the one on disk.
        """
        path = self._lock_path(stage, fp)
        with os_errors(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    mine = os.fstat(fd).st_ino == os.stat(path).st_ino
                except (BlockingIOError, FileNotFoundError):
                    mine = False
            except BaseException:
                os.close(fd)
                raise
        try:
            yield mine
        finally:
            if mine:
                with contextlib.suppress(OSError):
                    path.unlink()
            os.close(fd)

    @contextlib.contextmanager
    def workspace(self, identity: Identity) -> Iterator[Workspace]:
        """Directories for a stage to write into; call while holding its lock.

        Left-over scratch files of a dead attempt are removed, its checkpoints are kept. Whatever
        is still in scratch at the end, because nothing was committed, is removed too.
        """
        name = f"{identity.stage}-{identity.fingerprint}"
        out, checkpoint = self.root / ".scratch" / name, self.root / ".inflight" / name
        with os_errors(out):
            _remove(out)
            out.mkdir(parents=True)
            checkpoint.mkdir(parents=True, exist_ok=True)
        resumed = any(checkpoint.iterdir())
        try:
            yield Workspace(identity=identity, out=out, checkpoint=checkpoint, resumed=resumed)
        finally:
            _remove(out)
            with contextlib.suppress(OSError):
                checkpoint.rmdir()  # succeeds only where there is nothing to resume from

    def commit(self, work: Workspace, runtime: RuntimeConfig, *, together: int = 1) -> Artefact:
        """Turn ``work.out`` into the artefact by one rename; returns what is now in the store.

        If another process got there first, its artefact is checked and used, and this one dropped.
        ``together``: artefacts that were computed at once; each is charged its share of the seconds.

        Raises
        ------
        StoreError
            The file system refused, or the artefact found in the way is damaged or another's.
        """
        identity = work.identity
        target = self.path(identity.stage, identity.fingerprint)
        with os_errors(target):
            files = {name: _describe_file(work.out / name) for name in _files(work.out)}
            manifest = _manifest(work, runtime, files, together)
            save_json(work.out / MANIFEST, {**manifest, "checksum": _checksum(manifest)})
            for directory in (work.out, *(p for p in work.out.rglob("*") if p.is_dir())):
                _fsync(directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(work.out, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            _fsync(target.parent)
        artefact = self.open(identity.stage, identity.fingerprint)
        _remove(work.checkpoint)
        return artefact

    def recorded(self, experiment: str) -> dict[str, Any] | None:
        """What ``record`` last wrote for the experiment, or None."""
        path = self._experiment_path(experiment)
        return load_json(path) if path.exists() else None

    def record(self, experiment: str, fingerprints: Mapping[str, Mapping[str, str]]) -> None:
        """Note ``{label: {"stage": ..., "fingerprint": ...}}`` as the experiment's final state."""
        path = self._experiment_path(experiment)
        with os_errors(path):
            save_json(path, {"experiment": experiment, "stages": dict(fingerprints)})

    def free_bytes(self) -> int:
        """Free bytes on the file system of the store."""
        return shutil.disk_usage(self.root).free

    def _lock_path(self, stage: str, fp: str) -> Path:
        return self.root / ".locks" / f"{stage}-{fp}"

    def _experiment_path(self, experiment: str) -> Path:
        # Names may hold any character (overrides are part of them), so the file name is hashed.
        plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in experiment)[:60]
        if plain != experiment:
            plain += "-" + hashlib.sha256(experiment.encode()).hexdigest()[:8]
        return self.root / "experiments" / f"{plain}.json"

    def sweep(self) -> None:
        """Remove what dead processes left: scratch files, and checkpoints of finished artefacts."""
        for kind in (".scratch", ".inflight"):
            for left in (self.root / kind).iterdir():
                stage, dash, fp = left.name.rpartition("-")
                if not dash or left.name.startswith("."):
                    continue
                if kind == ".inflight" and not self.has(stage, fp):
                    continue
                with self.lock(stage, fp) as mine:
                    if mine:
                        _remove(left)


# --- files ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; flushed to disk and renamed to it if the block succeeds."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os_errors(path):
        try:
            yield temporary
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
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


# --- details --------------------------------------------------------------------------------------


def _dump(value: Any, where: str, indent: int | None = None) -> str:
    def plain(item: Any) -> Any:
        if isinstance(item, np.generic):
            return item.item()
        raise TypeError(f"a {type(item).__name__} has no JSON form")

    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent, default=plain)
    except (TypeError, ValueError) as error:
        bad = _find_bad(value, "")
        raise DataError(
            f"{where}{': ' + bad if bad else ''}: cannot be written as JSON ({error}); an"
            " unavailable number is None, never NaN"
        ) from error


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


def _checksum(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _files(directory: Path) -> list[str]:
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()
    )


def _describe_file(path: Path) -> dict[str, Any]:
    _fsync(path)
    stat = os.stat(path)
    digest = _sha256(str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return {"sha256": digest, "size": stat.st_size}


@lru_cache(maxsize=65_536)
def _sha256(path: str, mtime_ns: int, size: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)


def _manifest(
    work: Workspace,
    runtime: RuntimeConfig,
    files: Mapping[str, Mapping[str, Any]],
    together: int,
) -> dict[str, Any]:
    finished = time.time()
    identity = work.identity
    return {
        "format": FORMAT_VERSION,
        "stage": identity.stage,
        "version": identity.version,
        "fingerprint": identity.fingerprint,
        "config": identity.config,
        "config_non_default": identity.canonical,
        "upstream": dict(identity.upstream),
        "root_seed": identity.config.get("root_seed"),
        "status": "complete",
        "resumed": work.resumed,
        "started": datetime.fromtimestamp(work.started, UTC).isoformat(),
        "finished": datetime.fromtimestamp(finished, UTC).isoformat(),
        "wall_s": (finished - work.started) / together,
        "cpu_s": (time.process_time() - work.started_cpu) / together,
        "together": together,
        "git": dict(_git_state()),
        "versions": dict(_versions()),
        "host": socket.gethostname(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": runtime.device,
        "threads": runtime.threads,
        "torch": _torch_build(runtime.device),
        "files": {name: dict(entry) for name, entry in files.items()},
    }


@lru_cache(maxsize=1)
def _git_state() -> tuple[tuple[str, Any], ...]:
    """Commit, whether the package differs from it, and a hash of the difference; None without git.

    Looked up once per process, near the moment its code was loaded, and only where the package is
    a tracked part of the repository: a repository that merely surrounds an installed package says
    nothing about it.
    """
    package = Path(__file__).parent

    def git(*args: str) -> bytes:
        command = ("git", "-C", str(package), *args)
        return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        commit = git("rev-parse", "HEAD").decode().strip()
        changes = git("status", "--porcelain", "--", ".") + git("diff", "HEAD", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return (("commit", None), ("dirty", None), ("diff_sha256", None))
    digest = hashlib.sha256(changes).hexdigest() if changes else None
    return (("commit", commit), ("dirty", bool(changes)), ("diff_sha256", digest))


@lru_cache(maxsize=1)
def _versions() -> tuple[tuple[str, str | None], ...]:
    found: list[tuple[str, str | None]] = [("python", platform.python_version())]
    for name in _PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, None))
    return tuple(found)


def _torch_build(device: str) -> dict[str, Any] | None:
    """Build of torch if the stage loaded it, else None."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    build = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda") and torch.cuda.is_available():
        build["device_name"] = torch.cuda.get_device_name(device)
    return build
