"""Looking at results in a terminal: `overopt show`, `overopt diff`, `overopt samples`."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import NamedTuple

from overopt.analysis.degenerate import remark_lines
from overopt.analysis.peaks import peak_of_mean
from overopt.base.errors import ConfigError, DataError
from overopt.records import series
from overopt.records.curves import Curve
from overopt.records.samples import Sample, point_at, worst
from overopt.records.settings import DEFAULT, provenance_of, settings_of
from overopt.records.view import ResultsView, view
from overopt.reports.plot import plot
from overopt.reports.text import aligned, with_error

NO_RESPONSES = (
    "these results hold no responses: they were computed before records came with any; compute the"
    " experiment in a new --store to have them"
)
SHOWN_HACKED = 2
TEXT_WIDTH = 88
INDENT = "  "


def show(records: str | Path, *, run: str = "") -> str:
    """Settings, provenance, a plot a method, and the responses that hacked the proxy most.

    ``run``: the beginning of a run_id, to look at one curve.

    Raises
    ------
    ConfigError
        No run begins with ``run``.
    """
    results = view(records)
    curves = curves_of(results, run)
    settings = settings_of(curves, results.runs)
    lines = [f"{results.experiment}: {len(curves)} curves in {results.folder}", "", "settings"]
    lines += _columns(settings.shared)
    lines += _columns({k: ", ".join(dict.fromkeys(v)) for k, v in settings.apart.items()})
    runs = (
        {c.meta["run_id"]: results.runs[c.meta["run_id"]] for c in curves} if results.runs else {}
    )
    lines += ["", "provenance", *_columns(provenance_of(runs))]
    for named in series.group_curves(curves).values():
        means = {
            name: series.average(same, series.as_replicates(same)) for name, same in named.items()
        }
        label = next(iter(named.values()))[0].shown.label
        lines += ["", f"{label}: gain over the initial policy, in standard deviations", ""]
        lines.append(plot({name: (m.d, m.gold, m.proxy) for name, m in means.items()}))
        lines += remark_lines([c for same in named.values() for c in same])
        deepest = min(
            (c for same in named.values() for c in same), key=lambda c: float(c["gold_gain"][-1])
        )
        lines += ["", *_hacked(results, deepest)]
    return "\n".join(lines)


def _hacked(results: ResultsView, curve: Curve) -> list[str]:
    """Of the curve whose gold ends lowest, what the proxy puts furthest above gold at the end."""
    of_run = results.samples.get(curve.meta["run_id"])
    if of_run is None:
        return [NO_RESPONSES]
    end = [s for s in of_run if s.value == point_at(curve, "end")]
    name = series.series_names(results.curves)[curve.meta["run_id"]]
    lines = [f"what the proxy puts furthest above gold, {_where(curve, 'end', name)}"]
    return lines + [line for s in worst(end, "gap", SHOWN_HACKED) for line in told(s)]


def samples(
    records: str | Path, *, at: str = "end", by: str = "gold", n: int = 3, run: str = ""
) -> str:
    """The ``n`` worst responses of each curve at one point, worst first.

    Parameters
    ----------
    at : "start", "peak" (of mean gold), "end", or a value of the coordinate.
    by : "gold", "intent", or "gap": what the proxy puts furthest above gold.
    run : the beginning of a run_id, to look at one curve.

    Raises
    ------
    ConfigError
        No such run, point or score.
    DataError
        The results hold no responses.
    """
    results = view(records)
    if not results.samples:
        raise DataError(f"{results.folder}: {NO_RESPONSES}")
    names = series.series_names(results.curves)
    lines: list[str] = []
    for curve in curves_of(results, run):
        value = point_at(curve, at)
        of_run = results.samples.get(curve.meta["run_id"], [])
        lines += [*([""] if lines else []), _where(curve, at, names[curve.meta["run_id"]])]
        for sample in worst([s for s in of_run if s.value == value], by, n):
            lines += told(sample)
    return "\n".join(lines)


def _where(curve: Curve, at: str, name: str) -> str:
    """A curve and a point of it in words; ``name`` of its series."""
    k = list(curve["value"]).index(point_at(curve, at))
    seeds = ", ".join(f"{name} {seed}" for name, seed in curve.seeds.items() if seed is not None)
    return (
        f"{curve.shown.label}, {name}, {seeds} (run {curve.meta['run_id']}):"
        f" {curve.shown.axis} {int(curve['value'][k])}, √KL {curve['sqrt_kl'][k]:.2f},"
        f" gold {curve['gold_gain'][k]:+.2f}, proxy {curve['proxy_gain'][k]:+.2f}"
    )


def told(sample: Sample) -> list[str]:
    """A response with its scores, as indented lines."""
    scores = [f"gold {sample.gold:+.2f}", f"proxy {sample.proxy:+.2f}"]
    scores += [] if sample.intent is None else [f"intent {sample.intent:+.2f}"]
    cut = "" if sample.ended else ", cut off"
    text = f"{sample.prompt} → {sample.response}"
    wrapped = [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(line, TEXT_WIDTH, break_long_words=True) or [""]
    ]
    head = f"  {', '.join(scores)}; {sample.tokens} tokens{cut}"
    return [head, *(f"    {line}" for line in wrapped)]


class _Ends(NamedTuple):
    """Mean gold gain of a series at its peak (cross-fitted) and at its end, with standard errors."""

    peak: float
    peak_stderr: float
    end: float
    end_stderr: float


def diff(first: str | Path, second: str | Path) -> str:
    """Settings that differ between two results, and peaks and ends of the series that both have.

    Differences are second minus first. Their standard errors are those of independent prompts,
    which is too wide where both were evaluated on the same ones.
    """
    a, b = view(first), view(second)
    lines = [f"A: {a.folder}", f"B: {b.folder}", "", "settings"]
    told_a, told_b = (_told_settings(results) for results in (a, b))
    names = [n for n in {**told_a, **told_b} if told_a.get(n) != told_b.get(n)]
    rows = [[n, told_a.get(n, DEFAULT), told_b.get(n, DEFAULT)] for n in names]
    lines += aligned([["", "A", "B"], *rows], INDENT) if rows else ["  the same in both"]
    ends_a, ends_b = _ends(a), _ends(b)
    lines += ["", "gold, in standard deviations: at its peak, and at the end"]
    both = [key for key in ends_a if key in ends_b]
    head = ["method", "series", "peak A", "peak B", "B − A", "end A", "end B", "B − A"]
    lines += aligned([head, *(_compared(key, ends_a[key], ends_b[key]) for key in both)], INDENT)
    for name, mine, others in (("A", ends_a, ends_b), ("B", ends_b, ends_a)):
        only = [", ".join(key) for key in mine if key not in others]
        lines += [f"only in {name}: {'; '.join(only)}"] if only else []
    return "\n".join(lines)


def _told_settings(results: ResultsView) -> dict[str, str]:
    settings = settings_of(results.curves, results.runs)
    several = {name: ", ".join(dict.fromkeys(values)) for name, values in settings.apart.items()}
    return {**settings.shared, **several}


def _ends(results: ResultsView) -> dict[tuple[str, str], _Ends]:
    found = {}
    for method, named in results.groups.items():
        for name, same in named.items():
            replicates = results.replicates[method][name]
            mean, peak = series.average(same, replicates), peak_of_mean(replicates)
            numbers = (peak.estimate, peak.stderr, mean.gold[-1], mean.gold_stderr[-1])
            found[same[0].shown.label, name] = _Ends(*map(float, numbers))
    return found


def _compared(key: tuple[str, str], a: _Ends, b: _Ends) -> list[str]:
    return [
        *key,
        with_error(a.peak, a.peak_stderr),
        with_error(b.peak, b.peak_stderr),
        with_error(b.peak - a.peak, math.hypot(a.peak_stderr, b.peak_stderr)),
        with_error(a.end, a.end_stderr),
        with_error(b.end, b.end_stderr),
        with_error(b.end - a.end, math.hypot(a.end_stderr, b.end_stderr)),
    ]


def curves_of(results: ResultsView, run: str) -> list[Curve]:
    """The curves whose run_id begins with ``run``.

    Raises
    ------
    ConfigError
        There is none.
    """
    found = [c for c in results.curves if c.meta["run_id"].startswith(run)]
    if not found:
        known = ", ".join(c.meta["run_id"] for c in results.curves[:8])
        raise ConfigError(f"--run {run}: no run of {results.folder} begins so; there are {known}")
    return found


def _columns(named: dict[str, str]) -> list[str]:
    """Names and values, aligned."""
    return aligned([[name, value] for name, value in named.items()], INDENT) if named else []
