"""What evaluations wrote, read again: for the leaderboard page and for the agreement of two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from overopt.base import escape, files
from overopt.base.errors import ConfigError, DataError
from overopt.base.seeding import numpy_rng
from overopt.evals.intervals import LEVEL, Estimate

FORMAT = 1
_KEYS = ("format", "benchmark", "model", "headline", "scores", "rows", "tied")
_DRAWS = 2000


class Result(NamedTuple):
    """One evaluation: its file, benchmark, model, main score, share of tied questions, rows."""

    path: Path
    benchmark: str
    model: str
    score: Estimate
    tied: float
    n_params: int
    rows: list[dict[str, Any]]


def read_result(path: Path) -> Result:
    """What `overopt eval ... --out` wrote.

    Raises
    ------
    DataError
        The file is no such result, or one of another version.
    """
    found = files.load_object(path, _KEYS)
    if found["format"] != FORMAT:
        raise DataError(f"{path}: format = {found['format']!r}: this version reads {FORMAT}")
    try:
        entry = next(
            g[found["headline"]] for g in found["scores"].values() if found["headline"] in g
        )
        value, low, high = (_number(entry[name]) for name in ("value", "low", "high"))
        score = Estimate(value, low, high, entry["n"])
        return Result(
            path,
            str(found["benchmark"]),
            str(found["model"]),
            score,
            _number(found["tied"]),
            int(found.get("n_params") or 0),
            _rows(path, found["rows"]),
        )
    except (StopIteration, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: is no result of an evaluation ({type(error).__name__}: {error}); write it again"
        ) from error


def _rows(path: Path, rows: Any) -> list[dict[str, Any]]:
    """Rows with the name of each, and what the model is credited with there: a number, or None."""
    for i, row in enumerate(rows, start=1):
        where = f"{path}: entry {i} of rows"
        files.need(row, where, ("id", "credit"))
        if not isinstance(row["id"], str) or not isinstance(row["credit"], int | float | None):
            raise DataError(f"{where}: id must be a text, and credit a number or null")
    return list(rows)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


# --- leaderboard ----------------------------------------------------------------------------------


class Board(NamedTuple):
    """Models by benchmarks. cells[model][benchmark]; models best first by mean of what they have."""

    benchmarks: tuple[str, ...]
    models: tuple[str, ...]
    cells: dict[str, dict[str, Result]]


def board(results: Sequence[Result]) -> Board:
    """The leaderboard of results: sorted by the mean of scores, more benchmarks first.

    Raises
    ------
    ConfigError
        Two results are of one model on one benchmark.
    """
    cells: dict[str, dict[str, Result]] = {}
    for result in results:
        of_model = cells.setdefault(result.model, {})
        if result.benchmark in of_model:
            raise ConfigError(
                f"{result.path} and {of_model[result.benchmark].path}: are both of {result.model!r} on"
                f" {result.benchmark}: leave one out, or name the models with model.name"
            )
        of_model[result.benchmark] = result

    def rank(model: str) -> tuple[int, float, str]:
        scores = [r.score.value for r in cells[model].values() if not math.isnan(r.score.value)]
        return -len(scores), -sum(scores) / len(scores) if scores else 0.0, model

    benchmarks = tuple(sorted({r.benchmark for r in results}))
    return Board(benchmarks, tuple(sorted(cells, key=rank)), cells)


def markdown(table: Board) -> str:
    """The leaderboard as a Markdown table."""
    head = ["model", "parameters", *table.benchmarks, "tied"]
    lines = [f"| {' | '.join(map(escape.markdown, head))} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for model in table.models:
        name, *numbers = _cells(table, model)
        lines.append(f"| {' | '.join([escape.markdown(name), *numbers])} |")
    return "\n".join([*lines, "", _CAPTION]) + "\n"


def html(table: Board, *, title: str = "Reward models by benchmark") -> str:
    """The leaderboard as a page of its own: no scripts, nothing fetched."""
    head = "".join(
        f"<th>{escape.html(name)}</th>"
        for name in ("model", "parameters", *table.benchmarks, "tied")
    )
    body = []
    for model in table.models:
        first, *rest = _cells(table, model)
        numbers = "".join(f"<td>{escape.html(cell)}</td>" for cell in rest)
        body.append(f"<tr><th scope=row>{escape.html(first)}</th>{numbers}</tr>")
    rows = "\n".join(body)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape.html(title)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ border-bottom: 1px solid #ccc; padding: .4rem .6rem; text-align: right; }}
th:first-child {{ text-align: left; }}
td {{ font-variant-numeric: tabular-nums; }}
tbody tr:hover {{ background: #f4f4f4; }}
</style>
<h1>{escape.html(title)}</h1>
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
<p>{escape.html(_CAPTION)}</p>
</html>
"""


_CAPTION = (
    "Scores with 95 % intervals; models with more benchmarks first, then by the mean of their scores."
    " Tied: share of questions without a unique best score, mean over benchmarks."
)


def _cells(table: Board, model: str) -> list[str]:
    results = table.cells[model]
    sizes = [r.n_params for r in results.values() if r.n_params]
    ties = [r.tied for r in results.values() if not math.isnan(r.tied)]
    scores = [_score(results.get(name)) for name in table.benchmarks]
    tied = f"{100 * sum(ties) / len(ties):.1f} %" if ties else "–"
    return [model, _millions(max(sizes, default=0)), *scores, tied]


def _score(result: Result | None) -> str:
    if result is None or math.isnan(result.score.value):
        return "–"
    value, low, high, _ = result.score
    return f"{value:.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")


def _millions(n: int) -> str:
    return f"{n / 1e6:.3g}M" if n else "–"


# --- agreement ------------------------------------------------------------------------------------


class Agreement(NamedTuple):
    """Share of rows on which two models agree, Cohen's κ, and how many rows both have."""

    share: float
    kappa: Estimate
    n: int


def agreement(one: Result, other: Result) -> Agreement:
    """How far two models agree on the rows that both have, by what each credits them with.

    κ = (p_o − p_e) / (1 − p_e), p_e from the two models' own shares (Cohen 1960); not a number where
    p_e is 1. Its interval is that of a bootstrap over rows.

    Raises
    ------
    DataError
        They have fewer than two rows in common.
    """
    credits = [
        {r["id"]: r["credit"] for r in x.rows if r["credit"] is not None} for x in (one, other)
    ]
    common = [key for key in credits[0] if key in credits[1]]
    if len(common) < 2:
        raise DataError(
            f"{one.path} and {other.path}: have {len(common)} rows in common: give two results on the"
            " same file"
        )
    a, b = (np.array([c[key] for key in common], dtype=np.float64) for c in credits)
    rng = numpy_rng(0, "agreement")
    picks = rng.integers(len(common), size=(_DRAWS, len(common)))
    draws = np.array([kappa(a[p], b[p]) for p in picks])
    low, high = (
        np.nanquantile(draws, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
        if np.isfinite(draws).any()
        else (math.nan, math.nan)
    )
    value = Estimate(kappa(a, b), float(low), float(high), len(common))
    return Agreement(float(np.mean(a == b)), value, len(common))


def kappa(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Cohen's κ of two lists of categories (C,)."""
    categories = np.union1d(a, b)
    expected = sum(float(np.mean(a == c) * np.mean(b == c)) for c in categories)
    observed = float(np.mean(a == b))
    return math.nan if expected >= 1 else (observed - expected) / (1 - expected)
