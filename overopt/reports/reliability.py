"""The reliability diagram of pairs: how often a model is right, by how sure it is."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

_COLOR = "#0072B2"


def diagram(table: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Accuracy against mean confidence of each bin, with intervals, and how many pairs it has.

    table : columns ``low``, ``high``, ``n``, ``confidence``, ``accuracy``, ``ci_low``, ``ci_high``, as
        `overopt.evals.calibration.calibration` gives them. Bins without pairs are not there.
    """
    columns = {name: np.asarray(column, dtype=np.float64) for name, column in table.items()}
    fig = Figure(figsize=(4.6, 5.0), layout="constrained")
    top, below = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0.5, 1], [0.5, 1], color="0.6", lw=1, ls="--", label="calibrated")
    value = columns["accuracy"]
    error = np.array([value - columns["ci_low"], columns["ci_high"] - value]).clip(0)
    top.errorbar(
        columns["confidence"],
        value,
        error,
        color=_COLOR,
        marker="o",
        ms=4,
        lw=1,
        capsize=2,
        label="pairs, 95 % intervals",
    )
    top.set_ylabel("share in which the higher score is better")
    fig.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    top.set_title(title, fontsize=9, loc="left")
    middle, width = (columns["low"] + columns["high"]) / 2, columns["high"] - columns["low"]
    below.bar(middle, columns["n"], width * 0.9, color=_COLOR, alpha=0.5)
    below.set_ylabel("pairs")
    below.set_xlabel("confidence: σ of the difference of scores")
    below.set_xlim(0.49, 1.01)
    for ax in (top, below):
        ax.spines[["top", "right"]].set_visible(False)
    return fig
