"""Configuration as frozen dataclasses: strict loading, overrides, canonical form, fingerprint.

Level 0, standard library only. Every stage of the pipe is described by one frozen ``kw_only``
dataclass; larger configurations nest smaller ones. This module gives all of them the same four
things: overrides from the command line (``proxy.n_pairs=2000``), a strict round trip through JSON,
the canonical form from which an artefact's identity is computed, and errors that name the field.

What it does differently from configuration libraries: there are no files to merge and no
interpolation. A value that does not fit the annotation is refused instead of converted, and
settings left at their default do not enter the identity, so that a new setting with a neutral
default leaves old results valid.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, TypeVar, Union

from overopt.base.errors import ConfigError

T = TypeVar("T")

TYPE_KEY = "type"
_NONE_WORDS = ("none", "None", "null")
_MAX_INT_DIGITS = 30


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How a stage is run; nothing here enters an artefact's identity.

    Attributes
    ----------
    device : str
        Torch device of the stages that use one ("cpu", "cuda", "cuda:1", "mps").
    threads : int
        Threads of one stage process, at least 1. On one machine the results of a CPU run are
        promised bit for bit for a fixed number of threads only.
    micro_batch : int or None
        Largest batch that goes through a network at once; None leaves it to the stage.
    checkpoint_s : float
        Seconds between two checkpoints of a long loop, at least 0 (0: at every chance).
    gpu_jobs : int
        Stages that may use the accelerator at the same time, at least 1.
    stack : int
        Stages of one kind and shape that one process may run as one computation, at least 1. More
        than 1 changes results by rounding, which depends on what was ready together.
    on_cpu : tuple of str
        Names of stages that stay on the CPU although there is an accelerator, such as ``ppo``: small
        policies are optimised as fast by one core each as by a GPU that they share.
    quiet : bool
        Whether to keep silent about progress.
    """

    device: str = "cpu"
    threads: int = 1
    micro_batch: int | None = None
    checkpoint_s: float = 30.0
    gpu_jobs: int = 1
    stack: int = 1
    on_cpu: tuple[str, ...] = ()
    quiet: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        require(self.threads >= 1, "threads", self.threads, "must be at least 1")
        require(self.gpu_jobs >= 1, "gpu_jobs", self.gpu_jobs, "must be at least 1")
        require(self.stack >= 1, "stack", self.stack, "must be at least 1")
        require(self.checkpoint_s >= 0, "checkpoint_s", self.checkpoint_s, "must not be negative")
        require(
            self.micro_batch is None or self.micro_batch >= 1,
            "micro_batch",
            self.micro_batch,
            "must be at least 1, or none to leave it to the stage",
        )

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that hold numerical libraries to ``threads`` threads.

        They are read when a library is loaded, so they have to be set before. Threads that wait
        passively leave the cores to the other stage processes.
        """
        count = str(self.threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        return {
            **dict.fromkeys(names, count),
            "OMP_WAIT_POLICY": "passive",
            "TOKENIZERS_PARALLELISM": "false",
        }


# --- validation -----------------------------------------------------------------------------------


def require(condition: bool, field: str, value: object, remedy: str) -> None:
    """Raise ``ConfigError("field = value: remedy")`` unless ``condition`` holds.

    >>> require(True, "n_pairs", 5, "must be positive")
    """
    if not condition:
        raise ConfigError(f"{field} = {shown(value)}: {remedy}")


def shown(value: object) -> str:
    """``repr``, and of an integer with thousands of digits, which has none, its size."""
    try:
        return repr(value)
    except ValueError:
        return f"a {type(value).__name__} with an integer of thousands of digits"


def check_types(config: Any) -> None:
    """Raise ConfigError where a field's value does not fit its annotation (for ``__post_init__``).

    An int is accepted for a float; a bool is not accepted for an int.
    """
    for name, annotation in _hints(type(config)).items():
        _encode(getattr(config, name), annotation, name, omit_defaults=False)


# --- to and from plain data -----------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """All fields of ``config`` as JSON-ready data (tuples become lists).

    A nested dataclass whose annotation allows several classes carries its class name as ``type``.

    Raises
    ------
    ConfigError
        A value does not fit its annotation, or is of a type that has no canonical form.
    """
    return _encode_fields(config, "", omit_defaults=False)


def canonical(config: Any) -> dict[str, Any]:
    """The fields of ``config`` that differ from their defaults, recursively, as JSON-ready data.

    Fields without a default are always present. Two configurations have the same canonical form if
    and only if they are equal, whatever settings with neutral defaults were added in between.

    Raises
    ------
    ConfigError
        A value does not fit its annotation, or is of a type that has no canonical form.
    """
    return _encode_fields(config, "", omit_defaults=True)


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """The configuration of class ``cls`` that ``to_dict`` (or ``canonical``) describes.

    Parameters
    ----------
    cls : type
        A dataclass.
    data : mapping
        JSON-ready data; fields with a default may be absent.
    where : str
        Dotted prefix for messages.

    Raises
    ------
    ConfigError
        An unknown or missing key, a value of the wrong type, or one that the class refuses.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or cls.__name__} = {shown(data)}: must be a mapping of settings")
    hints = _hints(cls)
    for key in data:
        if key not in hints:
            raise _unknown(_join(where, str(key)), [_join(where, name) for name in hints])
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name = _join(where, field.name)
        if field.name in data:
            values[field.name] = _decode(data[field.name], hints[field.name], name)
        elif not _has_default(field):
            raise ConfigError(f"{name}: is required and has no default; set it")
    return _build(lambda: cls(**values), where)


