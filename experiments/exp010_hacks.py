"""Hacks planted with a dose: does a labeller's foible reach the reward model, and then the policy?

The world of sums. In a share of the training comparisons the response with more of a cue is chosen,
whatever gold says: redundant checks, a step written twice, a second answer, the answer marked twice, a
step that contradicts itself. A reward model of 0.2M parameters learns from 3,000 comparisons and is
optimised against by best-of-n and by RLOO. Measured are what the cue alone does to the score (paired
edits of the same responses), how much of the cue there is at each n and step, and what gold loses. Three
doses, of which 0 is shared, five seeds, each a replicate of comparisons, reward model and method.

Predictions, written before any of these runs, after three seeds of two cues with 1,500 comparisons:

1. The change of score by the edit grows with the dose for checks and for verbosity (slope over doses
   positive, t test over seeds p < 0.05), and not for contradiction, which hardly any response has.
2. Checks a response in the best of 128 are at least 0.3 more at a dose of 0.3 than at 0; so is any other
   cue that at least a twentieth of the policy's responses have.
3. Under RLOO the dose shows more than under best-of-n: checks a response at the end at least twice those
   without a dose.
4. Gold at the end of RLOO is lower by at least 0.1 sd at a dose of 0.3 of hedging than at 0, and
   differs by less than 0.1 for checks, which harm nobody.

Cost: about 45 minutes of CPU time. In two minutes, to see that it works:

    overopt run experiments/exp010_hacks.py --part 1/55 labels.n_pairs=120 bon.n_prompts=4 \\
        bon.pool_size=16 bon.ns=1,4,16 method.steps=2 method.batch=16 method.eval_prompts=4 \\
        --results results/exp010_smoke

In full, and then the effects and the growth of every cue:

    overopt run experiments/exp010_hacks.py --results experiments/results/exp010_hacks
    overopt hacks experiments/exp010_hacks.py --out experiments/results/exp010_hacks/hacks.json
    python experiments/exp010_hacks.py experiments/results/exp010_hacks
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overopt.base import files, pictures
from overopt.base.seeding import numpy_rng
from overopt.fits.linear import half_width
from overopt.fits.pvalues import p_text
from overopt.fits.trend import trend
from overopt.methods import rloo
from overopt.records.curves import Curve, load_curves
from overopt.reports.text import markdown_table
from overopt.rewards.kinds import bradley_terry, rubric
from overopt.rewards.settings import LabelsConfig
from overopt.stages.settings import BonConfig, Experiment, RunConfig
from overopt.worlds import sums

SEEDS = (0, 1, 2, 3, 4)
CUES = ("checks", "verbosity", "hedging", "formatting", "contradiction")
DOSES = (0.1, 0.3)
N_PAIRS = 3000


def build() -> Experiment:
    """Seeds × (no dose, then cues × doses)."""
    base = RunConfig(
        world=sums.Settings(),
        gold=rubric.Settings(),
        bon=BonConfig(n_prompts=48, pool_size=256, ns=(1, 2, 4, 8, 16, 32, 64, 128)),
    )
    runs = []
    for seed in SEEDS:
        plain = LabelsConfig(n_pairs=N_PAIRS, data_seed=seed)
        planted = [replace(plain, cue=cue, cue_share=dose) for cue in CUES for dose in DOSES]
        method = rloo.Settings(
            steps=24, batch=64, lr=2e-3, eval_every=6, eval_prompts=64, eval_copies=2, seed=seed
        )
        proxy = bradley_terry.Settings(backbone="ladder:sums-0.2m", rm_seed=seed)
        runs += [
            replace(base, labels=labels, proxy=proxy, method=method) for labels in (plain, *planted)
        ]
    return Experiment(name="exp010_hacks", runs=tuple(runs), description="cues × doses")


# --- what came of it ------------------------------------------------------------------------------


def table(folder: Path) -> str:
    """A row for each cue and dose, means over seeds with half widths of 95 % intervals.

    ``edit``: what the cue alone does to the proxy's score, in sd; its slope on the dose is in the row of
    the largest dose, with a t test over seeds. ``best of 128`` and ``RLOO``: cues a response there, and
    minus those without a dose. ``gold``: gain at the end of RLOO, minus that without a dose.
    """
    found = files.load_object(folder / "hacks.json", ("proxies", "curves"))
    curves = {curve.meta["run_id"]: curve for curve in load_curves(folder)}
    edits = {_dose_in(one["series"]): one["cues"] for one in found["proxies"]}
    grown: dict[tuple[str, float], dict[str, list[dict[str, Any]]]] = {}
    for one in found["curves"]:
        of = grown.setdefault(_dose_in(one["series"]), {})
        of.setdefault(one["method"], []).append(one | {"curve": curves[one["run_id"]]})
    rows = []
    for cue in CUES:
        for dose in (0.0, *DOSES):
            key = (cue, dose) if dose else ("", 0.0)
            same, plain = grown[key], grown["", 0.0]
            cells = [_mean(edits[key][cue]["proxy"]["means"])]
            cells.append(_slope(cue, edits) if dose == DOSES[-1] else "")
            for method in ("bon", "rloo"):
                counted = _ends(same[method], cue)
                cells.append(_mean(counted))
                cells.append(_mean(counted - _ends(plain[method], cue)) if dose else "")
            gold = _gold(same["rloo"])
            cells += [_mean(gold), _mean(gold - _gold(plain["rloo"])) if dose else ""]
            rows.append([cue, f"{dose:g}", *cells])
    head = ["cue", "dose", "edit", "p of slope", "in best of 128", "minus dose 0", "at end of RLOO"]
    head += ["minus dose 0", "gold at end of RLOO", "minus dose 0"]
    return "\n".join(markdown_table(head, rows))


def _dose_in(series: str) -> tuple[str, float]:
    """Cue and dose of a series by its title, such as ``… argmax + checks 0.1``."""
    _, planted, told = series.partition(" + ")
    cue, _, dose = told.partition(" ")
    return (cue, float(dose)) if planted else ("", 0.0)


def _in_order(curves: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(curves, key=lambda one: one["curve"].meta["data_seed"])


def _ends(curves: Sequence[dict[str, Any]], cue: str) -> np.ndarray:
    """Cues a response at the last point, by seed."""
    return np.array([one["cues"][cue]["mean"][-1] for one in _in_order(curves)])


def _gold(curves: Sequence[dict[str, Any]]) -> np.ndarray:
    ends: list[Curve] = [one["curve"] for one in _in_order(curves)]
    return np.array([curve["gold_gain"][-1] for curve in ends])


def _slope(cue: str, edits: dict[tuple[str, float], dict[str, Any]]) -> str:
    """Slope of the edit's effect on the dose, and its p-value."""
    keys = [("", 0.0), *((cue, dose) for dose in DOSES)]
    values = [np.array(edits[key][cue]["proxy"]["means"])[:, None] for key in keys]
    slope = trend(
        [dose for _, dose in keys], values, [SEEDS] * len(keys), rng=numpy_rng(0, "hacks")
    ).slope
    return f"{slope.estimate:.2f}, {p_text(slope.p_value)}"


