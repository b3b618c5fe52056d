"""Large Movie Review Dataset (Maas et al. 2011): reviews of films on IMDB, for and against.

``path`` is one of its folders train and test, each with 12,500 texts in ``pos`` and 12,500 in ``neg``,
called ``NUMBER_STARS.txt``. The task is to write what was asked for: a review of one kind is chosen, the
one of the other kind with the same number is rejected. The two are of different films.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from overopt.base import files
from overopt.base.config import check_types
from overopt.base.errors import DataError
from overopt.evals.converter import Converted, ConverterSettings, Pair, as_pairs, check_count

REVIEWS = 12_500
_NAME = re.compile(r"(\d+)_(\d+)\.txt")


@dataclass(frozen=True, kw_only=True)
class Settings(ConverterSettings):
    """What is asked for.

    Attributes
    ----------
    wanted : "positive" or "negative"
        Which reviews are chosen.
    """

    wanted: Literal["positive", "negative"] = "positive"

    def __post_init__(self) -> None:
        check_types(self)


def convert(settings: Settings, path: Path) -> list[Converted]:
    """Pairs of reviews with the same number, in its order.

    Raises
    ------
    DataError
        A folder is missing or holds no review, a file is called otherwise, its number comes twice, its
        stars are those of the other folder, or no two reviews have the same number.
    """
    notes: list[str] = []
    sides = {"positive": _reviews(path / "pos", notes), "negative": _reviews(path / "neg", notes)}
    chosen = sides.pop(settings.wanted)
    (rejected,) = sides.values()
    numbers = [number for number in chosen if number in rejected]
    if not numbers:
        raise DataError(f"{path}: no review in pos has the number of one in neg: fetch both whole")
    if alone := len(chosen) + len(rejected) - 2 * len(numbers):
        notes.append(f"{alone} reviews left out: no other has their number")
    prompt = f"Write a {settings.wanted} review of a film."
    subset = f"imdb-{settings.wanted}"
    pairs = [Pair(prompt, chosen[k], rejected[k], subset, f"{subset}-{k}") for k in numbers]
    return [Converted(f"imdb_{path.resolve().name}", "pairs", as_pairs(pairs, notes), notes)]


def _reviews(folder: Path, notes: list[str]) -> dict[int, str]:
    """Texts by number; a line break of HTML is one of the text."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder: give aclImdb/test or aclImdb/train")
    found: dict[int, str] = {}
    for file in folder.glob("*.txt"):
        match = _NAME.fullmatch(file.name)
        if match is None:
            raise DataError(f"{file}: is not called NUMBER_STARS.txt: leave it out")
        if (int(match[2]) > 5) != (folder.name == "pos"):
            raise DataError(f"{file}: has {match[2]} stars of 10: it belongs in the other folder")
        try:
            text = files.read_bytes(file).decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file}: is not UTF-8 (byte {error.start}): save it as that"
            ) from error
        if int(match[1]) in found:
            raise DataError(f"{file}: another review has number {match[1]}: keep one")
        found[int(match[1])] = text.replace("<br />", "\n")
    if not found:
        raise DataError(f"{folder}: holds no review called NUMBER_STARS.txt")
    check_count(str(folder), len(found), REVIEWS, notes)
    return dict(sorted(found.items()))
