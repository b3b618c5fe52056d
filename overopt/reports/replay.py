"""Samples that somebody else scored: `overopt replay`, as text, table, JSON and figure.

`overopt.pools.replay` reads the file; best-of-n, tilt and fit are those of our own pools. Never imports
torch.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from overopt.analysis.peaks import PEAK_MEANING
from overopt.base import escape, files, pictures
from overopt.base.errors import OveroptError
from overopt.fits.fit import FitResult
from overopt.fits.pvalues import p_text
from overopt.fits.replicates import ReplicateCurve, fit_replicates
from overopt.pools.best_of_n import best_of_n, kl_bon, kl_bon_ties
from overopt.pools.replay import ReplayTable, read_replay
from overopt.pools.replay_layout import ReplayColumns
from overopt.pools.tilt import exponential_tilt
from overopt.reports.text import interval, plus_minus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILT_STRENGTHS = (0.5, 1.0, 2.0, 3.0)
"""sd of the proxy over beta; for a normal proxy the tilt's KL is half the square."""
CONSTANT = 1e-6
"""Spread within prompts, as a share of the largest score, below which scores count as equal: float32
rounds at 6e-8, and best-of-n would choose by that."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ProxyReplay:
    """What replaying found for one proxy.

    remark : in a sentence, why there is no curve or no fit; "" where there are both.
    best_of_n, tilt : one row a point, scores in the units of the file.
    """

    name: str
    remark: str = ""
    best_of_n: Rows = field(default_factory=list)
    tilt: Rows = field(default_factory=list)
    fit: FitResult | None = None


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Best-of-n, tilt and fit of a table of scored responses."""

    table: str
    n_prompts: int
    pool_size: int
    proxies: list[ProxyReplay]


def replay(
    table: str | Path,
    *,
    proxies: Sequence[str] | None = None,
    gold: str | None = None,
    prompt_id: str | None = None,
    pool_size: int | None = None,
) -> Replay:
    """Best-of-n, tilt and fit of other people's samples; see `overopt.pools.replay` for the layouts.

    Parameters
    ----------
    table
        CSV, TSV, JSON, JSONL or Parquet; see `read_replay`.
    proxies, gold, prompt_id
        Columns, where they do not have their usual names; each proxy is replayed.
    pool_size
        Keep the first N responses of each prompt.

    Notes
    -----
    Scores stay in the units of the file. Gold gains are paired with n = 1 prompt by prompt; the
    tilt's temperatures are fractions `TILT_STRENGTHS` of the proxy's sd within prompts. Scores
    whose spread is that of rounding (`CONSTANT`) are said to be equal, and not replayed.
    """
    columns = ReplayColumns(
        proxies=None if proxies is None else tuple(proxies), gold=gold, prompt_id=prompt_id
    )
    read = read_replay(table, columns=columns, pool_size=pool_size)
    return Replay(
        table=str(table),
        n_prompts=read.n_prompts,
        pool_size=read.pool_size,
        proxies=[_replayed(name, scores, read) for name, scores in read.proxies.items()],
    )


