"""Responses that travel with records: what policies say at each point of a curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from overopt.base import files
from overopt.base.errors import ConfigError, DataError
from overopt.records.curves import Curve
from overopt.records.results import read_rows

WORST_BY = ("gold", "intent", "gap")
"""What responses are the worst by: a score, or how far the proxy is above gold."""


class Sample(NamedTuple):
    """One response at one point of a curve; scores in standard deviations."""

    value: int
    shown_for: tuple[str, ...]
    prompt: str
    response: str
    tokens: int
    ended: bool
    gold: float
    proxy: float
    intent: float | None

    @property
    def gap(self) -> float:
        """How far the proxy puts it above gold."""
        return self.proxy - self.gold

    def badness(self, by: str) -> float:
        """Larger is worse; ``by`` one of `WORST_BY`, minus infinity where it has no such score."""
        if by == "gap":
            return self.gap
        score = getattr(self, by)
        return float("-inf") if score is None else -score


_NUMBER = (int, float)
_TYPES: dict[str, type | tuple[type, ...]] = {
    "value": int,
    "shown_for": list,
    "prompt": str,
    "response": str,
    "tokens": int,
    "ended": bool,
    "gold": _NUMBER,
    "proxy": _NUMBER,
}


def read_samples(folder: Path) -> dict[str, list[Sample]]:
    """Responses by run_id, in the order of the file; empty without samples.jsonl.

    Raises
    ------
    DataError
        The file is damaged; the message names line and column.
    """
    samples: dict[str, list[Sample]] = {}
    for line, row in enumerate(read_rows(folder, "samples"), start=1):
        where = f"{folder / 'samples.jsonl'}: line {line}"
        files.need(row, where, tuple(_TYPES))
        for name, kind in _TYPES.items():
            if not isinstance(row[name], kind):
                raise DataError(
                    f"{where}: {name} = {row[name]!r}: is of the wrong type{files.RESTORE}"
                )
        intent = row.get("intent")
        if not isinstance(intent, int | float | None):
            raise DataError(f"{where}: intent = {intent!r}: is no number{files.RESTORE}")
        known = {name: row[name] for name in _TYPES} | {"shown_for": tuple(row["shown_for"])}
        samples.setdefault(row["run_id"], []).append(Sample(**known, intent=intent))
    return samples


def point_at(curve: Curve, at: str) -> int:
    """Value of a curve's coordinate at "start", "peak" (of mean gold) or "end", or at a number.

    Raises
    ------
    ConfigError
        Neither, or a number that is no point of the curve.
    """
    values = [int(v) for v in curve["value"]]
    if at in ("start", "peak", "end"):
        peak = int(curve.gain("gold").mean(1).argmax())
        return values[{"start": 0, "peak": peak, "end": -1}[at]]
    if at.isdecimal() and int(at) in values:
        return int(at)
    raise ConfigError(
        f"--at {at}: give start, peak, end, or a point of the curve: {', '.join(map(str, values))}"
    )


def worst(samples: Sequence[Sample], by: str, n: int) -> list[Sample]:
    """The ``n`` worst ones by a score, worst first; those without the score are left out.

    Raises
    ------
    ConfigError
        No response has that score.
    """
    scored = [s for s in samples if s.badness(by) > float("-inf")]
    if samples and not scored:
        raise ConfigError(f"--worst {by}: these responses have no {by}: use gold or gap")
    return sorted(scored, key=lambda s: -s.badness(by))[:n]
