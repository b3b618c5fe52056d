"""Do larger policies overoptimize less? Gao et al. 2022, section 3.4 and figure 7.

Three initial policies, 0.2M, 0.8M and 3M parameters, against the same proxies of 0.028M and 0.8M, which
were trained on 300 comparisons of the 0.8M policy's responses; gold, its zero and its unit are the same
for all. Best-of-n to n = 2,048 and PPO to √KL 8, five seeds, each a replicate of comparisons, proxy and
PPO. No policy is the trunk of a proxy here, and none is the language model that judges coherence.

In the paper a larger policy starts higher, gains less from the same reward model, peaks at almost the
same KL, and has almost the same gap between proxy and gold.

Predictions, written before any of these runs; slopes are per decade of the policy's parameters, over
seeds and prompts, with the tests of `overopt fit`:

1. A larger policy starts higher: gold of its own responses rises by 0.2 or more per decade.
2. It gains less: the peak under PPO falls with policy size (slope below 0, p < 0.05) against both
   proxies; so does gold at n = 2,048 against the 0.8M proxy.
3. Under PPO the √KL of the peak does not depend on policy size: the 95 % interval of the slope holds 0,
   against both proxies.
4. Nor does the gap at the end, promised gold minus gold: the 95 % interval of its slope holds 0.
5. Best-of-n against the 0.028M proxy ends lower for a larger policy too, but p > 0.05.

Cost: about 40 minutes of CPU time. In two minutes, to see that it works:

    overopt run experiments/exp015_policy_sizes.py --part 1/15 labels.n_pairs=60 bon.n_prompts=4 \\
        bon.pool_size=16 bon.ns=1,4,16 method.steps=2 method.batch=16 method.eval_prompts=4 \\
        --results results/exp015_smoke

In full, and then the slopes and the picture:

    overopt run experiments/exp015_policy_sizes.py --results experiments/results/exp015_policy_sizes
    python experiments/exp015_policy_sizes.py experiments/results/exp015_policy_sizes
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from overopt.analysis.slopes import SHAPE, ShapeSlopes, shape_slopes
from overopt.base import pictures
from overopt.base.seeding import numpy_rng
from overopt.fits.linear import half_width
from overopt.fits.pvalues import p_text
from overopt.fits.trend import Trend, trend
from overopt.records.curves import Curve, load_curves
from overopt.records.series import promised_gain, series_name, size_name
from overopt.reports.figures.style import series_styles
from overopt.reports.text import markdown_table
from overopt.stages.settings import Experiment
from overopt.study.presets import LARGE, SMALLEST, figure_run

SEEDS = (13, 14, 15, 16, 17)
POLICIES = ("ladder:0.2m", "", "ladder:3m")
"""The second is the world's own, of 0.8M parameters, which wrote the comparisons."""
Sweep = list[Curve]
"""Curves of one method against one proxy, all policies and seeds."""


def build() -> Experiment:
    """The runs in the order of seeds."""
    runs = [
        replace(figure_run(size, seed), start_policy=policy)
        for seed in SEEDS
        for size in (SMALLEST, LARGE)
        for policy in POLICIES
    ]
    return Experiment(
        name="exp015_policy_sizes", runs=tuple(runs), description="policies × proxies × seeds"
    )


def sweeps(folder: Path) -> dict[tuple[str, str], Sweep]:
    """(method, proxy) -> its curves, small policies first."""
    found: dict[tuple[str, str], Sweep] = {}
    for curve in sorted(load_curves(folder), key=lambda c: (not c.is_bon, c.meta["n_params"])):
        found.setdefault((curve.shown.label, series_name(curve)), []).append(curve)
    return found


def of_policies(curves: Sweep) -> dict[int, list[Curve]]:
    """Parameters of the policy -> its curves in the order of seeds."""
    found: dict[int, list[Curve]] = {}
    for curve in sorted(curves, key=lambda c: (c.meta["policy_params"], c.meta["data_seed"])):
        found.setdefault(curve.meta["policy_params"], []).append(curve)
    return found


def slope_of(curves: Sweep, values: dict[int, np.ndarray]) -> Trend:
    """Slope per decade of policy size of values (seeds, prompts or 1) by policy."""
    seeds = [[c.meta["data_seed"] for c in same] for same in of_policies(curves).values()]
    rng = numpy_rng(0, "policy sizes")
    return trend(np.log10(list(values)), list(values.values()), seeds, rng=rng)


