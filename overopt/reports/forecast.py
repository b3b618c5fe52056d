"""Forecasts of the peak of a proxy not yet trained: `overopt forecast`.

The straight lines of `fits.scaling`, from records to a file that is written once, and its score
when the proxy has been trained. Never imports torch.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overopt.analysis.peaks import PEAK_MEANING
from overopt.base import escape, files, folders
from overopt.base.errors import DataError
from overopt.fits import scaling
from overopt.fits.fit import POOR_FIT_P
from overopt.records.curves import BON
from overopt.records.series import scaling_points
from overopt.records.view import ResultsView, view
from overopt.reports.text import interval, number

FORECAST_SIZES = 3
"""Fewest proxy sizes for a forecast: two coefficients, each a line in log10 parameters."""
FORECAST_VERSION = 2
SAME_SIZE = 0.1
"""Difference of log parameters below which two sizes are one: `3e6` finds a proxy of 2.9M."""


def forecast(
    records: str | Path, *, n_params: float, method: str = BON, out: str | Path | None = None
) -> str:
    """Forecast the peak of a proxy of ``n_params`` that was not trained; written once, as JSON.

    Parameters
    ----------
    records
        Results directory, or name, with at least `FORECAST_SIZES` proxy sizes.
    n_params
        Non-embedding parameters of the proxy to come.
    method
        As records call it: ``bon``, or the method that optimised the policy.
    out
        File to write; by default ``results/forecast_<records>_<method>_<size>M.json``.

    Raises
    ------
    DataError
        Too few sizes, a size that the records already hold, or a file that exists: a forecast that
        is made again after the measurement is none.

    Notes
    -----
    α and β are straight lines in log10 parameters. Intervals are for what a fit of the new proxy
    will give, measured by as many seeds as the others: see `overopt.fits.scaling.forecast`.
    """
    if not (math.isfinite(n_params) and n_params > 0):
        raise DataError(f"n_params = {n_params}: give the proxy's positive number of parameters")
    results = view(records)
    points = _points_for(results, method, n_params)
    line = scaling.fit_scaling(points)
    made = scaling.forecast(line, n_params, points[0].n_pairs)
    about = f"{results.folder.resolve().name}_{escape.file_name(method)}"
    name = f"forecast_{about}_{n_params / 1e6:.3g}M.json"
    path = Path("results") / name if out is None else Path(out)
    same = [c for c in results.curves if c.meta["method"] == method]
    _write_once(
        path,
        {
            "schema_version": FORECAST_VERSION,
            "experiment": results.experiment,
            "method": method,
            "records": sorted({c.meta["run_id"] for c in same}),
            "scatter": line.scatter,
            "forecast": made.to_dict(),
        },
    )
    lines = [
        f"{method} (form {made.form}), proxy of {n_params / 1e6:.3g}M parameters and"
        f" {made.n_pairs} pairs; {made.ci_level:.0%} prediction intervals for a proxy with as many"
        f" seeds, from {made.dof} degrees of freedom",
        *(
            f"  {name:12} {number(getattr(made, name))} {interval(made.ci[name])}"
            for name in scaling.QUANTITIES
        ),
        f"  peak: {PEAK_MEANING.get(made.peak_status, made.peak_status)}",
        f"  fitted on {', '.join(p.label for p in points)}; chi2/dof {line.scatter:.2f}",
    ]
    reach = max(float(c["sqrt_kl"].max()) for c in same)
    return "\n".join([*lines, *_doubts(made, points, reach), f"written to {path}"])


def _points_for(results: ResultsView, method: str, n_params: float) -> list[scaling.ScalingPoint]:
    """The fits by size that a forecast for ``n_params`` starts from; DataError where it cannot."""
    points = scaling_points(results.curves, method)
    if len(points) < FORECAST_SIZES:
        found = ", ".join(p.label for p in points) or "none"
        others = ", ".join(m for m in results.methods if m != method)
        hint = f"; they have curves of {others}" if method not in results.methods else ""
        raise DataError(
            f"{str(results.folder)!r} has {len(points)} proxy sizes with a {method} fit"
            f" ({found}){hint}; a forecast needs at least {FORECAST_SIZES}: run more sizes with both"
            " prompts and points enough to fit"
        )
    held = _nearest_size([p.n_params for p in points], n_params)
    if held is not None:
        raise DataError(
            f"n_params = {n_params:.3g}: the records already hold a proxy of {held:.3g}"
            " parameters; forecast one that is not trained yet"
        )
    return points


def _write_once(path: Path, written: dict[str, Any]) -> None:
    """Write a forecast, unless there is one."""
    try:
        text = json.dumps(written, indent=1, allow_nan=False) + "\n"
        folders.write_once(path, text.encode())
    except FileExistsError as e:
        raise DataError(
            f"forecast {str(path)!r} exists, and a forecast is made once: score it, or give"
            " another file"
        ) from e
    except OSError as e:
        raise DataError(f"forecast {str(path)!r} cannot be written: {e.strerror}") from e


def _doubts(
    made: scaling.Forecast, points: Sequence[scaling.ScalingPoint], reach: float
) -> list[str]:
    """What a reader of the forecast should know; ``reach`` is the largest √KL measured."""
    lines = []
    if made.peak_sqrt_kl > reach:
        lines.append(
            f"  that peak lies beyond √KL {reach:.3g}, the largest measured: it is the form's, no"
            " curve has shown one there"
        )
    largest = max(p.n_params for p in points)
    if made.n_params > largest:
        lines.append(f"  extrapolates {made.n_params / largest:.2g}-fold beyond the largest size")
    poor = ", ".join(p.label for p in points if p.fit.p_value < POOR_FIT_P)
    if poor:
        lines.append(
            f"  the form does not describe (p < {POOR_FIT_P:g}): {poor}; trust no interval"
        )
    return lines + [f"  note on the {p.label}: {p.fit.message}" for p in points if p.fit.message]


def read(forecast_file: str | Path) -> tuple[str, scaling.Forecast]:
    """Method and content of a written forecast.

    Raises
    ------
    DataError
        A file that is no forecast.
    """
    try:
        data = files.load_object(Path(forecast_file), ("schema_version", "method", "forecast"))
        if data["schema_version"] != FORECAST_VERSION:
            raise ValueError(
                f"schema_version {data['schema_version']!r}, this package writes {FORECAST_VERSION}:"
                " intervals of others mean something else; make the forecast again"
            )
        return data["method"], scaling.Forecast.from_dict(data["forecast"])
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(
            f"{str(forecast_file)!r} is not a forecast written by this package: {e}"
        ) from e


def score(records: str | Path, forecast_file: str | Path) -> str:
    """A written forecast against the fit of the proxy it was made for, once records hold it.

    Raises
    ------
    DataError
        A file that is no forecast, or records without a curve of that method, data and size (to
        within `SAME_SIZE`).
    """
    method, made = read(forecast_file)
    curves = [c for c in view(records).curves if c.meta["n_pairs"] == made.n_pairs]
    points = scaling_points(curves, method)
    size = _nearest_size([p.n_params for p in points], made.n_params)
    if size is None:
        found = ", ".join(p.label for p in points) or "none"
        raise DataError(
            f"no {method} fit of a proxy of {made.n_params:.3g} parameters and {made.n_pairs}"
            f" pairs in {str(records)!r} (found: {found}): train it, then score"
        )
    point = next(p for p in points if p.n_params == size)
    lines = [
        f"{method}, {point.label}: forecast for {made.n_params:.4g} parameters,"
        f" measured at {size:.4g}",
        f"  {'':12} {'forecast':>9} {f'{made.ci_level:.0%} interval':>20} {'measured':>9}"
        f" {'stderr':>7} {'off by':>9}",
    ]
    for row in scaling.score_forecast(made, point.fit):
        verdict = "cannot be scored" if row.inside is None else f"{row.error_sigma:6.1f} se"
        if row.inside is not None:
            verdict += ", inside" if row.inside else ", OUTSIDE"
        lines.append(
            f"  {row.quantity:12} {number(row.forecast)} {interval(row.ci):>20}"
            f" {number(row.observed)} {row.observed_stderr:7.3f} {verdict}"
        )
    lines.append(f"  peak forecast: {PEAK_MEANING.get(made.peak_status, made.peak_status)}")
    measured = point.fit.peak.status
    lines.append(f"  peak measured: {PEAK_MEANING.get(measured, measured)}")
    return "\n".join(lines)


def _nearest_size(sizes: Sequence[float], n_params: float) -> float | None:
    """The size that is ``n_params`` to within `SAME_SIZE`, or None."""
    nearest = min(sizes, key=lambda n: abs(math.log(n / n_params)), default=None)
    if nearest is None or abs(math.log(nearest / n_params)) > SAME_SIZE:
        return None
    return nearest
