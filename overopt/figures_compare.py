"""Figures of a comparison: gold against √KL by family, and a forest plot of effects. No files.

Functions of curves and of `overopt.leaderboard` standings that return a matplotlib Figure. A panel
holds one family of mitigations, so that no panel has more lines than can be told apart; the
baseline is grey in each.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from overopt.figures import X_LABELS, Style, series_styles
from overopt.fits.fit import t_quantile
from overopt.fits.replicates import crossed_mean
from overopt.leaderboard import CI_LEVEL, Reference, Standing, gold_at
from overopt.records import Curve

METHOD_NAMES = {"bon": "best-of-n", "ppo": "PPO"}
FOREST_METRICS = {
    "area": "gold, mean over √KL",
    "gold_peak": "gold at own peak",
    "gold_2x": "gold at 2× baseline's peak √KL",
    "rubric_end": "rubric at the end",
}
GRID_POINTS = 60
_BASELINE = Style("0.55", "")


def frontier(
    curves: Mapping[str, Mapping[str, Sequence[Curve]]],
    families: Mapping[str, str],
    references: Mapping[str, Reference],
    *,
    baseline: str,
) -> Figure:
    """Mean gold gain against √KL with 95 % bands over seeds and prompts: methods × families.

    Parameters
    ----------
    curves : method -> mitigation -> test curves, one a seed.
    families : mitigation -> family.
    references : method -> where the tuning runs of the baseline peak (dotted).
    baseline : the mitigation drawn in grey in every panel.

    Notes
    -----
    A line ends where the first of its runs ends: beyond, seeds would be mixed with carried values.
    """
    columns = list(dict.fromkeys(families[n] for m in curves.values() for n in m if n != baseline))
    fig = Figure(figsize=(3.6 * len(columns) + 0.6, 3.5 * len(curves)), layout="constrained")
    axes = np.reshape(fig.subplots(len(curves), len(columns), sharey="row"), (len(curves), -1))
    for row, (method, same) in zip(axes, curves.items(), strict=True):
        for ax, family in zip(row, columns, strict=True):
            names = [n for n in same if families[n] == family and n != baseline]
            if not names:  # a family that means nothing to this method
                ax.set_axis_off()
                continue
            ax.set_title(f"{METHOD_NAMES[method]}: {family}", loc="left", fontsize=10)
            ax.spines[["top", "right"]].set_visible(False)
            ax.axhline(0, color="0.85", lw=0.8, zorder=0)
            ax.axvline(references[method].peak_sqrt_kl, color="0.7", lw=0.9, ls=":", zorder=0)
            _draw_frontier(ax, same[baseline], _BASELINE)
            styles = series_styles(names)
            for name in names:
                _draw_frontier(ax, same[name], styles[name])
            handles = [Line2D([], [], color=_BASELINE.color, lw=2, label=baseline)]
            handles += [
                Line2D([], [], color=style.color, ls=style.line, lw=1.6, label=name)
                for name, style in styles.items()
            ]
            ax.legend(handles=handles, frameon=False, fontsize=7.5, loc="best")
            ax.set_xlabel(X_LABELS[same[baseline][0].meta["kl_estimator"]], fontsize=8.5)
        row[0].set_ylabel("gold gain (sd of gold)")
    return fig


def _draw_frontier(ax: Axes, curves: Sequence[Curve], style: Style) -> None:
    """Mean over seeds and prompts, with its t band, up to the shortest run's reach."""
    reach = min(float(curve["sqrt_kl"].max()) for curve in curves)
    grid = np.linspace(0.0, reach, GRID_POINTS)
    mean = crossed_mean(np.stack([gold_at(curve, grid).T for curve in curves]))
    stderr = np.sqrt(np.maximum(np.diag(mean.covar), 0.0))
    half = stderr * [t_quantile(CI_LEVEL, mean.dof(c)) for c in np.eye(len(grid))]
    ax.fill_between(
        grid, mean.estimate - half, mean.estimate + half, color=style.color, alpha=0.15, lw=0
    )
    ax.plot(grid, mean.estimate, color=style.color, ls=style.line, lw=1.6)


def forest(standings: Mapping[str, Sequence[Standing]], *, baseline: str) -> Figure:
    """Effects against the baseline with 95 % intervals; Holm-adjusted p beside each.

    Parameters
    ----------
    standings : method -> standings; rows are in their order.
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
            ax.set_title(f"{METHOD_NAMES[method]}: {label}", loc="left", fontsize=8.5)
            names = [""] * len(same)
            if ax is row[0]:
                base = next((s for s in standings[method] if s.mitigation == baseline), None)
                names = [s.mitigation + _relative_cost(s, base) for s in same]
            ax.set_yticks(range(len(same)), names, fontsize=7.5)
            ax.set_ylim(len(same) - 0.4, -0.6)
        row[0].figure.align_ylabels(row)
    for ax in axes[-1]:
        ax.set_xlabel(f"difference from {baseline} (sd)", fontsize=8.5)
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
        ax.annotate(
            _p_text(effect.p_holm),
            (1.0, y),
            xycoords=("axes fraction", "data"),
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
            ha="left",
            fontsize=7,
            color="0.35",
        )


def _p_text(p: float) -> str:
    if math.isnan(p):
        return "p –"
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")