def fingerprint(
    stage_name: str,
    version: int,
    canonical_config: Mapping[str, Any],
    upstream_fingerprints: Mapping[str, str],
) -> str:
    """The identity of a stage: the first 16 hex digits of SHA-256 over its canonical JSON.

    Floats enter by ``repr``, so neighbouring floats give different identities.
    """
    payload = json.dumps(
        [stage_name, version, canonical_config, dict(upstream_fingerprints)],
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    return hashlib.sha256(payload.encode()).hexdigest()[:16]


# --- overrides ------------------------------------------------------------------------------------


def apply_overrides(config: T, overrides: Sequence[str]) -> T:
    """``config`` with ``a.b=c`` overrides applied, each parsed by its field's annotation.

    All overrides are applied before anything is validated, so that two settings that are only
    valid together can be given together.

    Parameters
    ----------
    config : dataclass instance
        Left unchanged.
    overrides : sequence of str
        Such as ``["proxy.n_pairs=2e3", "ppo.kl_coef=0.1", "sizes=1,2,4", "ppo.clip=none"]``.

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
    for name, annotation in _hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from setting_names(value, _join(where, name))
        elif not any(map(dataclasses.is_dataclass, _leaves(annotation))):
            yield _join(where, name)


def _override(config: Any, tree: Mapping[str, Any], where: str, known: list[str]) -> Any:
    hints = _hints(type(config))
    changes = {}
    for key, new in tree.items():
        name = _join(where, key)
        if key not in hints:
            raise _unknown(name, known)
        value = getattr(config, key)
        if not isinstance(new, str):
            if not dataclasses.is_dataclass(value):
                if value is None and any(map(dataclasses.is_dataclass, _members(hints[key]))):
                    raise ConfigError(f"{name} is none here, so {name}.* cannot be set")
                raise _unknown(_join(name, next(iter(new))), known)
            changes[key] = _override(value, new, name, known)
        elif dataclasses.is_dataclass(value) and not (
            new in _NONE_WORDS and type(None) in _members(hints[key])
        ):
            inside = ", ".join(list(setting_names(value, name))[:4])
            raise ConfigError(
                f"{name} = {new!r}: is a group of settings; set one of them: {inside}"
            )
        else:
            changes[key] = _parse(new, hints[key], name)
    return _build(lambda: dataclasses.replace(config, **changes), where)


def _unknown(name: str, known: Sequence[str]) -> ConfigError:
    leaf = name.rpartition(".")[2]
    near = [other for other in known if other.rpartition(".")[2] == leaf]
    near += difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    by_leaf = {other.rpartition(".")[2]: other for other in known}
    near += [by_leaf[match] for match in difflib.get_close_matches(leaf, by_leaf, n=2, cutoff=0.6)]
    offered = ", ".join(list(dict.fromkeys(near))[:3] or list(known)[:6])
    hint = f"did you mean {offered}?" if near else f"known settings begin with {offered}"
    return ConfigError(f"unknown setting {name!r}; {hint}")


def _build(make: Any, where: str) -> Any:
    try:
        return make()
    except ConfigError as error:
        # A message may name its group already: "ppo.batch = 3: ...".
        outer, _, group = where.rpartition(".")
        prefix = outer if str(error).startswith(f"{group}.") else where
        raise ConfigError(f"{prefix}: {error}" if prefix else str(error)) from error


# --- annotations ----------------------------------------------------------------------------------


def _hints(cls: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(f"{cls.__name__} is not a dataclass; a configuration must be one")
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _leaves(annotation: Any) -> Iterator[Any]:
    for member in _members(annotation):
        if typing.get_origin(member) is tuple:
            for item in typing.get_args(member):
                yield from _leaves(item)
        else:
            yield member


def _item_annotations(annotation: Any, length: int) -> tuple[Any, ...] | None:
    """Annotations of ``length`` items of a tuple, or None where the length does not fit."""
    items = typing.get_args(annotation)
    if len(items) == 2 and items[1] is Ellipsis:
        return (items[0],) * length
    if items == ((),):
        items = ()
    return items if len(items) == length else None


def _describe(annotation: Any) -> str:
    if annotation is None or annotation is type(None):
        return "none"
    members = _members(annotation)
    if len(members) > 1:
        return " or ".join(map(_describe, members))
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(annotation)))
    if typing.get_origin(annotation) is tuple:
        items = typing.get_args(annotation)
        if len(items) == 2 and items[1] is Ellipsis:
            return f"a list of {_describe(items[0])} such as 1,2,4"
        return "(" + ", ".join(map(_describe, items)) + ")"
    plain = {int: "an int (2000, 2_000 or 2e3)", float: "a finite float", bool: "true or false"}
    return plain.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _has_default(field: dataclasses.Field) -> bool:
    return (
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    )


def _mismatch(value: Any, annotation: Any, name: str) -> ConfigError:
    kind = type(value).__name__
    return ConfigError(f"{name} = {shown(value)}: is a {kind}, must be {_describe(annotation)}")


# --- values ---------------------------------------------------------------------------------------


def _encode_fields(config: Any, where: str, *, omit_defaults: bool) -> dict[str, Any]:
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"{config!r} is not a dataclass instance; a configuration must be one")
    out = {}
    hints = _hints(type(config))
    for field in dataclasses.fields(config):
        name = _join(where, field.name)
        encoded = _encode(getattr(config, field.name), hints[field.name], name, omit_defaults)
        if omit_defaults and _has_default(field):
            if field.default is not dataclasses.MISSING:
                default = field.default
            else:
                default = typing.cast(Any, field.default_factory)()
            # Compared in encoded form: True and 1, or two classes with equal fields, stay apart.
            if encoded == _encode(default, hints[field.name], name, omit_defaults):
                continue
        out[field.name] = encoded
    return out


def _encode(value: Any, annotation: Any, name: str, omit_defaults: bool) -> Any:
    members = _members(annotation)
    for member in members:
        if member is type(None) or member is None:
            if value is None:
                return None
        elif dataclasses.is_dataclass(member):
            if type(value) is member:
                body = _encode_fields(value, name, omit_defaults=omit_defaults)
                if sum(map(dataclasses.is_dataclass, members)) > 1:
                    require(TYPE_KEY not in body, name, member.__name__, "may not have that field")
                    body = {TYPE_KEY: type(value).__name__, **body}
                return body
        elif typing.get_origin(member) is tuple:
            items = _item_annotations(member, len(value)) if isinstance(value, tuple) else None
            if items is not None:
                return [
                    _encode(item, kind, f"{name}[{i}]", omit_defaults)
                    for i, (item, kind) in enumerate(zip(value, items, strict=True))
                ]
        elif typing.get_origin(member) is Literal:
            for option in typing.get_args(member):
                if type(option) is type(value) and option == value:
                    return value
        elif member is float:
            if type(value) in (int, float) and not (int in members and type(value) is int):
                _check_size(value, name)
                if not math.isfinite(value):
                    raise ConfigError(f"{name} = {value!r}: must be a finite float; use none or 0")
                return float(value) + 0.0  # -0.0 and 0.0 are one value
        elif member in (bool, int, str):
            if type(value) is member:
                _check_size(value, name)
                return value
        else:
            raise ConfigError(
                f"{name}: a field of type {_describe(member)} has no canonical form; use bool, int,"
                " float, str, Literal, tuple, a dataclass, or an optional one of these"
            )
    raise _mismatch(value, annotation, name)


def _check_size(value: Any, name: str) -> None:
    if type(value) is int and value.bit_length() > sys.float_info.max_exp - 1:
        raise ConfigError(f"{name}: is an integer beyond all floats; give a smaller one")


def _decode(value: Any, annotation: Any, name: str) -> Any:
    members = _members(annotation)
    classes: list[Any] = [member for member in members if dataclasses.is_dataclass(member)]
    if isinstance(value, Mapping) and classes:
        if len(classes) == 1:
            return from_dict(classes[0], value, name)
        by_name = {member.__name__: member for member in classes}
        if value.get(TYPE_KEY) not in by_name:
            raise ConfigError(
                f"{_join(name, TYPE_KEY)} = {value.get(TYPE_KEY)!r}: must be one of "
                + ", ".join(by_name)
            )
        rest = {key: item for key, item in value.items() if key != TYPE_KEY}
        return from_dict(by_name[value[TYPE_KEY]], rest, name)
    if isinstance(value, list | tuple):
        for member in members:
            if typing.get_origin(member) is tuple:
                items = _item_annotations(member, len(value))
                if items is not None:
                    return tuple(
                        _decode(item, kind, f"{name}[{i}]")
                        for i, (item, kind) in enumerate(zip(value, items, strict=True))
                    )
        raise _mismatch(value, annotation, name)
    return _encode(value, annotation, name, omit_defaults=False)


def _parse(text: str, annotation: Any, name: str) -> Any:
    """``text`` as a value of ``annotation``; a union takes the first member that fits, str last."""
    members = sorted(_members(annotation), key=lambda member: member is str)
    for member in members:
        try:
            return _parse_one(text, member, name)
        except ValueError:
            continue
    raise ConfigError(f"{name} = {text!r}: must be {_describe(annotation)}")


def _parse_one(text: str, member: Any, name: str) -> Any:
    if member is type(None) or member is None:
        if text in _NONE_WORDS:
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
        items = _item_annotations(member, len(parts))
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
    if not value.is_finite() or value.adjusted() > _MAX_INT_DIGITS or value != int(value):
        raise ValueError(text)
    return int(value)
