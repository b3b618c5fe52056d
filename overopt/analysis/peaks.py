"""Where curves peak, how far they have come down at their end, and how peaks follow proxy size."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from overopt.fits.replicates import paired_difference
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


def mean_peak(curves: Sequence[Curve], largest: int) -> tuple[float, float]:
    """Mean over replicates of the peak gold gain up to the coordinate ``largest``, and its stderr.

    The standard error is over replicates: nan for one. A peak is the largest of several noisy means,
    so it is too high by selection, most where curves are noisy or have many points.
    """
    gains = ((c["value"], c.gain("gold")) for c in curves)
    heights = np.array([gain.mean(1)[value <= largest].max() for value, gain in gains])
    stderr = heights.std(ddof=1) / len(heights) ** 0.5 if len(heights) > 1 else math.nan
    return float(heights.mean()), float(stderr)


def peak_of(curve: Curve) -> dict[str, Any]:
    """The best point of a curve by mean gold gain, and the fall from it to the last point.

    The fall is the paired difference (peak minus end, same prompts) with its standard error. The
    peak is selected as the largest mean, so its height is biased upwards by a fraction of its
    standard error; the fall inherits that. ``proxy_fall`` is how far the proxy ends below its own
    highest point, in standard deviations of the initial policy, whose zero is arbitrary: 0 where it
    kept rising.
    """
    gain = curve.gain("gold")
    k = int(gain.mean(1).argmax())
    fall = paired_difference(gain[k], gain[-1])
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
        "peak_gold": float(gain[k].mean()),
        "peak_stderr": float(gain[k].std(ddof=1) / gain.shape[1] ** 0.5),
        "end_sqrt_kl": float(curve["sqrt_kl"][-1]),
        "end_gold": float(gain[-1].mean()),
        "fall": fall.estimate,
        "fall_stderr": fall.stderr,
        "proxy_fall": float(proxy.max() - proxy[-1]),
    }


def peaks_of_shared_data(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """`peak_of` each curve of the number of comparisons that most proxies share."""
    return [peak_of(c) for c in series.of_shared_data(curves)]


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
    head = (
        f"{'method':6} {'series':14} {'pairs':>6} {'seed':>4} {'acc':>5} {'peak at':>7} {'√KL':>5}"
        f" {'peak gold':>12} {'end √KL':>7} {'end':>6} {'fall':>12} {'proxy fall':>10}"
    )
    lines = [head]
    for p in map(peak_of, curves):
        lines.append(
            f"{p['method']:6} {p['series']:14} {p['n_pairs']:6d} {p['rm_seed']:4d}"
            f" {p['accuracy']:5.2f} {p['peak_at']:7d} {p['peak_sqrt_kl']:5.2f}"
            f" {p['peak_gold']:6.2f}±{p['peak_stderr']:.2f}  {p['end_sqrt_kl']:7.2f}"
            f" {p['end_gold']:6.2f} {p['fall']:6.2f}±{p['fall_stderr']:.2f}"
            f"  {p['proxy_fall']:10.2f}"
        )
    return "\n".join(lines)
