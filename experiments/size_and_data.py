"""How the order of proxy sizes depends on the number of comparisons, over the seeds of two experiments.

Experiment 14 foretold that under PPO gold at the end rises with size, on 300 comparisons, and did not
show it at p < 0.01 over five seeds. Experiment 13 ran the same settings with five other seeds, and again
on 1,500 comparisons. Here both are read together, with the slopes and tests of `overopt fit`. That is a
second look at the same question: on 300 comparisons p-values are to be doubled.

    python experiments/size_and_data.py experiments/results/exp014_world \\
        experiments/results/exp013_foretell

prints the slopes and writes ``size_and_data.png`` beside the records of the last one. The sizes are
those that all seeds have.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from overopt.analysis.slopes import ShapeSlopes, shape_slopes
from overopt.base import pictures
from overopt.base.seeding import numpy_rng
from overopt.fits.pvalues import p_text
from overopt.records.curves import Curve, load_curves
from overopt.reports.figures.style import series_styles
from overopt.reports.text import markdown_table

SIZES = ("ladder:0.05m[:1]", "ladder:0.2m", "ladder:0.8m")
SHAPES = {"peak": "peak of gold", "end": "gold at the end", "fall": "fall"}
Found = dict[tuple[str, int], ShapeSlopes]
"""(method as legends call it, comparisons) -> slopes along size."""


def found_in(folders: Sequence[str]) -> Found:
    """Slopes of plain fine-tuned proxies by method and comparisons, over seeds that have all sizes."""
    groups: dict[tuple[str, int], list[Curve]] = {}
    for folder in folders:
        for curve in load_curves(folder):
            meta = curve.meta
            if meta["backbone"] in SIZES and meta["label_flip_rate"] == 0:
                groups.setdefault((curve.shown.label, meta["n_pairs"]), []).append(curve)
    found = {}
    for key, curves in sorted(groups.items(), key=lambda item: (not item[1][0].is_bon, item[0])):
        of_seed: dict[int, list[Curve]] = {}
        for curve in curves:
            of_seed.setdefault(curve.meta["data_seed"], []).append(curve)
        whole = [c for same in of_seed.values() if len(same) == len(SIZES) for c in same]
        if whole:
            found[key] = shape_slopes(whole, rng=numpy_rng(0, "size_and_data"))
    return found


def table(found: Found) -> str:
    """Slopes per decade with standard errors, p-values, and the scatter of ends within a size."""
    rows = []
    for (method, n_pairs), of in found.items():
        scatter = ", ".join(f"{at.ends.sd:.2f}" for at in of.at)
        for name, words in SHAPES.items():
            slope = of.slopes[name].slope
            means = ", ".join(f"{at.shape[name].estimate:.2f}" for at in of.at)
            least = p_text(of.at[0].shape[name].p_value) if name == "fall" else ""
            told = [least, f"{slope.estimate:.2f} ± {slope.stderr:.2f}", p_text(slope.p_value)]
            rows.append([method, f"{n_pairs}", words, f"{of.n_seeds}", means, *told, scatter])
    head = [
        "method",
        "comparisons",
        "what",
        "seeds",
        "by size",
        "p of the smallest",
        "slope per decade",
        "p",
        "sd of ends",
    ]
    return "\n".join(markdown_table(head, rows))


def picture(found: Found) -> Figure:
    """A row for each method; lines are numbers of comparisons, bars 95 % intervals of the mean."""
    methods = list(dict.fromkeys(method for method, _ in found))
    shapes = [name for name in SHAPES if name != "fall"]
    figure = Figure(figsize=(8.5, 3.1 * len(methods)), layout="constrained")
    axes = figure.subplots(len(methods), len(shapes), squeeze=False, sharex=True)
    numbers = sorted({n for _, n in found})
    look = list(series_styles(list("abcdefg")).values())[:: 3 if len(numbers) < 3 else 1]
    for (method, n_pairs), of in found.items():
        i = numbers.index(n_pairs)
        sizes = np.array([at.size for at in of.at])
        for ax, name in zip(axes[methods.index(method)], shapes, strict=True):
            shown = [at.shape[name] for at in of.at]
            mean = np.array([x.estimate for x in shown])
            bars = np.abs(np.array([[x.ci.low, x.ci.high] for x in shown]).T - mean)
            ax.errorbar(
                sizes * 1.06 ** (i - 0.5), mean, bars, label=f"{n_pairs:,} comparisons",
                color=look[i].color, marker=look[i].marker, ms=5, lw=1.3, capsize=2,
            )  # fmt: skip
            ax.set_title(f"{method}: {SHAPES[name]}", loc="left", fontsize=10)
            ax.set_xscale("log")
            ax.set_xticks(sizes, [f"{n / 1e6:.2g}M" for n in sizes])
            ax.minorticks_off()
    for ax in axes.flat:
        ax.axhline(0, color="0.85", lw=0.8, zorder=0)
        ax.spines[["top", "right"]].set_visible(False)
    for row in axes:
        row[0].set_ylabel("gold gain (sd of gold)")
    for ax in axes[-1]:
        ax.set_xlabel("parameters of the proxy, embeddings left out")
    axes[0][0].legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    everything = found_in(sys.argv[1:])
    print(table(everything))
    pictures.save_figure(Path(sys.argv[-1]) / "size_and_data.png", picture(everything))
