"""Ratios of the bench against their references."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

LONGEST_BAR = 10.0
"""Ratio at which a bar of `speed_ratios` is cut off: thousandfold ones would hide the others."""

LOOKS = {
    "implementation": ("#0072B2", "", "another implementation"),
    "limit": ("#E69F00", "//", "the machine's limit"),
    "budget": ("#009E73", "..", "a time budget"),
}
"""Kind of reference -> colour, hatch and words."""


def speed_ratios(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Speed of each benchmark relative to its reference, as bars on a logarithmic axis.

    Right of the line at 1 the package is faster. Targets are black ticks; comparisons with the
    machine's own limit are hatched and cannot pass 1; what was not measured says so, and so does a
    missed target, or one that is reached at the price of a lower proxy score. Bars end at
    `LONGEST_BAR`, with an arrow and the number.

    Parameters
    ----------
    rows : of a report of `overopt bench`, drawn from top to bottom.
    """
    fig = Figure(figsize=(7.2, 0.36 * len(rows) + 1.4), layout="constrained")
    ax = fig.subplots()
    for i, row in enumerate(rows):
        _draw_row(ax, i, row, LOOKS[row["against"]])
    lowest = min([row["ratio"] for row in rows if row["ratio"] is not None] + [1.0])
    ax.set_xscale("log")
    ax.set_xlim(lowest / 3, LONGEST_BAR * 2)
    ticks = [t for t in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if t > lowest / 3]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_xticks([], minor=True)
    ax.axvline(1, color="black", lw=1)
    ax.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("reference time / our time (above 1: faster than the reference)")
    ax.spines[["top", "right"]].set_visible(False)
    drawn = {row["against"] for row in rows if row["ratio"] is not None}
    handles: list[Any] = [
        Patch(facecolor=color, hatch=hatch, edgecolor="white", label=f"against {label}")
        for kind, (color, hatch, label) in LOOKS.items()
        if kind in drawn
    ]
    if any(row["target"] is not None for row in rows):
        handles.append(Line2D([], [], color="black", lw=2, label="target"))
    fig.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return fig


def _draw_row(ax: Axes, place: int, row: Mapping[str, Any], look: tuple[str, str, str]) -> None:
    """Bar, number and target of one row at height ``place``."""
    color, hatch, _ = look
    ratio, target = row["ratio"], row["target"]
    label, end = "not measured", 1.0
    if ratio is not None:
        end = min(ratio, LONGEST_BAR)
        label = f"{ratio:.2f}" if ratio == end else f"→ {ratio:,.0f}"
        if row["met"] is False:
            label += " missed" if ratio < target else ", but at a lower score"
        ax.barh(place, end - 1, left=1, height=0.6, color=color, hatch=hatch, edgecolor="white")
    faster = end >= 1
    # The number stands behind bar and tick, on their side of the line at 1.
    beyond = [end] if target is None or ratio is None or (target >= 1) != faster else [end, target]
    ax.annotate(
        label,
        (max(beyond) if faster else min(beyond), place),
        (4 if faster else -4, 0),
        textcoords="offset points",
        va="center",
        ha="left" if faster else "right",
        fontsize=8,
        style="normal" if ratio is not None else "italic",
    )
    if target is not None:
        ax.plot([target, target], [place - 0.42, place + 0.42], color="black", lw=2)
