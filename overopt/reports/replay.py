"""Tables for samples that somebody else scored: `overopt replay`.

`overopt.pools.replay` reads the file; best-of-n, tilt and fit are those of our own pools. Never imports
torch.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from overopt.analysis.peaks import PEAK_MEANING
from overopt.base.errors import OveroptError
from overopt.fits.pvalues import p_text
from overopt.fits.replicates import ReplicateCurve, fit_replicates
from overopt.pools.best_of_n import best_of_n, kl_bon, kl_bon_ties
from overopt.pools.replay import ReplayTable, read_replay
from overopt.pools.replay_layout import ReplayColumns
from overopt.pools.tilt import exponential_tilt
from overopt.reports.text import interval, plus_minus

TILT_STRENGTHS = (0.5, 1.0, 2.0, 3.0)
"""sd of the proxy over beta; for a normal proxy the tilt's KL is half the square."""


def replay(
    table: str | Path,
    *,
    proxies: Sequence[str] | None = None,
    gold: str | None = None,
    prompt_id: str | None = None,
    pool_size: int | None = None,
) -> str:
    """Best-of-n, tilt and fit of other people's samples; see `overopt.pools.replay` for the layouts.

    Parameters
    ----------
    table
        ``.jsonl`` or ``.parquet``.
    proxies, gold, prompt_id
        Columns, where they do not have their usual names; a report for each proxy.
    pool_size
        Keep the first N responses of each prompt.

    Notes
    -----
    Scores stay in the units of the file. Gold gains are paired with n = 1 prompt by prompt; the
    tilt's temperatures are fractions `TILT_STRENGTHS` of the proxy's sd within prompts.
    """
    columns = ReplayColumns(
        proxies=None if proxies is None else tuple(proxies), gold=gold, prompt_id=prompt_id
    )
    read = read_replay(table, columns=columns, pool_size=pool_size)
    reports = [_replay_report(name, scores, read) for name, scores in read.proxies.items()]
    size = f"{read.n_prompts} prompts, {read.pool_size} responses each"
    return "\n\n".join([f"{table}: {size}; scores in the units of the file", *reports])


def _replay_report(name: str, proxy: np.ndarray, read: ReplayTable) -> str:
    ns = 2 ** np.arange(int(math.log2(read.pool_size)) + 1)
    values = {"proxy": proxy, "gold": read.gold}
    best, kl, ties = best_of_n(proxy, values, ns), kl_bon(ns), kl_bon_ties(proxy, ns)
    gain = best["gold"].per_prompt - best["gold"].per_prompt[:1]
    stderr = gain.std(axis=1, ddof=1) / math.sqrt(read.n_prompts)
    lines = [
        f"{name}: best of n, means over prompts ± stderr",
        f"  {'n':>6} {'KL':>6} {'KL, ties':>8} {'√KL':>6} {'proxy':>17} {'gold':>17}"
        f" {'gold gain':>17}",
    ]
    lines += [
        f"  {n:6d} {kl[k]:6.3f} {ties.mean[k]:8.3f} {math.sqrt(kl[k]):6.3f}"
        f" {plus_minus(best['proxy'].mean[k], best['proxy'].stderr[k])}"
        f" {plus_minus(best['gold'].mean[k], best['gold'].stderr[k])}"
        f" {plus_minus(gain.mean(1)[k], stderr[k])}"
        for k, n in enumerate(ns)
    ]
    spread = float(np.sqrt(np.asarray(proxy).var(axis=1, ddof=1).mean())) if len(ns) > 1 else 0.0
    if spread > 0:
        tilt = exponential_tilt(proxy, values, spread / np.array(TILT_STRENGTHS))
        lines += [
            f"{name}: exponential tilt, pi ~ pi_init exp(proxy/beta); unreliable where over 5 % of"
            " the prompts have under 50 effective samples",
            f"  {'beta':>8} {'KL':>6} {'√KL':>6} {'proxy':>17} {'gold':>17} {'median ess':>10}",
        ]
        for k, beta in enumerate(tilt["gold"].betas):
            kl_tilt = tilt["gold"].kl_seq_nats[k]
            lines.append(
                f"  {beta:8.3g} {kl_tilt:6.3f} {math.sqrt(kl_tilt):6.3f}"
                f" {plus_minus(tilt['proxy'].mean[k], tilt['proxy'].stderr[k])}"
                f" {plus_minus(tilt['gold'].mean[k], tilt['gold'].stderr[k])}"
                f" {np.median(tilt['gold'].ess[k]):10.1f}"
                f"{'' if tilt['gold'].reliable[k] else '  unreliable'}"
            )
    try:
        result = fit_replicates([ReplicateCurve(gold_KP=gain, sqrt_kl=np.sqrt(kl))], "bon")
    except OveroptError as error:
        return "\n".join([*lines, f"{name}: no fit: {error}"])
    params = ", ".join(f"{k} = {v:.3g} {interval(result.ci[k])}" for k, v in result.params.items())
    lines.append(f"{name}: fit R = d (alpha - beta d), d = √KL: {params}; {p_text(result.p_value)}")
    peak = result.peak
    lines.append(
        f"  peak: {peak.gold:.3g} {interval(peak.gold_ci)} at √KL {peak.sqrt_kl:.3g}"
        f" {interval(peak.sqrt_kl_ci)}"
        if peak.in_range
        else f"  peak: {PEAK_MEANING.get(peak.status, peak.status)}"
    )
    if result.message:
        lines.append(f"  note: {result.message}")
    return "\n".join(lines)
