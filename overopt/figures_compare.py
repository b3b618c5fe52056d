"""Figures of a comparison: gold against √KL by family, and a forest plot of effects. No files.

Functions of curves and of `overopt.leaderboard` standings that return a matplotlib Figure. A panel
holds one family of mitigations, so that no panel has more lines than can be told apart; the
baseline is grey in each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

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
PANELS_A_ROW = 4
LEGEND_PLACES = {"bon": "upper left", "ppo": "lower left"}
SHOWN_P = 0.1
"""Largest p that the forest plot prints."""
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
        same = curves[method]
        ax.set_title(f"{METHOD_NAMES[method]}: {family}", loc="left", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
        ax.axhline(0, color="0.85", lw=0.8, zorder=0)
        ax.axvline(references[method].peak_sqrt_kl, color="0.7", lw=0.9, ls=":", zorder=0)
        _draw_frontier(ax, same[baseline], _BASELINE, band=True)
        styles = {baseline: _BASELINE} | {
            name: replace(style, line=_LINES[i % len(_LINES)])
            for i, (name, style) in enumerate(series_styles(names).items())
        }
        for name in names:
            _draw_frontier(ax, same[name], styles[name])
        handles = [
            Line2D([], [], color=s.color, ls=s.line, marker=s.marker, ms=4, lw=1.3, label=name)
            for name, s in styles.items()
        ]
        ax.legend(handles=handles, frameon=False, fontsize=7.5, loc=LEGEND_PLACES[method])
        ax.set_xlabel(X_LABELS[same[baseline][0].meta["kl_estimator"]], fontsize=8.5)
        ax.set_ylabel("gold gain (sd of gold)", fontsize=8.5)
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
    gains = [float((c.arrays["gold"][-1] - c.arrays["gold"][0]).mean()) for c in curves]
    return float(np.mean([c["sqrt_kl"][-1] for c in curves])), float(np.mean(gains))


def forest(standings: Mapping[str, Sequence[Standing]], *, baseline: str) -> Figure:
    """Effects against the baseline with 95 % intervals; Holm-adjusted p beside those below `SHOWN_P`.

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
