"""The figure of cues along optimisation: one panel a cue, one line a method and proxy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from overopt.fits.linear import half_width
from overopt.reports.figures.style import series_styles

Array = NDArray[np.float64]


class Line(NamedTuple):
    """√KL, mean count and error bar of a line, (K,) each."""

    sqrt_kl: Array
    mean: Array
    error: Array


def growth_figure(found: Mapping[str, Any]) -> Figure:
    """Mean count of each cue in a response against √KL.

    Replicates of one proxy are averaged point by point as far as all of them reach, with 95 %
    intervals over them; a proxy without replicates has standard errors over prompts.

    found : what `overopt hacks --out` writes.
    """
    cues = found["cues"]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for curve in found["curves"]:
        lines.setdefault(f"{curve['method']}: {curve['series']}", []).append(curve)
    styles = series_styles(list(lines))
    columns = min(3, len(cues))
    n_rows = math.ceil(len(cues) / columns)
    height = max(2.6 * n_rows + 0.3, 0.15 * len(lines) + 0.5)
    fig = Figure(figsize=(3.0 * columns + 3.5, height), layout="constrained")
    panels = fig.subplots(n_rows, columns, squeeze=False).flatten()
    for ax, cue in zip(panels, cues, strict=False):
        for name, replicates in lines.items():
            style, (d, mean, error) = styles[name], line_of(replicates, cue)
            ax.errorbar(
                d, mean, error, color=style.color, marker=style.marker, ls=style.line,
                ms=3, lw=0.9, elinewidth=0.7, label=name,
            )  # fmt: skip
        ax.set_title(cue, fontsize=9, loc="left")
        ax.set_xlabel("√KL (√nats)")
        ax.set_ylabel("words a response" if cue == "verbosity" else "cues a response")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in panels[len(cues) :]:
        ax.remove()
    several = any(len(replicates) > 1 for replicates in lines.values())
    title = "bars: 95 % intervals over replicates" if several else "bars: standard errors"
    handles, names = panels[0].get_legend_handles_labels()
    fig.legend(
        handles, names, loc="outside right upper", frameon=False, fontsize=7,
        title=title, title_fontsize=7,
    )  # fmt: skip
    return fig


def line_of(replicates: Sequence[Mapping[str, Any]], cue: str) -> Line:
    """One line of replicates, in the order of √KL."""
    n = min(len(curve["sqrt_kl"]) for curve in replicates)
    d = np.mean([curve["sqrt_kl"][:n] for curve in replicates], axis=0)
    counted = np.array([curve["cues"][cue]["mean"][:n] for curve in replicates])
    error = np.array(replicates[0]["cues"][cue]["stderr"][:n])
    if len(replicates) > 1:
        error = np.array([half_width(column) for column in counted.T])
    order = np.argsort(d, kind="stable")
    return Line(d[order], counted.mean(0)[order], error[order])
