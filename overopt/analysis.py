"""From records to tables and figures: `overopt fit`, `overopt stops`, `overopt figures`.

Reads records, calls the pure functions of `fits` and `figures`, and writes pictures with a sidecar
JSON each. Never imports torch.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from overopt import early_stopping, figures
from overopt.errors import DataError, OveroptError
from overopt.fits.fit import POOR_FIT_P, FitResult, jsonable
from overopt.fits.replicates import ReplicateCurve, fit_replicates, paired_difference
from overopt.fits.scaling import ScalingPoint, fit_scaling
from overopt.records import Curve, load_curves

FORMS = {"bon": "bon", "ppo": "rl"}
RESULTS = Path("experiments") / "results"
PEAK_MEANING = {
    "in_range": "a significant maximum",
    "before_range": "before the first measured point",
    "beyond_range": "significant, but beyond the measured range: extrapolated, so not given",
    "not_significant": "none shown: beta is not significantly positive",
    "no_turn_over": "none: the fitted curve does not turn over",
    "no_uncertainty": "cannot be judged without uncertainty",
}


def results_dir(name_or_path: str | Path) -> Path:
    """A directory with records: given as a path, or a preset's name under the results folders."""
    for folder in (Path(name_or_path), RESULTS / name_or_path, Path("results") / name_or_path):
        if (folder / "records.jsonl").is_file():
            return folder
    raise DataError(
        f"no records.jsonl in {str(name_or_path)!r}: run `overopt run` first, or give the directory"
    )


_TREATMENTS = {
    "label_rule": "",
    "label_flip_rate": "flips ",
    "mitigation": "",
    "kl_coef": "kl_coef ",
}


def group_curves(curves: Sequence[Curve]) -> dict[str, dict[str, list[Curve]]]:
    """Curves by method and series, sizes increasing, the largest data size only.

    A series is one proxy under one treatment: labels, mitigations or KL penalties that differ between
    the curves, or are not the plain ones, are named in the legend and never averaged.
    """
    most = max(c.meta["n_pairs"] for c in curves)
    values = {t: {c.meta.get(t) for c in curves} - {None} for t in _TREATMENTS}
    varying = [t for t, v in values.items() if len(v) > 1 or v - {"", "none", 0, "argmax"}]
    groups: dict[str, dict[str, list[Curve]]] = {}
    for curve in sorted(curves, key=lambda c: (c.meta["n_params"], c.meta["backbone"])):
        if curve.meta["n_pairs"] == most:
            name = figures.series_name(curve)
            for treatment in varying:
                value = curve.meta.get(treatment)
                if value not in (None, "none"):
                    name += f", {_TREATMENTS[treatment]}{value}"
            groups.setdefault(curve.meta["method"], {}).setdefault(name, []).append(curve)
    return groups


def data_sweeps(curves: Sequence[Curve]) -> dict[str, dict[int, list[Curve]]]:
    """Best-of-n curves of plain proxies by series and comparisons, where there are three sizes."""
    sweeps: dict[str, dict[int, list[Curve]]] = {}
    for curve in sorted(curves, key=lambda c: (c.meta["n_params"], c.meta["n_pairs"])):
        meta = curve.meta
        plain = meta.get("mitigation") in (None, "none") and meta["label_flip_rate"] == 0
        if meta["method"] == "bon" and plain and meta["label_rule"] == "argmax":
            sweep = sweeps.setdefault(figures.series_name(curve), {})
            sweep.setdefault(meta["n_pairs"], []).append(curve)
    return {name: sweep for name, sweep in sweeps.items() if len(sweep) >= 3}


def mean_peak(curves: Sequence[Curve], largest: int) -> tuple[float, float]:
    """Mean over replicates of the peak gold gain up to the coordinate ``largest``, and its stderr.

    The standard error is over replicates: nan for one. A peak is the largest of several noisy means,
    so it is too high by selection, most where curves are noisy or have many points.
    """
    gains = ((c["value"], c.arrays["gold"] - c.arrays["gold"][:1]) for c in curves)
    heights = np.array([gain.mean(1)[value <= largest].max() for value, gain in gains])
    stderr = heights.std(ddof=1) / len(heights) ** 0.5 if len(heights) > 1 else math.nan
    return float(heights.mean()), float(stderr)


def as_replicates(curves: Sequence[Curve]) -> list[ReplicateCurve]:
    """Curves of one series as the statistics see them: gold gains by prompt, known or measured KL.

    PPO seeds of one proxy are averaged first: they are not independent proxies.
    """
    by_proxy: dict[tuple[int, int], list[Curve]] = {}
    for curve in curves:
        by_proxy.setdefault((curve.meta["data_seed"], curve.meta["rm_seed"]), []).append(curve)
    replicates = []
    for (data_seed, rm_seed), same in by_proxy.items():
        gold = np.mean([c.arrays["gold"] - c.arrays["gold"][:1] for c in same], axis=0)
        known = same[0].meta["method"] == "bon"
        kl = np.mean([np.maximum(c.arrays["kl"], 0.0) for c in same], axis=0)
        replicates.append(
            ReplicateCurve(
                gold_KP=gold,
                sqrt_kl=same[0]["sqrt_kl"] if known else None,
                kl_seq_nats_KP=None if known else kl,
                rm_seed=rm_seed,
                data_seed=data_seed,
            )
        )
    return replicates


