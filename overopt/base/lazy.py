"""Modules that are imported when they are first used.

Files that are read in order to plan (stages, methods, worlds, reward kinds) describe work without
doing it. They take torch and everything built on it through here, under the same names and with the
same types:

    if TYPE_CHECKING:
        import torch
    else:
        torch = lazy("torch")

so that ``overopt plan`` starts in a fraction of a second, and a reader still finds all imports at
the top of the file.
"""

import importlib
from types import ModuleType
from typing import Any


class _Lazy(ModuleType):
    """Stands for a module; is not in ``sys.modules`` under its name."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def lazy(name: str) -> Any:
    """The module ``name``, imported at the first use of anything in it."""
    return _Lazy(name)
