"""Accuracy and peaks against the number of comparisons."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from overopt.analysis.peaks import mean_peak
from overopt.records.curves import Curve
from overopt.records.series import MeanSeries, as_replicates, average
from overopt.records.view import ResultsView
from overopt.reports.figures.overoptimization import score_handles
from overopt.reports.figures.style import MARKERS, X_LABELS, Style, draw_series, proxy_styles

PICTURE = "fig03"
LETTERS = "abcdefgh"

Sweeps = Mapping[str, Mapping[int, Sequence[Curve]]]
"""Series -> comparisons -> replicate curves, both increasing."""


def largest_n(sweeps: Sweeps) -> int:
    """End of the range over which peaks are compared: what all curves cover."""
    return min(int(c["value"][-1]) for sweep in sweeps.values() for s in sweep.values() for c in s)


def sweep_peaks(sweeps: Sweeps) -> dict[str, list[tuple[int, float, float]]]:
    """Series -> (comparisons, mean peak gold over replicates, its standard error over them)."""
    if not sweeps:
        return {}
    end = largest_n(sweeps)
    return {
        series: [(n, *mean_peak(same, end)) for n, same in sweep.items()]
        for series, sweep in sweeps.items()
    }


def sidecar(results: ResultsView) -> dict[str, Any]:
    """The peaks of the last panel."""
    return {"data_size_peaks": sweep_peaks(results.data_sweeps)}


def draw(results: ResultsView) -> Figure | None:
    """Best-of-n by data size: a panel of curves for each proxy size, and the peaks of all."""
    sweeps = results.data_sweeps
    if not sweeps:
        return None
    n_panels = len(sweeps) + 1
    n_columns = 2 if n_panels in (2, 4) else 3
    n_rows = -(-n_panels // n_columns)
    fig = Figure(figsize=(4.2 * n_columns, 3.4 * n_rows + 0.4), layout="constrained")
    axes = list(np.reshape(fig.subplots(n_rows, n_columns), -1))
    for ax in axes[n_panels:]:
        ax.set_axis_off()
    axes = axes[:n_panels]
    sizes = sorted({n for sweep in sweeps.values() for n in sweep})
    shades = colormaps["viridis_r"](np.linspace(0.15, 1.0, len(sizes)))
    styles = {
        n: Style(to_hex(shade), marker)
        for n, shade, marker in zip(sizes, shades, itertools.cycle(MARKERS), strict=False)
    }
    drawn: list[MeanSeries] = []
    for letter, (name, sweep), ax in zip(LETTERS, sweeps.items(), axes, strict=False):
        drawn += _draw_sweep(ax, sweep, styles)
        ax.set_title(f"({letter}) best-of-n, {name}", loc="left", fontsize=10)
    limits = [y for ax in axes[:-1] for y in ax.get_ylim()]
    for ax in axes[:-1]:
        ax.set_ylim(min(limits), max(limits))
    _draw_peaks(axes[-1], sweeps, sizes)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=s.color, marker=s.marker, ms=5, label=f"{n:,} comparisons")
        for n, s in styles.items()
    ]
    handles += score_handles(drawn)
    fig.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return fig


def _draw_sweep(
    ax: Axes, sweep: Mapping[int, Sequence[Curve]], styles: Mapping[int, Style]
) -> list[MeanSeries]:
    """Curves of one proxy size, a line a data size; what was drawn."""
    drawn = []
    for n_pairs, curves in sweep.items():
        drawn.append(average(curves, as_replicates(curves)))
        draw_series(ax, drawn[-1], styles[n_pairs], None)
    ax.set_xlabel(X_LABELS["bon_bound"], fontsize=9)
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
    ax.set_ylabel("score gain (sd)")
    return drawn


def _draw_peaks(ax: Axes, sweeps: Sweeps, sizes: Sequence[int]) -> None:
    """Peaks against comparisons, a line a proxy size."""
    peaks = sweep_peaks(sweeps)
    for (name, points), style in zip(
        peaks.items(), proxy_styles(list(peaks)).values(), strict=True
    ):
        n, peak, err = (np.array(x) for x in zip(*points, strict=True))
        ax.errorbar(
            n, peak, yerr=err, color=style.color, marker=style.marker, ms=5, capsize=2, label=name
        )
    ax.set_xscale("log")
    ax.set_xticks(sizes, [f"{n:,}" for n in sizes], fontsize=8)
    ax.set_xticks([], minor=True)
    ax.set_xlabel("comparisons the proxy was trained on")
    ax.set_ylabel("peak gold gain, cross-fitted (sd) ± 1 stderr")
    title = f"({LETTERS[len(sweeps) % 8]}) peaks up to n = {largest_n(sweeps):,}"
    ax.set_title(title, loc="left", fontsize=10)
    ax.legend(frameon=False, fontsize=8)
