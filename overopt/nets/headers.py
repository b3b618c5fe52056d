"""What weight files say before they are loaded: names, shapes and types of weights, and bad values.

A safetensors file begins with the length of its header in 8 bytes (little-endian), then the header
itself, JSON with type, shape and place of every weight (the format's own description:
huggingface.co/docs/safetensors). Nothing here needs torch.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from overopt.base.errors import CheckpointError, DataError
from overopt.base.files import need, open_regular, parse_json

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
"""Types that NumPy reads; BF16, which it does not, is told by its bits."""
_WHOLE, _BLOCKS, _BLOCK = 1 << 20, 8, 1 << 15  # bytes: read whole up to, else so many blocks of


class Weight(NamedTuple):
    """One weight: type by safetensors' name, shape, file, first byte and the one behind the last."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int


def read_headers(paths: Iterable[Path]) -> dict[str, Weight]:
    """Every weight of safetensors files, by name.

    Raises
    ------
    CheckpointError
        A file is no safetensors file, or ends too early.
    """
    found: dict[str, Weight] = {}
    for path in paths:
        with open_regular(path) as file:
            size = path.stat().st_size
            front = file.read(8)
            if front.startswith(b"version "):
                raise CheckpointError(
                    f"{path} is a pointer of Git LFS: fetch the file (git lfs pull)"
                )
            n_header = int.from_bytes(front, "little")
            if len(front) < 8 or n_header > size - 8:
                raise CheckpointError(f"{path} is no safetensors file, or cut off: fetch it again")
            try:
                header = need(parse_json(file.read(n_header), ""), "it")
                header.pop("__metadata__", None)
                for name, entry in header.items():
                    start, stop = (8 + n_header + at for at in entry["data_offsets"])
                    shape = tuple(map(int, entry["shape"]))
                    found[name] = Weight(str(entry["dtype"]), shape, path, start, stop)
                    if not (8 + n_header <= start <= stop and min(shape, default=0) >= 0):
                        raise ValueError(f"{name} has the place {start} to {stop}")
            except (DataError, ValueError, KeyError, TypeError, AttributeError) as e:
                reason = e.__cause__ or e
                raise CheckpointError(
                    f"{path} has a damaged header ({reason}): fetch it again"
                ) from e
        missing = max((w.stop for w in found.values() if w.file == path), default=0) - size
        if missing > 0:
            raise CheckpointError(f"{path} is cut off, {missing} bytes are missing: fetch it again")
    return found


def not_finite(weight: Weight) -> bool:
    """Whether a weight holds nan or infinity: all of a small one is read, of a large one blocks."""
    if weight.dtype not in (*FLOATS, "BF16") or math.prod(weight.shape) == 0:
        return False
    size = weight.stop - weight.start
    step = 8  # no value lies across the edge of a block
    if size <= _WHOLE:
        places = [(weight.start, size)]
    else:
        starts = np.linspace(0, size - _BLOCK, _BLOCKS).astype(int) // step * step
        places = [(weight.start + int(at), _BLOCK) for at in starts]
    with open(weight.file, "rb") as file:
        for at, length in places:
            file.seek(at)
            block = file.read(length)
            if weight.dtype == "BF16":  # an exponent of ones
                bits = np.frombuffer(block, "<u2")
                bad = bool(((bits & 0x7F80) == 0x7F80).any())
            else:
                values: np.ndarray = np.frombuffer(block, FLOATS[weight.dtype])
                bad = not bool(np.isfinite(values).all())
            if bad:
                return True
    return False
