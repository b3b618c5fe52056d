"""A scorer by the folder that its kind wrote: ``scorer.json`` names the file in ``kinds/``.

What an artefact may load follows from the settings that asked for it (`formats`), never from what
stands in it: a store may come from anywhere.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from overopt.base import files
from overopt.base.errors import OveroptError, StoreError
from overopt.base.kinds import names
from overopt.base.userfile import by_identity
from overopt.rewards.kind import Place, Scorer

MEMBERS = ("reward_model", "classifier", "rubric")
"""What can be a member of an ensemble, beside kinds with a format of their own."""


def formats(kind: str) -> tuple[str, ...]:
    """What a kind's scorers are written as: ``kind`` as it stands in a stage's config."""
    module = _module(kind)
    return tuple(getattr(module, "WRITES", (kind,)))


def _module(kind: str) -> ModuleType:
    """The module of a kind: a user's own only if the settings of this process named it."""
    if "#" in kind:
        return by_identity(kind)
    return importlib.import_module(f"overopt.rewards.kinds.{kind}")


def load_scorer(folder: Path, place: Place, *, kinds: Sequence[str] | None = None) -> Scorer:
    """The scorer of a gold, proxy or reward artefact.

    ``kinds``: what its stage may have written; None: any format of this package.

    Raises
    ------
    StoreError
        ``scorer.json`` names another kind, a checkpoint or user's file that the settings of the run
        do not name (`Place`), or something in the folder is missing or does not fit.
    """
    file = folder / "scorer.json"
    info = files.load_object(file, ("kind",))
    if kinds is None:
        own = [kind for kind in names("overopt.rewards.kinds") if hasattr(_module(kind), "load")]
        kinds = (*MEMBERS, *own, "ensemble")
    if info["kind"] not in kinds:
        raise StoreError(
            f"{file}: kind = {info['kind']!r}: written by another version of overopt, or damaged;"
            f" expected {' or '.join(kinds)}"
        )
    try:
        return _module(info["kind"]).load(folder, info, place)
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        if isinstance(error, OveroptError):
            raise
        raise StoreError(
            f"{file}: does not describe a {info['kind']} ({type(error).__name__}: {error}); delete the"
            " artefact to have it computed again"
        ) from error
