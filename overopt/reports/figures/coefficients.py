"""Coefficients of the functional forms against proxy size."""

import numpy as np
from matplotlib.figure import Figure

from overopt.fits.fit import POOR_FIT_P
from overopt.fits.pvalues import p_text
from overopt.fits.scaling import fit_scaling
from overopt.records.curves import BON
from overopt.records.series import scaling_points, size_name
from overopt.records.view import ResultsView
from overopt.reports.figures.style import proxy_styles

PICTURE = "fig04"
FEWEST_SIZES = 4
"""Proxy sizes from which it is drawn: a line through three leaves one degree of freedom."""


def draw(results: ResultsView) -> Figure | None:
    """α and β of best-of-n against proxy size, and their lines in log parameters with intervals.

    None where the form does not describe the curve of every size.
    """
    points = scaling_points(results.curves, BON)
    if len(points) < FEWEST_SIZES or any(p.fit.p_value < POOR_FIT_P for p in points):
        return None
    line = fit_scaling(points)
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
        f"{line.ci_level:.0%} band, {p_text(line.p_value)}",
        fontsize=9,
    )
    return fig
