"""The figure of cues along optimisation: one panel a cue, one line a curve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from overopt.reports.figures.style import series_styles


def growth_figure(found: Mapping[str, Any]) -> Figure:
    """Mean count of each cue in a response against √KL, with standard errors over prompts.

    found : what `overopt hacks --out` writes.
    """
    cues, curves = found["cues"], found["curves"]
    names = dict.fromkeys(f"{curve['method']}: {curve['series']}" for curve in curves)
    styles = series_styles(list(names))
    columns = min(3, len(cues))
    n_rows = math.ceil(len(cues) / columns)
    fig = Figure(figsize=(3.2 * columns, 2.6 * n_rows + 0.5), layout="constrained")
    panels = fig.subplots(n_rows, columns, squeeze=False).flatten()
    told: set[str] = set()
    for ax, cue in zip(panels, cues, strict=False):
        for curve in curves:
            name = f"{curve['method']}: {curve['series']}"
            style = styles[name]
            d = np.asarray(curve["sqrt_kl"], dtype=float)
            order = np.argsort(d, kind="stable")
            mean, error = (np.asarray(curve["cues"][cue][x])[order] for x in ("mean", "stderr"))
            ax.errorbar(
                d[order],
                mean,
                error,
                color=style.color,
                marker=style.marker,
                ls=style.line,
                ms=3,
                lw=0.9,
                elinewidth=0.7,
                label="" if name in told else name,
            )
            told.add(name)
        ax.set_title(cue, fontsize=9, loc="left")
        ax.set_xlabel("√KL (√nats)")
        ax.set_ylabel("words" if cue == "verbosity" else "a response")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in panels[len(cues) :]:
        ax.remove()
    fig.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=7)
    return fig
