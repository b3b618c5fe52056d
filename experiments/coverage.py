"""How often the intervals cover and the tests reject, by simulation: the tables of docs/statistics.md.

Gold of seeds × prompts along d(α − βd) and d(α − β log d), where prompts, seeds and proxies have
effects of known size. An interval should cover in 95 % of data sets, a test reject as its level says.

    python experiments/coverage.py                      # 1,000 a row: 3 CPU minutes, writes the page
    python experiments/coverage.py --runs 100 --print   # to the terminal

The numbers do not depend on how many processes there are.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from overopt.base.seeding import numpy_rng
from overopt.fits.crossed import crossed_mean
from overopt.fits.fit import FitResult, summarize
from overopt.fits.forms import FORMS, Array, peak
from overopt.fits.linear import linear_operator
from overopt.fits.replicates import ReplicateCurve, fit_replicates, paired_difference
from overopt.fits.scaling import QUANTITIES, ScalingPoint, fit_scaling, forecast

PAGE = Path(__file__).parents[1] / "docs" / "statistics.md"
SIZES = np.array([0.056, 0.2, 0.8, 2.0, 3.0, 6.0]) * 1e6
"""The last is the one that is forecast from the others."""
NS = np.unique(np.geomspace(1, 60_000, 16).round())[1:]
D = {"bon": np.sqrt(np.log(NS) - (NS - 1) / NS), "rl": np.linspace(0.5, 8.0, 16)}
CENTRE = {"bon": (1.15, 0.18), "rl": (1.1, 0.45)}
"""α and β at a million parameters."""
SLOPES = (0.0, -0.02)
"""Of α and β per decade of size."""
NOISE = 0.05
"""Standard deviation of a prompt's points about its curve, per unit of d."""
BEND = np.array([0.2, -1.1, 1.0])
"""A deviation from both forms, per unit of d: a polynomial in d over its largest value."""
NOMINAL, ACCEPTED = 0.95, (0.93, 0.97)
MARKS = ("<!-- coverage -->", "<!-- /coverage -->")
PER_TASK = 100
"""Data sets that are simulated at a time, with random numbers of their own."""


@dataclass(frozen=True)
class Cause:
    """What makes curves differ: standard deviations of α and of β."""

    name: str
    proxies: tuple[float, float] = (0.0, 0.0)
    """Of a proxy's true values about the line."""
    seeds: tuple[float, float] = (0.08, 0.03)
    """Of a seed's values about its proxy's."""
    common: tuple[float, float] = (0.0, 0.0)
    """Of what a data seed does to all proxies alike."""
    prompts: float = 0.1
    """Of a prompt's α, the same for all proxies; 0.3 of that again per decade of size, and half of it
    in each run."""
    bends: tuple[float, float] = (0.0, 0.3)
    """Of a seed's and of a prompt's deviation from the form, in units of `BEND`; it has mean 0."""


CAUSES = (
    Cause("proxies on the line"),
    Cause("proxies scatter", proxies=(0.03, 0.02)),
    Cause("proxies scatter more", proxies=(0.05, 0.03)),
    Cause("prompts dominate", seeds=(0.03, 0.01), prompts=0.3),
    Cause("seeds dominate", seeds=(0.15, 0.05)),
    Cause("seeds push all proxies", common=(0.08, 0.03)),
)


@dataclass(frozen=True)
class Cell:
    """A row of a table: form, seeds, prompts, and what makes curves differ."""

    form: str
    n_seeds: int
    n_prompts: int
    cause: Cause

    def __str__(self) -> str:
        return f"{self.form}, {self.n_seeds} × {self.n_prompts}, {self.cause.name}"


LINES = (
    *(Cell("bon", 3, 12, cause) for cause in CAUSES[1:5]),
    *(Cell("bon", 5, 32, cause) for cause in CAUSES),
    *(Cell("rl", 8, 48, cause) for cause in CAUSES[1:5]),
)
"""Slopes and forecasts: six proxies each, five of which forecast the sixth."""
SEEDS = (
    Cause("no effect of seeds", seeds=(0.0, 0.0)),
    Cause("seeds have effects"),
    Cause("seeds bend too", bends=(0.1, 0.3)),
)
CURVES = (
    Cell("bon", 1, 12, SEEDS[0]),
    *(Cell("bon", n, 12, cause) for n in (2, 3, 5, 8) for cause in SEEDS),
    *(Cell("rl", n, 48, cause) for n in (3, 8) for cause in SEEDS),
)
"""One proxy each, from gold by prompt and point."""
DIFFERENCES = tuple(
    Cell("difference", *n, Cause(name, seeds=(seed_sd, 0.0), prompts=prompt_sd))
    for n in ((3, 12), (5, 32), (8, 48))
    for name, seed_sd, prompt_sd in (
        ("nothing but noise", 0.0, 0.0),
        ("prompts differ", 0.0, 1.0),
        ("seeds differ a little", 0.18, 0.0),
        ("seeds differ", 1.0, 0.0),
    )
)


