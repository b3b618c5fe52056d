"""Solutions of GSM8K's test problems by four models, each with whether its answer is right.

``path`` is example_model_solutions.jsonl of openai/grade-school-math (Cobbe et al. 2021, arXiv
2110.14168): 1,319 problems; of the models' answers 21.7, 39.0, 34.7 and 56.3 % are right. Problems are
split in halves, first half for training a verifier, second half for scoring it: a problem's solutions
stay together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overopt.base import files
from overopt.base.config import check_types
from overopt.base.errors import DataError
from overopt.evals.converter import Converted, ConverterSettings, check_count, text_in

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
PROBLEMS = 1319


@dataclass(frozen=True, kw_only=True)
class Settings(ConverterSettings):
    """What is kept of a solution.

    Attributes
    ----------
    annotations : bool
        Keep the calculator's ``<<16-3=13>>``, which the models wrote for a tool.
    """

    annotations: bool = False

    def __post_init__(self) -> None:
        check_types(self)


def convert(settings: Settings, path: Path) -> list[Converted]:
    """Candidates of both halves, with right or wrong as gold (1 or 0).

    Raises
    ------
    DataError
        The file is missing, or an entry lacks a model's solution or its verdict.
    """
    file = path / "example_model_solutions.jsonl" if path.is_dir() else path
    rows: list[dict[str, Any]] = []
    for i, item in enumerate(files.load_records(file), start=1):
        where = f"{file}: line {i}"
        responses, gold = [], []
        for model in MODELS:
            found = files.need(item.get(model), f"{where}: {model}", ("solution", "is_correct"))
            if not isinstance(found["is_correct"], bool):
                raise DataError(
                    f"{where}, {model}, 'is_correct' = {found['is_correct']!r}: must be true or false"
                )
            text = text_in(found, "solution", f"{where}, {model}")
            responses.append(text if settings.annotations else without_annotations(text))
            gold.append(float(found["is_correct"]))
        rows.append(
            {
                "id": f"gsm8k-{i}",
                "prompt": text_in(item, "question", where),
                "responses": responses,
                "gold": gold,
            }
        )
    if not rows:
        raise DataError(f"{file}: holds no problem: fetch it again")
    notes: list[str] = []
    check_count(str(file), len(rows), PROBLEMS, notes)
    for k, model in enumerate(MODELS):
        share = sum(row["gold"][k] for row in rows) / len(rows)
        notes.append(f"{model}: {100 * share:.1f} % right")
    half = (len(rows) + 1) // 2
    return [
        Converted("gsm8k_train", "candidates", rows[:half], notes),
        Converted("gsm8k_test", "candidates", rows[half:]),
    ]


def without_annotations(text: str) -> str:
    """``text`` without what stands in double angle brackets."""
    return re.sub(r"<<[^<>]*>>", "", text)