def load_tilts(
    folder: Path, groups: dict[str, dict[str, list[Curve]]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """√KL and mean gold gain of the exponential tilt by series, trusted points only.

    Replicates are averaged β by β. Empty where the records hold no tilt.
    """
    file = folder / "tilt.jsonl"
    if not file.is_file():
        return {}
    by_run: dict[str, list[dict[str, Any]]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_run.setdefault(row["run_id"], []).append(row)
    tilts = {}
    for name, curves in groups.get("bon", {}).items():
        runs = [by_run[c.meta["run_id"]] for c in curves if c.meta["run_id"] in by_run]
        points = [p for p in zip(*runs, strict=True) if all(row["reliable"] for row in p)]
        if points:
            kl, gold = (
                np.array([np.mean([row[key] for row in p]) for p in points])
                for key in ("kl_seq_nats", "gold_gain")
            )
            tilts[name] = (np.sqrt(kl), gold)
    return tilts


def fit_groups(groups: dict[str, dict[str, list[Curve]]]) -> dict[str, dict[str, FitResult]]:
    """The method's form fitted to each series' replicates; a series that cannot be fitted is absent."""
    fits: dict[str, dict[str, FitResult]] = {}
    for method, series in groups.items():
        fits[method] = {}
        for name, curves in series.items():
            try:
                fits[method][name] = fit_replicates(as_replicates(curves), FORMS[method])
            except OveroptError:
                continue
    return fits


def scaling_points(curves: Sequence[Curve], method: str) -> list[ScalingPoint]:
    """A fit for each proxy size of ``method``, sizes increasing; without uncertainty, left out.

    Curves of gold as its own proxy are left out too: gold has a size, but it is not a proxy.
    """
    proxies = [c for c in curves if c.meta["backbone"] != "gold" and c.meta["method"] == method]
    if not proxies:
        return []
    groups = group_curves(proxies)
    return [
        ScalingPoint(
            label=name,
            n_params=groups[method][name][0].meta["n_params"],
            n_pairs=groups[method][name][0].meta["n_pairs"],
            fit=result,
        )
        for name, result in fit_groups(groups)[method].items()
        if result.has_uncertainty
    ]


def fit_records(records: str | Path) -> dict[str, dict[str, FitResult]]:
    """The fits that `overopt fit` prints: method (``bon``, ``ppo``) -> series -> result.

    Values by prompt enter, so that the standard errors hold for points that share prompts and pool.
    """
    return fit_groups(group_curves(load_curves(results_dir(records))))


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
    """Spearman correlation of proxy size with peak gold over runs; nan with fewer than 4 sizes."""
    rows = [
        p
        for p in peaks
        if p["method"] == method and p["n_params"] > 0 and p["series"] != "gold as proxy"
    ]
    if len({p["n_params"] for p in rows}) < 4:
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
    lines = ["measured: each curve's highest point and its end", peak_table(curves), ""]
    lines.append("fitted: functional forms over the whole curve, and the peak that they imply")
    for method, series in fit_groups(group_curves(curves)).items():
        for name, result in series.items():
            params = ", ".join(
                f"{k} = {v:.3f} ± {result.stderr[k]:.3f}" for k, v in result.params.items()
            )
            peak = (
                f"fitted peak {result.peak_gold:.2f} at √KL {result.peak_sqrt_kl:.2f}"
                if result.peak_in_range
                else "no fitted peak inside the measured range"
            )
            note = f" [{result.message}]" if result.message else ""
            lines.append(
                f"{method} {name}: {result.form}: {params}; p = {result.p_value:.2g}; {peak}{note}"
            )
    lines.append(
        "p: of deviations from the form as large as these, by the scatter of prompts and seeds; "
        f"below {POOR_FIT_P:g} the form does not describe the curve, and its parameters mean little"
    )
    peaks = [peak_of(c) for c in curves]
    most = max(p["n_pairs"] for p in peaks)
    for method in FORMS:
        rho = size_rank_correlation([p for p in peaks if p["n_pairs"] == most], method)
        if not math.isnan(rho):
            lines.append(f"{method}: Spearman correlation of proxy size with peak gold {rho:.2f}")
    return "\n".join(lines)


FEW_PROXIES = 5  # below, thresholds and errors of stopping rules are not to be trusted


def stops(records: str | Path) -> str:
    """Rules for stopping PPO without gold, as a table: what each loses against the oracle.

    Raises
    ------
    DataError
        Fewer than two proxies with PPO curves: thresholds are tuned on the others.
    """
    curves = [c for c in load_curves(results_dir(records)) if c.meta["method"] == "ppo"]
    if not curves:
        raise DataError(f"records {str(records)!r} hold no PPO curve: stopping rules need one")
    scores = early_stopping.compare_rules(curves)
    detectors = {d.rule: d for d in early_stopping.rank_detectors(curves)}
    rules = {rule.name: rule for rule in early_stopping.RULES}
    lines = [
        f"{len(curves)} PPO curves; regret in sd of gold against the oracle, tuned on other proxies"
        " and on the other half of the prompts",
        f"{'rule':20} {'regret':>13} {'in sample':>9} {'steps before peak':>17}"
        f" {'AUC':>11}  {'threshold':<20}",
    ]
    for score in scores:
        found = detectors.get(score.rule)
        auc = "–" if found is None else _with_error(found.auc, found.auc_stderr)
        rule = rules.get(score.rule)
        threshold = "–" if rule is None else _threshold(rule, score.threshold)
        regret = _with_error(score.regret.estimate, score.regret.stderr)
        lines.append(
            f"{score.rule:20} {regret:>13} {score.regret.in_sample:9.2f} {score.lead:17.1f}"
            f" {auc:>11}  {threshold}"
        )
    absent = [r.name for r in early_stopping.RULES if r.name not in detectors]
    if absent:
        lines.append(f"not in these records: what {', '.join(absent)} would watch")
    n_proxies = len({early_stopping.proxy_of(c) for c in curves})
    if n_proxies < FEW_PROXIES:
        lines.append(
            f"{n_proxies} proxies are few to tune a threshold on and to score it: the errors are too"
            " small; use more RM seeds"
        )
    return "\n".join(lines)


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
        stem: figures.overoptimization(groups, replicates, fits, load_tilts(folder, groups))
    }
    if len({p["n_params"] for p in peaks}) > 2:
        by_method = {
            m: [
                (p["n_params"], p["peak_gold"], p["peak_stderr"]) for p in peaks if p["method"] == m
            ]
            for m in FORMS
        }
        by_method = {m: v for m, v in by_method.items() if v}
        pictures[stem.replace("fig01", "fig02")] = figures.size_and_peak(by_method)
    points = scaling_points(curves, "bon")
    if len(points) >= FEWEST_SIZES and all(p.fit.p_value >= POOR_FIT_P for p in points):
        pictures[stem.replace("fig01", "fig04")] = figures.coefficients(points, fit_scaling(points))
    sweeps = data_sweeps(curves)
    # Curves may end at different n: peaks are compared over what all of them cover.
    ends = [int(c["value"][-1]) for sweep in sweeps.values() for s in sweep.values() for c in s]
    sweep_peaks = {
        series: [(n, *mean_peak(same, min(ends))) for n, same in sweep.items()]
        for series, sweep in sweeps.items()
    }
    if sweeps:
        pictures[stem.replace("fig01", "fig03")] = figures.data_sizes(
            sweeps,
            {s: {n: as_replicates(c) for n, c in sweep.items()} for s, sweep in sweeps.items()},
            sweep_peaks,
            min(ends),
        )
    written = []
    for file, figure in pictures.items():
        path = out / f"{file}.png"
        figure.savefig(path, dpi=160, metadata={"Software": None})
        side = {
            "experiment": name,
            "records": sorted({c.meta["run_id"] for c in curves}),
            "peaks": peaks,
            **({"data_size_peaks": sweep_peaks} if "fig03" in file else {}),
            "fits": {m: {k: jsonable(f) for k, f in s.items()} for m, s in fits.items()},
        }
        (out / f"{file}.json").write_text(
            json.dumps(plain(side), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        written += [path, out / f"{file}.json"]
    return written


def plain(value: Any) -> Any:
    """JSON without NaN and infinities: they become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _threshold(rule: early_stopping.Rule, value: float) -> str:
    """In words where it is infinite: every signal is past it, or none."""
    if math.isfinite(value):
        return f"{value:.3g} {rule.unit}"
    return "at once" if (value > 0) == (rule.side == "below") else "never"


def _with_error(value: float, stderr: float) -> str:
    return f"{value:.2f}±" + (f"{stderr:.2f}" if math.isfinite(stderr) else "–")


def number(value: float) -> str:
    return f"{value:9.3f}" if math.isfinite(value) else f"{'none':>9}"


def interval(ci: tuple[float, float]) -> str:
    return f"[{ci[0]:.3g}, {ci[1]:.3g}]" if not math.isnan(ci[0]) else "[no interval]"


def plus_minus(mean: float, stderr: float) -> str:
    return f"{mean:8.4g} ± {stderr:6.3g}"
