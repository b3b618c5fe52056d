"""A scorer by the folder that its kind wrote: ``scorer.json`` names the file in ``kinds/``."""

import importlib
from pathlib import Path

from overopt.base import files
from overopt.base.errors import StoreError
from overopt.rewards.kind import Place, Scorer

WRITTEN_BY = (*("reward_model", "ensemble", "classifier", "rubric", "process", "rule", "implicit"),)
"""Files of ``kinds/`` that write scorers; what an artefact names must be one of them."""


def load_scorer(folder: Path, place: Place) -> Scorer:
    """The scorer of a gold, proxy or reward artefact.

    Raises
    ------
    StoreError
        ``scorer.json`` names no kind of this package.
    """
    info = files.load_json(folder / "scorer.json")
    if info["kind"] not in WRITTEN_BY:
        raise StoreError(
            f"{folder / 'scorer.json'}: kind = {info['kind']!r}: written by another version of"
            f" overopt, or damaged; known are {', '.join(WRITTEN_BY)}"
        )
    kind = importlib.import_module(f"overopt.rewards.kinds.{info['kind']}")
    return kind.load(folder, info, place)
