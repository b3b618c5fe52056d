"""Figures: functions of curves and fits that return a matplotlib Figure. No files, no torch.

A series looks the same in every figure: colour and marker by the proxy's backbone, gold solid,
proxy dashed, rubric dotted. Colours are from the Okabe-Ito palette, which survives colour-blindness;
markers differ as well, which survives grey printing.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from overopt.fits.fit import POOR_FIT_P, FitResult
from overopt.fits.replicates import ReplicateCurve, mean_curve
from overopt.fits.scaling import ScalingFit, ScalingPoint
from overopt.records import Curve

_COLORS = ("#D55E00", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#000000")
_MARKERS = "osD^vP"
_LADDER = ("0.056M", "0.2M", "0.8M", "2M", "3M", "6M")
X_LABELS = {
    "bon_bound": r"$\sqrt{\mathrm{KL}}$ (√nats), KL = log n − (n−1)/n",
    "exact": r"$\sqrt{\mathrm{KL}}$ (√nats), exact KL($\pi\Vert\pi_\mathrm{init}$)",
}


@dataclass(frozen=True)
class Style:
    """Colour, marker and line of a series; where colours come round again, lines are dashed."""

    color: str
    marker: str
    line: str | tuple[int, tuple[int, ...]] = "-"


def series_styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each name, in the order given."""
    return {
        name: Style(
            _COLORS[i % len(_COLORS)],
            _MARKERS[i % len(_MARKERS)],
            "-" if i < len(_COLORS) else "--",
        )
        for i, name in enumerate(names)
    }


def proxy_styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each proxy: the ladder's have theirs in every figure, others go by order."""
    ladder = series_styles([f"{size} proxy" for size in _LADDER])
    return {n: ladder[n] for n in names} if set(names) <= set(ladder) else series_styles(names)


def size_name(n_params: float) -> str:
    """Parameters in millions: 0.056M, 3M, 106M."""
    millions = n_params / 1e6
    return f"{millions:.2g}M" if millions < 10 else f"{millions:.0f}M"


def series_name(curve: Curve) -> str:
    """What the legend calls a curve: its proxy's size."""
    is_gold = curve.meta["backbone"] == "gold"
    return "gold as proxy" if is_gold else f"{size_name(curve.meta['n_params'])} proxy"


@dataclass(frozen=True)
class MeanSeries:
    """Curves of one series averaged over seeds, with the standard error over prompts and seeds."""

    d: np.ndarray
    gold: np.ndarray
    gold_stderr: np.ndarray
    proxy: np.ndarray


def average(curves: Sequence[Curve], replicates: Sequence[ReplicateCurve]) -> MeanSeries:
    """Mean of the replicate curves; ``replicates`` are the same curves as `fits` takes them.

    Prompts are shared between replicates, so their error does not average out over seeds:
    `overopt.fits.replicates.mean_curve` accounts for both.
    """
    mean = mean_curve(replicates)
    proxy = np.stack([c["proxy_gain"] for c in curves]).mean(0)
    return MeanSeries(mean.sqrt_kl, mean.gold, mean.sigma, proxy)


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
            _draw_series(ax, mean, styles[name], fits.get(method, {}).get(name))
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


def _draw_series(ax: Axes, mean: MeanSeries, style: Style, fit: FitResult | None) -> None:
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


FEWEST_FOR_MEAN = 4
"""Replicates from which `size_and_peak` shows means: the spread of three says little."""


