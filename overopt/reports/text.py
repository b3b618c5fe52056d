"""Numbers in text: as many digits as the error allows."""

import math
from collections.abc import Sequence


def with_error(value: float, stderr: float) -> str:
    """Value ± standard error as text, a dash in place of what is not finite."""
    if not math.isfinite(value):
        return "–"
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


def aligned(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Rows of cells as lines, columns aligned."""
    return [f"{indent}{'  '.join(cells).rstrip()}" for cells in _padded(rows)]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells, escaped already, as the lines of a Markdown table."""
    first, *others = _padded([head, *rows])
    rule = ["-" * len(cell) for cell in first]
    return [f"| {' | '.join(cells)} |" for cells in (first, rule, *others)]


def _padded(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows]
