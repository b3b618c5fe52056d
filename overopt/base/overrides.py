"""Settings from the command line: ``a.b=c``, each parsed by its field's annotation."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, TypeVar

from overopt.base import kinds
from overopt.base.annotations import (
    MAX_INT_DIGITS,
    NONE_WORDS,
    annotations_of,
    described,
    dotted,
    item_annotations,
    kind_in,
    leaves_of,
    members_of,
    unknown_setting,
)
from overopt.base.config import KIND_KEY, build
from overopt.base.errors import ConfigError

T = TypeVar("T")

PRESET_KEY = "preset"
"""``group.preset=NAME`` takes one of the named values of a group; its other settings can follow."""


def apply_overrides(config: T, overrides: Sequence[str]) -> T:
    """``config`` with ``a.b=c`` overrides applied, each parsed by its field's annotation.

    All overrides are applied before anything is validated, so that two settings that are only
    valid together can be given together.

    Parameters
    ----------
    config : dataclass instance
        Left unchanged.
    overrides : sequence of str
        Such as ``["labels.n_pairs=2e3", "method.kl_coef=0.1", "bon.ns=1,2,4", "method=none"]``.

    Raises
    ------
    ConfigError
        No "=", an unknown name (the message offers the nearest), a name given twice, a value of
        the wrong type, or a combination that the dataclass refuses.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise ConfigError(f"{override!r}: an override is name=value, such as seed=1")
        node = tree
        *groups, leaf = name.split(".")
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{name}: {group} is given both as a value and as a group")
        if leaf in node:
            raise ConfigError(f"{name}: is given twice; give it once")
        node[leaf] = text
    return _override(config, tree, "", list(setting_names(config)))


def setting_names(config: Any, where: str = "") -> Iterator[str]:
    """Dotted names of all settings of ``config`` that an override can set, in order."""
    for name, annotation in annotations_of(type(config)).items():
        value = getattr(config, name)
        if kind_in(annotation) is not None:
            yield dotted(dotted(where, name), KIND_KEY)
        if presets_of(value):
            yield dotted(dotted(where, name), PRESET_KEY)
        if dataclasses.is_dataclass(value):
            yield from setting_names(value, dotted(where, name))
        elif kind_in(annotation) is None and not any(
            map(dataclasses.is_dataclass, leaves_of(annotation))
        ):
            yield dotted(where, name)


def _override(config: Any, tree: Mapping[str, Any], where: str, known: list[str]) -> Any:
    hints = annotations_of(type(config))
    changes = {}
    for key, new in tree.items():
        name = dotted(where, key)
        if key not in hints:
            while isinstance(new, Mapping):  # name the setting, not only its group
                inner = next(iter(new))
                name, new = dotted(name, inner), new[inner]
            raise unknown_setting(name, known)
        changes[key] = _changed(getattr(config, key), new, hints[key], name, known)
    return build(lambda: dataclasses.replace(config, **changes), where)


def _changed(value: Any, new: Any, annotation: Any, name: str, known: list[str]) -> Any:
    """``value`` of a setting as the override ``new`` wants it: text, or a tree for a group."""
    optional = type(None) in members_of(annotation)
    kind = kind_in(annotation)
    if isinstance(new, str):
        if kind is not None and not (new in NONE_WORDS and optional):
            new = {KIND_KEY: new}  # method=grpo says method.kind=grpo
        elif new in presets_of(value):
            return presets_of(value)[new]
        elif dataclasses.is_dataclass(value) and not (new in NONE_WORDS and optional):
            inside = ", ".join(list(setting_names(value, name))[:4])
            named = f", or take one of {', '.join(presets_of(value))}" if presets_of(value) else ""
            raise ConfigError(
                f"{name} = {new!r}: is a group of settings; set one of them: {inside}{named}"
            )
        else:
            return _parse(new, annotation, name)
    if kind is not None and new.get(KIND_KEY) in NONE_WORDS and optional and len(new) == 1:
        return None
    if kind is not None and KIND_KEY in new:
        module = kinds.find(kind, new[KIND_KEY], dotted(name, KIND_KEY))
        new = {key: item for key, item in new.items() if key != KIND_KEY}
        if type(value) is not module.Settings:
            value = _switched(value, module.Settings)
            known = list(setting_names(value, name))
    if PRESET_KEY in new and presets_of(value):
        chosen = _parse(
            new[PRESET_KEY], Literal[tuple(presets_of(value))], dotted(name, PRESET_KEY)
        )
        value, new = presets_of(value)[chosen], {k: v for k, v in new.items() if k != PRESET_KEY}
    if not dataclasses.is_dataclass(value):
        if value is None and (kind or any(map(dataclasses.is_dataclass, members_of(annotation)))):
            remedy = f"; give {name}.kind too" if kind else ""
            raise ConfigError(f"{name} is none here, so {name}.* cannot be set{remedy}")
        raise unknown_setting(dotted(name, next(iter(new))), known)
    return _override(value, new, name, known)


