"""From per-prompt measurements of a point to its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from overopt.base import files
from overopt.base.lazy import lazy
from overopt.rewards.kind import Scorer

if TYPE_CHECKING:
    from overopt.base.datatypes import Responses
    from overopt.measure import kl
else:
    kl = lazy("overopt.measure.kl")

ARRAYS = ("gold", "proxy", "intent", "kl", "length")
"""Per-prompt values that are kept beside records; intent only where the world has one."""


def member_spread(proxy: Scorer, responses: Responses) -> np.ndarray | None:
    """Standard deviation (R,) over an ensemble's members; None for one proxy."""
    if proxy.n_members < 2:
        return None
    scores_MR = proxy.member_scores(responses).numpy().astype(float)
    return scores_MR.std(0)


def within_std(scores_PC: np.ndarray) -> float:
    """Root of the mean over prompts of the variance of a prompt's scores (ddof 1)."""
    return float(np.sqrt(scores_PC.astype(float).var(1, ddof=1).mean()))


def stderr(x: np.ndarray) -> float:
    """Standard error of the mean of ``x`` (P,)."""
    return float(x.std(ddof=1) / len(x) ** 0.5)


def save_curve(
    out: Path, rows: list[dict], arrays: dict[str, np.ndarray], proxies: Sequence[Scorer]
) -> None:
    """Add the means of per-prompt arrays (K, P) to the rows and write both.

    ``proxies``: each row's. A gain is over the first row, or over ``proxy_start`` (K, P): what the
    row's proxy says of the first row's responses.
    """
    for k, (row, proxy) in enumerate(zip(rows, proxies, strict=True)):
        row["sqrt_kl"] = kl.sqrt_kl(row["kl_seq_nats"])
        row["n_prompts"] = arrays["gold"].shape[1]
        row["response_tokens"] = float(arrays["length"][k].mean())
        for name in ("gold", "proxy", "intent"):
            values = arrays[name][k] if name in arrays else None
            row[f"{name}_score"] = None if values is None else float(values.mean())
            row[f"{name}_score_stderr"] = None if values is None else stderr(values)
        for name in ("gold", "proxy"):
            start = arrays.get(f"{name}_start")
            gain = arrays[name][k] - (arrays[name][0] if start is None else start[k])
            row[f"{name}_gain"] = float(gain.mean())
            row[f"{name}_gain_stderr"] = stderr(gain)
        row["gap"] = row["proxy_gain"] - row["gold_gain"]
        if "win_rate" in arrays:
            row["win_rate"] = float(arrays["win_rate"][k].mean())
            row["win_rate_stderr"] = stderr(arrays["win_rate"][k])
        row["proxy_raw"] = row["proxy_score"] * proxy.unit.std + proxy.unit.mean
    files.save_json(out / "rows.json", rows)
    files.save_arrays(
        out / "curve.npz", {k: arrays[k].astype(np.float32) for k in ARRAYS if k in arrays}
    )
