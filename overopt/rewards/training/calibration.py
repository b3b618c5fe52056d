"""After training: where a proxy's scores lie, and how well its margins are calibrated.

Following Gao et al. 2022: scores are recentred (and scaled to unit variance) under the initial
policy, and the factor that minimises cross-entropy against soft gold labels is recorded. Raw scores
are kept beside normalised ones; neither step changes a ranking.
"""

import math

import numpy as np
from scipy.optimize import minimize_scalar


def recalibration(proxy_margin: np.ndarray, gold_margin: np.ndarray) -> float:
    """Factor s > 0 on proxy margins (C,) that minimises cross-entropy to soft gold labels σ(gold).

    1 means calibrated to gold's logits, below 1 over-confident.
    """
    target = 1 / (1 + np.exp(-gold_margin))

    def loss(log_s: float) -> float:
        m = math.exp(log_s) * proxy_margin
        return float(np.mean(np.logaddexp(0, -m) * target + np.logaddexp(0, m) * (1 - target)))

    return math.exp(minimize_scalar(loss, bounds=(-6, 6), method="bounded").x)


def gold_slope(proxy_margin: np.ndarray, gold_margin: np.ndarray) -> float:
    """Gold that a unit of the proxy's raw score is worth: least squares through 0 of margins (C,).

    In standard deviations of gold. `recalibration` answers in probabilities, whose curvature makes
    it smaller; this is the factor for gains. 0 where the proxy does not tell any pair apart.
    """
    square = float(proxy_margin @ proxy_margin)
    return float(proxy_margin @ gold_margin) / square if square > 0 else 0.0


def pair_metrics(margin: np.ndarray) -> dict[str, float]:
    """Loss in nats and accuracy of margins (C,) = chosen − rejected; ties count half."""
    return {
        "loss": float(np.logaddexp(0, -margin).mean()),
        "accuracy": float(((margin > 0) + 0.5 * (margin == 0)).mean()),
        "n_pairs": int(margin.size),
    }