def starts(curves: Sweep) -> dict[int, np.ndarray]:
    """Gold (seeds, prompts) of each policy before it is optimised, in sd of gold."""
    return {
        n: np.stack([c.arrays["gold"][0] for c in same]) for n, same in of_policies(curves).items()
    }


def gaps(curves: Sweep) -> dict[int, np.ndarray]:
    """Gold that the proxy promises minus the gain in gold (seeds, 1), at the end."""
    found = {}
    for n, same in of_policies(curves).items():
        ends = []
        for curve in same:
            promised = promised_gain(curve)
            if promised is None:
                raise SystemExit(
                    "these records do not say what a unit of the proxy is worth in gold"
                )
            ends.append(promised[-1] - curve["gold_gain"][-1])
        found[n] = np.array(ends)[:, None]
    return found


def rows_of(method: str, proxy: str, curves: Sweep) -> list[list[str]]:
    """A row for each quantity: its mean by policy, and its slope."""
    rows = []
    shapes: ShapeSlopes = shape_slopes(
        curves, "policy_params", rng=numpy_rng(0, "policy sizes"), n_permutations=999
    )
    told = {"gold at the start": starts, "promised minus gold at the end": gaps}
    for name, words in SHAPE.items():
        means = [f"{at.shape[name].estimate:.2f}" for at in shapes.at]
        rows.append([method, proxy, words, *means, *_slope(shapes.slopes[name])])
    for words, measured in told.items():
        values = measured(curves)
        means = [f"{value.mean():.2f}" for value in values.values()]
        rows.append([method, proxy, words, *means, *_slope(slope_of(curves, values))])
    return rows


def _slope(found: Trend) -> list[str]:
    slope = found.slope
    return [
        f"{slope.estimate:.2f} [{slope.ci.low:.2f}, {slope.ci.high:.2f}]",
        p_text(slope.p_value),
    ]


def table(found: dict[tuple[str, str], Sweep]) -> str:
    """All slopes, as markdown."""
    rows = [row for (method, proxy), same in found.items() for row in rows_of(method, proxy, same)]
    sizes = [size_name(n) for n in of_policies(next(iter(found.values())))]
    head = ["method", "proxy", "what", *(f"{size} policy" for size in sizes)]
    return "\n".join(markdown_table([*head, "slope per decade [95 %]", "p"], rows))


def picture(found: dict[tuple[str, str], Sweep]) -> Figure:
    """Gold against √KL, a panel for each method and proxy; bands are 95 % intervals over seeds."""
    methods = list(dict.fromkeys(method for method, _ in found))
    proxies = list(dict.fromkeys(proxy for _, proxy in found))
    figure = Figure(figsize=(8.5, 3.2 * len(methods)), layout="constrained")
    grid = figure.subplots(len(methods), len(proxies), squeeze=False, sharey="row", sharex="row")
    for (method, proxy), curves in found.items():
        ax = grid[methods.index(method)][proxies.index(proxy)]
        policies = of_policies(curves)
        looks = series_styles([size_name(n) for n in policies])
        for n, same in policies.items():
            look = looks[size_name(n)]
            length = min(len(c["sqrt_kl"]) for c in same)
            x = np.mean([c["sqrt_kl"][:length] for c in same], axis=0)
            gold = np.array([c["gold_score"][:length] for c in same])
            mean, half = gold.mean(0), [half_width(column) for column in gold.T]
            ax.plot(x, mean, color=look.color, lw=1.4, label=f"{size_name(n)} policy")
            ax.fill_between(x, mean - half, mean + half, color=look.color, alpha=0.15, lw=0)
            ax.plot(x[mean.argmax()], mean.max(), "*", color=look.color, ms=11, mec="white")
        ax.set_title(f"{method}, {proxy}", loc="left", fontsize=10)
        ax.axhline(0, color="0.85", lw=0.8, zorder=0)
        ax.spines[["top", "right"]].set_visible(False)
    for row in grid:
        row[0].set_ylabel("gold (sd under the 0.8M policy)")
        for ax in row:
            ax.set_xlabel("√KL from its own start (√nats)")
    grid[0][0].legend(frameon=False, fontsize=9, title="stars: highest mean", title_fontsize=8)
    return figure


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    everything = sweeps(folder)
    text = table(everything)
    print(text)
    (folder / "policy_sizes.md").write_text(text + "\n", encoding="utf-8")
    pictures.save_figure(folder / "policy_sizes.png", picture(everything))
