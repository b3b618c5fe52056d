"""How p-values are shown."""

import math

SMALLEST_SHOWN = 1e-3
"""Below this a p-value is only said to be below it: the tails of these tests are not known further."""


def p_text(p_value: float) -> str:
    """A p-value as text, without leading zero: ``p = .035``, ``p < .001``, ``p –`` for nan."""
    if math.isnan(p_value):
        return "p –"
    if p_value < SMALLEST_SHOWN:
        return "p < .001"
    return f"p = {p_value:.3f}".replace("= 0.", "= .")
