"""Numbers in text: as many digits as the error allows."""

import math


def with_error(value: float, stderr: float) -> str:
    """Value ± standard error as text."""
    return f"{value:.2f}±" + (f"{stderr:.2f}" if math.isfinite(stderr) else "–")


def number(value: float) -> str:
    """A number as text; "none" for one that is not finite."""
    return f"{value:9.3f}" if math.isfinite(value) else f"{'none':>9}"


def interval(ci: tuple[float, float]) -> str:
    """An interval as text: [low, high], or that there is none."""
    return f"[{ci[0]:.3g}, {ci[1]:.3g}]" if not math.isnan(ci[0]) else "[no interval]"


def plus_minus(mean: float, stderr: float) -> str:
    """Mean ± error as text, with the digits that the error allows."""
    return f"{mean:8.4g} ± {stderr:6.3g}"
