"""Height and place of the peak against proxy size."""

import itertools
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overopt.analysis.peaks import peaks_by_size
from overopt.base.shown import Shown
from overopt.records.curves import BON
from overopt.records.series import size_name
from overopt.records.view import ResultsView

PICTURE = "fig02"
FEWEST_SIZES = 3
"""Proxy sizes from which the picture is drawn."""
FEWEST_FOR_MEAN = 4
"""Replicates from which means are shown: the spread of three says little."""
GRAYS = ("0.5", "0.7", "0.35")
"""Of methods other than best-of-n, which is black: colours are for sizes."""
SHIFT = 1.06
"""Factor between the places of two methods at one size."""


def draw(results: ResultsView) -> Figure | None:
    """Peak gold against proxy size; a point per replicate, with its standard error over prompts.

    With `FEWEST_FOR_MEAN` replicates of every size and more, points are faint and without bars, and
    a line joins their means, with standard errors over replicates.
    """
    peaks = peaks_by_size(results.curves)
    sizes = sorted({p["n_params"] for p in peaks})
    if len(sizes) < FEWEST_SIZES:
        return None
    fig = Figure(figsize=(5.2, 3.8), layout="constrained")
    ax = fig.subplots()
    shown = {c.meta["method"]: c.shown for c in results.curves}
    others = itertools.count(1)
    grays = itertools.cycle(GRAYS)
    for method in results.methods:
        points = np.array(
            [
                (p["n_params"], p["peak_gold"], p["peak_stderr"])
                for p in peaks
                if p["method"] == method
            ]
        )
        color, shift = ("black", 1.0) if method == BON else (next(grays), SHIFT ** next(others))
        if len(points):
            _draw_method(ax, points, shown[method], color, shift)
    ax.set_xscale("log")
    ax.set_xticks(sizes, [size_name(n) for n in sizes])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("proxy size (non-embedding parameters)")
    ax.set_ylabel("peak gold gain, cross-fitted (sd of gold) ± 1 stderr")
    fig.legend(*ax.get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=2)
    ax.spines[["top", "right"]].set_visible(False)
    return fig


def _draw_method(ax: Axes, points: np.ndarray, shown: Shown, color: str, shift: float) -> None:
    """Points (R, 3) of one method: n_params, peak gold and its standard error of each run."""
    n, peak, err = points.T
    marker: dict[str, Any] = {"marker": shown.marker, "ms": 5, "color": color, "capsize": 2}
    of_size = {size: peak[n == size] for size in np.unique(n)}
    if min(map(len, of_size.values())) >= FEWEST_FOR_MEAN:
        ax.plot(n * shift, peak, shown.marker, ms=4, color=color, alpha=0.3, mew=0)
        n = np.array(list(of_size))
        peak = np.array([p.mean() for p in of_size.values()])
        err = np.array([p.std(ddof=1) / len(p) ** 0.5 for p in of_size.values()])
        ax.errorbar(
            n * shift, peak, yerr=err, lw=1, label=f"{shown.label}, mean of seeds", **marker
        )
    else:
        ax.errorbar(n * shift, peak, yerr=err, ls="none", label=shown.label, **marker)
