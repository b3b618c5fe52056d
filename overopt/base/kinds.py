"""Kinds that are found by the name of their file: methods, worlds, reward models, figures.

``method.kind=grpo`` is the file ``grpo.py`` in ``overopt/methods``; ``method.kind=my_method.py`` is a
user's own, by its path. A kind's file defines ``Settings``, a frozen dataclass, and the functions that
its folder asks for. There is no list to keep and nothing to register.
"""

import difflib
import importlib
import importlib.util
import re
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
    needs : what a kind's file must define beside ``Settings``.
    """

    folder: str
    default: str
    under_its_name: bool = False
    needs: tuple[str, ...] = ()


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


def find(kind: Kind, name: str, where: str = "kind") -> ModuleType:
    """The module of the kind ``name``: a file of the folder by its name, or a user's file by its path.

    Raises
    ------
    ConfigError
        No such kind; or the user's file is absent, cannot be imported, or does not define what a kind
        of the folder needs.
    """
    known = names(kind.folder)
    if name.endswith(".py"):
        module = load_module(Path(name), needs=("Settings",), where=f"{where} = {name!r}")
    elif name in known:
        module = importlib.import_module(f"{kind.folder}.{name}")
    else:
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"{where} = {name!r}: is unknown"
            + (f"; did you mean {near[0]}?" if near else ":")
            + f" use one of {', '.join(known)}, or the path of a Python file that defines one"
        )
    _check(module, kind, f"{where} = {name!r}")
    return module


def _check(module: ModuleType, kind: Kind, where: str) -> None:
    """Raise ConfigError unless ``module`` defines a kind, under a name that it can have."""
    settings = module.Settings
    if not is_dataclass(settings):
        raise ConfigError(f"{where}: its Settings is not a dataclass")
    if settings.__module__ != module.__name__:
        raise ConfigError(
            f"{where}: its Settings is that of {settings.__module__}; define a class of its own, which"
            " may inherit that one"
        )
    for needed in kind.needs:
        if not hasattr(module, needed):
            raise ConfigError(f"{where} has no {needed}: define it")
    stem = Path(str(module.__file__)).stem
    if not is_user_module(module):
        return
    if not re.fullmatch("[a-z][a-z0-9_]*", stem) or re.fullmatch(r"proxy.*|.*_\d\d", stem):
        raise ConfigError(
            f"{where}: the file's name becomes the kind's: rename it to lower-case letters, digits and"
            " _, not beginning with proxy and not ending in _ and two digits"
        )
    if stem in names(kind.folder):
        raise ConfigError(f"{where}: {stem} is the name of a kind that exists: rename the file")


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
