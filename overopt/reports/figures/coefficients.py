"""Coefficients of the functional forms against proxy size."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from overopt.fits.scaling import ScalingFit, ScalingPoint
from overopt.records.series import size_name
from overopt.reports.figures.style import proxy_styles


def coefficients(points: Sequence[ScalingPoint], line: ScalingFit) -> Figure:
    """α and β of best-of-n against proxy size, and their lines in log parameters with intervals."""
    fig = Figure(figsize=(8.4, 3.6), layout="constrained")
    styles = proxy_styles([p.label for p in points])
    sizes = [p.n_params for p in points]
    grid = np.geomspace(min(sizes) / 1.3, max(sizes) * 1.3, 100)
    for letter, name, ax in zip("ab", ("alpha", "beta"), fig.subplots(1, 2), strict=True):
        value, low, high = line.band(name, grid)
        ax.fill_between(grid, low, high, color="0.9", lw=0)
        ax.plot(grid, value, color="0.5", lw=1)
        for point in points:
            style = styles[point.label]
            ax.errorbar(
                point.n_params,
                point.fit.params[name],
                point.fit.stderr[name],
                color=style.color,
                marker=style.marker,
                capsize=2,
            )
        ax.set_title(f"({letter}) {name}", loc="left")
        ax.set_xscale("log")
        ax.set_xticks(sizes, [size_name(n) for n in sizes], fontsize=8)
        ax.set_xticks([], minor=True)
        ax.set_xlabel("proxy size (non-embedding parameters)")
        ax.set_ylabel(f"{name} ± 1 stderr (sd of gold per {'√nat' if name == 'alpha' else 'nat'})")
        ax.spines[["top", "right"]].set_visible(False)
    fig.suptitle(
        "best-of-n: gold = d (α − β d), d = √KL; line in log parameters, "
        f"{line.ci_level:.0%} band, p = {line.p_value:.2g}",
        fontsize=9,
    )
    return fig
