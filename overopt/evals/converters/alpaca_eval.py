"""Annotations of AlpacaEval (tatsu-lab/alpaca_eval): which of two outputs a judge preferred.

``path`` is an annotations.json of its results, a list of objects with instruction, output_1, output_2
and preference: 1 or 2 for the preferred output, or a number between them that a weighted judge gave,
where 1.5 is no preference. Pairs without one are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from overopt.base.config import check_types, require
from overopt.base.errors import DataError
from overopt.evals.converter import (
    Converted,
    ConverterSettings,
    Pair,
    as_pairs,
    check_count,
    need_list,
    text_in,
)

INSTRUCTIONS = 805


@dataclass(frozen=True, kw_only=True)
class Settings(ConverterSettings):
    """How sure the judge must be.

    Attributes
    ----------
    margin : float
        Least distance of the preference from 1.5, where there is none; 0.5 takes what is certain.
    """

    margin: float = 0.25

    def __post_init__(self) -> None:
        check_types(self)
        require(0 <= self.margin <= 0.5, "data.margin", self.margin, "must be between 0 and 0.5")


def convert(settings: Settings, path: Path) -> list[Converted]:
    """The annotations as pairs; the subset is the data set that an instruction is from.

    Raises
    ------
    DataError
        An entry lacks a text, or its preference is no number from 1 to 2.
    """
    items = need_list(path)
    notes: list[str] = []
    check_count(str(path), len(items), INSTRUCTIONS, notes)
    pairs: list[Pair] = []
    for i, item in enumerate(items, start=1):
        where, preference = f"{path}: entry {i}", item.get("preference")
        if preference is None:
            continue
        is_number = isinstance(preference, int | float) and not isinstance(preference, bool)
        if not is_number or not 1 <= preference <= 2:
            raise DataError(f"{where}, 'preference' = {preference!r}: must be a number from 1 to 2")
        if preference == 1.5 or abs(preference - 1.5) < settings.margin:
            continue
        outputs = [text_in(item, f"output_{k}", where) for k in (1, 2)]
        chosen, rejected = outputs if preference < 1.5 else outputs[::-1]
        subset = str(item.get("dataset", "alpaca_eval"))
        prompt = text_in(item, "instruction", where)
        pairs.append(Pair(prompt, chosen, rejected, subset, f"alpaca_eval-{i}"))
    if len(pairs) < len(items):
        notes.append(f"{len(items) - len(pairs)} of {len(items)} left out: no clear preference")
    return [Converted("alpaca_eval", "pairs", as_pairs(pairs, notes), notes)]
