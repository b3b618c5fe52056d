"""Curves on which there is little to see, and why: a sentence each, in place of numbers that mislead.

A policy that ends at once, never ends or says one thing only, and scores that are all equal, give curves
that are flat or cannot be fitted. Records tell which it was.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from overopt.analysis.rules import column
from overopt.records import series
from overopt.records.curves import Curve

CONSTANT = 1e-6
"""Change of gold as a share of its largest score below which there is none: float32 rounds at 6e-8."""
ROUNDING = 1e-6
"""Of shares, means of lengths and nats, which best-of-n weighs in float64."""


def remarks(curve: Curve) -> list[str]:
    """What is degenerate about a curve, a sentence each; empty for an ordinary one.

    What holds from some point of a policy's way to its end counts, and the sentence says from where.
    What best-of-n chooses must be so at every n. Curves of what is no text, as in control, have none.
    """
    if all(row["distinct_share"] is None and row["kl_bon_ties"] is None for row in curve.rows):
        return []
    found = [
        _since(column(curve, "ended_share") <= ROUNDING, curve, "no response ends, all are cut off")
    ]
    # The first that holds explains the others.
    for holds, sentence in _explanations(curve):
        said = _since(holds, curve, sentence)
        if said:
            return [*filter(None, found), said]
    return [*filter(None, found)]


def _explanations(curve: Curve) -> Iterable[tuple[NDArray[np.bool_], str]]:
    """What may hold at each point (K,), and how it is said; what explains more comes first."""
    ended, length = column(curve, "ended_share"), column(curve, "response_tokens")
    at_once = (ended >= 1 - ROUNDING) & (length <= 1 + ROUNDING)
    yield at_once, "every response ends at once: it has its end token only"
    copies = column(curve, "n_responses") / column(curve, "n_prompts")
    different = column(curve, "distinct_share") * copies  # responses to a prompt; nan for best-of-n
    yield (copies > 1) & (different <= 1 + ROUNDING), "all responses to a prompt are the same"
    chosen = (column(curve, "value") <= 1) | (column(curve, "kl_bon_ties") <= ROUNDING)
    equal = chosen if curve.is_bon else column(curve, "proxy_std") == 0
    yield (
        equal,
        "the proxy gives all responses to a prompt the same score: there is nothing to choose by",
    )
    gain, score = np.abs(curve.gain("gold")).max(1), np.abs(curve.arrays["gold"]).max()
    is_flat = bool((gain <= CONSTANT * score).all())
    yield np.full(len(gain), is_flat), "gold gives every response to a prompt the same score"


def _since(holds: NDArray[np.bool_], curve: Curve, sentence: str) -> str:
    """The sentence, and from which point on it holds; "" where it does not hold at the end."""
    if not holds[-1] or (curve.is_bon and not holds.all()):
        return ""
    first = len(holds) - int(np.argmin(holds[::-1])) if not holds.all() else 0
    since = f", from {curve.shown.axis} {int(curve['value'][first])} on" if first > 0 else ""
    return sentence + since


def remark_lines(curves: Sequence[Curve]) -> list[str]:
    """The remarks of all curves, those of a series that say the same in one line."""
    counted: dict[tuple[str, str, str], int] = {}
    total: dict[tuple[str, str], int] = {}
    names = series.series_names(curves)
    for curve in curves:
        name = (curve.shown.label, names[curve.meta["run_id"]])
        total[name] = total.get(name, 0) + 1
        for remark in remarks(curve):
            counted[*name, remark] = counted.get((*name, remark), 0) + 1
    return [
        f"{label}, {name}{f' ({n} of {total[label, name]} curves)' if total[label, name] > 1 else ''}:"
        f" {remark}"
        for (label, name, remark), n in counted.items()
    ]


def why_unfitted(groups: series.Groups) -> dict[str, dict[str, str]]:
    """The series without a fit: method -> series -> what is degenerate, or else why the fit failed."""
    return {
        method: {
            name: (remarks(groups[method][name][0]) or [reason])[-1]
            for name, reason in reasons.items()
        }
        for method, reasons in series.unfitted(groups).items()
    }
