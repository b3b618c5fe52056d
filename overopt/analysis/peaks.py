"""Where curves peak, how far they have come down at their end, and how peaks follow proxy size.

Heights and falls are cross-fitted: the largest of several noisy means is too high where it is read off
the prompts that chose it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from overopt.analysis.metrics import at_peak, half_splits
from overopt.base.seeding import numpy_rng
from overopt.fits.forms import Array
from overopt.fits.replicates import PairedDifference, ReplicateCurve, paired_difference
from overopt.records import series
from overopt.records.curves import Curve

PEAK_MEANING = {
    "in_range": "a significant maximum",
    "before_range": "before the first measured point",
    "beyond_range": "significant, but beyond the measured range: extrapolated, so not given",
    "not_significant": "none shown: beta is not significantly positive",
    "no_turn_over": "none: the fitted curve does not turn over",
    "no_uncertainty": "cannot be judged without uncertainty",
}


def cross_fitted(gain_KP: Array) -> Array:
    """Gold gain at a curve's peak by prompt, (P,): chosen on one half of the prompts, read on the other.

    Over 32 random halves, the same ones whenever there are P prompts; nan for a single prompt. See
    `overopt.analysis.metrics.at_peak`.
    """
    n_prompts = gain_KP.shape[1]
    if n_prompts < 2:
        return np.full(n_prompts, math.nan)
    (peak,) = at_peak(gain_KP, [gain_KP], _splits(n_prompts))
    return peak


@cache
def _splits(n_prompts: int) -> NDArray[np.bool_]:
    return half_splits(n_prompts, rng=numpy_rng(0, "peaks", n_prompts))


def peak_of_mean(replicates: Sequence[ReplicateCurve]) -> PairedDifference:
    """Gold gain at the peak of the mean of replicate curves, cross-fitted, with its error.

    The peak is that of the mean over replicates and one half of the prompts, as far as all curves
    reach; it is read on the other half. Errors are over seeds and prompts; nan for a single prompt.
    """
    n = min(len(r.d) for r in replicates)
    gains = [np.asarray(r.gold_KP)[:n] for r in replicates]
    n_prompts = gains[0].shape[1]
    if n_prompts < 2:
        nothing = np.zeros((len(gains), n_prompts))
        return replace(paired_difference(nothing, nothing), estimate=math.nan)
    peak = np.stack(at_peak(np.mean(gains, axis=0), gains, _splits(n_prompts)))
    return paired_difference(
        peak, np.zeros_like(peak), data_seeds=[r.data_seed for r in replicates]
    )


def mean_peak(curves: Sequence[Curve], largest: int) -> tuple[float, float]:
    """Mean over replicates of the peak gold gain up to the coordinate ``largest``, and its stderr.

    Cross-fitted. The standard error is over replicates: nan for one.
    """
    gains = [c.gain("gold")[c["value"] <= largest] for c in curves]
    heights = np.array([cross_fitted(gain).mean() for gain in gains])
    stderr = heights.std(ddof=1) / len(heights) ** 0.5 if len(heights) > 1 else math.nan
    return float(heights.mean()), float(stderr)


def peak_of(curve: Curve) -> dict[str, Any]:
    """The peak of a curve by mean gold gain, and the fall from it to the last point.

    ``peak_at`` and ``peak_sqrt_kl`` are those of the highest mean. ``peak_gold`` is cross-fitted, and
    so is ``fall``, the difference of peak and end on the same prompts: without a true fall it is at
    most 0 on average. Standard errors are over prompts. ``proxy_fall`` is how far the proxy ends below
    its own highest point, in standard deviations of the initial policy, whose zero is arbitrary.
    """
    gain = curve.gain("gold")
    k = int(gain.mean(1).argmax())
    peak = cross_fitted(gain)
    fall = paired_difference(peak, gain[-1])
    proxy = curve["proxy_score"]
    return {
        "series": series.series_name(curve),
        "method": curve.meta["method"],
        "n_params": curve.meta["n_params"],
        "n_pairs": curve.meta["n_pairs"],
        "rm_seed": curve.meta["rm_seed"],
        "accuracy": curve.meta["proxy_accuracy"],
        "peak_at": int(curve["value"][k]),
        "peak_sqrt_kl": float(curve["sqrt_kl"][k]),
        "peak_gold": float(peak.mean()),
        "peak_stderr": float(peak.std(ddof=1) / len(peak) ** 0.5),
        "end_sqrt_kl": float(curve["sqrt_kl"][-1]),
        "end_gold": float(gain[-1].mean()),
        "fall": fall.estimate,
        "fall_stderr": fall.stderr,
        "proxy_fall": float(proxy.max() - proxy[-1]),
    }


def peaks_of(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """`peak_of` each curve; ``series`` says what sets it apart among these."""
    names = series.series_names(curves)
    return [peak_of(curve) | {"series": names[curve.meta["run_id"]]} for curve in curves]


def peaks_of_shared_data(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """`peak_of` each curve of the number of comparisons that most proxies share."""
    return peaks_of(series.of_shared_data(curves))


def peaks_by_size(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """`peak_of` the curves whose proxies differ in size and seed, not in what they were trained on.

    Shuffled labels or a mitigation at some sizes would otherwise move the mean of these sizes.
    """
    return [peak_of(c) for c in series.of_shared_data(curves, treated_alike=True)]


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
    """One line a curve: where gold peaks, how far it falls, and how far the proxy does."""
    peaks = peaks_of(curves)
    width = max([14, *(len(p["series"]) for p in peaks)])
    first = max([6, *(len(p["method"]) for p in peaks)])
    head = (
        f"{'method':{first}} {'series':{width}} {'pairs':>6} {'seed':>4} {'acc':>5} {'peak at':>7}"
        f" {'√KL':>5} {'peak gold':>12} {'end √KL':>7} {'end':>6} {'fall':>12} {'proxy fall':>10}"
    )
    lines = [head]
    for p in peaks:
        lines.append(
            f"{p['method']:{first}} {p['series']:{width}} {p['n_pairs']:6d} {p['rm_seed']:4d}"
            f" {p['accuracy']:5.2f} {p['peak_at']:7d} {p['peak_sqrt_kl']:5.2f}"
            f" {p['peak_gold']:6.2f}±{p['peak_stderr']:.2f}  {p['end_sqrt_kl']:7.2f}"
            f" {p['end_gold']:6.2f} {p['fall']:6.2f}±{p['fall_stderr']:.2f}"
            f"  {p['proxy_fall']:10.2f}"
        )
    return "\n".join(lines)