def presets_of(value: Any) -> Mapping[str, Any]:
    """Named values of a group of settings, where its class has some (a class method ``presets``)."""
    return type(value).presets() if hasattr(type(value), "presets") else {}


def _switched(old: Any, cls: type) -> Any:
    """Settings of another kind, not validated yet: its defaults.

    What the old kind's settings had changed from their default stays, where the new kind has a
    setting of the same name: the length of a preset's run, the backbone of a sweep. So does the seed,
    whatever each kind calls it, so that replicates stay replicates.
    """
    new: Any = object.__new__(cls)
    before = {}
    if old is not None:
        defaults = {field.name: _default(field) for field in dataclasses.fields(old)}
        values = {name: getattr(old, name) for name in defaults}
        before = {name: value for name, value in values.items() if value != defaults[name]}
    for field in dataclasses.fields(cls):
        value = before.get(field.name, _default(field))
        if value is dataclasses.MISSING:
            raise ConfigError(
                f"{field.name}: has no default, and the settings of every kind need one: give it one in"
                f" {cls.__module__}"
            )
        object.__setattr__(new, field.name, value)
    seed = getattr(old, "seed", None)
    if seed is not None and getattr(new, "seed", None) is not None:
        plain = cls()
        for field in dataclasses.fields(cls):
            of_seed = getattr(plain.with_seed(seed), field.name)
            if of_seed != getattr(plain, field.name):
                object.__setattr__(new, field.name, of_seed)
    return new


def _default(field: dataclasses.Field) -> Any:
    """A field's default, or MISSING."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _parse(text: str, annotation: Any, name: str) -> Any:
    """``text`` as a value of ``annotation``; a union takes the first member that fits, str last."""
    members = sorted(members_of(annotation), key=lambda member: member is str)
    for member in members:
        try:
            return _parse_one(text, member, name)
        except ValueError:
            continue
    raise ConfigError(f"{name} = {text!r}: must be {described(annotation)}")


def _parse_one(text: str, member: Any, name: str) -> Any:
    if member is type(None) or member is None:
        if text in NONE_WORDS:
            return None
    elif typing.get_origin(member) is Literal:
        for option in typing.get_args(member):
            if text == ("none" if option is None else str(option)):
                return option
    elif typing.get_origin(member) is tuple:
        inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
        parts = [part.strip() for part in inner.split(",")] if inner.strip() else []
        if parts and parts[-1] == "":
            parts.pop()
        items = item_annotations(member, len(parts))
        if items is not None and not any(map(dataclasses.is_dataclass, items)):
            return tuple(_parse(part, kind, name) for part, kind in zip(parts, items, strict=True))
    elif member is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif member is int:
        return _parse_int(text)
    elif member is float:
        value = float(text)
        if math.isfinite(value):
            return value
    elif member is str:
        return text
    raise ValueError(text)


def _parse_int(text: str) -> int:
    try:
        value = Decimal(text.replace("_", "") if text.strip("_") == text else "")
    except InvalidOperation:
        raise ValueError(text) from None
    if not value.is_finite() or value.adjusted() > MAX_INT_DIGITS or value != int(value):
        raise ValueError(text)
    return int(value)
