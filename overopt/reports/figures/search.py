"""Search, votes and best-of-n at matched compute: gold against the tokens drawn for one response."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from overopt.fits.linear import half_width
from overopt.records.curves import Curve
from overopt.records.view import ResultsView
from overopt.reports.figures.style import series_styles

PICTURE = "search"
METHOD = "search"
POOLED = ("bon", "majority", "weighted_majority")
"""Methods that draw ``value`` whole responses."""
_DASHES = ("-", "--", ":")


def tokens_drawn(curve: Curve) -> NDArray[np.float64]:
    """Tokens (K,) that the policy writes for one response, thrown away ones included."""
    if curve.meta["method"] == METHOD:
        return curve["drawn_tokens"]
    return curve["value"] * curve["response_tokens"][0]


def draw(results: ResultsView) -> Figure | None:
    """A panel for each proxy that guided a search, means over replicates; None where none did."""
    groups = results.groups
    searched = groups.get(METHOD, {})
    if not searched:
        return None
    names = list(dict.fromkeys(_guide(name, groups) for name in searched))
    figure = Figure(figsize=(4.2 * len(names), 3.6), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    colors = {m: style.color for m, style in series_styles((METHOD, *POOLED)).items()}
    for ax, name in zip(axes, names, strict=True):
        lines = [(METHOD, s) for s in searched if _guide(s, groups) == name]
        lines += [(m, name) for m in POOLED if name in groups.get(m, {})]
        for i, (method, series) in enumerate(lines):
            apart = series.removeprefix(name).strip(", ") if method == METHOD else ""
            _draw_line(
                ax,
                groups[method][series],
                colors[method],
                apart,
                ("-", "--", ":")[i % 3 if method == METHOD else 0],
            )
        ax.set_xscale("log", base=2)
        ax.axhline(0, color="0.85", lw=0.8, zorder=0)
        ax.set_title(name, loc="left", fontsize=9)
        ax.set_xlabel("tokens drawn for one response")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("gold gain (sd of the initial policy)")
    axes[-1].legend(fontsize=8, frameon=False)
    return figure


def _guide(series: str, groups: Mapping[str, Mapping[str, Sequence[Curve]]]) -> str:
    """The series of best-of-n with the same proxy, without what sets searches apart."""
    alike = [name for name in groups.get("bon", {}) if series.startswith(name)]
    return max(alike, key=len, default=series)


def _draw_line(ax: Axes, curves: Sequence[Curve], color: str, apart: str, line: str) -> None:
    """Mean over replicates at the points that all have; bars are 95 % intervals.

    Over replicates where there are several, else over prompts.
    """
    shared = set.intersection(*(set(c["value"].tolist()) for c in curves))
    rows = [np.isin(c["value"], list(shared)) for c in curves]
    x = np.mean([tokens_drawn(c)[at] for c, at in zip(curves, rows, strict=True)], axis=0)
    gold = np.stack([c["gold_gain"][at] for c, at in zip(curves, rows, strict=True)])
    if len(curves) > 1:
        half = half_width(gold)
    else:
        half = 1.96 * curves[0]["gold_gain_stderr"][rows[0]]
    shown = curves[0].shown
    ax.errorbar(
        x, gold.mean(0), half, color=color, marker=shown.marker, ms=4, lw=1.2, capsize=2,
        ls=line, label=", ".join(filter(None, (shown.label, apart))),
    )  # fmt: skip
