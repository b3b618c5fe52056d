"""Curves in a terminal: characters on a grid."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

WIDTH, HEIGHT = 64, 16
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROXY = "·"


def plot(curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> str:
    """Gold by letters and the proxy by dots over √KL, with a legend.

    ``curves``: name -> √KL, gold gain and proxy gain, (K,) each; at most one a letter is drawn.
    """
    drawn = dict(zip(LETTERS, curves.items(), strict=False))
    xs = np.concatenate([np.asarray(x, float) for _, (x, _, _) in drawn.values()])
    ys = np.concatenate([np.r_[gold, proxy, 0.0] for _, (_, gold, proxy) in drawn.values()])
    right, low, high = max(float(xs.max()), 1e-9), float(ys.min()), float(ys.max())
    span = max(high - low, 1e-9)
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]

    def row_of(y: float) -> int:
        return round((high - y) / span * (HEIGHT - 1))

    grid[row_of(0.0)] = ["-"] * WIDTH
    for letter, (_, (x, gold, proxy)) in drawn.items():
        for mark, values in ((PROXY, proxy), (letter, gold)):
            for a, y in zip(x, values, strict=True):
                column = round(a / right * (WIDTH - 1))
                if mark != PROXY or grid[row_of(y)][column] in " -":
                    grid[row_of(y)][column] = mark
    labels = {0: high, HEIGHT - 1: low, row_of(0.0): 0.0}
    lines = [
        f"{labels[i]:7.2f} |{''.join(cells)}" if i in labels else f"{'':7} |{''.join(cells)}"
        for i, cells in enumerate(grid)
    ]
    lines.append(f"{'':8}+{'-' * WIDTH}")
    lines.append(f"{'':9}0{'√KL (√nats)':^{WIDTH - 7}}{right:6.2f}")
    lines += [f"  {letter}  gold, {name}" for letter, (name, _) in drawn.items()]
    lines.append(f"  {PROXY}  their proxies")
    if len(curves) > len(drawn):
        lines.append(f"  {len(curves) - len(drawn)} more are not drawn")
    return "\n".join(lines)
