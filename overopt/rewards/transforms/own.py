"""A user's own combination of reward models: ``reward.transform``, a Python file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from overopt.base.errors import ConfigError, StoreError
from overopt.base.userfile import by_checksum, load_module

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


def kept_transform(folder: Path) -> Reward:
    """The function of the file that an artefact holds a copy of, if this run's settings name it.

    An artefact is data: its copy is compared, never run.

    Raises
    ------
    StoreError
        The settings of this process name no file with this content.
    """
    file = folder / "transform.py"
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    module = by_checksum(checksum)
    if module is None:
        raise StoreError(
            f"{file}: code in an artefact runs only where the settings name the same file"
            f" (reward.transform, SHA-256 {checksum[:16]}…): name it, or use another --store"
        )
    return module.reward
