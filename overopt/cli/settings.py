"""The settings of a run as a list for people: names, defaults and what they mean.

The texts are those of the dataclasses' docstrings, so there is one place to write them.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from overopt.base import kinds
from overopt.base.annotations import kind_choice
from overopt.base.errors import ConfigError
from overopt.base.overrides import PRESET_KEY, presets_of


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Declare the arguments of this family's commands."""
    settings = commands.add_parser(
        "settings", parents=[common], help="list what can be set in a run, with defaults"
    )
    settings.add_argument(
        "words", nargs="*", help="show settings whose name or meaning has all of these words"
    )
    settings.set_defaults(command=show_settings)


class Setting(NamedTuple):
    """A setting's dotted name, its value as an override writes it, and its meaning."""

    name: str
    value: str
    meaning: str


def describe_settings(config: Any, where: str = "") -> Iterator[Setting]:
    """All settings of a dataclass instance and of those inside it, in order."""
    texts = attribute_texts(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), where + field.name
        choice = kind_choice(type(config), field.name)
        if choice is not None:
            yield Setting(f"{name}.kind", _kind_shown(value), _choices(choice))
        named = presets_of(value)
        if named:
            now = next((key for key, one in named.items() if one == value), "of its own")
            meaning = f"All settings of the group at once: {', '.join(named)}. Others may follow."
            yield Setting(f"{name}.{PRESET_KEY}", now, meaning)
        if dataclasses.is_dataclass(value):
            yield from describe_settings(value, name + ".")
        elif choice is None:
            yield Setting(name, _as_override(value), texts.get(field.name, ""))


def describe_other_kinds(config: Any) -> Iterator[Setting]:
    """Settings of the kinds that ``config`` does not hold, each with the setting that picks it."""
    for field in dataclasses.fields(config):
        choice = kind_choice(type(config), field.name)
        if choice is None:
            continue
        for kind in kinds.names(choice.folder):
            if kind != _kind_shown(getattr(config, field.name)):
                picks = f"{field.name}.kind={kind}"
                own = kinds.find(choice, kind).Settings()
                yield Setting(picks, "", (inspect.getdoc(type(own)) or "").partition("\n")[0])
                for name, value, meaning in describe_settings(own, f"{field.name}."):
                    yield Setting(name, value, f"{meaning} (with {picks})")


def known_names() -> tuple[str, ...]:
    """Names of all settings of a run, of every kind, each once, as an override takes them."""
    from overopt.stages.settings import RunConfig

    known = [*describe_settings(RunConfig()), *describe_other_kinds(RunConfig())]
    return tuple(dict.fromkeys(setting.name for setting in known if "=" not in setting.name))


def _kind_shown(settings: Any) -> str:
    return "none" if settings is None else kinds.kind_of(settings)


def _choices(choice: kinds.Kind) -> str:
    known = ", ".join(kinds.names(choice.folder))
    return f"One of {known}; or the path of a Python file of one's own."


def attribute_texts(cls: type) -> dict[str, str]:
    """Field name -> text of the "Attributes" sections of a class and of those it inherits from.

    Several names before one colon share their text.
    """
    texts: dict[str, str] = {}
    for part in reversed(cls.__mro__):
        texts |= _own_texts(part)
    return texts


def _own_texts(cls: type) -> dict[str, str]:
    lines = iter(inspect.cleandoc(cls.__doc__ or "").splitlines())
    texts: dict[str, str] = {}
    names: list[str] = []
    if "Attributes" not in lines:  # consumes lines up to the heading
        return texts
    next(lines)
    for line in lines:
        if line and not line.startswith(" "):
            names = [name.strip() for name in line.partition(" : ")[0].split(",")]
            texts |= dict.fromkeys(names, "")
        else:
            for name in names:
                texts[name] = f"{texts[name]} {line.strip()}".strip()
    return texts


def _as_override(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def show_settings(args: argparse.Namespace) -> int:
    """``overopt settings``: every setting with its default and meaning, or those with some words."""
    from overopt.control.settings import ControlRun
    from overopt.stages.settings import RunConfig

    of_control = (
        setting._replace(meaning=f"{setting.meaning} (in `overopt run control`)")
        for setting in describe_settings(ControlRun())
    )
    known = [*describe_settings(RunConfig()), *describe_other_kinds(RunConfig()), *of_control]
    words = [word.lower() for word in args.words]
    shown = [
        setting
        for setting in known
        if all(word in f"{setting.name} {setting.meaning}".lower() for word in words)
    ]
    if not shown:
        raise ConfigError(f"settings {' '.join(args.words)!r}: no setting has these words")
    for name, value, meaning in shown:
        text = f"{name}={value}" if "=" not in name else name
        print(
            text
            if not meaning
            else f"{text}\n{textwrap.indent(textwrap.fill(meaning.replace('``', ''), 92), '    ')}"
        )
    return 0