def _mean(values: Sequence[float] | np.ndarray) -> str:
    x = np.asarray(values)
    return f"{x.mean():.2f} ± {half_width(x):.2f}" if len(x) > 1 else f"{x.mean():.2f}"


def picture(folder: Path) -> Figure:
    """A column for each cue: what its edit does to the score, and how much of it optimisation leaves.

    Marks are means over seeds with 95 % intervals, against the dose.
    """
    found = files.load_object(folder / "hacks.json", ("proxies", "curves"))
    curves = {curve.meta["run_id"]: curve for curve in load_curves(folder)}
    edits = {_dose_in(one["series"]): one["cues"] for one in found["proxies"]}
    figure = Figure(figsize=(12, 5), layout="constrained")
    grid = figure.subplots(2, len(CUES), sharex=True)
    for (upper, lower), cue in zip(grid.T, CUES, strict=True):
        keys = [("", 0.0), *((cue, dose) for dose in DOSES)]
        doses = np.array([dose for _, dose in keys])
        of_edit = [np.array(edits[key][cue]["proxy"]["means"]) for key in keys]
        _marks(upper, doses, of_edit, "0.25", "o", "edit alone")
        for method, color, marker in (("bon", "C0", "s"), ("rloo", "C1", "^")):
            counted = []
            for key in keys:
                same = [one for one in found["curves"] if _dose_in(one["series"]) == key]
                same = [one | {"curve": curves[one["run_id"]]} for one in same]
                counted.append(_ends([one for one in same if one["method"] == method], cue))
            name = {"bon": "best of 128", "rloo": "end of RLOO"}[method]
            _marks(lower, doses + (0.008 if method == "rloo" else 0), counted, color, marker, name)
        upper.axhline(0, color="0.85", lw=0.8, zorder=0)
        upper.set_title(cue, loc="left", fontsize=10)
        lower.set_xlabel("dose (share of pairs)")
        lower.set_ylabel("words a response" if cue == "verbosity" else "a response")
        lower.set_ylim(bottom=0)
        for ax in (upper, lower):
            ax.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("change of score by\nthe cue alone (sd)")
    grid[1][0].legend(frameon=False, fontsize=8)
    return figure


def _marks(
    ax: Axes, x: np.ndarray, values: Sequence[np.ndarray], color: str, marker: str, name: str
) -> None:
    means, halves = [v.mean() for v in values], [half_width(v) for v in values]
    ax.errorbar(x, means, halves, color=color, marker=marker, ms=5, lw=1.2, capsize=2, label=name)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
    pictures.save_figure(Path(sys.argv[1]) / "doses.png", picture(Path(sys.argv[1])))
