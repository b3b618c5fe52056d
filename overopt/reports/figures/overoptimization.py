"""Gold and proxy against √KL: the picture of Gao et al. 2022, figure 1."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from overopt.fits.fit import POOR_FIT_P, FitResult
from overopt.fits.replicates import ReplicateCurve
from overopt.records.curves import Curve
from overopt.records.series import MeanSeries, average
from overopt.reports.figures.style import X_LABELS, Style, proxy_styles


def overoptimization(
    groups: Mapping[str, Mapping[str, Sequence[Curve]]],
    replicates: Mapping[str, Mapping[str, Sequence[ReplicateCurve]]],
    fits: Mapping[str, Mapping[str, FitResult]],
    tilts: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Figure:
    """Gold and proxy score against √KL, best-of-n in panel a and PPO in panel b.

    Parameters
    ----------
    groups : method ("bon", "ppo") -> series name -> replicate curves.
    replicates : the same keys -> the same curves as the statistics take them.
    tilts : series name -> √KL and gold gain of the exponential tilt of the pool, both (K,), where its
        effective sample size is trusted: the optimum of proxy score at each KL, in both panels.
    fits : the same keys -> fitted form of gold, drawn over the range of the data where the form
        describes it (p of at least `POOR_FIT_P`).
    """
    methods = [m for m in ("bon", "ppo") if groups.get(m)]
    names = list(dict.fromkeys(name for m in methods for name in groups[m]))
    styles = proxy_styles(names)
    fig = Figure(figsize=(5.4 * len(methods), 4.4), layout="constrained")
    axes = np.atleast_1d(fig.subplots(1, len(methods)))
    titles = {"bon": "best-of-n", "ppo": "PPO"}
    for letter, method, ax in zip("ab", methods, axes, strict=False):
        for name, curves in groups[method].items():
            mean = average(curves, replicates[method][name])
            draw_series(ax, mean, styles[name], fits.get(method, {}).get(name))
            if name in tilts:
                ax.plot(*tilts[name], ls=":", lw=2, color=styles[name].color)
        first = next(iter(groups[method].values()))[0]
        ax.set_title(f"({letter}) {titles[method]}", loc="left")
        ax.set_title(proxies_a_size(list(replicates[method].values())), loc="right", fontsize=8.5)
        ax.set_xlabel(X_LABELS[first.meta["kl_estimator"]])
        ax.set_ylabel("score gain over the initial policy (sd)")
        ax.axhline(0, color="0.8", lw=0.8, zorder=0)
        ax.spines[["top", "right"]].set_visible(False)
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=styles[n].color, marker=styles[n].marker, ms=5, label=n) for n in names
    ]
    handles += [
        Line2D([], [], color="0.3", marker="o", ms=4, ls="-", lw=0.6, label="gold ± 1 stderr"),
        Line2D([], [], color="0.3", ls="--", label="proxy"),
        Line2D([], [], color="0.3", ls=":", lw=2, label="gold, exponential tilt of the pool"),
    ]
    if any(
        not fit.p_value < POOR_FIT_P for of_method in fits.values() for fit in of_method.values()
    ):
        label = f"fit to gold (p ≥ {POOR_FIT_P:g})"
        handles.append(Line2D([], [], color="0.3", ls="-", lw=2.4, alpha=0.35, label=label))
    if len(methods) == 2:
        low, high = axes[0].get_ylim()
        axes[1].axhspan(low, high, color="0.93", lw=0, zorder=-1)
        handles.append(Patch(color="0.93", label="height of (a)"))
    columns = len(handles) if len(handles) <= 8 else -(-len(handles) // 2)
    fig.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=7.5, frameon=False
    )
    return fig


def proxies_a_size(replicates: Sequence[Sequence[ReplicateCurve]]) -> str:
    """How many proxies stand behind each series, in words."""
    counts = sorted({len(same) for same in replicates})
    if counts == [1]:
        return "one proxy a size"
    return (
        f"means of {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} proxies a size"
    )


def draw_series(ax: Axes, mean: MeanSeries, style: Style, fit: FitResult | None) -> None:
    ax.plot(mean.d, mean.proxy, ls="--", lw=1.1, color=style.color, alpha=0.8)
    ax.errorbar(
        mean.d,
        mean.gold,
        yerr=mean.gold_stderr,
        color=style.color,
        marker=style.marker,
        ms=4,
        lw=0.6,
        elinewidth=0.8,
        capsize=1.5,
    )
    if fit is not None and not fit.p_value < POOR_FIT_P:
        grid = np.linspace(fit.d_min, min(fit.d_max, float(mean.d.max())), 200)
        ax.plot(grid, fit.predict(grid), lw=2.6, color=style.color, alpha=0.3)
