"""Gold and proxy against √KL: the picture of Gao et al. 2022, figure 1.

Best-of-n in panel a, then a panel for each other method of the records. Where the pool's exponential
tilt is trusted, it is dotted in all panels: the optimum of proxy score at each KL. Fits are drawn
over the range of the data where the form describes it (p of at least `POOR_FIT_P`).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from overopt.fits.fit import POOR_FIT_P
from overopt.fits.replicates import ReplicateCurve
from overopt.records.series import MeanSeries, average
from overopt.records.view import ResultsView
from overopt.reports.figures.style import X_LABELS, Style, draw_series, proxy_styles

PICTURE = "fig01"
PANELS_A_ROW = 3


def draw(results: ResultsView) -> Figure:
    """Gold and proxy score against √KL, a panel a method."""
    methods = [m for m in results.methods if m in results.groups]
    names = list(dict.fromkeys(name for m in methods for name in results.groups[m]))
    styles = proxy_styles(names)
    n_columns = min(len(methods), PANELS_A_ROW)
    n_rows = -(-len(methods) // n_columns)
    fig = Figure(figsize=(5.4 * n_columns, 4.4 * n_rows), layout="constrained")
    axes = list(np.reshape(fig.subplots(n_rows, n_columns), -1))
    drawn: list[MeanSeries] = []
    for letter, method, ax in zip("abcdefghijkl", methods, axes, strict=False):
        drawn += _draw_method(ax, results, method, styles)
        title = next(iter(results.groups[method].values()))[0].shown.label
        ax.set_title(f"({letter}) {title}", loc="left")
    for ax in axes[len(methods) :]:
        ax.set_axis_off()
    handles = _handles(results, styles, drawn)
    if len(methods) > 1:
        low, high = axes[0].get_ylim()
        for ax in axes[1 : len(methods)]:
            ax.axhspan(low, high, color="0.93", lw=0, zorder=-1)
        handles.append(Patch(color="0.93", label="height of (a)"))
    n_lines = -(-len(handles) // (2 * n_columns))
    columns = -(-len(handles) // n_lines)
    fig.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=7.5, frameon=False
    )
    return fig


def _draw_method(
    ax: Axes, results: ResultsView, method: str, styles: Mapping[str, Style]
) -> list[MeanSeries]:
    """One panel, but for its title; what was drawn."""
    drawn = []
    replicates = results.replicates[method]
    for name, curves in results.groups[method].items():
        mean = average(curves, replicates[name])
        drawn.append(mean)
        draw_series(ax, mean, styles[name], results.fits.get(method, {}).get(name))
        if name in results.tilts:
            ax.plot(*results.tilts[name], ls=":", lw=2, color=styles[name].color)
    first = next(iter(results.groups[method].values()))[0]
    ax.set_title(proxies_a_size(list(replicates.values())), loc="right", fontsize=8.5)
    ax.set_xlabel(X_LABELS[first.meta["kl_estimator"]])
    ax.set_ylabel("score gain over the initial policy (sd)")
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
    return drawn


def _handles(
    results: ResultsView, styles: Mapping[str, Style], drawn: Sequence[MeanSeries]
) -> list[Line2D | Patch]:
    """Entries of the legend: proxies, then kinds of lines."""
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=s.color, marker=s.marker, ms=5, label=name)
        for name, s in styles.items()
    ]
    handles += score_handles(drawn)
    if results.tilts:
        label = "gold, exponential tilt of the pool"
        handles.append(Line2D([], [], color="0.3", ls=":", lw=2, label=label))
    if any(
        not fit.p_value < POOR_FIT_P
        for of_method in results.fits.values()
        for fit in of_method.values()
    ):
        label = f"fit to gold (p ≥ {POOR_FIT_P:g})"
        handles.append(Line2D([], [], color="0.3", ls="-", lw=2.4, alpha=0.35, label=label))
    return handles


def score_handles(drawn: Sequence[MeanSeries]) -> list[Line2D]:
    """Entries of the legend for the scores that `draw_series` draws of these."""
    handles = [
        Line2D([], [], color="0.3", marker="o", ms=4, ls="-", lw=0.6, label="gold ± 1 stderr"),
        Line2D([], [], color="0.3", ls="--", label=proxy_label(drawn)),
    ]
    if any(mean.intent is not None for mean in drawn):
        handles.append(Line2D([], [], color="0.3", ls="-.", label="intent behind gold"))
    return handles


def proxy_label(drawn: Sequence[MeanSeries]) -> str:
    """What the dashed lines are."""
    in_gold = {mean.proxy_in_gold is not None for mean in drawn}
    if in_gold == {True}:
        return "proxy, in gold's unit"
    return "proxy" if in_gold == {False} else "proxy, in gold's unit where known"


def proxies_a_size(replicates: Sequence[Sequence[ReplicateCurve]]) -> str:
    """How many proxies stand behind each series, in words."""
    counts = sorted({len(same) for same in replicates})
    if counts == [1]:
        return "one proxy a size"
    return (
        f"means of {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} proxies a size"
    )
