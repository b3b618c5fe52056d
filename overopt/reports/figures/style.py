"""What figures share: how a series looks, and how it is drawn. No files, no torch.

A series looks the same in every figure: colour and marker by the proxy's backbone, gold solid,
proxy dashed. Colours are from the Okabe-Ito palette, which survives colour-blindness;
markers differ as well, which survives grey printing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from overopt.fits.fit import POOR_FIT_P, FitResult
from overopt.records.series import LADDER, MeanSeries

_COLORS = ("#D55E00", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#000000", "#56B4E9")
MARKERS = "osD^vPX"


X_LABELS = {
    "bon_bound": r"$\sqrt{\mathrm{KL}}$ (√nats), KL = log n − (n−1)/n",
    "sampled": r"$\sqrt{\mathrm{KL}}$ (√nats), of votes drawn from the pool",
    "search_bound": r"$\sqrt{\mathrm{KL}}$ (√nats), at most log N + S log M",
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
            MARKERS[i % len(MARKERS)],
            "-" if i < len(_COLORS) else "--",
        )
        for i, name in enumerate(names)
    }


def proxy_styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each proxy: the ladder's have theirs in every figure, others go by order."""
    ladder = series_styles([f"{size} proxy" for size in LADDER])
    return {n: ladder[n] for n in names} if set(names) <= set(ladder) else series_styles(names)


def draw_series(ax: Axes, mean: MeanSeries, style: Style, fit: FitResult | None) -> None:
    """Gold with error bars and the proxy, in gold's unit where that is known; the intent behind a gold
    that is a model; gold's fit where the form describes it.
    """
    proxy = mean.proxy if mean.proxy_in_gold is None else mean.proxy_in_gold
    ax.plot(mean.d, proxy, ls="--", lw=1.1, color=style.color, alpha=0.8)
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
    if mean.intent is not None:
        ax.plot(mean.d, mean.intent, ls="-.", lw=1.1, color=style.color)
    if fit is not None and not fit.p_value < POOR_FIT_P:
        grid = np.linspace(fit.d_min, min(fit.d_max, float(mean.d.max())), 200)
        ax.plot(grid, fit.predict(grid), lw=2.6, color=style.color, alpha=0.3)
