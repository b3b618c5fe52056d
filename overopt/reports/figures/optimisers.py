"""Methods side by side on the same proxies: gold against √KL, against the proxy, against CPU time."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from overopt.fits.linear import half_width
from overopt.records.curves import BON, Curve
from overopt.records.series import of_shared_data, proxy_names, treatments_of
from overopt.records.view import ResultsView
from overopt.reports.figures.style import Style, series_styles

PICTURE = "optimisers"
ENOUGH = 2
"""Methods that move a policy, on one proxy, for which there is a picture."""
_AXES = (
    "√KL from the initial policy (√nats)",
    "proxy gain (sd of the initial policy)",
    "CPU seconds of the method",
)


def draw(results: ResultsView) -> Figure | None:
    """A row for each proxy, a line for each method; None where no proxy has two that move a policy.

    Lines are means over replicates, point by point as far as all of them reach, with 95 % intervals of
    gold's mean over replicates. CPU time is that of the method's stage, divided evenly over its
    steps, with its evaluations; best-of-n has none, since it trains nothing.
    """
    lines = {
        name: of
        for name, of in lines_of(results.curves).items()
        if len({c[0].meta["method"] for c in of.values()} - {BON}) >= ENOUGH
    }
    if not lines:
        return None
    stages = {(row["run_id"], row["stage"]): row["cpu_s"] for row in results.costs}
    labels = list(dict.fromkeys(label for of in lines.values() for label in of))
    styles = series_styles(labels)
    figure = Figure(figsize=(11.5, 2.9 * len(lines) + 0.5), layout="constrained")
    grid = figure.subplots(len(lines), 3, squeeze=False, sharex="col", sharey=True)
    for axes, (name, of) in zip(grid, lines.items(), strict=True):
        for label, curves in of.items():
            places = (
                _mean(curves, "sqrt_kl"),
                _mean(curves, "proxy_gain"),
                _seconds(curves, stages),
            )
            for ax, x in zip(axes, places, strict=True):
                if x is not None:
                    _draw_line(ax, x, curves, styles[label], label)
        axes[0].set_title(name, loc="left", fontsize=10)
        axes[0].set_ylabel("gold gain (sd of gold)")
    for axes in grid:
        for ax in axes:
            ax.axhline(0, color="0.85", lw=0.8, zorder=0)
            ax.spines[["top", "right"]].set_visible(False)
    for ax, label in zip(grid[-1], _AXES, strict=True):
        ax.set_xlabel(label)
    handles, names = grid[0][0].get_legend_handles_labels()
    replicated = any(len(curves) > 1 for of in lines.values() for curves in of.values())
    title = "bars: 95 % intervals over replicates" if replicated else None
    figure.legend(
        handles, names, loc="outside right upper", frameon=False, fontsize=8,
        title=title, title_fontsize=8,
    )  # fmt: skip
    return figure


def lines_of(curves: Sequence[Curve]) -> dict[str, dict[str, list[Curve]]]:
    """Proxy -> method with its treatment -> replicates; best-of-n first, sizes increasing.

    Best-of-n and methods that move a policy; other choices from a pool, and searches, are left out.
    """
    kept = [c for c in curves if c.is_bon or c.meta["kl_estimator"] == "exact"]
    shared = of_shared_data(kept)
    called, told = proxy_names(shared), treatments_of(shared)
    found: dict[str, dict[str, list[Curve]]] = {}
    order = {m: i for i, m in enumerate(dict.fromkeys(c.meta["method"] for c in shared))}
    for curve in sorted(
        shared, key=lambda c: (c.meta["n_params"], not c.is_bon, order[c.meta["method"]])
    ):
        meta = curve.meta
        label = ", ".join([curve.shown.label, *told[meta["run_id"]]])
        found.setdefault(called[meta["backbone"]], {}).setdefault(label, []).append(curve)
    return found


def _mean(curves: Sequence[Curve], column: str) -> NDArray[np.float64]:
    """Mean of a column (K,) over replicates, point by point as far as all of them reach."""
    n = min(len(c.rows) for c in curves)
    return np.mean([c[column][:n] for c in curves], axis=0)


def _seconds(
    curves: Sequence[Curve], stages: dict[tuple[str, str], float]
) -> NDArray[np.float64] | None:
    """Mean CPU seconds (K,) until each point; None for best-of-n, and where they are not known."""
    method = curves[0].meta["method"]
    spent = [stages.get((c.meta["run_id"], method), np.nan) for c in curves]
    if method == BON or not np.isfinite(spent).all():
        return None
    n = min(len(c.rows) for c in curves)
    shares = [c["value"][:n] / c["value"].max() for c in curves]
    return np.mean([s * x for s, x in zip(spent, shares, strict=True)], axis=0)


def _draw_line(
    ax: Axes, x: NDArray[np.float64], curves: Sequence[Curve], style: Style, label: str
) -> None:
    """Mean gold gain over replicates at the places x (K,); intervals where there are several."""
    gold = np.stack([c["gold_gain"][: len(x)] for c in curves])
    half = None
    if len(gold) > 1:
        half = half_width(gold)
    ax.errorbar(
        x, gold.mean(0), half, color=style.color, marker=style.marker, ls=style.line, ms=3.5, lw=1.2,
        elinewidth=0.7, capsize=1.5, label=label,
    )  # fmt: skip
