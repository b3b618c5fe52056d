"""LLMBar (Zeng et al. 2023, arXiv 2310.07641): which of two outputs follows an instruction.

``path`` is a copy of princeton-nlp/LLMBar, or its folder Dataset/LLMBar. The subsets get the names that
they have in RewardBench, so that its command scores them as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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

SUBSETS = {
    "Natural": ("llmbar-natural", 100),
    "Adversarial/Neighbor": ("llmbar-adver-neighbor", 134),
    "Adversarial/GPTInst": ("llmbar-adver-GPTInst", 92),
    "Adversarial/GPTOut": ("llmbar-adver-GPTOut", 47),
    "Adversarial/Manual": ("llmbar-adver-manual", 46),
}


@dataclass(frozen=True, kw_only=True)
class Settings(ConverterSettings):
    """Nothing to set."""


def convert(settings: Settings, path: Path) -> list[Converted]:
    """All five subsets as one file of pairs.

    Raises
    ------
    DataError
        A file is missing, or an entry has no label 1 or 2.
    """
    root = path / "Dataset" / "LLMBar" if (path / "Dataset").is_dir() else path
    pairs: list[Pair] = []
    notes: list[str] = []
    for folder, (subset, published) in SUBSETS.items():
        file = root / folder / "dataset.json"
        items = need_list(file)
        check_count(str(file), len(items), published, notes)
        for i, item in enumerate(items, start=1):
            where = f"{file}: entry {i}"
            label = item.get("label")
            if label not in (1, 2):
                raise DataError(f"{where}, 'label' = {label!r}: must be 1 or 2, the better output")
            outputs = [text_in(item, f"output_{k}", where) for k in (1, 2)]
            chosen, rejected = outputs if label == 1 else outputs[::-1]
            pairs.append(
                Pair(text_in(item, "input", where), chosen, rejected, subset, f"{subset}-{i}")
            )
    return [Converted("llmbar", "rewardbench", as_pairs(pairs, notes), notes)]
