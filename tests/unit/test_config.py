"""Overrides, round trips, canonical form and fingerprints of nested frozen dataclasses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overopt.base.config import (
    RuntimeConfig,
    canonical,
    check_types,
    fingerprint,
    from_dict,
    require,
    to_dict,
)
from overopt.base.errors import ConfigError
from overopt.base.overrides import apply_overrides, setting_names


@dataclass(frozen=True, kw_only=True)
class Labels:
    flip_rate: float = 0.0
    rule: Literal["argmax", "bradley_terry"] = "argmax"

    def __post_init__(self) -> None:
        check_types(self)
        require(0 <= self.flip_rate < 0.5, "flip_rate", self.flip_rate, "must be in [0, 0.5)")


@dataclass(frozen=True, kw_only=True)
class Proxy:
    n_pairs: int = 1000
    sizes: tuple[int, ...] = (1, 2)
    clip: float | None = 0.2
    shuffle: bool = True
    labels: Labels = Labels()


@dataclass(frozen=True, kw_only=True)
class Bon:
    n_max: int = 64


@dataclass(frozen=True, kw_only=True)
class Ppo:
    n_max: int = 64
    batch: int = 8
    minibatches: int = 2

    def __post_init__(self) -> None:
        require(self.batch % self.minibatches == 0, "batch", self.batch, "not a multiple")


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str
    proxy: Proxy = field(default_factory=Proxy)
    method: Bon | Ppo = Bon()
    extra: Bon | None = None
    window: tuple[float, int] = (0.5, 3)
    grid: tuple[tuple[int, ...], ...] = ()
    stages: tuple[Bon, ...] = ()


RUN = Run(name="r")


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("proxy.n_pairs=2000", "proxy.n_pairs", 2000),
        ("proxy.n_pairs=2e3", "proxy.n_pairs", 2000),
        ("proxy.n_pairs=1_000_000", "proxy.n_pairs", 1_000_000),
        ("proxy.n_pairs=-5", "proxy.n_pairs", -5),
        ("proxy.sizes=1,2,4", "proxy.sizes", (1, 2, 4)),
        ("proxy.sizes=(3,)", "proxy.sizes", (3,)),
        ("proxy.sizes=", "proxy.sizes", ()),
        ("proxy.clip=none", "proxy.clip", None),
        ("proxy.clip=1", "proxy.clip", 1.0),
        ("proxy.clip=1e-3", "proxy.clip", 1e-3),
        ("proxy.shuffle=false", "proxy.shuffle", False),
        ("proxy.shuffle=True", "proxy.shuffle", True),
        ("proxy.labels.rule=bradley_terry", "proxy.labels.rule", "bradley_terry"),
        ("name=a=b", "name", "a=b"),
        ("window=0.25,7", "window", (0.25, 7)),
    ],
)
def test_overrides_are_parsed_by_annotation(override, path, value):
    found = apply_overrides(RUN, [override])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("proxy.n_pair=5", ["proxy.n_pair", "did you mean proxy.n_pairs"]),
        ("n_pairs=5", ["n_pairs", "did you mean proxy.n_pairs"]),
        ("proxy.labels.flip=0.1", ["did you mean proxy.labels.flip_rate"]),
        ("zzz=1", ["unknown setting 'zzz'", "known settings begin with name"]),
        ("proxy.n_pairs.x=5", ["unknown setting 'proxy.n_pairs.x'"]),
        ("proxy.n_pairs=2.5", ["proxy.n_pairs = '2.5'", "an int"]),
        ("proxy.n_pairs=1e999999999", ["proxy.n_pairs", "an int"]),
        ("proxy.n_pairs=nan", ["proxy.n_pairs", "an int"]),
        ("proxy.n_pairs=true", ["proxy.n_pairs", "an int"]),
        ("proxy.clip=inf", ["proxy.clip = 'inf'", "a finite float or none"]),
        ("proxy.shuffle=1", ["proxy.shuffle = '1'", "true or false"]),
        ("proxy.sizes=1,x", ["proxy.sizes = '1,x'", "a list of an int"]),
        ("window=0.5", ["window = '0.5'", "(a finite float, an int"]),
        ("proxy.labels.rule=best", ["proxy.labels.rule = 'best'", "'argmax', 'bradley_terry'"]),
        ("proxy=5", ["proxy = '5'", "group", "proxy.n_pairs"]),
        ("extra.n_max=5", ["extra is none here"]),
        ("stages=1,2", ["stages = '1,2'"]),
        ("proxy.n_pairs", ["'proxy.n_pairs'", "name=value"]),
        ("=5", ["'=5'", "name=value"]),
        ("proxy.labels.flip_rate=0.7", ["proxy.labels: flip_rate = 0.7: must be in [0, 0.5)"]),
    ],
)
def test_refused_overrides_name_the_setting_and_the_remedy(override, words):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(RUN, [override])
    for word in words:
        assert word in str(caught.value)


def test_overrides_that_are_only_valid_together_are_accepted_together():
    run = replace(RUN, method=Ppo())
    found = apply_overrides(run, ["method.batch=9", "method.minibatches=3"])
    assert found.method == Ppo(batch=9, minibatches=3)
    with pytest.raises(ConfigError, match="method: batch = 9"):
        apply_overrides(run, ["method.batch=9"])


def test_an_override_given_twice_or_as_value_and_group_is_refused():
    with pytest.raises(ConfigError, match="name: is given twice"):
        apply_overrides(RUN, ["name=a", "name=b"])
    with pytest.raises(ConfigError, match="both as a value and as a group"):
        apply_overrides(RUN, ["extra=none", "extra.n_max=3"])
    assert apply_overrides(replace(RUN, extra=Bon()), ["extra=none"]).extra is None


def test_overrides_leave_the_original_unchanged_and_none_is_the_identity():
    apply_overrides(RUN, ["proxy.n_pairs=1"])
    assert Run(name="r") == RUN == apply_overrides(RUN, [])


def test_setting_names_lists_leaves_only():
    names = list(setting_names(RUN))
    assert names[:3] == ["name", "proxy.n_pairs", "proxy.sizes"]
    assert "method.n_max" in names
    assert not {"proxy", "method", "extra", "stages"} & set(names)


runs = st.builds(
    Run,
    name=st.text(max_size=5),
    proxy=st.builds(
        Proxy,
        n_pairs=st.integers(),
        sizes=st.lists(st.integers(), max_size=3).map(tuple),
        clip=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        shuffle=st.booleans(),
        labels=st.builds(Labels, flip_rate=st.floats(0, 0.5, exclude_max=True)),
    ),
    method=st.builds(Bon, n_max=st.integers(60, 66)) | st.builds(Ppo, n_max=st.integers(60, 66)),
    extra=st.none() | st.just(Bon()) | st.just(Bon(n_max=3)),
    grid=st.lists(st.lists(st.integers(), max_size=2).map(tuple), max_size=2).map(tuple),
    stages=st.lists(st.builds(Bon, n_max=st.integers(63, 65)), max_size=2).map(tuple),
)


@settings(max_examples=50, deadline=None)
@given(runs)
def test_full_and_canonical_forms_survive_json(run):
    for encoded in (to_dict(run), canonical(run)):
        assert from_dict(Run, json.loads(json.dumps(encoded, allow_nan=False))) == run


@settings(max_examples=50, deadline=None)
@given(runs, runs)
def test_canonical_forms_are_equal_exactly_where_configs_are(first, second):
    assert (canonical(first) == canonical(second)) == (first == second)


def test_canonical_holds_non_defaults_only_and_names_the_class_of_a_union():
    assert canonical(RUN) == {"name": "r"}
    run = Run(name="r", proxy=Proxy(labels=Labels(flip_rate=0.25)), method=Ppo(), stages=(Bon(),))
    assert canonical(run) == {
        "name": "r",
        "proxy": {"labels": {"flip_rate": 0.25}},
        "method": {"type": "Ppo"},
        "stages": [{}],
    }


def test_a_new_setting_with_a_default_keeps_the_identity():
    @dataclass(frozen=True, kw_only=True)
    class Before:
        n: int = 1

    @dataclass(frozen=True, kw_only=True)
    class After:
        n: int = 1
        knob: float = 0.0

    assert canonical(Before(n=2)) == canonical(After(n=2))


def test_an_int_given_for_a_float_is_the_same_setting():
    assert canonical(Proxy(clip=1)) == canonical(Proxy(clip=1.0)) == {"clip": 1.0}
    assert repr(canonical(Proxy(clip=1))["clip"]) == "1.0"
    assert canonical(Proxy(clip=-0.0)) == canonical(Proxy(clip=0.0))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "r", "proxi": {}}, ["'proxi'", "did you mean proxy"]),
        ({}, ["name: is required"]),
        ({"name": 3}, ["name = 3: is a int, must be str"]),
        ({"name": "r", "proxy": {"n_pairs": 2.0}}, ["proxy.n_pairs = 2.0", "an int"]),
        ({"name": "r", "proxy": {"n_pairs": True}}, ["proxy.n_pairs = True", "an int"]),
        ({"name": "r", "proxy": {"sizes": [1, "2"]}}, ["proxy.sizes[1] = '2'"]),
        ({"name": "r", "proxy": {"labels": {"flip_rate": 0.5}}}, ["proxy.labels: flip_rate = 0.5"]),
        ({"name": "r", "method": {"type": "Dpo"}}, ["method.type = 'Dpo'", "Bon, Ppo"]),
        ({"name": "r", "proxy": 3}, ["proxy = 3"]),
        ({"name": "r", "window": [1.0]}, ["window = [1.0]"]),
    ],
)
def test_from_dict_is_strict(data, words):
    with pytest.raises(ConfigError) as caught:
        from_dict(Run, data)
    for word in words:
        assert word in str(caught.value)


def test_values_without_a_canonical_form_are_refused():
    @dataclass(frozen=True, kw_only=True)
    class Bad:
        path: Path = Path("x")

    with pytest.raises(ConfigError, match="path: a field of type Path has no canonical form"):
        canonical(Bad())
    with pytest.raises(ConfigError, match="n_pairs = 2.5: is a float, must be an int"):
        canonical(Proxy(n_pairs=2.5))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="clip = inf"):
        canonical(Proxy(clip=float("inf")))
    with pytest.raises(ConfigError, match="rule = 'x'"):
        Labels(rule="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not a dataclass"):
        canonical({"n": 1})


def test_fingerprint_is_the_documented_hash():
    text = '["pool",3,{"a":0.1,"b":[1,2]},{"gold":"00","world":"11"}]'
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert (
        fingerprint("pool", 3, {"b": [1, 2], "a": 0.1}, {"world": "11", "gold": "00"}) == expected
    )


def test_fingerprint_depends_on_each_part():
    prints = {
        fingerprint(*parts)
        for parts in [
            ("a", 1, {"x": 0.1234567}, {"u": "0"}),
            ("b", 1, {"x": 0.1234567}, {"u": "0"}),
            ("a", 2, {"x": 0.1234567}, {"u": "0"}),
            ("a", 1, {"x": 0.1234568}, {"u": "0"}),
            ("a", 1, {"x": 0.1234567}, {"u": "1"}),
            ("a", 1, {"x": 0.1234567}, {"v": "0"}),
        ]
    }
    assert len(prints) == 6
    assert all(len(fp) == 16 and int(fp, 16) >= 0 for fp in prints)


def test_runtime_config_refuses_nonsense_and_sets_thread_counts():
    with pytest.raises(ConfigError, match="threads = 0: must be at least 1"):
        RuntimeConfig(threads=0)
    with pytest.raises(ConfigError, match="micro_batch = 0"):
        RuntimeConfig(micro_batch=0)
    assert RuntimeConfig(threads=3).environment["OMP_NUM_THREADS"] == "3"
