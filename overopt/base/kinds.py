"""Kinds that are found by the name of their file: methods, worlds, reward models, figures.

``method.kind=grpo`` is the file ``grpo.py`` in ``overopt/methods``; ``method.kind=my_method.py`` is a
user's own, by its path. A kind's file defines ``Settings``, a frozen dataclass, and the functions that
its folder asks for. There is no list to keep and nothing to register.
"""

import difflib
import importlib
import importlib.util
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from overopt.base.errors import ConfigError
from overopt.base.userfile import is_user_module, load_module, user_identity


class Kind(NamedTuple):
    """Annotation of a setting that holds the ``Settings`` of one of the kinds in a folder.

    folder : the package, such as ``overopt.methods``.
    default : the kind whose name is left out of the canonical form.
    under_its_name : in canonical form, the settings stand under the kind's name instead of under the
        name of the field, without an entry "kind".
    """

    folder: str
    default: str
    under_its_name: bool = False


def names(folder: str) -> tuple[str, ...]:
    """The kinds of a folder, sorted: its files that define ``Settings``."""
    spec = importlib.util.find_spec(folder)
    assert spec is not None and spec.submodule_search_locations is not None
    found = []
    for place in spec.submodule_search_locations:
        for file in sorted(Path(place).glob("[!_]*.py")):
            if "\nclass Settings" in file.read_text(encoding="utf-8"):
                found.append(file.stem)
    return tuple(found)


def find(folder: str, kind: str, where: str = "kind") -> ModuleType:
    """The module of a kind: a file of the folder by its name, or a user's file by its path.

    Raises
    ------
    ConfigError
        No such kind; or the user's file is absent, cannot be imported, or defines no ``Settings``.
    """
    if kind.endswith(".py"):
        module = load_module(Path(kind), needs=("Settings",), where=f"{where} = {kind!r}")
    elif kind in names(folder):
        module = importlib.import_module(f"{folder}.{kind}")
    else:
        near = difflib.get_close_matches(kind, names(folder), n=1)
        raise ConfigError(
            f"{where} = {kind!r}: is unknown"
            + (f"; did you mean {near[0]}?" if near else ":")
            + f" use one of {', '.join(names(folder))}, or the path of a Python file that defines one"
        )
    if not is_dataclass(module.Settings):
        raise ConfigError(f"{where} = {kind!r}: its Settings is not a dataclass")
    return module


def module_of(settings: Any) -> ModuleType:
    """The module that defines a kind's settings."""
    return importlib.import_module(type(settings).__module__)


def kind_of(settings: Any) -> str:
    """A kind's name: that of its file, without ``.py``."""
    module = module_of(settings)
    return Path(str(module.__file__)).stem


def identity_of(settings: Any) -> str:
    """What stands for the kind in canonical form: its name; of a user's file, with its checksum."""
    module = module_of(settings)
    return user_identity(module) if is_user_module(module) else kind_of(settings)
