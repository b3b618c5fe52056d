"""Effects of mitigations against the baseline, with intervals."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from overopt.analysis.effects import CI_LEVEL
from overopt.analysis.leaderboard import Standing
from overopt.fits.pvalues import p_text
from overopt.reports.figures.style import Style, series_styles

FOREST_METRICS = {
    "gold_end": "gold at the end",
    "gold_peak": "gold at own peak",
    "gold_2x": "gold at 2× baseline's peak √KL",
    "rubric_end": "rubric at the end",
}


SHOWN_P = 0.1
"""Largest p that the forest plot prints."""


def forest(
    standings: Mapping[str, Sequence[Standing]], labels: Mapping[str, str], *, baseline: str
) -> Figure:
    """Effects against the baseline with 95 % intervals; Holm-adjusted p beside those below `SHOWN_P`.

    Parameters
    ----------
    standings : method -> standings; rows are in their order.
    labels : method -> what a reader calls it.
    baseline : left out: it is the line at 0.

    Notes
    -----
    A filled marker: p below 0.05 after Holm's correction over the mitigations of its panel. Under each
    name its cost: reward-model calls and CPU time of a run, in multiples of the baseline's.
    """
    shown = {m: [s for s in same if s.mitigation != baseline] for m, same in standings.items()}
    heights = [0.9 + 0.34 * len(same) for same in shown.values()]
    width = 2.9 * len(FOREST_METRICS) + 1.4
    fig = Figure(figsize=(width, sum(heights) + 0.5), layout="constrained")
    axes = np.reshape(
        fig.subplots(len(shown), len(FOREST_METRICS), height_ratios=heights), (len(shown), -1)
    )
    families = list(dict.fromkeys(s.family for same in shown.values() for s in same))
    styles = series_styles(families)
    for row, (method, same) in zip(axes, shown.items(), strict=True):
        for ax, (metric, label) in zip(row, FOREST_METRICS.items(), strict=True):
            _draw_effects(ax, same, metric, styles)
            ax.set_title(f"{labels[method]}: {label}", loc="left", fontsize=8.5)
            names = [""] * len(same)
            if ax is row[0]:
                base = next((s for s in standings[method] if s.mitigation == baseline), None)
                names = [s.mitigation + _relative_cost(s, base) for s in same]
            ax.set_yticks(range(len(same)), names, fontsize=7.5)
            ax.set_ylim(len(same) - 0.4, -0.6)
        row[0].figure.align_ylabels(row)
    for ax in axes[-1]:
        ax.set_xlabel(f"difference from {baseline} (sd)", fontsize=8.5)
    n_seeds = sorted({s.n_seeds for same in shown.values() for s in same})
    fig.suptitle(
        f"95 % intervals over {' or '.join(map(str, n_seeds))} seeds and prompts; filled: p < 0.05"
        f" after Holm; p is printed where at most {SHOWN_P:g}",
        fontsize=9,
    )
    handles = [
        Line2D([], [], color=style.color, marker=style.marker, ms=5, label=family)
        for family, style in styles.items()
    ]
    fig.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        fontsize=8,
        frameon=False,
    )
    return fig


def _relative_cost(standing: Standing, base: Standing | None) -> str:
    """A second line for the name: calls and CPU time over those of the baseline, where known."""
    if base is None:
        return ""
    parts = []
    for cost, unit in (("rm_calls", "calls"), ("cpu_s", "CPU")):
        ratio = standing.costs[cost] / base.costs[cost] if base.costs[cost] else math.nan
        if not math.isnan(ratio):
            parts.append(f"{ratio:.2g}× {unit}")
    return "\n" + ", ".join(parts)


def _draw_effects(
    ax: Axes, standings: Sequence[Standing], metric: str, styles: Mapping[str, Style]
) -> None:
    ax.axvline(0, color="0.6", lw=0.9, zorder=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=8)
    for y, standing in enumerate(standings):
        effect, style = standing.effects[metric], styles[standing.family]
        if math.isnan(effect.difference):
            ax.text(0, y, " no estimate", va="center", fontsize=7, color="0.5")
            continue
        ax.plot([effect.ci_low, effect.ci_high], [y, y], color=style.color, lw=1.6)
        ax.plot(
            effect.difference,
            y,
            marker=style.marker,
            ms=5.5,
            color=style.color,
            mfc=style.color if effect.p_holm < 1 - CI_LEVEL else "white",
        )
        if effect.p_holm > SHOWN_P:
            continue
        ax.annotate(
            p_text(effect.p_holm),
            (1.0, y),
            xycoords=("axes fraction", "data"),
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
            ha="left",
            fontsize=7,
            color="0.35",
        )