def effects(sd: Sequence[float], rng: np.random.Generator, *shape: int) -> Array:
    """Effects on α and on β, (*shape, 2): who rises more, bends more."""
    drawn = np.asarray(sd) * rng.standard_normal((*shape, 2))
    drawn[..., 1] += 0.3 * drawn[..., 0]
    return drawn


@dataclass(frozen=True)
class Truth:
    """Values of (α, β) that a data set is made from."""

    true: Array
    """(J, 2) of each proxy, over all seeds and prompts there are."""
    shown: Array
    """(J, 2) of each proxy, over the seeds that it has and all prompts there are."""
    runs: Array
    """(J, S, P, 2) of each run and prompt."""


def truth(cell: Cell, rng: np.random.Generator, sizes: Array = SIZES) -> Truth:
    """Proxies on a line in log10 of their size, with the effects of the cell."""
    cause, j, s, p = cell.cause, len(sizes), cell.n_seeds, cell.n_prompts
    prompts = (cause.prompts, 0.2 * cause.prompts)
    decades = np.log10(sizes) - 6.0
    line = np.array(CENTRE[cell.form]) + np.multiply.outer(decades, SLOPES)
    true = line + np.asarray(cause.proxies) * rng.standard_normal((j, 2))
    seeds = true[:, None] + effects(cause.seeds, rng, j, s) + effects(cause.common, rng, s)
    of_prompt = effects(prompts, rng, p) + np.multiply.outer(
        decades, 0.3 * effects(prompts, rng, p)
    )
    runs = seeds[:, :, None] + of_prompt[:, None] + 0.5 * effects(prompts, rng, j, s, p)
    return Truth(true, seeds.mean(axis=1), runs)


def curves(cell: Cell, runs_SPC: Array, rng: np.random.Generator) -> list[ReplicateCurve]:
    """Gold of one proxy's runs at each point, with noise that grows with d."""
    d, (n_seeds, n_prompts) = D[cell.form], runs_SPC.shape[:2]
    of_seed, of_prompt = cell.cause.bends
    bends_SP = of_seed * rng.standard_normal((n_seeds, 1)) + of_prompt * rng.standard_normal(
        n_prompts
    )
    gold_SPK = runs_SPC @ FORMS[cell.form].basis(d, np.nan).T
    gold_SPK += np.multiply.outer(bends_SP, d * np.polynomial.Polynomial(BEND)(d / d[-1]))
    gold_SPK += NOISE * d * rng.standard_normal(gold_SPK.shape)
    return [ReplicateCurve(gold_KP=g.T, sqrt_kl=d, data_seed=i) for i, g in enumerate(gold_SPK)]


@cache
def error_of_fit(form: str) -> Array:
    """Root of the covariance (2, 2) that noise gives to α and β fitted to the points of a prompt."""
    d = D[form]
    operator = linear_operator(FORMS[form].basis(d, np.nan) / d[:, None])
    return np.asarray(NOISE * np.linalg.cholesky(operator @ operator.T))


def fits(form: str, made: Truth, rng: np.random.Generator) -> list[FitResult]:
    """What `fit_replicates` gives for each proxy, without its curves.

    A fit is the mean over runs and prompts of α and β fitted to each one's points, and those are the
    true ones with a normal error: least squares is linear. Its weights are those of the noise here.
    """
    theta = made.runs + rng.standard_normal(made.runs.shape) @ error_of_fit(form).T
    means = [crossed_mean(table, range(len(table))) for table in theta]
    first = means[0]
    base = summarize(
        FORMS[form],
        dict(zip(("alpha", "beta"), first.estimate, strict=True)),
        first.covar,
        dof_of=first.dof,
        estimator="replicates",
        ci_level=NOMINAL,
        n_points=len(D[form]),
        d_range=(D[form][0], D[form][-1]),
    )
    return [
        replace(
            base,
            params=dict(zip(base.params, mean.estimate, strict=True)),
            covar=mean.covar,
            by_prompt=mean.by_prompt,
        )
        for mean in means
    ]


def points(found: Sequence[FitResult]) -> list[ScalingPoint]:
    """Fits as `fit_scaling` takes them."""
    return [
        ScalingPoint(label=f"{n:g}", n_params=n, fit=fit, n_pairs=12_000)
        for n, fit in zip(SIZES, found, strict=False)
    ]


