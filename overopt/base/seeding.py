"""Random streams: one ``root_seed`` per experiment, one derived seed per use.

No other module seeds a global generator, and no seed is ever made by arithmetic on another: names
are hashed instead, so that neighbouring replicates share nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(root_seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called ``names`` under ``root_seed``.

    The first 8 bytes of SHA-256 over the JSON list ``[root_seed, *names]``, top bit cleared.

    >>> derive_seed(0, "init") != derive_seed(0, "order")
    True
    """
    payload = json.dumps([int(root_seed), *names], separators=(",", ":")).encode()
    return int.from_bytes(hashlib.sha256(payload).digest()[:8], "big") >> 1


def numpy_rng(root_seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for the stream called ``names``."""
    return np.random.default_rng(derive_seed(root_seed, *names))


def torch_generator(root_seed: int, *names: str | int, device: str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` for the stream called ``names``."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(root_seed, *names))


@contextmanager
def scoped_torch_seed(seed: int) -> Iterator[None]:
    """Seed torch's global generator inside the block and restore it afterwards.

    For third-party code that knows only the global generator (module initialisation in
    transformers). Everything of our own takes a generator.
    """
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
