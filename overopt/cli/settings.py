"""The settings of a run as a list for people: names, defaults and what they mean.

Level 0. The texts are those of the dataclasses' docstrings, so there is one place to write them.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from overopt.base.errors import ConfigError


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
        if dataclasses.is_dataclass(value):
            yield from describe_settings(value, name + ".")
        else:
            yield Setting(name, _as_override(value), texts.get(field.name, ""))


def attribute_texts(cls: type) -> dict[str, str]:
    """Field name -> text of the "Attributes" section of a docstring in numpy style.

    Several names before one colon share their text.
    """
    lines = iter((inspect.getdoc(cls) or "").splitlines())
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
    from overopt.stages.settings import RunConfig

    words = [word.lower() for word in args.words]
    shown = [
        setting
        for setting in describe_settings(RunConfig())
        if all(word in f"{setting.name} {setting.meaning}".lower() for word in words)
    ]
    if not shown:
        raise ConfigError(f"settings {' '.join(args.words)!r}: no setting has these words")
    for name, value, meaning in shown:
        text = f"{name}={value}"
        print(
            text
            if not meaning
            else f"{text}\n{textwrap.indent(textwrap.fill(meaning.replace('``', ''), 92), '    ')}"
        )
    return 0
