"""Annotations of settings: what a field may hold, and how that is said.

bool, int, float, str, Literal, tuple, a dataclass, the settings of a kind, or an optional one of these.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union

from overopt.base import kinds
from overopt.base.errors import ConfigError
from overopt.base.kinds import Kind

NONE_WORDS = ("none", "None", "null")


MAX_INT_DIGITS = 30


def kind_choice(cls: type, field: str) -> Kind | None:
    """Which kinds' settings a field of a configuration may hold; None for any other field."""
    return kind_in(annotations_of(cls)[field])


def unknown_setting(name: str, known: Sequence[str]) -> ConfigError:
    """The error of a name that no setting has, with the nearest that some have."""
    leaf = name.rpartition(".")[2]
    near = [other for other in known if other.rpartition(".")[2] == leaf]
    near += difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    by_leaf = {other.rpartition(".")[2]: other for other in known}
    near += [by_leaf[match] for match in difflib.get_close_matches(leaf, by_leaf, n=2, cutoff=0.6)]
    groups = dict.fromkeys(other.partition(".")[0] for other in known)
    offered = ", ".join(list(dict.fromkeys(near))[:3] or groups)
    hint = f"did you mean {offered}?" if near else f"known settings begin with {offered}"
    return ConfigError(f"unknown setting {name!r}; {hint}")


def annotations_of(cls: Any) -> dict[str, Any]:
    """Annotation of each setting of a configuration class, what is annotated besides included."""
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(f"{cls.__name__} is not a dataclass; a configuration must be one")
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def members_of(annotation: Any) -> tuple[Any, ...]:
    """What a union allows; any other annotation alone."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def kind_in(annotation: Any) -> Kind | None:
    """Which kinds' settings an annotation allows; None for any other annotation."""
    for member in members_of(annotation):
        if typing.get_origin(member) is Annotated:
            for extra in member.__metadata__:
                if isinstance(extra, Kind):
                    return extra
    return None


def leaves_of(annotation: Any) -> Iterator[Any]:
    """The members of an annotation, with those of tuples in place of the tuples."""
    for member in members_of(annotation):
        if typing.get_origin(member) is tuple:
            for item in typing.get_args(member):
                yield from leaves_of(item)
        else:
            yield member


def item_annotations(annotation: Any, length: int) -> tuple[Any, ...] | None:
    """Annotations of ``length`` items of a tuple, or None where the length does not fit."""
    items = typing.get_args(annotation)
    if len(items) == 2 and items[1] is Ellipsis:
        return (items[0],) * length
    if items == ((),):
        items = ()
    return items if len(items) == length else None


def described(annotation: Any) -> str:
    """An annotation in words, for messages."""
    if annotation is None or annotation is type(None):
        return "none"
    kind = kind_in(annotation)
    if kind is not None:
        return f"settings of one of {', '.join(kinds.names(kind.folder))}"
    members = members_of(annotation)
    if len(members) > 1:
        return " or ".join(map(described, members))
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(annotation)))
    if typing.get_origin(annotation) is tuple:
        items = typing.get_args(annotation)
        if len(items) == 2 and items[1] is Ellipsis:
            return f"a list of {described(items[0])} such as 1,2,4"
        return "(" + ", ".join(map(described, items)) + ")"
    plain = {int: "an int (2000, 2_000 or 2e3)", float: "a finite float", bool: "true or false"}
    return plain.get(annotation, getattr(annotation, "__name__", str(annotation)))


def dotted(where: str, name: str) -> str:
    """``where.name``, or ``name`` alone."""
    return f"{where}.{name}" if where else name


def has_default(field: dataclasses.Field) -> bool:
    """Whether a field may be left out."""
    return (
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    )


def shown(value: object) -> str:
    """``repr``, and of an integer with thousands of digits, which has none, its size."""
    try:
        return repr(value)
    except ValueError:
        return f"a {type(value).__name__} with an integer of thousands of digits"


def mismatch_error(value: Any, annotation: Any, name: str) -> ConfigError:
    """The error of a value that does not fit its annotation."""
    kind = type(value).__name__
    return ConfigError(f"{name} = {shown(value)}: is a {kind}, must be {described(annotation)}")
