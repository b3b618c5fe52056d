"""Signs that it is time to stop, from what can be seen without gold.

A rule is handed the columns it names, which cannot be gold's, and at each point only the past: its
stop cannot depend on what comes later.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from overopt.base.errors import ConfigError
from overopt.fits.forms import Array
from overopt.records.curves import Curve
from overopt.records.schema import FIELDS

Past = Mapping[str, Array]

GOLD_COLUMNS = frozenset(
    name
    for name in FIELDS
    if name.startswith(("gold_", "intent_", "rubric_", "win_rate")) or name == "gap"
)
"""Columns that need gold or the intent's scores of the responses: no rule may read them."""

PLATEAU_WINDOW = 4
"""Points over which `proxy_plateau` takes a slope."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A sign to watch, and the side of a threshold on which it says stop."""

    name: str
    """Also the name in tables."""
    columns: tuple[str, ...]
    """Columns of the records that it reads."""
    signal: Callable[[Past], float]
    """The sign now, from the columns up to now (the last entry); nan says nothing yet."""
    side: Literal["above", "below"]
    """Whether the alarm is a signal above the threshold or below it."""
    unit: str
    """Unit of signal and threshold."""
    meaning: str
    """What the signal is, in a few words."""

    def __post_init__(self) -> None:
        for name in self.columns:
            if name not in FIELDS:
                raise ConfigError(f"rule {self.name!r}: column {name!r} is not in the records")
            if name in GOLD_COLUMNS:
                raise ConfigError(
                    f"rule {self.name!r}: column {name!r} needs gold; a stopping rule must do"
                    " without it"
                )


def _now(name: str) -> Callable[[Past], float]:
    """The column's latest value."""
    return lambda past: float(past[name][-1])


def _ratio(name: str) -> Callable[[Past], float]:
    """The column's latest value over its first."""

    def signal(past: Past) -> float:
        start = past[name][0]
        return float(past[name][-1] / start) if start > 0 else math.nan

    return signal


def _plateau(past: Past) -> float:
    """Slope of proxy gain on √KL over the latest window, as a share of that over the first."""
    d, gain, w = past["sqrt_kl"], past["proxy_gain"], PLATEAU_WINDOW
    if len(d) < w:
        return math.nan
    first, latest = _slope(d[:w], gain[:w]), _slope(d[-w:], gain[-w:])
    return latest / first if first > 0 else math.nan


def _slope(x: Array, y: Array) -> float:
    """Least-squares slope; nan where x does not move."""
    dx = x - x.mean()
    spread = float(dx @ dx)
    return float(dx @ y) / spread if spread > 0 else math.nan


RULES: tuple[Rule, ...] = (
    Rule(
        name="step_budget",
        columns=("value",),
        signal=_now("value"),
        side="above",
        unit="steps",
        meaning="optimisation steps: the rule that watches nothing",
    ),
    Rule(
        name="kl_budget",
        columns=("kl_seq_nats",),
        signal=_now("kl_seq_nats"),
        side="above",
        unit="nats",
        meaning="KL from the initial policy",
    ),
    Rule(
        name="member_disagreement",
        columns=("member_disagreement",),
        signal=_ratio("member_disagreement"),
        side="above",
        unit="x start",
        meaning="spread of the ensemble's members, as a multiple of its start",
    ),
    Rule(
        name="proxy_std",
        columns=("proxy_std",),
        signal=_ratio("proxy_std"),
        side="below",
        unit="x start",
        meaning="spread of proxy scores within prompts, as a share of its start",
    ),
    Rule(
        name="entropy_floor",
        columns=("entropy_token_nats",),
        signal=_now("entropy_token_nats"),
        side="below",
        unit="nats/token",
        meaning="entropy of the policy per token",
    ),
    Rule(
        name="proxy_plateau",
        columns=("sqrt_kl", "proxy_gain"),
        signal=_plateau,
        side="below",
        unit="x first",
        meaning="proxy gain per sqrt(KL), as a share of the first slope",
    ),
    Rule(
        name="response_length",
        columns=("response_tokens",),
        signal=_ratio("response_tokens"),
        side="above",
        unit="x start",
        meaning="response length, as a multiple of its start",
    ),
)


def column(curve: Curve, name: str) -> Array:
    """Column (K,) as floats, nan where it is null."""
    values = [row.get(name) for row in curve.rows]
    return np.array([math.nan if v is None else v for v in values], dtype=float)


def signals(rule: Rule, curve: Curve) -> Array:
    """The rule's signal (K,) along a curve, each entry from the points up to it."""
    columns = {name: column(curve, name) for name in rule.columns}
    n_points = len(curve.rows)
    return np.array(
        [rule.signal({n: x[: k + 1] for n, x in columns.items()}) for k in range(n_points)]
    )


def stop(rule: Rule, curve: Curve, threshold: float) -> int:
    """Index of the point at which the rule stops: the last before its first alarm.

    Without an alarm it is the last point; with one at the first point, the first. A point added at
    the end never changes a stop that an alarm has made.
    """
    return int(stops_of(signals(rule, curve), rule.side, np.array([threshold]))[0])


def stops_of(signal: Array, side: str, thresholds: Array) -> NDArray[np.int64]:
    """Index of the stop (T,) at each of ``thresholds`` (T,), for one signal (K,)."""
    sign = 1.0 if side == "above" else -1.0
    # The first alarm is where the highest signal so far passes the threshold.
    highest = np.maximum.accumulate(np.where(np.isnan(signal), -np.inf, sign * signal))
    alarm = np.searchsorted(highest, sign * thresholds, side="right")
    return np.where(alarm < len(signal), np.maximum(alarm - 1, 0), len(signal) - 1)


def can_watch(rule: Rule, curve: Curve) -> bool:
    """Whether the curve has what the rule watches, at two points or more."""
    return int(np.isfinite(signals(rule, curve)).sum()) >= 2


def rule_named(name: str) -> Rule:
    """The stopping rule called ``name``."""
    return next(rule for rule in RULES if rule.name == name)
