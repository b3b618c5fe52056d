"""Configuration as frozen dataclasses: strict loading, overrides, canonical form, fingerprint.

Every stage of the pipe is described by one frozen ``kw_only``
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
import hashlib
import json
import math
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from overopt.base import kinds
from overopt.base.annotations import (
    annotations_of,
    described,
    dotted,
    has_default,
    item_annotations,
    kind_in,
    members_of,
    mismatch_error,
    shown,
    unknown_setting,
)
from overopt.base.errors import ConfigError
from overopt.base.kinds import Kind
from overopt.base.userfile import is_user_module

T = TypeVar("T")


TYPE_KEY, KIND_KEY = "type", "kind"


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
        Names of stages that stay on the CPU although there is an accelerator, such as a method: small
        policies are optimised as fast by one core each as by a GPU that they share.
    memory_mb : int or None
        Megabytes of memory that a stage on the CPU may take, at least 1; None: no limit.
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
    memory_mb: int | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        require(self.threads >= 1, "threads", self.threads, "must be at least 1")
        require(self.gpu_jobs >= 1, "gpu_jobs", self.gpu_jobs, "must be at least 1")
        require(self.stack >= 1, "stack", self.stack, "must be at least 1")
        require(self.checkpoint_s >= 0, "checkpoint_s", self.checkpoint_s, "must not be negative")
        require(
            self.memory_mb is None or self.memory_mb >= 1,
            "memory_mb",
            self.memory_mb,
            "must be at least 1, or none for no limit",
        )
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


def require(condition: bool, field: str, value: object, remedy: str) -> None:
    """Raise ``ConfigError("field = value: remedy")`` unless ``condition`` holds.

    >>> require(True, "n_pairs", 5, "must be positive")
    """
    if not condition:
        raise ConfigError(f"{field} = {shown(value)}: {remedy}")


def check_types(config: Any) -> None:
    """Raise ConfigError where a field's value does not fit its annotation (for ``__post_init__``).

    An int is accepted for a float; a bool is not accepted for an int.
    """
    for name, annotation in annotations_of(type(config)).items():
        _encode(getattr(config, name), annotation, name, omit_defaults=False)


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
    hints = annotations_of(cls)
    for key in data:
        if key not in hints:
            raise unknown_setting(dotted(where, str(key)), [dotted(where, name) for name in hints])
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name = dotted(where, field.name)
        if field.name in data:
            values[field.name] = _decode(data[field.name], hints[field.name], name)
        elif not has_default(field):
            raise ConfigError(f"{name}: is required and has no default; set it")
    return build(lambda: cls(**values), where)


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


def build(make: Any, where: str) -> Any:
    """What ``make()`` gives; its errors get the group's name ``where`` in front."""
    try:
        return make()
    except ConfigError as error:
        # A message may name its group already: "method.batch = 3: ...".
        outer, _, group = where.rpartition(".")
        prefix = outer if str(error).startswith(f"{group}.") else where
        raise ConfigError(f"{prefix}: {error}" if prefix else str(error)) from error


def _encode_fields(config: Any, where: str, *, omit_defaults: bool) -> dict[str, Any]:
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"{config!r} is not a dataclass instance; a configuration must be one")
    out = {}
    hints = annotations_of(type(config))
    for field in dataclasses.fields(config):
        name = dotted(where, field.name)
        encoded = _encode(getattr(config, field.name), hints[field.name], name, omit_defaults)
        if omit_defaults and has_default(field):
            if field.default is not dataclasses.MISSING:
                default = field.default
            else:
                default = typing.cast(Any, field.default_factory)()
            # Compared in encoded form: True and 1, or two classes with equal fields, stay apart.
            if encoded == _encode(default, hints[field.name], name, omit_defaults):
                continue
        kind = kind_in(hints[field.name])
        if kind is not None and kind.under_its_name:
            out[kinds.identity_of(getattr(config, field.name))] = encoded
        else:
            out[field.name] = encoded
    return out


def _encode(value: Any, annotation: Any, name: str, omit_defaults: bool) -> Any:
    members = members_of(annotation)
    for member in members:
        if member is type(None) or member is None:
            if value is None:
                return None
        elif kind_in(member) is not None:
            encoded = _encode_kind(value, typing.cast(Kind, kind_in(member)), name, omit_defaults)
            if encoded is not None:
                return encoded
        elif dataclasses.is_dataclass(member):
            if type(value) is member:
                body = _encode_fields(value, name, omit_defaults=omit_defaults)
                if sum(map(dataclasses.is_dataclass, members)) > 1:
                    require(TYPE_KEY not in body, name, member.__name__, "may not have that field")
                    body = {TYPE_KEY: type(value).__name__, **body}
                return body
        elif typing.get_origin(member) is tuple:
            items = item_annotations(member, len(value)) if isinstance(value, tuple) else None
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
                f"{name}: a field of type {described(member)} has no canonical form; use bool, int,"
                " float, str, Literal, tuple, a dataclass, or an optional one of these"
            )
    raise mismatch_error(value, annotation, name)


def _encode_kind(value: Any, kind: Kind, name: str, omit_defaults: bool) -> dict | None:
    """A kind's settings with its name, unless it is the default one; None: of no kind of ``kind``."""
    module = type(value).__module__
    is_ours = module.startswith(f"{kind.folder}.") or is_user_module(sys.modules.get(module))
    if not dataclasses.is_dataclass(value) or not is_ours:
        return None
    body = _encode_fields(value, name, omit_defaults=omit_defaults)
    identity = kinds.identity_of(value)
    if kind.under_its_name or (omit_defaults and identity == kind.default):
        return body
    require(
        KIND_KEY not in body, name, identity, f"settings of a kind may not be called {KIND_KEY!r}"
    )
    return {KIND_KEY: identity, **body}


def _check_size(value: Any, name: str) -> None:
    if type(value) is int and value.bit_length() > sys.float_info.max_exp - 1:
        raise ConfigError(f"{name}: is an integer beyond all floats; give a smaller one")


def _decode(value: Any, annotation: Any, name: str) -> Any:
    members = members_of(annotation)
    classes: list[Any] = [member for member in members if dataclasses.is_dataclass(member)]
    kind = kind_in(annotation)
    if isinstance(value, Mapping) and kind is not None:
        module = kinds.find(kind, str(value.get(KIND_KEY, kind.default)), name)
        rest = {key: item for key, item in value.items() if key != KIND_KEY}
        return from_dict(module.Settings, rest, name)
    if isinstance(value, Mapping) and classes:
        if len(classes) == 1:
            return from_dict(classes[0], value, name)
        by_name = {member.__name__: member for member in classes}
        if value.get(TYPE_KEY) not in by_name:
            raise ConfigError(
                f"{dotted(name, TYPE_KEY)} = {value.get(TYPE_KEY)!r}: must be one of "
                + ", ".join(by_name)
            )
        rest = {key: item for key, item in value.items() if key != TYPE_KEY}
        return from_dict(by_name[value[TYPE_KEY]], rest, name)
    if isinstance(value, list | tuple):
        for member in members:
            if typing.get_origin(member) is tuple:
                items = item_annotations(member, len(value))
                if items is not None:
                    return tuple(
                        _decode(item, kind, f"{name}[{i}]")
                        for i, (item, kind) in enumerate(zip(value, items, strict=True))
                    )
        raise mismatch_error(value, annotation, name)
    return _encode(value, annotation, name, omit_defaults=False)