def of_line(cell: Cell, rng: np.random.Generator) -> dict[str, bool]:
    """Whether the intervals of slopes and of a forecast hold what they are for."""
    made = truth(cell, rng)
    every = points(fits(cell.form, made, rng))
    line = fit_scaling(every)
    inside = {}
    for name, slope in zip(("alpha", "beta"), SLOPES, strict=True):
        low, high = line.slope_ci(name)
        inside[f"slope of {name}"] = low <= slope <= high
    told = forecast(fit_scaling(every[:-1]), SIZES[-1], 12_000)
    for what, values in (("", made.shown[-1]), (" (true)", made.true[-1])):
        wanted = (*values, *peak(cell.form, *values))
        for name, value in zip(QUANTITIES, wanted, strict=True):
            inside[name + what] = told.ci[name].low <= value <= told.ci[name].high
    return inside


def of_curve(cell: Cell, rng: np.random.Generator) -> dict[str, bool]:
    """Whether one proxy's intervals hold its values, and whether the true form is rejected."""
    made = truth(cell, rng, SIZES[2:3])
    fit = fit_replicates(curves(cell, made.runs[0], rng), cell.form)
    values = zip(fit.ci.items(), made.true[0], strict=True)
    inside = {name: low <= value <= high for (name, (low, high)), value in values}
    return inside | rejected(fit.p_value)


def of_difference(cell: Cell, rng: np.random.Generator) -> dict[str, bool]:
    """Whether `paired_difference` rejects a difference of 0."""
    table = rng.standard_normal((cell.n_seeds, cell.n_prompts))
    table += cell.cause.seeds[0] * rng.standard_normal((cell.n_seeds, 1))
    table += cell.cause.prompts * rng.standard_normal(cell.n_prompts)
    return rejected(paired_difference(table, np.zeros_like(table)).p_value)


def rejected(p_value: float) -> dict[str, bool]:
    """By level, whether the p-value is below it."""
    return {f"p < {level}": p_value < level for level in (0.05, 0.01, 0.001)}


Trial = Callable[[Cell, np.random.Generator], dict[str, bool]]
STUDIES: dict[str, tuple[Trial, Sequence[Cell]]] = {
    "slopes over sizes, and a forecast": (of_line, LINES),
    "fit of one proxy": (of_curve, CURVES),
    "paired difference of 0": (of_difference, DIFFERENCES),
}


def _trials(task: tuple[str, int, int, int]) -> list[dict[str, bool]]:
    study, row, start, n_runs = task
    trial, cells = STUDIES[study]
    rng = numpy_rng(0, study, str(cells[row]), start)
    return [trial(cells[row], rng) for _ in range(n_runs)]


def shares(
    study: str, n_runs: int, processes: int, rows: Sequence[int] | None = None
) -> Iterator[tuple[Cell, Mapping[str, float]]]:
    """Rows of a study (default all) with the share of data sets in which each thing is so."""
    cells = STUDIES[study][1]
    starts = range(0, n_runs, PER_TASK)
    rows = range(len(cells)) if rows is None else rows
    tasks = [(study, r, start, min(PER_TASK, n_runs - start)) for r in rows for start in starts]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        done = pool.map(_trials, tasks) if processes > 1 else map(_trials, tasks)
        for row in rows:
            found = list(itertools.chain.from_iterable(itertools.islice(done, len(starts))))
            yield cells[row], {name: float(np.mean([f[name] for f in found])) for name in found[0]}


def table(study: str, found: Sequence[tuple[Cell, Mapping[str, float]]]) -> list[str]:
    """Lines of Markdown; coverage outside `ACCEPTED` is bold."""
    names = list(found[0][1])
    lines = [f"| {study} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for cell, share in found:
        cells = []
        for name, value in share.items():
            text = f"{100 * value:.1f}"
            is_level = name.startswith("p <")
            good = is_level or ACCEPTED[0] <= value <= ACCEPTED[1]
            cells.append(text if good else f"**{text}**")
        lines.append(f"| {cell} | {' | '.join(cells)} |")
    return lines


def write(tables: Sequence[str], page: Path = PAGE) -> None:
    """Put the tables between the two marks of the page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(f"{MARKS[0]}\n")
    after = rest.partition(MARKS[1])[2]
    text = f"{before}{MARKS[0]}\n\n" + "\n\n".join(tables) + f"\n\n{MARKS[1]}{after}"
    page.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every study, and write or print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=1000, help="data sets a row")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--print", action="store_true", help="print, and leave the page alone")
    asked = parser.parse_args(arguments)
    tables = []
    for study in STUDIES:
        lines = table(study, list(shares(study, asked.runs, asked.processes)))
        print("\n".join(lines), flush=True)
        tables.append(f"{asked.runs:,} data sets a row.\n\n" + "\n".join(lines))
    if not asked.print:
        write(tables)


if __name__ == "__main__":
    main()
