"""Pictures, written as whole as other files: figures of matplotlib, and animations."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from overopt.base import escape
from overopt.base.files import atomic_path


def save_figure(path: Path, figure: Any, *, formulas: Container[str] = ()) -> None:
    """Write a matplotlib figure as a picture of its suffix, atomically; equal figures, equal bytes.

    ``formulas``: texts whose ``$…$`` is mathematics. Others, names from files among them, are drawn as
    they read: a lone ``$`` would be an error, and some mathematics take for ever.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        content = text.get_text()
        if content and content not in formulas:  # ticks have no text yet
            text.set_text(escape.terminal(content))
            text.set_parse_math("$" not in content)
    with atomic_path(path) as temporary:
        picture = path.suffix.removeprefix(".")
        figure.savefig(temporary, format=picture, dpi=160, metadata={"Software": None})


def save_animation(path: Path, frames: Sequence[np.ndarray], *, frame_ms: int = 60) -> None:
    """Write frames (h, w, 3) uint8 as an endless GIF, atomically; equal frames, equal bytes."""
    from PIL import Image

    first, *others = (Image.fromarray(frame).quantize(64) for frame in frames)
    with atomic_path(path) as temporary:
        first.save(
            temporary, format="GIF", save_all=True, append_images=others, duration=frame_ms, loop=0
        )