def _replayed(name: str, proxy: np.ndarray, read: ReplayTable) -> ProxyReplay:
    """Replay one proxy's scores (P, N)."""
    if read.pool_size == 1:
        return ProxyReplay(
            name=name, remark="there is one response to each prompt, and nothing to choose from"
        )
    equal = _said_constant(f"{name!r} gives", proxy, "there is nothing to choose by")
    if equal:
        return ProxyReplay(name=name, remark=equal)
    values = {"proxy": proxy, "gold": read.gold}
    ns = 2 ** np.arange(int(math.log2(read.pool_size)) + 1)
    best, kl, ties = best_of_n(proxy, values, ns), kl_bon(ns), kl_bon_ties(proxy, ns)
    gain = best["gold"].per_prompt - best["gold"].per_prompt[:1]
    stderr = gain.std(axis=1, ddof=1) / math.sqrt(read.n_prompts)
    rows = [
        {
            "n": int(n),
            "kl_seq_nats": float(kl[k]),
            "kl_bon_ties": float(ties.mean[k]),
            "sqrt_kl": math.sqrt(kl[k]),
            **_scored(best, k),
            "gold_gain": float(gain[k].mean()),
            "gold_gain_stderr": float(stderr[k]),
        }
        for k, n in enumerate(ns)
    ]
    strength = _spread(proxy) / np.array(TILT_STRENGTHS)
    tilt = exponential_tilt(proxy, values, strength)
    tilted = [
        {
            "beta": float(beta),
            "kl_seq_nats": float(tilt["gold"].kl_seq_nats[k]),
            "sqrt_kl": math.sqrt(tilt["gold"].kl_seq_nats[k]),
            **_scored(tilt, k),
            "ess_median": float(np.median(tilt["gold"].ess[k])),
            "reliable": bool(tilt["gold"].reliable[k]),
        }
        for k, beta in enumerate(tilt["gold"].betas)
    ]
    equal = _said_constant("gold gives", read.gold, "there is nothing to gain")
    if equal:
        return ProxyReplay(name=name, remark=equal, best_of_n=rows, tilt=tilted)
    try:
        fit = fit_replicates([ReplicateCurve(gold_KP=gain, sqrt_kl=np.sqrt(kl))], "bon")
    except OveroptError as error:
        return ProxyReplay(name=name, remark=f"no fit: {error}", best_of_n=rows, tilt=tilted)
    return ProxyReplay(name=name, best_of_n=rows, tilt=tilted, fit=fit)


def _scored(estimates: Any, k: int) -> dict[str, float]:
    """Mean scores of point k with their standard errors."""
    return {
        f"{name}_{what}": float(getattr(estimates[name], kind)[k])
        for name in ("proxy", "gold")
        for what, kind in (("score", "mean"), ("score_stderr", "stderr"))
    }


def _spread(scores_PN: np.ndarray) -> float:
    """Root of the mean over prompts of the variance of a prompt's scores."""
    return float(np.sqrt(np.asarray(scores_PN, dtype=float).var(axis=1, ddof=1).mean()))


def _said_constant(who: str, scores_PN: np.ndarray, so: str) -> str:
    """A sentence where the scores of each prompt's responses do not differ; "" where they do."""
    spread, largest = _spread(scores_PN), float(np.abs(scores_PN).max())
    if spread > CONSTANT * largest:
        return ""
    exactly = (
        "the same score"
        if spread == 0
        else f"scores that differ by no more than rounding (sd {spread:.1g})"
    )
    everywhere = "" if float(np.ptp(scores_PN)) > CONSTANT * largest else f", {scores_PN[0, 0]:.4g}"
    return f"{who} all responses to a prompt {exactly}{everywhere}: {so}"


# --- what is shown and written --------------------------------------------------------------------


def as_text(found: Replay) -> str:
    """A report for each proxy."""
    size = f"{found.n_prompts} prompts, {found.pool_size} responses each"
    head = f"{found.table}: {size}; scores in the units of the file"
    return "\n\n".join([head, *("\n".join(_lines(proxy)) for proxy in found.proxies)])


def _lines(proxy: ProxyReplay) -> list[str]:
    name, lines = proxy.name, []
    if proxy.best_of_n:
        lines += [
            f"{name}: best of n, means over prompts ± stderr",
            f"  {'n':>6} {'KL':>6} {'KL, ties':>8} {'√KL':>6} {'proxy':>17} {'gold':>17}"
            f" {'gold gain':>17}",
        ]
        lines += [
            f"  {r['n']:6d} {r['kl_seq_nats']:6.3f} {r['kl_bon_ties']:8.3f} {r['sqrt_kl']:6.3f}"
            f" {plus_minus(r['proxy_score'], r['proxy_score_stderr'])}"
            f" {plus_minus(r['gold_score'], r['gold_score_stderr'])}"
            f" {plus_minus(r['gold_gain'], r['gold_gain_stderr'])}"
            for r in proxy.best_of_n
        ]
    if proxy.tilt:
        lines += [
            f"{name}: exponential tilt, pi ~ pi_init exp(proxy/beta); unreliable where over 5 % of"
            " the prompts have under 50 effective samples",
            f"  {'beta':>8} {'KL':>6} {'√KL':>6} {'proxy':>17} {'gold':>17} {'median ess':>10}",
        ]
        lines += [
            f"  {r['beta']:8.3g} {r['kl_seq_nats']:6.3f} {r['sqrt_kl']:6.3f}"
            f" {plus_minus(r['proxy_score'], r['proxy_score_stderr'])}"
            f" {plus_minus(r['gold_score'], r['gold_score_stderr'])}"
            f" {r['ess_median']:10.1f}{'' if r['reliable'] else '  unreliable'}"
            for r in proxy.tilt
        ]
    if proxy.remark:
        lines.append(f"{name}: {proxy.remark}")
    return lines + ([] if proxy.fit is None else _fit_lines(name, proxy.fit))


