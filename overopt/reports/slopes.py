"""Slopes per decade as text: part of ``overopt fit``."""

from collections.abc import Sequence

from overopt.analysis.slopes import SHAPE, ShapeSlopes, shape_slopes, sweeps
from overopt.base.errors import OveroptError
from overopt.base.seeding import numpy_rng
from overopt.fits.pvalues import p_text
from overopt.fits.trend import PERMUTATIONS
from overopt.records.curves import Curve
from overopt.records.series import series_name, size_name
from overopt.reports.text import with_error

WORDS = {
    "n_params": "parameters",
    "n_pairs": "comparisons",
    "policy_params": "parameters of the policy",
}


def slope_lines(curves: Sequence[Curve]) -> list[str]:
    """Lines on every sweep over an axis of `shape_slopes` in the curves; none without one."""
    lines = []
    for by, same in sweeps(curves):
        meta = same[0].meta
        pairs = f"{meta['n_pairs']} comparisons"
        fixed = {"n_params": pairs, "n_pairs": series_name(same[0])}
        title = f"{meta['method']}, {fixed.get(by, f'{series_name(same[0])}, {pairs}')}"
        title += f", per tenfold {WORDS[by]}"
        try:
            found = shape_slopes(same, by, rng=numpy_rng(0, "slopes"))
        except OveroptError as error:
            lines.append(f"{title}: none ({error})")
            continue
        lines += [title, *_rows(found)]
    if lines:
        lines.append(
            "peak and fall are cross-fitted over prompts; √KL of the peak counts up to the horizon;"
            f" the first p is t over seeds and prompts, the second of {PERMUTATIONS} permutations of"
            " sizes within seeds; collapsed: ends below its start; clusters: two rather than one"
        )
    return lines


def _rows(found: ShapeSlopes) -> list[str]:
    names = {"peak": "peak", "peak_sqrt_kl": "peak √KL", "end": "end", "fall": "fall"}
    slopes = {name: found.slopes[name] for name in SHAPE}
    lines = [
        f"  {'':>9} {'runs':>4} "
        + " ".join(f"{names[n]:>12}" for n in SHAPE)
        + f" {'at horizon':>10} {'median end':>10} {'sd':>5} {'collapsed':>9}  clusters"
    ]
    for at in found.at:
        size = f"{at.size:g}" if found.by == "n_pairs" else size_name(at.size)
        lines.append(
            f"  {size:>9} {at.n_runs:4d} "
            + " ".join(f"{with_error(at.shape[n].estimate, at.shape[n].stderr):>12}" for n in SHAPE)
            + f" {at.share_censored:10.0%} {at.ends.median:10.2f} {at.ends.sd:5.2f}"
            f" {at.ends.n_below:4d} of {at.ends.n}  {p_text(at.ends.p_clusters)}"
        )
    lines.append(
        f"  {'slope':>9} {'':4} "
        + " ".join(f"{with_error(t.slope.estimate, t.slope.stderr):>12}" for t in slopes.values())
        + f"  horizon √KL {found.horizon:.2f}; all ends: {p_text(found.ends.p_clusters)} for clusters"
    )
    for label, value in (
        ("t", [t.slope.p_value for t in slopes.values()]),
        ("permuted", [t.p_permutation for t in slopes.values()]),
    ):
        lines.append(f"  {label:>9} {'':4} " + " ".join(f"{p_text(p):>12}" for p in value))
    return lines + ([f"  {found.note}"] if found.note else [])
