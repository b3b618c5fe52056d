"""A user's own Python file: imported by its path, and checked for the functions that are wanted."""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from overopt.base.errors import ConfigError, OveroptError

T = TypeVar("T")


def load_module(path: str | Path, needs: Sequence[str] = ("draw",)) -> ModuleType:
    """The Python file ``path`` as a module that has the functions ``needs``.

    A file is imported once: the same path gives the same module, until the file is changed.

    Raises
    ------
    ConfigError
        No such file, an import that raises, or a function that is missing.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"file {str(path)!r} does not exist: give the path of a Python file")
    module = _imported(file.resolve(), file.read_bytes())
    for name in needs:
        if not callable(getattr(module, name, None)):
            raise ConfigError(f"file {str(path)!r} has no {name}(): define one")
    return module


@functools.cache
def _imported(path: Path, content: bytes) -> ModuleType:
    """The module of ``path``; by its content a changed file is told from the one imported before."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"file {str(path)!r} cannot be imported: give the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except OveroptError:  # says itself what is wrong
        raise
    except Exception as error:  # a user's file may raise anything
        raise ConfigError(
            f"file {str(path)!r}: importing it raised {type(error).__name__}: {error}"
        ) from error
    return module


def from_file(path: Path, function: str, result: type[T]) -> T:
    """What ``function()`` of the Python file ``path`` returns, which must be a ``result``."""
    made = getattr(load_module(path, needs=(function,)), function)()
    if not isinstance(made, result):
        raise ConfigError(
            f"{function}() of {str(path)!r} returned {type(made).__name__}, not {result.__name__}"
        )
    return made
