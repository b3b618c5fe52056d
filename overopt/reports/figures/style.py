"""Figures: functions of curves and fits that return a matplotlib Figure. No files, no torch.

A series looks the same in every figure: colour and marker by the proxy's backbone, gold solid,
proxy dashed, rubric dotted. Colours are from the Okabe-Ito palette, which survives colour-blindness;
markers differ as well, which survives grey printing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from overopt.records.series import LADDER

_COLORS = ("#D55E00", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#000000")
MARKERS = "osD^vP"


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
            MARKERS[i % len(MARKERS)],
            "-" if i < len(_COLORS) else "--",
        )
        for i, name in enumerate(names)
    }


def proxy_styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each proxy: the ladder's have theirs in every figure, others go by order."""
    ladder = series_styles([f"{size} proxy" for size in LADDER])
    return {n: ladder[n] for n in names} if set(names) <= set(ladder) else series_styles(names)
