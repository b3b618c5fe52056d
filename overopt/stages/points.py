"""From per-prompt measurements of a point to its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from overopt.base import files
from overopt.base.lazy import lazy
from overopt.rewards.kind import Scorer, Unit

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


def moments(proxy: np.ndarray, gold: np.ndarray) -> dict[str, np.ndarray]:
    """What `correlation` needs the means of, by name, beside proxy and gold; any shape."""
    proxy, gold = proxy.astype(float), gold.astype(float)
    return {"proxy_sq": proxy**2, "gold_sq": gold**2, "proxy_gold": proxy * gold}


def correlation(means: Mapping[str, np.ndarray]) -> float | None:
    """Correlation of proxy and gold over all responses of a point; None where one is constant.

    means: of proxy, gold and their `moments`, averaged here over whatever they still have.
    """
    m = {
        k: float(np.mean(means[k], dtype=float))
        for k in ("proxy", "gold", "proxy_sq", "gold_sq", "proxy_gold")
    }
    var_p, var_g = m["proxy_sq"] - m["proxy"] ** 2, m["gold_sq"] - m["gold"] ** 2
    if var_p <= 1e-12 * m["proxy_sq"] or var_g <= 1e-12 * m["gold_sq"]:
        return None
    return (m["proxy_gold"] - m["proxy"] * m["gold"]) / (var_p * var_g) ** 0.5


def pearson(proxy: np.ndarray, gold: np.ndarray) -> float | None:
    """`correlation` of scores (R,) at hand."""
    return correlation({"proxy": proxy, "gold": gold} | moments(proxy, gold))


def save_curve(
    out: Path, rows: list[dict], arrays: dict[str, np.ndarray], units: Sequence[Unit]
) -> None:
    """Add the means of per-prompt arrays (K, P) to the rows and write both.

    ``units``: zero and unit of each row's proxy. A gain is over the first row, or over
    ``proxy_start`` (K, P): what the row's proxy says of the first row's responses.
    """
    for k, (row, unit) in enumerate(zip(rows, units, strict=True)):
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
        row["proxy_raw"] = row["proxy_score"] * unit.std + unit.mean
    files.save_json(out / "rows.json", rows)
    files.save_arrays(
        out / "curve.npz", {k: arrays[k].astype(np.float32) for k in ARRAYS if k in arrays}
    )
