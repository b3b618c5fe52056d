"""Height and place of the peak against proxy size."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from overopt.records.series import size_name
from overopt.reports.figures.style import Style

FEWEST_FOR_MEAN = 4
"""Replicates from which `size_and_peak` shows means: the spread of three says little."""


def size_and_peak(peaks: Mapping[str, Sequence[tuple[float, float, float]]]) -> Figure:
    """Peak gold against proxy size; a point per replicate, with its standard error over prompts.

    With `FEWEST_FOR_MEAN` replicates of every size and more, points are faint and without bars, and
    a line joins their means, with standard errors over replicates.

    Parameters
    ----------
    peaks : method -> (n_params, peak gold, stderr) of each run.
    """
    fig = Figure(figsize=(5.2, 3.8), layout="constrained")
    ax = fig.subplots()
    styles = {"bon": Style("black", "o"), "ppo": Style("0.5", "s")}  # colours are for sizes
    for method, points in peaks.items():
        style = styles[method]
        n, peak, err = (np.array(x) for x in zip(*points, strict=True))
        shift = 1.0 if method == "bon" else 1.06
        marker: dict[str, Any] = {
            "marker": style.marker,
            "ms": 5,
            "color": style.color,
            "capsize": 2,
        }
        of_size = {size: peak[n == size] for size in np.unique(n)}
        label = {"bon": "best-of-n", "ppo": "PPO"}[method]
        if min(map(len, of_size.values())) >= FEWEST_FOR_MEAN:
            ax.plot(n * shift, peak, style.marker, ms=4, color=style.color, alpha=0.3, mew=0)
            n = np.array(list(of_size))
            peak = np.array([p.mean() for p in of_size.values()])
            err = np.array([p.std(ddof=1) / len(p) ** 0.5 for p in of_size.values()])
            ax.errorbar(n * shift, peak, yerr=err, lw=1, label=f"{label}, mean of seeds", **marker)
        else:
            ax.errorbar(n * shift, peak, yerr=err, ls="none", label=label, **marker)
    sizes = sorted({point[0] for points in peaks.values() for point in points})
    ax.set_xscale("log")
    ax.set_xticks(sizes, [size_name(n) for n in sizes])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("proxy size (non-embedding parameters)")
    ax.set_ylabel("peak gold gain (sd of gold) ± 1 stderr")
    fig.legend(*ax.get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=2)
    ax.spines[["top", "right"]].set_visible(False)
    return fig
