"""What an artefact says of itself: identity, versions, machine, and a checksum of every file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from overopt.base.config import RuntimeConfig, fingerprint
from overopt.base.errors import DataError
from overopt.base.files import fsync, load_object, need

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_PACKAGES = (
    "overopt", "numpy", "scipy", "torch", "transformers", "tokenizers", "safetensors", "accelerate",
)  # fmt: skip


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
class Asked:
    """An input as the settings of this run ask for it, whatever the store holds under its name.

    What an artefact may load, or even run, follows from this and never from the artefact: a store
    may come from anywhere.

    Attributes
    ----------
    stage : str
        Name of its stage.
    fingerprint : str
        Its identity.
    config : dict
        Its full config.
    texts : frozenset of str
        Every text in its config and in those of all its inputs: names of checkpoints among them.
    """

    stage: str
    fingerprint: str
    config: Mapping[str, Any] = field(default_factory=dict)
    texts: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A finished, checked directory of results.

    Attributes
    ----------
    path : Path
        The directory; read-only by convention.
    manifest : dict
        Content of ``manifest.json``.
    asked : Asked or None
        What this run asked for, of an input of a stage.
    """

    path: Path
    manifest: Mapping[str, Any]
    asked: Asked | None = None

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


def checksum(manifest: Mapping[str, Any]) -> str:
    """Checksum of a manifest's own content."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


_TYPES: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "stage": str,
    "version": int,
    "fingerprint": str,
    "config": dict,
    "config_non_default": dict,
    "upstream": dict,
    "status": str,
    "resumed": bool,
    "wall_s": (int, float),
    "cpu_s": (int, float),
    "device": str,
    "threads": int,
    "files": dict,
    "checksum": str,
}
"""Keys of a manifest that are read back, and what they hold."""


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest, checked: its format, its checksum, and that every key is there that is read.

    Raises
    ------
    DataError
        It is missing or damaged, or of another format; the message names file and key.
    """
    manifest = load_object(path)
    found = manifest.get("format", FORMAT_VERSION)
    if found != FORMAT_VERSION:
        raise DataError(
            f"{path}: format = {found!r}, this overopt reads {FORMAT_VERSION}: use the overopt that"
            " made it"
        )
    if manifest.get("checksum") != checksum(manifest):
        raise DataError(f"{path}: is damaged (its checksum does not fit)")
    for key, kind in _TYPES.items():
        if not isinstance(need(manifest, f"{path}:", (key,))[key], kind):
            raise DataError(f"{path}: {key} = {manifest[key]!r}: is no {_word(kind)}")
    for name, entry in manifest["files"].items():
        entry = need(entry, f"{path}: files.{name}", ("sha256", "size"))
        if not (isinstance(entry["sha256"], str) and isinstance(entry["size"], int)):
            raise DataError(f"{path}: files.{name} = {entry!r}: is no checksum and size")
    _strings(manifest["upstream"], f"{path}: upstream")
    return manifest


def read_recorded(path: Path) -> dict[str, Any]:
    """The note of what an experiment was finished with, checked."""
    content = load_object(path, ("experiment", "stages"))
    check_stages(content["stages"], f"{path}: stages")
    return content


def check_stages(stages: Any, where: str) -> None:
    """Raise DataError unless ``stages`` is ``{label: {"stage": ..., "fingerprint": ...}}``."""
    for label, entry in need(stages, where).items():
        _strings(need(entry, f"{where}.{label}", ("stage", "fingerprint")), f"{where}.{label}")


def _strings(values: Mapping[str, Any], where: str) -> None:
    for key, value in values.items():
        if not isinstance(value, str):
            raise DataError(f"{where}.{key} = {value!r}: is no text")


def _word(kind: type | tuple[type, ...]) -> str:
    return "number" if isinstance(kind, tuple) else kind.__name__


def files_in(directory: Path) -> list[str]:
    """Names of all files below a directory, sorted."""
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()
    )


def describe_file(path: Path) -> dict[str, Any]:
    """SHA-256 and size of a file, as a manifest lists it."""
    fsync(path)
    stat = os.stat(path)
    digest = sha256(str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return {"sha256": digest, "size": stat.st_size}


@lru_cache(maxsize=65_536)
def sha256(path: str, mtime_ns: int, size: int, inode: int) -> str:
    """SHA-256 of a file, remembered as long as it looks unchanged."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_manifest(
    work: Workspace,
    runtime: RuntimeConfig,
    files: Mapping[str, Mapping[str, Any]],
    together: int,
    measured: Mapping[str, float | None],
) -> dict[str, Any]:
    """The manifest of what a stage has written; ``measured``: what it took beside its seconds."""
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
        **measured,
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
    package = Path(__file__).parents[1]

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