def size_and_peak(peaks: Mapping[str, Sequence[tuple[float, float, float]]]) -> Figure:
    """Peak gold against proxy size; a point per replicate, with its standard error over prompts.

    With `FEWEST_FOR_MEAN` replicates of every size and more, points are faint and without bars, and
    a line joins their means, with standard errors over replicates.

    Parameters
    ----------
    peaks : method -> (n_params, peak gold, stderr) of each run.
    """
    fig = Figure(figsize=(5.2, 3.8), layout="constrained")
    ax = fig.subplots()
    styles = {"bon": Style("black", "o"), "ppo": Style("0.5", "s")}  # colours are for sizes
    for method, points in peaks.items():
        style = styles[method]
        n, peak, err = (np.array(x) for x in zip(*points, strict=True))
        shift = 1.0 if method == "bon" else 1.06
        marker: dict[str, Any] = {
            "marker": style.marker,
            "ms": 5,
            "color": style.color,
            "capsize": 2,
        }
        of_size = {size: peak[n == size] for size in np.unique(n)}
        label = {"bon": "best-of-n", "ppo": "PPO"}[method]
        if min(map(len, of_size.values())) >= FEWEST_FOR_MEAN:
            ax.plot(n * shift, peak, style.marker, ms=4, color=style.color, alpha=0.3, mew=0)
            n = np.array(list(of_size))
            peak = np.array([p.mean() for p in of_size.values()])
            err = np.array([p.std(ddof=1) / len(p) ** 0.5 for p in of_size.values()])
            ax.errorbar(n * shift, peak, yerr=err, lw=1, label=f"{label}, mean of seeds", **marker)
        else:
            ax.errorbar(n * shift, peak, yerr=err, ls="none", label=label, **marker)
    sizes = sorted({point[0] for points in peaks.values() for point in points})
    ax.set_xscale("log")
    ax.set_xticks(sizes, [size_name(n) for n in sizes])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("proxy size (non-embedding parameters)")
    ax.set_ylabel("peak gold gain (sd of gold) ± 1 stderr")
    fig.legend(*ax.get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=2)
    ax.spines[["top", "right"]].set_visible(False)
    return fig


def coefficients(points: Sequence[ScalingPoint], line: ScalingFit) -> Figure:
    """α and β of best-of-n against proxy size, and their lines in log parameters with intervals."""
    fig = Figure(figsize=(8.4, 3.6), layout="constrained")
    styles = proxy_styles([p.label for p in points])
    sizes = [p.n_params for p in points]
    grid = np.geomspace(min(sizes) / 1.3, max(sizes) * 1.3, 100)
    for letter, name, ax in zip("ab", ("alpha", "beta"), fig.subplots(1, 2), strict=True):
        value, low, high = line.band(name, grid)
        ax.fill_between(grid, low, high, color="0.9", lw=0)
        ax.plot(grid, value, color="0.5", lw=1)
        for point in points:
            style = styles[point.label]
            ax.errorbar(
                point.n_params,
                point.fit.params[name],
                point.fit.stderr[name],
                color=style.color,
                marker=style.marker,
                capsize=2,
            )
        ax.set_title(f"({letter}) {name}", loc="left")
        ax.set_xscale("log")
        ax.set_xticks(sizes, [size_name(n) for n in sizes], fontsize=8)
        ax.set_xticks([], minor=True)
        ax.set_xlabel("proxy size (non-embedding parameters)")
        ax.set_ylabel(f"{name} ± 1 stderr (sd of gold per {'√nat' if name == 'alpha' else 'nat'})")
        ax.spines[["top", "right"]].set_visible(False)
    fig.suptitle(
        "best-of-n: gold = d (α − β d), d = √KL; line in log parameters, "
        f"{line.ci_level:.0%} band, p = {line.p_value:.2g}",
        fontsize=9,
    )
    return fig


