"""Figure of a comparison: gold against √KL by family of mitigations. No files.

A function of the curves of a comparison, which `overopt compare` draws. A panel holds one family of
mitigations, so that no panel has more lines than can be told apart; the baseline is grey in each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from overopt.analysis.effects import CI_LEVEL
from overopt.analysis.reach import gold_at
from overopt.analysis.tuning import Reference
from overopt.fits.fit import t_quantile
from overopt.fits.replicates import crossed_mean
from overopt.records.curves import Curve
from overopt.reports.figures.style import X_LABELS, Style, series_styles

GRID_POINTS = 60
PANELS_A_ROW = 4

_BASELINE = Style("0.55", "X")
_LINES = ("-", "--", "-.", ":", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 2)))


def frontier(
    curves: Mapping[str, Mapping[str, Sequence[Curve]]],
    families: Mapping[str, str],
    references: Mapping[str, Reference],
    *,
    baseline: str,
) -> Figure:
    """Mean gold gain against √KL, a panel for each method and family of mitigations.

    Parameters
    ----------
    curves : method -> mitigation -> test curves, one a seed.
    families : mitigation -> family.
    references : method -> where the tuning runs of the baseline peak (dotted).
    baseline : the mitigation drawn in grey, with its 95 % band, in every panel.

    Notes
    -----
    A line ends where the first of its runs ends: beyond, seeds would be mixed with carried values. The
    marker, joined to it by a thin line, is the mean of all the runs' own ends.
    """
    panels = [
        (method, family, [n for n in same if families[n] == family and n != baseline])
        for method, same in curves.items()
        for family in dict.fromkeys(families[n] for n in same if n != baseline)
    ]
    n_rows = -(-len(panels) // PANELS_A_ROW)
    n_columns = -(-len(panels) // n_rows)
    fig = Figure(figsize=(3.3 * n_columns, 3.3 * n_rows + 0.3), layout="constrained")
    axes = np.reshape(fig.subplots(n_rows, n_columns), -1)
    limits: dict[str, list[float]] = {}
    for ax, (method, family, names) in zip(axes, panels, strict=False):
        same = {name: curves[method][name] for name in (baseline, *names)}
        _draw_panel(ax, same, baseline, references[method])
        label = same[baseline][0].shown.label
        ax.set_title(f"{label}: {family}", loc="left", fontsize=10)
        limits.setdefault(method, []).extend(ax.get_ylim())
    for ax, (method, _, _) in zip(axes, panels, strict=False):
        ax.set_ylim(min(limits[method]), max(limits[method]))
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    seeds = sorted({len(c) for same in curves.values() for c in same.values()})
    fig.supxlabel(
        f"Means of {' or '.join(map(str, seeds))} seeds. A line ends with its shortest run, its marker"
        f" is the mean end of the runs. Band: 95 % of {baseline}. Dotted: its peak when tuned.",
        fontsize=8.5,
    )
    return fig


def _draw_panel(
    ax: Axes, curves: Mapping[str, Sequence[Curve]], baseline: str, reference: Reference
) -> None:
    """The baseline and the mitigations of one family, but for the title."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.axhline(0, color="0.85", lw=0.8, zorder=0)
    ax.axvline(reference.peak_sqrt_kl, color="0.7", lw=0.9, ls=":", zorder=0)
    _draw_frontier(ax, curves[baseline], _BASELINE, band=True)
    names = [name for name in curves if name != baseline]
    styles = {baseline: _BASELINE} | {
        name: replace(style, line=_LINES[i % len(_LINES)])
        for i, (name, style) in enumerate(series_styles(names).items())
    }
    for name in names:
        _draw_frontier(ax, curves[name], styles[name])
    handles = [
        Line2D([], [], color=s.color, ls=s.line, marker=s.marker, ms=4, lw=1.3, label=name)
        for name, s in styles.items()
    ]
    first = curves[baseline][0]
    # Best-of-n rises from the left; an optimised policy has its room below.
    place: Literal["upper left", "lower left"] = "upper left" if first.is_bon else "lower left"
    ax.legend(handles=handles, frameon=False, fontsize=7.5, loc=place)
    ax.set_xlabel(X_LABELS[first.meta["kl_estimator"]], fontsize=8.5)
    ax.set_ylabel("gold gain (sd of gold)", fontsize=8.5)


def _draw_frontier(ax: Axes, curves: Sequence[Curve], style: Style, *, band: bool = False) -> None:
    """Mean over seeds and prompts up to the shortest run's reach, and the mean end of all runs."""
    reach = min(float(curve["sqrt_kl"].max()) for curve in curves)
    grid = np.linspace(0.0, reach, GRID_POINTS)
    mean = crossed_mean(np.stack([gold_at(curve, grid).T for curve in curves]))
    if band:
        stderr = np.sqrt(np.maximum(np.diag(mean.covar), 0.0))
        half = stderr * [t_quantile(CI_LEVEL, mean.dof(c)) for c in np.eye(len(grid))]
        low, high = mean.estimate - half, mean.estimate + half
        ax.fill_between(grid, low, high, color=style.color, alpha=0.25, lw=0)
    ax.plot(grid, mean.estimate, color=style.color, ls=style.line, lw=1.3)
    end = mean_end(curves)
    ax.plot([reach, end[0]], [mean.estimate[-1], end[1]], color=style.color, lw=0.5)
    ax.plot(*end, color=style.color, marker=style.marker, ms=5)


def mean_end(curves: Sequence[Curve]) -> tuple[float, float]:
    """√KL and gold gain at the last point of a run, means over runs."""
    gains = [float(c.gain("gold")[-1].mean()) for c in curves]
    return float(np.mean([c["sqrt_kl"][-1] for c in curves])), float(np.mean(gains))
