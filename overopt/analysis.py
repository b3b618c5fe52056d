"""From records to tables and figures: what `overopt fit`, `figures`, `forecast` and `bench` do.

Reads committed records, calls the pure functions of `fits` and `figures`, writes pictures with a
sidecar JSON each. Never imports torch (`bench` does, inside its functions).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from overopt import figures
from overopt.errors import DataError, OveroptError
from overopt.fits.fit import FitResult, jsonable
from overopt.fits.replicates import ReplicateCurve, fit_replicates, paired_difference
from overopt.records import Curve, load_curves

FORMS = {"bon": "bon", "ppo": "rl"}
RESULTS = Path("experiments") / "results"


def results_dir(name_or_path: str | Path) -> Path:
    """A directory with records: given as a path, or a preset's name under the results folders."""
    for folder in (Path(name_or_path), RESULTS / name_or_path, Path("results") / name_or_path):
        if (folder / "records.jsonl").is_file():
            return folder
    raise DataError(
        f"no records.jsonl in {str(name_or_path)!r}: run `overopt run` first, or give the directory"
    )


def group_curves(curves: Sequence[Curve]) -> dict[str, dict[str, list[Curve]]]:
    """Curves by method and series (proxy size), sizes increasing, the largest data size only."""
    most = max(c.meta["n_pairs"] for c in curves)
    groups: dict[str, dict[str, list[Curve]]] = {}
    for curve in sorted(curves, key=lambda c: c.meta["n_params"]):
        if curve.meta["n_pairs"] == most:
            by_series = groups.setdefault(curve.meta["method"], {})
            by_series.setdefault(figures.series_name(curve), []).append(curve)
    return groups


def as_replicate(curve: Curve) -> ReplicateCurve:
    """A curve as the statistics see it: gold gains by prompt, with known or measured KL."""
    gain = curve.arrays["gold"] - curve.arrays["gold"][:1]
    meta = curve.meta
    known = meta["method"] == "bon"
    return ReplicateCurve(
        gold_KP=gain,
        sqrt_kl=curve["sqrt_kl"] if known else None,
        kl_seq_nats_KP=None if known else np.maximum(curve.arrays["kl"], 0.0),
        rm_seed=(meta["rm_seed"], meta["ppo_seed"]),
        data_seed=meta["data_seed"],
    )


def fit_groups(groups: dict[str, dict[str, list[Curve]]]) -> dict[str, dict[str, FitResult]]:
    """The method's form fitted to each series' replicates; a series that cannot be fitted is absent."""
    fits: dict[str, dict[str, FitResult]] = {}
    for method, series in groups.items():
        fits[method] = {}
        for name, curves in series.items():
            try:
                fits[method][name] = fit_replicates(
                    [as_replicate(c) for c in curves], FORMS[method]
                )
            except OveroptError:
                continue
    return fits


def peak_of(curve: Curve) -> dict[str, Any]:
    """The best point of a curve by mean gold gain, and the fall from it to the last point.

    The fall is the paired difference (peak minus end, same prompts) with its standard error. The
    peak is selected as the largest mean, so its height is biased upwards by a fraction of its
    standard error; the fall inherits that.
    """
    gain = curve.arrays["gold"] - curve.arrays["gold"][:1]
    k = int(gain.mean(1).argmax())
    fall = paired_difference(gain[k], gain[-1])
    proxy = curve["proxy_score"]
    return {
        "series": figures.series_name(curve),
        "method": curve.meta["method"],
        "n_params": curve.meta["n_params"],
        "n_pairs": curve.meta["n_pairs"],
        "rm_seed": curve.meta["rm_seed"],
        "accuracy": curve.meta["proxy_accuracy"],
        "peak_at": int(curve["value"][k]),
        "peak_sqrt_kl": float(curve["sqrt_kl"][k]),
        "peak_gold": float(gain[k].mean()),
        "peak_stderr": float(gain[k].std(ddof=1) / gain.shape[1] ** 0.5),
        "end_sqrt_kl": float(curve["sqrt_kl"][-1]),
        "end_gold": float(gain[-1].mean()),
        "fall": fall.estimate,
        "fall_stderr": fall.stderr,
        "proxy_end_share": float(proxy[-1] / np.maximum.accumulate(proxy)[-1]),
        "proxy_lowest_share": float((proxy[1:] / np.maximum.accumulate(proxy)[1:]).min()),
    }


def size_rank_correlation(peaks: Sequence[dict[str, Any]], method: str) -> float:
    """Spearman correlation of proxy size with peak gold over runs; nan with fewer than 3 runs."""
    rows = [p for p in peaks if p["method"] == method]
    if len({p["n_params"] for p in rows}) < 3:
        return math.nan
    return float(spearmanr([p["n_params"] for p in rows], [p["peak_gold"] for p in rows])[0])


