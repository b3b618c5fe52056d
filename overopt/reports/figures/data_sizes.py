"""Accuracy and peaks against the number of comparisons."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from overopt.fits.replicates import ReplicateCurve
from overopt.records.curves import Curve
from overopt.records.series import average
from overopt.reports.figures.overoptimization import draw_series
from overopt.reports.figures.style import MARKERS, X_LABELS, Style, proxy_styles


def data_sizes(
    sweeps: Mapping[str, Mapping[int, Sequence[Curve]]],
    replicates: Mapping[str, Mapping[int, Sequence[ReplicateCurve]]],
    peaks: Mapping[str, Sequence[tuple[int, float, float]]],
    largest_n: int,
) -> Figure:
    """Best-of-n by data size: a panel of curves for each proxy size, and the peaks of all.

    Parameters
    ----------
    sweeps : series name -> comparisons -> replicate curves, both increasing.
    replicates : the same keys -> the same curves as the statistics take them.
    peaks : series name -> (comparisons, mean peak gold over replicates, its standard error over
        them, nan for a single one).
    largest_n : of the range over which peaks are taken.
    """
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
    for letter, (name, sweep), ax in zip("abcdefgh", sweeps.items(), axes, strict=False):
        for n_pairs, curves in sweep.items():
            draw_series(ax, average(curves, replicates[name][n_pairs]), styles[n_pairs], None)
        ax.set_title(f"({letter}) best-of-n, {name}", loc="left", fontsize=10)
        ax.set_xlabel(X_LABELS["bon_bound"], fontsize=9)
        ax.axhline(0, color="0.8", lw=0.8, zorder=0)
        ax.set_ylabel("score gain (sd)")
    last = axes[-1]
    limits = [y for ax in axes[:-1] for y in ax.get_ylim()]
    for ax in axes[:-1]:
        ax.set_ylim(min(limits), max(limits))
    for (name, points), style in zip(
        peaks.items(), proxy_styles(list(peaks)).values(), strict=True
    ):
        n, peak, err = (np.array(x) for x in zip(*points, strict=True))
        last.errorbar(
            n, peak, yerr=err, color=style.color, marker=style.marker, ms=5, capsize=2, label=name
        )
    last.set_xscale("log")
    last.set_xticks(sizes, [f"{n:,}" for n in sizes], fontsize=8)
    last.set_xticks([], minor=True)
    last.set_xlabel("comparisons the proxy was trained on")
    last.set_ylabel("peak gold gain (sd) ± 1 stderr over seeds")
    title = f"({'abcdefgh'[len(sweeps) % 8]}) peaks up to n = {largest_n:,}"
    last.set_title(title, loc="left", fontsize=10)
    last.legend(frameon=False, fontsize=8)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=s.color, marker=s.marker, ms=5, label=f"{n:,} comparisons")
        for n, s in styles.items()
    ]
    handles += [
        Line2D([], [], color="0.3", marker="o", ms=4, lw=0.6, label="gold ± 1 stderr"),
        Line2D([], [], color="0.3", ls="--", label="proxy"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return fig
