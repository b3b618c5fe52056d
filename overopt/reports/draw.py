"""Draws every figure that the records of a results directory can support."""

import json
from pathlib import Path

from overopt.analysis.peaks import mean_peak, peak_of
from overopt.base import files
from overopt.base.files import plain
from overopt.fits.fit import POOR_FIT_P, jsonable
from overopt.fits.scaling import fit_scaling
from overopt.records.curves import load_curves, results_dir
from overopt.records.series import (
    FORMS,
    as_replicates,
    data_sweeps,
    fit_groups,
    group_curves,
    load_tilts,
    scaling_points,
)
from overopt.reports.figures import coefficients, data_sizes, overoptimization, size_and_peak
from overopt.reports.figures.style import X_LABELS

FEWEST_SIZES = 4  # for a picture of coefficients: a line through three leaves one degree of freedom


def draw(records: str | Path, out: str | Path) -> list[Path]:
    """Draw the figures of a results directory into ``out``; returns the files written."""
    folder = results_dir(records)
    curves = load_curves(folder)
    groups = group_curves(curves)
    fits = fit_groups(groups)
    replicates = {
        m: {name: as_replicates(same) for name, same in series.items()}
        for m, series in groups.items()
    }
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    name = curves[0].meta["experiment"]
    most = max(c.meta["n_pairs"] for c in curves)
    peaks = [peak_of(c) for c in curves if c.meta["n_pairs"] == most]
    stem = "fig01" if name in ("quick", "exp001_figure1") else f"fig01_{name}"
    pictures = {
        stem: overoptimization.overoptimization(
            groups, replicates, fits, load_tilts(folder, groups)
        )
    }
    if len({p["n_params"] for p in peaks}) > 2:
        by_method = {
            m: [
                (p["n_params"], p["peak_gold"], p["peak_stderr"]) for p in peaks if p["method"] == m
            ]
            for m in FORMS
        }
        by_method = {m: v for m, v in by_method.items() if v}
        pictures[stem.replace("fig01", "fig02")] = size_and_peak.size_and_peak(by_method)
    points = scaling_points(curves, "bon")
    if len(points) >= FEWEST_SIZES and all(p.fit.p_value >= POOR_FIT_P for p in points):
        pictures[stem.replace("fig01", "fig04")] = coefficients.coefficients(
            points, fit_scaling(points)
        )
    sweeps = data_sweeps(curves)
    # Curves may end at different n: peaks are compared over what all of them cover.
    ends = [int(c["value"][-1]) for sweep in sweeps.values() for s in sweep.values() for c in s]
    sweep_peaks = {
        series: [(n, *mean_peak(same, min(ends))) for n, same in sweep.items()]
        for series, sweep in sweeps.items()
    }
    if sweeps:
        pictures[stem.replace("fig01", "fig03")] = data_sizes.data_sizes(
            sweeps,
            {s: {n: as_replicates(c) for n, c in sweep.items()} for s, sweep in sweeps.items()},
            sweep_peaks,
            min(ends),
        )
    written = []
    for file, figure in pictures.items():
        path = out / f"{file}.png"
        files.save_figure(path, figure, formulas=X_LABELS.values())
        side = {
            "experiment": name,
            "records": sorted({c.meta["run_id"] for c in curves}),
            "peaks": peaks,
            **({"data_size_peaks": sweep_peaks} if "fig03" in file else {}),
            "fits": {m: {k: jsonable(f) for k, f in s.items()} for m, s in fits.items()},
        }
        text = json.dumps(plain(side), indent=1, allow_nan=False) + "\n"
        files.atomic_write(out / f"{file}.json", text.encode())
        written += [path, out / f"{file}.json"]
    return written
