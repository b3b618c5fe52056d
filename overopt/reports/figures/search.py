"""Search, votes and best-of-n at matched compute: gold against the tokens drawn for one response."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from overopt.fits.fit import t_quantile
from overopt.records.curves import Curve
from overopt.records.view import ResultsView
from overopt.reports.figures.style import series_styles

PICTURE = "search"
METHOD = "search"
POOLED = ("bon", "majority", "weighted_majority")
"""Methods that draw ``value`` whole responses."""


def tokens_drawn(curve: Curve) -> NDArray[np.float64]:
    """Tokens (K,) that the policy writes for one response, thrown away ones included."""
    if curve.meta["method"] == METHOD:
        return curve["drawn_tokens"]
    return curve["value"] * curve["response_tokens"][0]


def draw(results: ResultsView) -> Figure | None:
    """A panel for each proxy, means over replicates; None where nothing was searched."""
    panels: dict[str, dict[str, list[Curve]]] = {}
    for curve in results.curves:
        method = curve.meta["method"]
        if method in (*POOLED, METHOD):
            of_proxy = panels.setdefault(_proxy(curve), {})
            of_proxy.setdefault(method, []).append(curve)
    panels = {name: methods for name, methods in panels.items() if METHOD in methods}
    if not panels:
        return None
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    styles = series_styles((METHOD, *POOLED))
    for ax, (name, methods) in zip(axes, panels.items(), strict=True):
        for method in (METHOD, *POOLED):
            if method in methods:
                _draw_line(ax, methods[method], styles[method].color)
        ax.set_xscale("log", base=2)
        ax.axhline(0, color="0.85", lw=0.8, zorder=0)
        ax.set_title(name, loc="left", fontsize=9)
        ax.set_xlabel("tokens drawn for one response")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("gold gain (sd of the initial policy)")
    axes[-1].legend(fontsize=8, frameon=False)
    return figure


def _proxy(curve: Curve) -> str:
    return f"{curve.meta['backbone']}, {curve.meta['n_pairs']:,} pairs"


def _draw_line(ax: Axes, curves: Sequence[Curve], color: str) -> None:
    """Mean over replicates; bars are 95 % intervals over prompts, or over replicates where several."""
    shown, (first, *_) = curves[0].shown, curves
    same = [c for c in curves if list(c["value"]) == list(first["value"])]
    x = np.mean([tokens_drawn(c) for c in same], axis=0)
    gold = np.stack([c["gold_gain"] for c in same])
    if len(same) > 1:
        half = t_quantile(0.95, len(same) - 1) * gold.std(0, ddof=1) / len(same) ** 0.5
    else:
        half = 1.96 * first["gold_gain_stderr"]
    ax.errorbar(
        x, gold.mean(0), half, color=color, marker=shown.marker, ms=4, lw=1.2, capsize=2,
        label=shown.label,
    )  # fmt: skip