def _fit_lines(name: str, fit: FitResult) -> list[str]:
    params = ", ".join(f"{k} = {v:.3g} {interval(fit.ci[k])}" for k, v in fit.params.items())
    lines = [f"{name}: fit R = d (alpha - beta d), d = √KL: {params}; {p_text(fit.p_value)}"]
    peak = fit.peak
    lines.append(
        f"  peak: {peak.gold:.3g} {interval(peak.gold_ci)} at √KL {peak.sqrt_kl:.3g}"
        f" {interval(peak.sqrt_kl_ci)}"
        if peak.in_range
        else f"  peak: {PEAK_MEANING.get(peak.status, peak.status)}"
    )
    return [*lines, f"  note: {fit.message}"] if fit.message else lines


def write(found: Replay, out: str | Path) -> list[Path]:
    """Write replay.csv, replay.json and replay.png into the directory ``out``; returns the files.

    The table has a row for each proxy and n; a proxy without a curve has none. The figure is absent
    where no proxy has one.
    """
    folder = Path(out)
    rows = [{"proxy": p.name} | row for p in found.proxies for row in p.best_of_n]
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
    files.atomic_write(folder / "replay.csv", text.getvalue().encode())
    files.save_json(folder / "replay.json", as_json(found))
    written = [folder / "replay.csv", folder / "replay.json"]
    if rows:
        pictures.save_figure(folder / "replay.png", figure(found), formulas=(X_LABEL,))
        written.append(folder / "replay.png")
    return written


def as_json(found: Replay) -> dict[str, Any]:
    """Everything that was found, as JSON types."""
    plain = files.plain(found)
    for proxy, p in zip(plain["proxies"], found.proxies, strict=True):
        proxy["fit"] = None if p.fit is None else p.fit.to_dict()
    return plain


X_LABEL = r"$\sqrt{\mathrm{KL}}$ (√nats), KL = log n − (n−1)/n"


def figure(found: Replay) -> Figure:
    """Gold gain ± stderr with its fit, and proxy gain, against √KL: a panel for each proxy."""
    from matplotlib.figure import Figure  # only where something is drawn

    drawn = [p for p in found.proxies if p.best_of_n]
    picture = Figure(figsize=(4.6 * len(drawn), 3.8), layout="constrained")
    for ax, proxy in zip(np.ravel(picture.subplots(1, len(drawn))), drawn, strict=True):
        columns = {k: np.array([row[k] for row in proxy.best_of_n]) for k in proxy.best_of_n[0]}
        d, gain = columns["sqrt_kl"], columns["gold_gain"]
        ax.errorbar(
            d, gain, columns["gold_gain_stderr"], fmt="o-", ms=4, lw=0.8, label="gold ± stderr"
        )
        score = columns["proxy_score"]
        ax.plot(d, score - score[0], "--", color="0.4", lw=1, label="proxy")
        if proxy.fit is not None:
            grid = np.linspace(0, d.max(), 200)
            ax.plot(
                grid, proxy.fit.predict(grid), lw=2.6, alpha=0.3, color="C0", label="fit to gold"
            )
        ax.axhline(0, color="0.8", lw=0.8, zorder=0)
        ax.set_title(escape.figure(proxy.name))
        ax.set_xlabel(X_LABEL)
        ax.set_ylabel("gain over n = 1 (units of the file)")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
    return picture
