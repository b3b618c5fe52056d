"""A user's own Python file: imported by its path, and checked for what is wanted of it.

Such a file is code of the user's, as trusted as the command line that names it. It runs only where
settings name it, never because something that was read (a store, a results directory) does: a process
keeps the files that its settings named, and `by_identity` knows no other.
"""

import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeVar, overload

from overopt.base.errors import ConfigError, OveroptError, StoreError

T = TypeVar("T")
U = TypeVar("U")
_PREFIX = "overopt_user_"
_loaded: dict[str, ModuleType] = {}
"""By `user_identity`: a name may be a kind's, so that of a file counts beside its content."""


def load_module(path: str | Path, needs: Sequence[str] = (), *, where: str = "") -> ModuleType:
    """The module of the Python file ``path``, imported once for each name and content.

    ``needs``: names that it must define; ``where``: what named the file, for messages.

    Raises
    ------
    ConfigError
        No such file, an exception while it is imported, or a name is missing.
    """
    path = Path(path)
    where = where or f"file {str(path)!r}"
    try:
        source = path.read_bytes()
    except OSError as e:
        raise ConfigError(
            f"{where} does not exist or cannot be read ({e.strerror}): give the path of a Python file"
        ) from e
    module = load_source(path, source, where=where)
    for needed in needs:
        call = "()" if needed.islower() else ""  # a function; else a class
        if not callable(getattr(module, needed, None)):
            raise ConfigError(f"{where} has no {needed}{call}: define one")
    return module


def load_source(path: str | Path, source: bytes, *, where: str = "") -> ModuleType:
    """The module of a file's content ``source``, once for each name and content; see `load_module`.

    Raises
    ------
    ConfigError
        An exception while it is imported, or ``path`` is not that of a ``.py`` file.
    """
    path = Path(path)
    where = where or f"file {str(path)!r}"
    checksum = hashlib.sha256(source).hexdigest()
    identity = f"{path.name}#{checksum[:16]}"
    if identity not in _loaded:
        stem = re.sub(r"\W", "_", path.stem)
        name = f"{_PREFIX}{stem}_{checksum[:16]}"
        if path.suffix != ".py":
            raise ConfigError(f"{where} cannot be imported: give the path of a .py file")
        module = ModuleType(name)
        module.__file__ = str(path.resolve())
        sys.modules[name] = module  # settings travel to other processes by this name
        try:
            # From the content that was read, never from compiled code that may lie beside it.
            exec(compile(source, str(path), "exec"), vars(module))
        except OveroptError:
            del sys.modules[name]
            raise
        except (Exception, SystemExit) as e:  # a user's file may raise anything
            del sys.modules[name]
            raise ConfigError(f"{where}: importing it raised {type(e).__name__}: {e}") from e
        module.__dict__["__overopt_checksum__"] = checksum
        module.__dict__["__overopt_source__"] = source
        _loaded[identity] = module
    return _loaded[identity]


def by_checksum(checksum: str) -> ModuleType | None:
    """A file that this process' settings named, by the SHA-256 of its content; else None."""
    return next((m for m in _loaded.values() if checksum_of(m) == checksum), None)


def by_identity(identity: str) -> ModuleType:
    """The module whose `user_identity` this is.

    Raises
    ------
    StoreError
        The settings of this process name no such file: it is not run.
    """
    if identity in _loaded:
        return _loaded[identity]
    raise StoreError(
        f"a file {identity!r} is named by an artefact, and not by the settings of this run: it is not"
        " run; name it in the settings, or delete the artefact to have it computed again"
    )


def is_user_module(module: ModuleType | None) -> bool:
    """Whether `load_module` made it."""
    return module is not None and module.__name__.startswith(_PREFIX)


def checksum_of(module: ModuleType) -> str:
    """SHA-256 of the file that `load_module` imported."""
    return module.__dict__["__overopt_checksum__"]


def user_identity(module: ModuleType) -> str:
    """Name and checksum of a user's file, for identities: the path does not enter."""
    return f"{Path(str(module.__file__)).name}#{checksum_of(module)[:16]}"


def loaded_kinds() -> tuple[tuple[str, bytes], ...]:
    """Path and content of the kinds' files that this process has imported; others may need them too.

    The content travels, so that a file that is edited during a run is in all processes as it was.
    """
    kinds = [m for m in _loaded.values() if hasattr(m, "Settings")]
    return tuple((str(m.__file__), m.__dict__["__overopt_source__"]) for m in kinds)


@overload
def from_file(path: Path, function: str, result: type[T], /) -> T: ...


@overload
def from_file(path: Path, function: str, result: type[T], other: type[U], /) -> T | U: ...


def from_file(path: Path, function: str, *results: type) -> object:
    """What ``function()`` of the Python file ``path`` returns, which must be one of ``results``."""
    made = getattr(load_module(path, needs=(function,)), function)()
    if not isinstance(made, results):
        names = " or ".join(result.__name__ for result in results)
        raise ConfigError(
            f"{function}() of {str(path)!r} returned {type(made).__name__}, not {names}"
        )
    return made
