"""A policy's trajectories along optimisation, as a strip of frames, and as an animation.

For control only: a row at the start, one where gold is highest, one at the end. The pendulum is drawn
from its angles; pictures of other environments come from the records.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from overopt.base import files
from overopt.records.curves import Curve
from overopt.records.view import ResultsView

PICTURE = "control"
METHOD = "cem"
FRAMES = 10
"""Frames of a row of the strip, evenly spaced in time."""
STEPS_A_FRAME = 2
"""Steps from one frame of the animation to the next."""
ROWS = ("start", "gold highest", "end")


class _Pictured:
    """The trajectories of one curve: rods (3, H) or pictures (3, T, h, w, 3)."""

    def __init__(self, curve: Curve, arrays: dict[str, np.ndarray]) -> None:
        run_id = curve.meta["run_id"]
        self.curve, self.at = curve, arrays[f"{run_id}.pictured_at"]
        self.angle = arrays.get(f"{run_id}.pictured_angle")
        self.frames = arrays.get(f"{run_id}.pictured_frames")

    @property
    def length(self) -> int:
        """Frames that there are."""
        shown = self.angle if self.angle is not None else self.frames
        return 0 if shown is None else shown.shape[1]

    def draw(self, ax: Axes, row: int, step: int) -> None:
        """One frame."""
        ax.set_xticks([])
        ax.set_yticks([])
        if self.angle is None:
            assert self.frames is not None
            ax.imshow(self.frames[row, step])
            return
        x, y = np.sin(self.angle[row, step]), np.cos(self.angle[row, step])
        ax.plot([0, -x], [0, y], lw=3, color="#0072B2", solid_capstyle="round")
        ax.plot(0, 0, "o", ms=3, color="black")
        ax.set_xlim(-1.25, 1.25)
        ax.set_ylim(-1.25, 1.25)
        ax.set_aspect("equal")

    def title(self, row: int) -> str:
        """Iteration, and gold and proxy gain there."""
        k = int(self.at[row])
        gold, proxy = self.curve["gold_gain"][k], self.curve["proxy_gain"][k]
        return f"{ROWS[row]} ({k})\ngold {gold:+.1f}\nproxy {proxy:+.1f}"


def draw(results: ResultsView) -> Figure | None:
    """The strip of the first curve that has trajectories; None where records have none."""
    shown = _pictured(results)
    if shown is None:
        return None
    figure = Figure(figsize=(1.0 * FRAMES + 1.2, 3.4), layout="constrained")
    axes = figure.subplots(len(ROWS), FRAMES)
    steps = np.linspace(0, shown.length - 1, FRAMES).round().astype(int)
    for row in range(len(ROWS)):
        for ax, step in zip(axes[row], steps, strict=True):
            shown.draw(ax, row, step)
            if row == len(ROWS) - 1:
                ax.set_xlabel(f"step {step}" if shown.angle is not None else "", fontsize=7)
        axes[row][0].set_ylabel(shown.title(row), rotation=0, ha="right", va="center", fontsize=8)
    return figure


def animate(results: ResultsView) -> Sequence[np.ndarray]:
    """Frames (h, w, 3) uint8 of the three trajectories side by side; none where records have none."""
    shown = _pictured(results)
    if shown is None:
        return ()
    made = []
    every = STEPS_A_FRAME if shown.angle is not None else 1
    for step in range(0, shown.length, every):
        figure = Figure(figsize=(4.8, 2.2), dpi=80, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        for row, ax in enumerate(figure.subplots(1, len(ROWS))):
            shown.draw(ax, row, step)
            ax.set_title(shown.title(row), fontsize=8)
        canvas.draw()
        made.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return made


def _pictured(results: ResultsView) -> _Pictured | None:
    """Of the plain proxy, or else the first curve that has pictures."""
    curves = [c for c in results.curves if c.meta["method"] == METHOD]
    if not curves:
        return None
    arrays = files.load_arrays(results.folder / "curves.npz")
    curves.sort(key=lambda c: c.meta["mitigation"] != "none")
    for curve in curves:
        if f"{curve.meta['run_id']}.pictured_at" in arrays:
            shown = _Pictured(curve, arrays)
            if shown.length:
                return shown
    return None