def peak_table(curves: Sequence[Curve]) -> str:
    """One line a curve: where gold peaks, how far it falls, whether the proxy kept rising."""
    head = (
        f"{'method':6} {'series':14} {'pairs':>6} {'seed':>4} {'acc':>5} {'peak at':>7} {'√KL':>5}"
        f" {'peak gold':>12} {'end √KL':>7} {'end':>6} {'fall':>12} {'proxy end/max':>13}"
    )
    lines = [head]
    for p in map(peak_of, curves):
        lines.append(
            f"{p['method']:6} {p['series']:14} {p['n_pairs']:6d} {p['rm_seed']:4d}"
            f" {p['accuracy']:5.2f} {p['peak_at']:7d} {p['peak_sqrt_kl']:5.2f}"
            f" {p['peak_gold']:6.2f}±{p['peak_stderr']:.2f}  {p['end_sqrt_kl']:7.2f}"
            f" {p['end_gold']:6.2f} {p['fall']:6.2f}±{p['fall_stderr']:.2f}"
            f"  {p['proxy_end_share']:13.2f}"
        )
    return "\n".join(lines)


def fit(records: str | Path) -> str:
    """Fits and peaks of a results directory, as a table."""
    curves = load_curves(results_dir(records))
    lines = [peak_table(curves), ""]
    for method, series in fit_groups(group_curves(curves)).items():
        for name, result in series.items():
            params = ", ".join(
                f"{k} = {v:.3f} ± {result.stderr[k]:.3f}" for k, v in result.params.items()
            )
            peak = (
                f"peak {result.peak_gold:.2f} at √KL {result.peak_sqrt_kl:.2f}"
                if result.peak_in_range
                else "no peak inside the measured range"
            )
            note = f" [{result.message}]" if result.message else ""
            lines.append(f"{method} {name}: {result.form}: {params}; {peak}{note}")
    peaks = [peak_of(c) for c in curves]
    most = max(p["n_pairs"] for p in peaks)
    for method in FORMS:
        rho = size_rank_correlation([p for p in peaks if p["n_pairs"] == most], method)
        if not math.isnan(rho):
            lines.append(f"{method}: Spearman correlation of proxy size with peak gold {rho:.2f}")
    return "\n".join(lines)


def draw(records: str | Path, out: str | Path) -> list[Path]:
    """Draw the figures of a results directory into ``out``; returns the files written."""
    folder = results_dir(records)
    curves = load_curves(folder)
    groups = group_curves(curves)
    fits = fit_groups(groups)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    name = curves[0].meta["experiment"]
    most = max(c.meta["n_pairs"] for c in curves)
    peaks = [peak_of(c) for c in curves if c.meta["n_pairs"] == most]
    stem = "fig01" if name in ("quick", "exp001_figure1") else f"fig01_{name}"
    pictures = {stem: figures.overoptimization(groups, fits)}
    if len({p["n_params"] for p in peaks}) > 2:
        by_method = {
            m: [
                (p["n_params"], p["peak_gold"], p["peak_stderr"]) for p in peaks if p["method"] == m
            ]
            for m in FORMS
        }
        by_method = {m: v for m, v in by_method.items() if v}
        pictures[stem.replace("fig01", "fig02")] = figures.size_and_peak(by_method)
    written = []
    for file, figure in pictures.items():
        path = out / f"{file}.png"
        figure.savefig(path, dpi=160, metadata={"Software": None})
        side = {
            "experiment": name,
            "records": sorted({c.meta["run_id"] for c in curves}),
            "peaks": peaks,
            "fits": {m: {k: jsonable(f) for k, f in s.items()} for m, s in fits.items()},
        }
        (out / f"{file}.json").write_text(
            json.dumps(_plain(side), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        written += [path, out / f"{file}.json"]
    return written


def _plain(value: Any) -> Any:
    """JSON without NaN and infinities: they become null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def bench(threads: int) -> str:
    """Hot paths as ratios against references measured in the same run."""
    from overopt.benchmarks import estimator_bench

    rows = estimator_bench.run_all(root_seed=0)
    lines = [f"{threads} thread(s)", f"{'path':44} {'seconds':>9} {'reference':>9} {'ratio':>7}"]
    for row in rows:
        lines.append(
            f"{row['name']:44} {row['seconds']:9.3f} {row['reference_seconds']:9.3f}"
            f" {row['ratio']:7.1f}  {row['note']}"
        )
    return "\n".join(lines)


def forecast(records: str | Path) -> str:
    """Scaling fits need three sizes; see `overopt.fits.scaling` for the functions."""
    from overopt.fits.scaling import fit_scaling  # noqa: F401

    raise DataError(
        f"forecasting from {str(records)!r} is not on the command line yet: use "
        "overopt.fits.scaling.fit_scaling and forecast from Python"
    )
