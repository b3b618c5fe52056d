"""A scorer by the folder that its kind wrote: ``scorer.json`` names the file in ``kinds/``."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from overopt.base import files
from overopt.base.errors import OveroptError, StoreError
from overopt.rewards.scorer import Place, Scorer

WRITTEN_BY = ("reward_model", "ensemble", "classifier", "rubric")
"""Files of ``kinds/`` that write scorers; what an artefact names must be one of them."""


MEMBER_KINDS = ("reward_model", "classifier", "rubric")
"""Those that can be a member of an ensemble."""


def load_scorer(folder: Path, place: Place, *, kinds: Sequence[str] = WRITTEN_BY) -> Scorer:
    """The scorer of a gold, proxy or reward artefact; ``kinds``: what its stage may have written.

    Raises
    ------
    StoreError
        ``scorer.json`` names another kind, a checkpoint or user's file that the settings of the run
        do not name (`Place`), or something in the folder is missing or does not fit.
    """
    file = folder / "scorer.json"
    info = files.load_object(file, ("kind",))
    if info["kind"] not in kinds:
        raise StoreError(
            f"{file}: kind = {info['kind']!r}: written by another version of overopt, or damaged;"
            f" expected {' or '.join(kinds)}"
        )
    kind = importlib.import_module(f"overopt.rewards.kinds.{info['kind']}")
    try:
        return kind.load(folder, info, place)
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        if isinstance(error, OveroptError):
            raise
        raise StoreError(
            f"{file}: does not describe a {info['kind']} ({type(error).__name__}: {error}); delete the"
            " artefact to have it computed again"
        ) from error
