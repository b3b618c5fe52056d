"""How the order of proxy sizes depends on the number of comparisons, over the seeds of two experiments.

Experiment 14 foretold that under PPO gold at the end rises with size, on 300 comparisons, and found it
with p = 0.036 over five seeds. Experiment 13 ran the same settings with five other seeds, and again on
1,500 comparisons. Here both are read together: one slope per decade of size for each seed, a t test over
seeds, two-sided. That is a second look at the same question, so its p-values are to be doubled.

    python experiments/size_and_data.py experiments/results/exp014_world \\
        experiments/results/exp013_foretell

prints the slopes and writes ``size_and_data.png`` beside the records of the last one.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from overopt.analysis.peaks import peak_of
from overopt.base import pictures
from overopt.fits.fit import t_quantile
from overopt.fits.pvalues import p_text
from overopt.records.curves import Curve, load_curves
from overopt.reports.figures.style import series_styles
from overopt.reports.text import markdown_table

SHAPES = {"peak_gold": "peak of gold", "end_gold": "gold at the end"}
PLAIN = ("argmax", 0.0, "none")

Found = dict[tuple[str, int], dict[tuple[int, int], dict[str, Any]]]
"""(method, comparisons) -> (seed, parameters) -> what describes the run."""


def found_in(folders: Sequence[str]) -> Found:
    """Plain fine-tuned proxies, of the numbers of comparisons that three sizes have."""
    found: Found = {}
    for curve in (curve for folder in folders for curve in load_curves(folder)):
        meta = curve.meta
        labels = (meta["label_rule"], meta["label_flip_rate"], meta["mitigation"])
        if labels == PLAIN and meta["backbone"].startswith("ladder:"):
            key = meta["data_seed"], meta["n_params"]
            found.setdefault((meta["method"], meta["n_pairs"]), {})[key] = _shape(curve)
    return {key: runs for key, runs in found.items() if len({n for _, n in runs}) > 2}


def _shape(curve: Curve) -> dict[str, Any]:
    return {
        "peak_gold": peak_of(curve)["peak_gold"],
        "end_gold": float(curve.gain("gold")[-1].mean()),
        "label": curve.shown.label,
    }


def slopes(runs: dict, name: str) -> np.ndarray:
    """One slope per decade of size for each seed that has three sizes or more."""
    out = []
    for seed in sorted({seed for seed, _ in runs}):
        of = {n: shape[name] for (s, n), shape in runs.items() if s == seed}
        if len(of) > 2:
            out.append(np.polyfit(np.log10(list(of)), list(of.values()), 1)[0])
    return np.array(out)


def table(found: Found) -> str:
    """Slopes with standard errors over seeds, p-values, and the scatter of ends within a size."""
    rows = []
    for (_, n_pairs), runs in sorted(found.items()):
        label = next(iter(runs.values()))["label"]
        sizes = sorted({n for _, n in runs})
        ends = [np.array([x["end_gold"] for (_, n), x in runs.items() if n == s]) for s in sizes]
        scatter = ", ".join(f"{e.std(ddof=1):.2f}" for e in ends)
        for name, words in SHAPES.items():
            x = slopes(runs, name)
            p = stats.ttest_1samp(x, 0).pvalue
            error = x.std(ddof=1) / len(x) ** 0.5
            cells = [label, f"{n_pairs}", words, f"{len(x)}", f"{x.mean():.2f} ± {error:.2f}"]
            rows.append([*cells, p_text(p), scatter])
    head = ["method", "comparisons", "what", "seeds", "slope per decade", "p", "sd of ends by size"]
    return "\n".join(markdown_table(head, rows))


def picture(found: Found) -> Figure:
    """A row for each method; lines are numbers of comparisons, bars 95 % intervals over seeds."""
    methods = list(dict.fromkeys(method for method, _ in sorted(found)))
    figure = Figure(figsize=(8.5, 3.1 * len(methods)), layout="constrained")
    axes = figure.subplots(len(methods), len(SHAPES), squeeze=False, sharex=True)
    numbers = sorted({n for _, n in found})
    look = list(series_styles(list("abcdefg")).values())[:: 3 if len(numbers) < 3 else 1]
    styles = {f"{n:,} comparisons": style for n, style in zip(numbers, look, strict=False)}
    for row, method in zip(axes, methods, strict=True):
        for ax, (name, words) in zip(row, SHAPES.items(), strict=True):
            for i, n_pairs in enumerate(numbers):
                runs = found.get((method, n_pairs), {})
                sizes = sorted({n for _, n in runs})
                of = [np.array([x[name] for (_, n), x in runs.items() if n == s]) for s in sizes]
                half = [t_quantile(0.95, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5 for x in of]
                label = f"{n_pairs:,} comparisons"
                style = styles[label]
                ax.errorbar(
                    np.array(sizes) * 1.06 ** (i - 0.5), [x.mean() for x in of], half, label=label,
                    color=style.color, marker=style.marker, ms=5, lw=1.3, capsize=2,
                )  # fmt: skip
            first = next(iter(found[method, numbers[0]].values()))
            ax.set_title(f"{first['label']}: {words}", loc="left", fontsize=10)
            ax.axhline(0, color="0.85", lw=0.8, zorder=0)
            ax.set_xscale("log")
            shown = sorted({n for runs in found.values() for _, n in runs})
            ax.set_xticks(shown, [f"{n / 1e6:.2g}M" for n in shown])
            ax.minorticks_off()
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("gold gain (sd of gold)")
    for ax in axes[-1]:
        ax.set_xlabel("parameters of the proxy, embeddings left out")
    axes[0][0].legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    everything = found_in(sys.argv[1:])
    print(table(everything))
    pictures.save_figure(Path(sys.argv[-1]) / "size_and_data.png", picture(everything))
