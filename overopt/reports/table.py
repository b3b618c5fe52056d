"""A table of runs, from one results directory or several: `overopt table`."""

from __future__ import annotations

import csv
import io
import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from overopt.analysis.peaks import peaks_of
from overopt.base import escape
from overopt.base.errors import ConfigError
from overopt.records.schema import FIELDS
from overopt.records.view import view
from overopt.reports.text import aligned, markdown_table

Format = Literal["text", "csv", "md"]
COLUMNS = (
    *("experiment", "method", "series", "n_pairs", "rm_seed", "accuracy", "peak_at"),
    *("peak_sqrt_kl", "peak_gold", "peak_stderr", "end_sqrt_kl", "end_gold", "fall", "fall_stderr"),
)
"""What the table has unless others are asked for."""
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


def table(
    records: Sequence[str | Path],
    *,
    columns: Sequence[str] = (),
    select: Sequence[str] = (),
    sort: Sequence[str] = (),
    format: Format = "text",
) -> str:
    """One row a curve: what it was, where gold peaks and where it ends.

    Parameters
    ----------
    records
        Results directories or presets' names.
    columns
        Names of the columns; those of the records too, whose value is then that at the end.
    select
        Conditions that all rows meet, such as ``method=bon`` or ``end_gold<0``.
    sort
        Columns to sort by, the first first; with a minus behind (``end_gold-``), largest first.
    format
        Aligned text, CSV (RFC 4180, every digit), or Markdown.

    Raises
    ------
    ConfigError
        A column that does not exist, or a condition that cannot be read.
    """
    rows = []
    for place in records:
        results = view(place)
        for curve, peak in zip(results.curves, peaks_of(results.curves), strict=True):
            about = {"results": str(results.folder)} | curve.rows[-1] | peak
            rows.append(about | {"experiment": curve.meta["experiment"]})
    known = list(rows[0])
    shown = [_known(name, known, "--columns") for name in columns or COLUMNS]
    for condition in select:
        rows = [row for row in rows if _meets(row, condition, known)]
    for key in reversed(sort):
        name, largest_first = _known(key.removesuffix("-"), known, "--sort"), key.endswith("-")
        absent = [row for row in rows if row[name] is None]
        present = [row for row in rows if row[name] is not None]
        rows = sorted(present, key=lambda row: row[name], reverse=largest_first) + absent
    match format:
        case "csv":
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\r\n")
            writer.writerows([shown, *([_exact(row[n]) for n in shown] for row in rows)])
            return text.getvalue()
        case "md":
            cells = [[escape.markdown(_short(n, row[n])) for n in shown] for row in rows]
            return "\n".join(markdown_table(shown, cells))
        case _:
            return "\n".join(
                aligned([shown, *([_short(n, row[n]) for n in shown] for row in rows)])
            )


def _known(name: str, known: Sequence[str], option: str) -> str:
    if name not in known:
        raise ConfigError(f"{option} {name}: is no column; there are {', '.join(known)}")
    return name


def _meets(row: dict[str, Any], condition: str, known: Sequence[str]) -> bool:
    """Whether a row meets ``NAME=VALUE`` or another comparison; a null meets none but ``none``."""
    found = re.fullmatch(r"(\w+)(<=|>=|!=|=|<|>)(.*)", condition)
    if found is None:
        raise ConfigError(f"--select {condition}: is no condition; write one such as method=bon")
    name, sign, text = found.groups()
    value = row[_known(name, known, "--select")]
    if value is None or text == "none":
        return {
            "=": text == "none" and value is None,
            "!=": (value is None) != (text == "none"),
        }.get(sign, False)
    if isinstance(value, str):
        return _OPERATORS[sign](value, text)
    try:
        return _OPERATORS[sign](float(value), float(text))
    except ValueError as error:
        raise ConfigError(f"--select {condition}: {name} is a number, {text!r} is none") from error


def _exact(value: Any) -> str:
    return "" if value is None else str(value)


def _short(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        digits = 2 if name not in FIELDS or FIELDS[name].unit.startswith("sd") else 4
        return f"{value:.{digits}f}" if digits == 2 else f"{value:.{digits}g}"
    return str(value)
