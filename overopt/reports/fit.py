"""``overopt fit`` as text: coefficients, peaks, and which form describes."""

import math
from pathlib import Path
from typing import Any

from overopt.analysis.degenerate import remark_lines, remarks, why_unfitted
from overopt.analysis.peaks import peak_table, peaks_by_size, peaks_of, size_rank_correlation
from overopt.base import files
from overopt.fits.fit import POOR_FIT_P
from overopt.fits.pvalues import p_text
from overopt.records.view import view
from overopt.reports.slopes import slope_lines


def fit(records: str | Path) -> str:
    """Fits and peaks of a results directory, as a table."""
    results = view(records)
    lines = [
        "measured: each curve's peak and end; peak gold and fall are cross-fitted",
        peak_table(results.curves),
        *remark_lines(results.curves),
        "",
    ]
    lines.append("fitted: functional forms over the whole curve, and the peak that they imply")
    for method, series in results.fits.items():
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
                f"{method} {name}: {result.form}: {params}; {p_text(result.p_value)}; {peak}{note}"
            )
    for method, reasons in why_unfitted(results.groups).items():
        lines += [f"{method} {name}: not fitted: {reason}" for name, reason in reasons.items()]
    lines.append(
        "p: of deviations from the form as large as these, by the scatter of prompts and seeds; "
        f"below {POOR_FIT_P:g} the form does not describe the curve, and its parameters mean little"
    )
    peaks = peaks_by_size(results.curves)
    for method in results.methods:
        rho = size_rank_correlation(peaks, method)
        if not math.isnan(rho):
            lines.append(f"{method}: Spearman correlation of proxy size with peak gold {rho:.2f}")
    slopes = slope_lines(results.curves)
    return "\n".join([*lines, *([""] if slopes else []), *slopes])


def fit_json(records: str | Path) -> dict[str, Any]:
    """The same as JSON types: peaks by curve, fits by method and series, rank correlations.

    ``remarks`` of a curve and ``unfitted`` say in sentences what is degenerate, and why there is no fit.

    A number that is not available is null.
    """
    results = view(records)
    peaks = peaks_by_size(results.curves)
    return files.plain(
        {
            "experiment": results.experiment,
            "peaks": [
                {"run_id": c.meta["run_id"]} | peak | {"remarks": remarks(c)}
                for c, peak in zip(results.curves, peaks_of(results.curves), strict=True)
            ],
            "fits": {
                method: {name: result.to_dict() for name, result in series.items()}
                for method, series in results.fits.items()
            },
            "unfitted": why_unfitted(results.groups),
            "size_rank_correlation": {
                method: size_rank_correlation(peaks, method) for method in results.methods
            },
        }
    )