def data_sizes(
    sweeps: Mapping[str, Mapping[int, Sequence[Curve]]],
    replicates: Mapping[str, Mapping[int, Sequence[ReplicateCurve]]],
    peaks: Mapping[str, Sequence[tuple[int, float, float]]],
    largest_n: int,
) -> Figure:
    """Best-of-n by data size: a panel of curves for each proxy size, and the peaks of all.

    Parameters
    ----------
    sweeps : series name -> comparisons -> replicate curves, both increasing.
    replicates : the same keys -> the same curves as the statistics take them.
    peaks : series name -> (comparisons, mean peak gold over replicates, its standard error over
        them, nan for a single one).
    largest_n : of the range over which peaks are taken.
    """
    n_panels = len(sweeps) + 1
    n_columns = 2 if n_panels in (2, 4) else 3
    n_rows = -(-n_panels // n_columns)
    fig = Figure(figsize=(4.2 * n_columns, 3.4 * n_rows + 0.4), layout="constrained")
    axes = list(np.reshape(fig.subplots(n_rows, n_columns), -1))
    for ax in axes[n_panels:]:
        ax.set_axis_off()
    axes = axes[:n_panels]
    sizes = sorted({n for sweep in sweeps.values() for n in sweep})
    shades = colormaps["viridis_r"](np.linspace(0.15, 1.0, len(sizes)))
    styles = {
        n: Style(to_hex(shade), marker)
        for n, shade, marker in zip(sizes, shades, itertools.cycle(_MARKERS), strict=False)
    }
    for letter, (name, sweep), ax in zip("abcdefgh", sweeps.items(), axes, strict=False):
        for n_pairs, curves in sweep.items():
            _draw_series(ax, average(curves, replicates[name][n_pairs]), styles[n_pairs], None)
        ax.set_title(f"({letter}) best-of-n, {name}", loc="left", fontsize=10)
        ax.set_xlabel(X_LABELS["bon_bound"], fontsize=9)
        ax.axhline(0, color="0.8", lw=0.8, zorder=0)
        ax.set_ylabel("score gain (sd)")
    last = axes[-1]
    limits = [y for ax in axes[:-1] for y in ax.get_ylim()]
    for ax in axes[:-1]:
        ax.set_ylim(min(limits), max(limits))
    for (name, points), style in zip(
        peaks.items(), proxy_styles(list(peaks)).values(), strict=True
    ):
        n, peak, err = (np.array(x) for x in zip(*points, strict=True))
        last.errorbar(
            n, peak, yerr=err, color=style.color, marker=style.marker, ms=5, capsize=2, label=name
        )
    last.set_xscale("log")
    last.set_xticks(sizes, [f"{n:,}" for n in sizes], fontsize=8)
    last.set_xticks([], minor=True)
    last.set_xlabel("comparisons the proxy was trained on")
    last.set_ylabel("peak gold gain (sd) ± 1 stderr over seeds")
    title = f"({'abcdefgh'[len(sweeps) % 8]}) peaks up to n = {largest_n:,}"
    last.set_title(title, loc="left", fontsize=10)
    last.legend(frameon=False, fontsize=8)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=s.color, marker=s.marker, ms=5, label=f"{n:,} comparisons")
        for n, s in styles.items()
    ]
    handles += [
        Line2D([], [], color="0.3", marker="o", ms=4, lw=0.6, label="gold ± 1 stderr"),
        Line2D([], [], color="0.3", ls="--", label="proxy"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return fig


LONGEST_BAR = 10.0
"""Ratio at which a bar of `speed_ratios` is cut off: thousandfold ones would hide the others."""


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
    looks = {
        "implementation": ("#0072B2", "", "another implementation"),
        "limit": ("#E69F00", "//", "the machine's limit"),
        "budget": ("#009E73", "..", "a time budget"),
    }
    for i, row in enumerate(rows):
        color, hatch, _ = looks[row["against"]]
        ratio, target = row["ratio"], row["target"]
        label, end = "not measured", 1.0
        if ratio is not None:
            end = min(ratio, LONGEST_BAR)
            label = f"{ratio:.2f}" if ratio == end else f"→ {ratio:,.0f}"
            if row["met"] is False:
                label += " missed" if ratio < target else ", but at a lower score"
            ax.barh(i, end - 1, left=1, height=0.6, color=color, hatch=hatch, edgecolor="white")
        faster = end >= 1
        # The number stands behind bar and tick, on their side of the line at 1.
        beyond = (
            [end] if target is None or ratio is None or (target >= 1) != faster else [end, target]
        )
        ax.annotate(
            label,
            (max(beyond) if faster else min(beyond), i),
            (4 if faster else -4, 0),
            textcoords="offset points",
            va="center",
            ha="left" if faster else "right",
            fontsize=8,
            style="normal" if ratio is not None else "italic",
        )
        if target is not None:
            ax.plot([target, target], [i - 0.42, i + 0.42], color="black", lw=2)
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
        for kind, (color, hatch, label) in looks.items()
        if kind in drawn
    ]
    if any(row["target"] is not None for row in rows):
        handles.append(Line2D([], [], color="black", lw=2, label="target"))
    fig.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return fig
