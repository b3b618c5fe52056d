"""Draws every figure that the records of a results directory hold: `overopt figures`.

A figure is a file: those of `overopt.reports.figures` are found by their names, a user's own by its
path. Each picture gets a JSON beside it, with the fingerprints of its records, fits and peaks.
"""

import importlib
import json
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from overopt.analysis.peaks import peaks_of_shared_data
from overopt.base import escape, files, pictures
from overopt.base.errors import ConfigError, DataError
from overopt.base.files import plain
from overopt.base.userfile import load_module
from overopt.records.view import ResultsView, view
from overopt.reports import figures
from overopt.reports.figures.style import X_LABELS

NAMELESS = ("quick", "exp001_figure1")
"""Experiments whose pictures do not carry their name: fig01.png, not fig01_desk.png."""


class FigureFile(NamedTuple):
    """One figure: what its file defines."""

    name: str
    picture: str
    """Name of the picture's file, before that of the experiment."""
    draw: Callable[[ResultsView], Figure | None]
    sidecar: Callable[[ResultsView], dict[str, Any]] | None
    """Further entries of the JSON beside the picture."""
    animate: Callable[[ResultsView], Sequence[np.ndarray]] | None
    """Frames (h, w, 3) uint8 of a GIF beside the picture."""


def draw(records: str | Path, out: str | Path, only: Sequence[str | Path] = ()) -> list[Path]:
    """Draw the figures of a results directory into ``out``; returns the files written.

    Parameters
    ----------
    records : results directory, or a preset's name.
    out : directory of the pictures.
    only : names of built-in figures and paths of figure files (.py) to draw; by default all that
        are built in.

    Raises
    ------
    ConfigError
        A figure that does not exist, a file without ``draw``, or one that draws something else.
    DataError
        Records that do not hold what a figure of ``only`` shows.
    """
    chosen = [figure_of(name) for name in only] or built_in()
    twice = {f.picture for f in chosen if sum(g.picture == f.picture for g in chosen) > 1}
    if twice:
        raise ConfigError(f"figures {', '.join(sorted(twice))} are asked for twice: rename a file")
    results = view(records)
    pictures = {}
    for figure in chosen:
        picture = drawn(figure, results) if only else _attempt(figure, results)
        if picture is not None:
            pictures[figure] = picture
    return [file for figure, p in pictures.items() for file in _save(p, figure, results, Path(out))]


def drawn(figure: FigureFile, results: ResultsView) -> Figure:
    """The picture of a figure.

    Raises
    ------
    DataError
        The records do not hold what it shows.
    ConfigError
        It drew something else than a matplotlib Figure.
    """
    picture = _attempt(figure, results)
    if picture is None:
        raise DataError(
            f"figure {figure.name!r}: {str(results.folder)!r} does not hold what it shows"
        )
    return picture


def _attempt(figure: FigureFile, results: ResultsView) -> Figure | None:
    """`drawn`, or None where the records do not hold it."""
    picture = figure.draw(results)
    if not isinstance(picture, Figure | None):
        raise ConfigError(
            f"figure {figure.name!r}: draw(results) returned {type(picture).__name__}, not a"
            " matplotlib Figure or None"
        )
    return picture


def built_in() -> list[FigureFile]:
    """Figures of the package: files of its folder that have ``draw``, sorted by name."""
    names = sorted(info.name for info in pkgutil.iter_modules(figures.__path__))
    modules = {n: importlib.import_module(f"{figures.__name__}.{n}") for n in names if n[0] != "_"}
    return [_figure(name, module) for name, module in modules.items() if hasattr(module, "draw")]


def figure_of(name: str | Path) -> FigureFile:
    """The built-in figure ``name``, or that of the file ``name`` if it ends in .py."""
    if str(name).endswith(".py"):
        return _figure(Path(name).stem, load_module(name, needs=("draw",)))
    found = {figure.name: figure for figure in built_in()}
    if str(name) not in found:
        raise ConfigError(
            f"figure {str(name)!r} does not exist: give one of {', '.join(found)}, or a .py file"
            " with a function draw(results)"
        )
    return found[str(name)]


def _figure(name: str, module: Any) -> FigureFile:
    picture = getattr(module, "PICTURE", name)
    optional = (getattr(module, part, None) for part in ("sidecar", "animate"))
    return FigureFile(name, picture, module.draw, *optional)


def _save(picture: Figure, figure: FigureFile, results: ResultsView, out: Path) -> list[Path]:
    """Write the picture and its JSON; returns both paths."""
    name = results.experiment
    stem = figure.picture if name in NAMELESS else f"{figure.picture}_{escape.file_name(name)}"
    fits = {m: {k: f.to_dict() for k, f in s.items()} for m, s in results.fits.items()}
    side = {
        "experiment": name,
        "records": sorted({c.meta["run_id"] for c in results.curves}),
        "peaks": peaks_of_shared_data(results.curves),
        **({} if figure.sidecar is None else figure.sidecar(results)),
        "fits": fits,
    }
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{stem}.png", out / f"{stem}.json"]
    pictures.save_figure(paths[0], picture, formulas=X_LABELS.values())
    text = json.dumps(plain(side), indent=1, allow_nan=False) + "\n"
    files.atomic_write(paths[1], text.encode())
    frames = () if figure.animate is None else figure.animate(results)
    if len(frames) > 0:
        paths.append(out / f"{stem}.gif")
        pictures.save_animation(paths[2], frames)
    return paths
