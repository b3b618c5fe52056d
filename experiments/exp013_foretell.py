"""Does a better score of a reward model foretell a higher peak of gold, or a later one?

68 proxies: three sizes × 300 and 1,500 comparisons × labels as they are and 15 % flipped × five seeds,
and at both numbers of comparisons, two seeds each, DPO's implicit reward and a probe on a frozen rung.
Each is optimised against by best-of-n (to n = 2,048) and by PPO (to √KL = 8). Before that, each is
measured in the ways in which reward models are picked: accuracy and loss on held-out pairs; accuracy of
the best of four; accuracy on pairs off-distribution, of responses of a hotter policy and of policies
that were optimised against a proxy of another seed; calibration; the tail index of its errors;
disagreement with proxies that differ from it by the seed alone.

Targets, in standard deviations of gold under the initial policy: the peak of gold, the √KL at which it
is, and gold at the end. For each predictor and target: rank correlation, and partial rank correlation
given size, comparisons and flips, with intervals over draws of settings; and the share of variance
foretold in seeds that were left out, beside that of size, comparisons and flips alone. Peaks are the
largest means of a curve: against one another the selection cancels, their heights are not to be read.

Predictions, written before any run of it; the seeds are new ones:

1. Held-out accuracy orders peaks of best-of-n with ρ of 0.6 or more, and ends of PPO with 0.3 or more:
   in this world what a larger proxy sees better is what PPO takes away.
2. Given size, comparisons and flips, held-out accuracy still has a partial correlation with the peak of
   best-of-n whose interval leaves out 0, and none with the end of PPO.
3. Accuracy on pairs of optimised policies foretells the end of PPO better than held-out accuracy, by 0.1
   of out-of-sample R² or more; on pairs of the hotter policy it does not.
4. Loss and calibration foretell nothing that accuracy does not: partial correlations below 0.3 in size
   with every target of PPO.
5. The tail index of errors orders the end of best-of-n (heavier tail, lower end) with ρ of 0.3 or more.
6. Disagreement between seeds orders the √KL of PPO's peak (more disagreement, earlier peak) with ρ of
   −0.3 or beyond, and adds 0.05 of out-of-sample R² to size, comparisons and flips.
7. DPO's implicit reward has a lower peak under PPO than every Bradley-Terry proxy of 0.8M with the same
   comparisons, and the probe a lower one than the 0.2M proxy of the same seed, in three of four each.

Cost: about two hours of CPU time. In a few minutes, to see that it works:

    overopt run experiments/exp013_foretell.py --part 1/34 labels.n_pairs=60 \\
        bon.n_prompts=4 bon.pool_size=16 bon.ns=1,4,16 method.steps=1 method.batch=16 \\
        method.eval_prompts=4 --results results/exp013_smoke

In full, and then the table of predictors and the picture:

    overopt run experiments/exp013_foretell.py --results experiments/results/exp013_foretell
    python experiments/exp013_foretell.py experiments/results/exp013_foretell runs
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from overopt.analysis.predictors import (
    out_of_sample_r2,
    over_groups,
    partial_rank_correlation,
    rank_correlation,
    tail_index,
)
from overopt.base import files, pictures
from overopt.base.errors import DataError
from overopt.base.seeding import numpy_rng
from overopt.engine.graph import Stage
from overopt.engine.store import Store
from overopt.evals import homemade
from overopt.evals.benchmarks.candidates import best_has_best
from overopt.evals.calibration import calibration
from overopt.records.curves import Curve, load_curves
from overopt.rewards.kind import Place, Scorer
from overopt.rewards.kinds import implicit, probe
from overopt.rewards.load import load_scorer
from overopt.stages.common import load_responses
from overopt.stages.settings import Experiment, RunConfig
from overopt.study.chain import curve_stages
from overopt.study.presets import LARGE, MIDDLE, SMALLEST, figure_run, proxy
from overopt.worlds.load import load_world

SIZES = (SMALLEST, MIDDLE, LARGE)
PAIRS = (300, 1500)
FLIPS = (0.0, 0.15)
SEEDS = (8, 9, 10, 11, 12)
HOTTER = homemade.HomemadeConfig(
    world=figure_run(MIDDLE, 0).world, n_prompts=48, copies=8, temperature=1.5
)
KNOWN = ("log size", "log pairs", "flips")
TARGETS = ("peak", "√KL of the peak", "end")
DRAWS = 1000
"""Draws of settings behind an interval."""


def build() -> Experiment:
    """Every size, number of comparisons and share of flips, in the order of seeds; then other kinds."""
    runs = []
    for seed in SEEDS:
        for n_pairs in PAIRS:
            for size in SIZES:
                for flips in FLIPS:
                    base = figure_run(size, seed, n_pairs)
                    runs.append(replace(base, labels=replace(base.labels, label_flip_rate=flips)))
    for seed in SEEDS[:2]:
        for n_pairs in PAIRS:
            for kind in (implicit.Settings(rm_seed=seed), probe.Settings()):
                runs.append(replace(figure_run(MIDDLE, seed, n_pairs), proxy=kind))
    return Experiment(
        name="exp013_foretell", runs=tuple(runs), description="which measure foretells gold"
    )


def _next(seed: int) -> int:
    """The seed of which a proxy meets the optimised policies: not its own."""
    return SEEDS[(SEEDS.index(seed) + 1) % len(SEEDS)]


# --- predictors -----------------------------------------------------------------------------------


def gold_and_proxy(stage: Stage, store: Store) -> tuple[np.ndarray, np.ndarray]:
    """Scores (P, N) of the pool by gold and by the proxy of a best-of-n curve."""
    folders = {r: store.open(s.name, s.fingerprint).path for r, s in stage.upstream.items()}
    pools = [folders[r] for r in sorted(folders) if r == "pool" or r.startswith("pool_")]
    gold = np.concatenate([files.load_arrays(f / "scores.npz", ("gold",))["gold"] for f in pools])
    scored = files.load_arrays(folders["scores_00"] / "scores.npz", ("members",))["members"]
    return gold.astype(float), scored[0].astype(float)


def within_prompt_accuracy(proxy_PN: np.ndarray, gold_PN: np.ndarray) -> float:
    """Share of pairs of responses to one prompt that the proxy orders as gold does; ties half."""
    margin, truth = (x[:, :, None] - x[:, None, :] for x in (proxy_PN, gold_PN))
    right = (margin > 0) + 0.5 * (margin == 0)
    return float(right[truth > 0].mean())


class Probes:
    """Responses off-distribution with their gold scores, sampled and scored once."""

    def __init__(self, run: RunConfig, gold: Stage, store: Store) -> None:
        self.store, self.world = store, load_world(run.world)
        calibration_stage = gold.upstream["calibration"]
        self.calibration = store.open(calibration_stage.name, calibration_stage.fingerprint).path
        self.gold = self.scorer(gold)
        self.hotter = homemade.sample(HOTTER, self.world, HOTTER.temperature, "tilted")
        self.hotter_gold = self.gold.score(self.hotter).numpy().reshape(-1, HOTTER.copies)
        self.optimised: dict[int, tuple] = {}

    def scorer(self, stage: Stage) -> Scorer:
        """The scorer of a gold or proxy stage."""
        folder = self.store.open(stage.name, stage.fingerprint).path
        sources = frozenset(source for source, _ in SIZES)
        return load_scorer(folder, Place(self.calibration, self.world, "cpu", sources))

    def add_optimised(self, seed: int, method: Stage) -> None:
        """First and last responses of a method's run, with gold's scores."""
        folder = self.store.open(method.name, method.fingerprint).path
        first, *_, last = sorted(folder.glob("eval-*.npz"))
        both = [load_responses(file) for file in (first, last)]
        self.optimised[seed] = (*both, *(self.gold.score(r).numpy() for r in both))

    def measure(self, proxy_stage: Stage, seed: int) -> dict[str, float]:
        """Accuracy of a proxy on both sets of responses; the optimised ones are of the next seed."""
        scorer = self.scorer(proxy_stage)
        hotter = scorer.score(self.hotter).numpy().reshape(self.hotter_gold.shape)
        first, last, gold_first, gold_last = self.optimised[_next(seed)]
        margin = scorer.score(last).numpy() - scorer.score(first).numpy()
        truth = gold_last - gold_first
        right = (margin > 0) + 0.5 * (margin == 0)
        share = float(np.where(truth > 0, right, 1 - right)[truth != 0].mean())
        return {
            "accuracy, hotter policy": within_prompt_accuracy(hotter, self.hotter_gold),
            "accuracy, optimised policies": share,
        }


def measures(gold: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """What the pool of the initial policy says of a proxy."""
    rng = numpy_rng(0, "exp013", "pairs")
    a, b = rng.integers(gold.shape[1], size=(2, *gold.shape))
    of_gold, of_proxy = (
        np.take_along_axis(x, a, 1) - np.take_along_axis(x, b, 1) for x in (gold, scores)
    )
    margin = np.where(of_gold > 0, of_proxy, -of_proxy)[of_gold != 0]
    fours = [best_has_best(s, g, 4) for s, g in zip(scores, gold, strict=True)]
    spread = (x - x.mean() for x in (scores, gold))
    proxy_sd, gold_sd = (x / x.std() for x in spread)
    return {
        "best of four": float(np.nanmean(fours)),
        "calibration error": calibration(margin).error.value,
        "tail index of errors": tail_index((proxy_sd - gold_sd).ravel()),
    }


def targets(curve: Curve) -> dict[str, float]:
    """Peak of gold, its √KL, and gold at the end, in standard deviations."""
    gold = curve.gain("gold").mean(1)
    at = int(gold.argmax())
    return dict(zip(TARGETS, (gold[at], curve["kl_seq_nats"][at] ** 0.5, gold[-1]), strict=True))


def table(results: Path, store: Store) -> list[dict]:
    """One row a proxy: what was known, what was measured, what came of it."""
    experiment = build()
    curves = {c.meta["run_id"]: c for c in load_curves(results)}
    probes: Probes | None = None
    found, scores = [], []
    ends = [(run, *curve_stages(run)) for run in experiment.runs]
    missing = sum(stage.fingerprint not in curves for _, *both in ends for stage in both)
    if missing:
        raise DataError(
            f"{results}: lacks {missing} of {2 * len(ends)} curves: finish `overopt run"
            f" {Path(__file__).name} --results {results}` first"
        )
    for run, _, judged in ends:
        seed, n_pairs = run.labels.data_seed, run.labels.n_pairs
        is_plain = n_pairs == PAIRS[1] and run.labels.label_flip_rate == 0
        if is_plain and run.proxy == proxy(MIDDLE, n_pairs, seed):
            probes = probes or Probes(run, judged.upstream["gold"], store)
            probes.add_optimised(seed, judged.upstream["ppo"])
    assert probes is not None
    for run, bon, judged in ends:
        gold, of_proxy = gold_and_proxy(bon, store)
        meta = curves[bon.fingerprint].meta
        seed = run.labels.data_seed
        scores.append(of_proxy)
        row = {
            "seed": seed,
            "setting": f"{run.proxy.title} {run.labels.n_pairs} {run.labels.label_flip_rate}",
            "log size": float(np.log(max(1, meta["n_params"]))),
            "log pairs": float(np.log(run.labels.n_pairs)),
            "flips": run.labels.label_flip_rate,
            "held-out accuracy": meta["proxy_accuracy"],
            "held-out loss": meta["proxy_val_loss"],
            **measures(gold, of_proxy),
            **probes.measure(bon.upstream["proxy"], seed),
        }
        for name, stage in (("best-of-n", bon), ("PPO", judged)):
            of_curve = targets(curves[stage.fingerprint]).items()
            row |= {f"{name} {target}": value for target, value in of_curve}
        found.append(row)
    for row, own in zip(found, scores, strict=True):
        others = [
            s
            for s, other in zip(scores, found, strict=True)
            if other["setting"] == row["setting"] and other["seed"] != row["seed"]
        ]
        row["disagreement"] = float(np.mean([np.std(own - s) for s in others]))
    return found


def foretells(rows: list[dict]) -> list[dict]:
    """Of each predictor and target: correlations, and what is foretold of seeds left out."""
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    given = np.stack([columns[name].astype(float) for name in KNOWN], 1)
    names = [n for n in columns if n not in (*KNOWN, "seed", "setting")]
    ends = [n for n in names if n.startswith(("best-of-n ", "PPO "))]
    return [
        {"target": end, "predictor": name, **_asked(columns[name], columns[end], given, columns)}
        for end in ends
        for name in names
        if name not in ends
    ]


def _asked(x: np.ndarray, y: np.ndarray, given: np.ndarray, columns: dict) -> dict:
    """What one predictor says of one target, over the proxies that have both."""
    x, y = x.astype(float), y.astype(float)
    ok = np.isfinite(x) & np.isfinite(y)
    x, y, known = x[ok], y[ok], given[ok]
    seeds, settings = columns["seed"][ok], columns["setting"][ok]

    def drawn(statistic: Callable, *of: np.ndarray) -> dict:
        rng = numpy_rng(0, "exp013")
        return over_groups(
            lambda rows: statistic(*(v[rows] for v in of)), settings, rng=rng, draws=DRAWS
        )._asdict()

    return {
        "n": int(ok.sum()),
        "rho": drawn(rank_correlation, x, y),
        "partial": drawn(partial_rank_correlation, x, y, known),
        "r2": drawn(out_of_sample_r2, x[:, None], y, seeds),
        "r2_known": out_of_sample_r2(known, y, seeds),
        "r2_added": drawn(_added, known, x, y, seeds),
    }


def _added(known: np.ndarray, x: np.ndarray, y: np.ndarray, seeds: np.ndarray) -> float:
    """Share of variance that ``x`` foretells beyond what was known anyway, in seeds left out."""
    both = np.column_stack([known, x])
    return out_of_sample_r2(both, y, seeds) - out_of_sample_r2(known, y, seeds)


# --- what is shown --------------------------------------------------------------------------------


def markdown(found: list[dict]) -> str:
    """The table of predictors."""
    head = (
        "target | predictor | n | ρ | given size, data, flips | R² left out | of the known | added"
    )
    lines = [f"| {head} |", f"|{'---|' * (head.count('|') + 1)}"]
    for row in found:
        shown = {name: _with_interval(row[name]) for name in ("rho", "partial", "r2", "r2_added")}
        shown["r2_known"] = f"{row['r2_known']:.2f}"
        order = ("rho", "partial", "r2", "r2_known", "r2_added")
        cells = [row["target"], row["predictor"], str(row["n"]), *(shown[name] for name in order)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _with_interval(part: dict) -> str:
    return f"{part['value']:.2f} [{part['low']:.2f}, {part['high']:.2f}]"


LOOKS = {
    "rho": {"label": "rank correlation", "color": "#0072B2", "marker": "o", "mfc": "#0072B2"},
    "partial": {
        "label": "the same, given size, comparisons and flips",
        "color": "#D55E00",
        "marker": "s",
        "mfc": "white",
    },
}
"""Colours of the Okabe-Ito palette; a filled circle and an open square also differ in grey."""


def picture(found: list[dict]) -> Figure:
    """A panel for each target: both correlations of each predictor, with intervals of 95 %."""
    ends = list(dict.fromkeys(row["target"] for row in found))
    names = list(dict.fromkeys(row["predictor"] for row in found))
    fig = Figure(figsize=(9.5, 1.2 + 0.6 * len(names)), layout="constrained")
    axes = fig.subplots(2, len(TARGETS), sharex=True, sharey=True)
    for ax, end in zip(axes.flat, ends, strict=True):
        rows = [row for row in found if row["target"] == end]
        ax.axvline(0, color="0.5", lw=0.8)
        for shift, (name, look) in zip((-0.16, 0.16), LOOKS.items(), strict=True):
            y = np.arange(len(rows)) + shift
            value, low, high = (
                np.array([row[name][part] for row in rows]) for part in ("value", "low", "high")
            )
            ax.hlines(y, low, high, color=look["color"], lw=1.2)
            ax.plot(value, y, ls="", ms=5, **look)
        ax.set_title(end, fontsize=9, loc="left")
        ax.grid(axis="y", color="0.9", lw=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlim(-1, 1)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.invert_yaxis()
    n = max(row["n"] for row in found)
    fig.supxlabel(f"correlation over {n} proxies; lines: 95 % over draws of settings", fontsize=9)
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return fig


def main(results: str, store: str) -> None:
    """Write ``predictors.json``, ``predictors.md`` and ``foretell.png`` beside the records."""
    folder = Path(results)
    rows = table(folder, Store(Path(store)))
    found = foretells(rows)
    files.save_json(
        folder / "predictors.json", _without_nan({"proxies": rows, "predictors": found})
    )
    files.atomic_write(folder / "predictors.md", markdown(found).encode())
    pictures.save_figure(folder / "foretell.png", picture(found))
    print(markdown(found))


def _without_nan(value: object) -> object:
    """JSON has no numbers that are not finite: null in their place."""
    match value:
        case float():
            return value if np.isfinite(value) else None
        case dict():
            return {key: _without_nan(item) for key, item in value.items()}
        case list():
            return [_without_nan(item) for item in value]
    return value


if __name__ == "__main__":
    main(*sys.argv[1:])
