"""The settings of a run as a list for people: names, defaults and what they mean.

Level 0. The texts are those of the dataclasses' docstrings, so there is one place to write them.
"""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple


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
