"""A user's own combination of reward models: ``reward.transform``, a Python file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from overopt.base import files
from overopt.base.errors import ConfigError, StoreError
from overopt.base.userfile import load_module

if TYPE_CHECKING:
    from overopt.rewards.transforms.inputs import Reward


def load_transform(path: Path) -> Reward:
    """The function ``reward(inputs, *, strength)`` of the file that the settings name.

    Raises
    ------
    ConfigError
        The file does not exist, cannot be imported, or defines no ``reward``.
    """
    where = f"reward.transform = {str(path)!r}"
    module = load_module(path, where=where)
    if not callable(getattr(module, "reward", None)):
        raise ConfigError(f"{where}: defines no function reward(inputs, *, strength)")
    return module.reward


def kept_transform(folder: Path, expected: str) -> Reward:
    """The function of the copy in an artefact, if it is the file that this run's settings name.

    ``expected``: SHA-256 of that file.

    Raises
    ------
    StoreError
        The copy is another file: it is not run.
    """
    file = folder / "transform.py"
    digest = hashlib.sha256(files.read_bytes(file)).hexdigest()
    if digest != expected:
        raise StoreError(
            f"{file}: SHA-256 {digest[:12]}… is not that of the file that reward.transform of this"
            " run names: it is not run; delete the artefact to have it computed again"
        )
    return load_transform(file)
