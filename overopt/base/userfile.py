"""A user's own Python file: imported by its path, and checked for the function that is wanted."""

import importlib.util
from pathlib import Path
from typing import TypeVar

from overopt.base.errors import ConfigError

T = TypeVar("T")


def from_file(path: Path, function: str, result: type[T]) -> T:
    """What ``function()`` of the Python file ``path`` returns, which must be a ``result``."""
    if not path.is_file():
        raise ConfigError(f"experiment file {str(path)!r} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"experiment file {str(path)!r} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise ConfigError(f"experiment file {str(path)!r} has no {function}(): define one")
    made = getattr(module, function)()
    if not isinstance(made, result):
        raise ConfigError(
            f"{function}() of {str(path)!r} returned {type(made).__name__}, not {result.__name__}"
        )
    return made
