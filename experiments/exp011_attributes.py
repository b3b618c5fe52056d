"""Attributes and two aims against a single reward model: what do weights, debiasing and a gate buy?

The world of sums. Regression on four attributes (right, valid, redundant checks, tokens) with the weight
of tokens, the one on verbosity, at −0.4, 0 and 0.4; a mixture of the same attributes whose gate learns
from attributes that are not debiased against length (as published), from debiased ones, or without any
debiasing; two models, of right answers and of valid steps, combined piecewise; and one Bradley-Terry
model. All have the 0.2M rung below, and data from the same 3,000 comparisons. Best-of-n and RLOO, five
seeds, each a replicate of comparisons, reward model and method.

Predictions, written before any of these runs; gold is whether the answer is right, in sd:

1. Length of the best of 128 and at the end of RLOO grows with the weight of verbosity, in every seed; at
   0.4 it is at least 1.2 times that at −0.4.
2. Gold at the end of RLOO is lower at 0.4 than at 0 by at least 0.1.
3. The debiased mixtures have shorter responses in the best of 128 than the one without debiasing; the
   order of debiasing and gate makes less than 5 % of length and 0.1 of gold.
4. Two models end RLOO with gold at least 0.1 above the single model, and peak no higher under best-of-n
   than regression without a weight on verbosity.
5. Every one of the eight turns over under best-of-n: gold at n = 128 below that at n = 4.

Cost: about half an hour of CPU time. In two minutes, to see that it works:

    overopt run experiments/exp011_attributes.py --part 1/40 labels.n_pairs=120 bon.n_prompts=4 \\
        bon.pool_size=16 bon.ns=1,4,16 method.steps=2 method.batch=16 method.eval_prompts=4 \\
        --results results/exp011_smoke

In full:

    overopt run experiments/exp011_attributes.py --results experiments/results/exp011_attributes
    python experiments/exp011_attributes.py experiments/results/exp011_attributes runs

The picture shows two aims at once, right answers and valid steps, along both methods.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from overopt.base import pictures
from overopt.base.config import RuntimeConfig
from overopt.engine.store import Store
from overopt.fits.linear import half_width
from overopt.methods import rloo
from overopt.pools.best_of_n import best_of_n
from overopt.records.curves import load_curves
from overopt.reports.figures.style import series_styles
from overopt.reports.text import markdown_table
from overopt.rewards.kinds import bradley_terry, mixture, regression, rubric, two_models
from overopt.rewards.labels import ratings
from overopt.rewards.rated import Attribute
from overopt.rewards.settings import LabelsConfig
from overopt.stages.best_of_n import scored_pool
from overopt.stages.common import load_responses
from overopt.stages.pool import pool_folders
from overopt.stages.settings import BonConfig, Experiment, RunConfig
from overopt.study.finished import finished_curves
from overopt.study.run import load
from overopt.worlds import sums
from overopt.worlds.load import load_world

SEEDS = (0, 1, 2, 3, 4)
N_PAIRS = 3000
VERBOSITY = (-0.4, 0.0, 0.4)


def proxies(seed: int) -> list[Any]:
    """Three regressions, three mixtures, two models, one model."""
    weights = regression.Settings().weights[:3]
    return [
        *(regression.Settings(rm_seed=seed, weights=(*weights, v)) for v in VERBOSITY),
        mixture.Settings(rm_seed=seed, order="gate_first"),
        mixture.Settings(rm_seed=seed, order="debias_first"),
        mixture.Settings(rm_seed=seed, order="no_debiasing"),
        two_models.Settings(rm_seed=seed),
        bradley_terry.Settings(rm_seed=seed, backbone="ladder:sums-0.2m"),
    ]


def build() -> Experiment:
    """Seeds × kinds."""
    base = RunConfig(
        world=sums.Settings(),
        gold=rubric.Settings(),
        bon=BonConfig(n_prompts=48, pool_size=256, ns=(1, 2, 4, 8, 16, 32, 64, 128)),
    )
    runs = []
    for seed in SEEDS:
        labels = LabelsConfig(n_pairs=N_PAIRS, data_seed=seed)
        method = rloo.Settings(
            steps=24, batch=64, lr=2e-3, eval_every=6, eval_prompts=64, eval_copies=2, seed=seed
        )
        runs += [
            replace(base, labels=labels, proxy=proxy, method=method) for proxy in proxies(seed)
        ]
    return Experiment(
        name="exp011_attributes", runs=tuple(runs), description="attributes, two aims"
    )


# --- what came of it ------------------------------------------------------------------------------


def table(results: str) -> str:
    """A row a proxy: gold in sd and response length in tokens, means over seeds ± 95 % intervals."""
    found: dict[str, dict[str, list[float]]] = {}
    for curve in load_curves(results):
        of = found.setdefault(curve.meta["backbone"], {})
        gold, tokens = curve["gold_gain"], curve["response_tokens"]
        if curve.is_bon:
            at_four = gold[list(curve["value"]).index(4)]
            row = {"best of 4": at_four, "best of 128": gold[-1], "its tokens": tokens[-1]}
        else:
            row = {"RLOO peak": gold.max(), "RLOO end": gold[-1], "end tokens": tokens[-1]}
            row["end √KL"] = curve["sqrt_kl"][-1]
        for name, value in row.items():
            of.setdefault(name, []).append(float(value))
    names = list(dict.fromkeys(name for of in found.values() for name in of))
    rows = [[proxy, *(_mean(of[name]) for name in names)] for proxy, of in found.items()]
    return "\n".join(markdown_table(["proxy", *names], rows))


AIMS: tuple[Attribute, ...] = ("right", "valid")


def paths(store: str) -> dict[tuple[str, str], list[np.ndarray]]:
    """(method, proxy) -> shares (K, 2) of right answers and valid responses along it, one a seed."""
    curves = finished_curves(load(build()), Store(Path(store)), RuntimeConfig(quiet=True))
    world = load_world(curves[0].run.world)
    pools: dict[Path, np.ndarray] = {}
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for curve in curves:
        ctx = curve.context()
        if curve.is_bon:
            (folder,) = pool_folders(ctx)
            if folder not in pools:
                responses = load_responses(folder / "responses.npz")
                pools[folder] = ratings.attribute_counts(world, responses, AIMS).double().numpy()
            proxy_PN = scored_pool(ctx).proxy_PN
            of: dict[str, np.ndarray] = {}
            for i, aim in enumerate(AIMS):
                of[aim] = pools[folder][:, i].reshape(proxy_PN.shape)
            best = best_of_n(proxy_PN, of, [point["value"] for point in curve.rows])
            path = np.stack([best[aim].mean for aim in AIMS], axis=1)
        else:
            evaluations = sorted(ctx.inputs[curve.method].path.glob("eval-*.npz"))
            shares = [
                ratings.attribute_counts(world, load_responses(file), AIMS).mean(0).numpy()
                for file in evaluations
            ]
            path = np.stack(shares)
        found.setdefault((curve.method, curve.title), []).append(path)
    return found


SHOWN = {
    "+0 tokens": "regression",
    "mixture debias first": "mixture",
    "two models": "two models",
    "sums-0.2m 3000 pairs": "one model (Bradley-Terry)",
}
"""Of whose title this is a part -> name in the picture: one of each family."""


def picture(found: dict[tuple[str, str], list[np.ndarray]]) -> Figure:
    """Valid against right, a panel a method; the last point with 95 % intervals over seeds."""
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    axes = figure.subplots(1, 2)
    looks = series_styles(list(SHOWN.values()))
    for ax, method, title in zip(axes, ("bon", "rloo"), ("best of 1 to 128", "RLOO"), strict=True):
        for part, name in SHOWN.items():
            (title_of,) = [t for m, t in found if m == method and _is(part, t)]
            seeds = np.stack(found[method, title_of])
            right, valid = seeds.mean(0).T
            look = looks[name]
            ax.plot(right, valid, color=look.color, marker=look.marker, ms=4, lw=1.2, label=name)
            half = [half_width(column) for column in seeds[:, -1].T]
            ax.errorbar(right[-1], valid[-1], half[1], half[0], color=look.color, capsize=2)
        ax.plot(right[0], valid[0], "o", ms=9, mfc="none", mec="0.3")
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_xlabel("share of right answers")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of valid responses")
    axes[0].legend(frameon=False, fontsize=8, title="circle: the initial policy", title_fontsize=8)
    return figure


def _is(part: str, title: str) -> bool:
    return title.startswith(part) if part.startswith(("sums", "mixture", "two")) else part in title


def _mean(values: Sequence[float]) -> str:
    x = np.array(values)
    return f"{x.mean():.2f} ± {half_width(x):.2f}" if len(x) > 1 else f"{x.mean():.2f}"


if __name__ == "__main__":
    print(table(sys.argv[1]))
    pictures.save_figure(Path(sys.argv[1]) / "aims.png", picture(paths(sys.argv[2])))
