"""Curves sent to a tracker as they are finished: `overopt run --track tensorboard`.

What is sent is read from the artefact of a finished curve, as records are; stages know of no tracker.
The trackers are accelerate's. Records stay the truth: a tracker that fails is left, and the run goes on.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from overopt.base.config import canonical
from overopt.base.errors import ConfigError
from overopt.control.settings import ControlExperiment, ControlRun
from overopt.engine import launched
from overopt.engine.graph import Stage, flatten
from overopt.engine.progress import Reporter
from overopt.engine.store import Store
from overopt.records.schema import FIELDS
from overopt.stages.settings import Experiment, RunConfig
from overopt.study import collect
from overopt.study.chain import curve_stages

Name = Literal["tensorboard", "wandb", "trackio", "mlflow"]
TRACKERS: tuple[Name, ...] = ("tensorboard", "wandb", "trackio", "mlflow")


def tracked(
    reporter: Reporter,
    names: Sequence[str],
    experiment: Experiment | ControlExperiment,
    store: Store,
    folder: Path,
    say: Callable[[str], None],
) -> Reporter:
    """``reporter``, which also sends each curve of ``experiment`` that the run computes.

    Parameters
    ----------
    names : of `TRACKERS`.
    folder : where those that write files do, unless their own environment variables say otherwise.
    say : is told when a tracker fails.

    Raises
    ------
    ConfigError
        A tracker that is unknown, whose package is not installed, or several processes under a
        launcher.
    """
    for name in names:
        check_tracker(name)
    if names and launched.launched():
        raise ConfigError(
            "--track: the processes of a launcher cannot share a tracker; leave it out"
        )
    if not names:
        return reporter
    return cast(Reporter, _Tracked(reporter, names, experiment, store, folder, say))


def check_tracker(name: str) -> None:
    """Raise ConfigError unless the tracker ``name`` can be used here."""
    if name not in TRACKERS:
        raise ConfigError(f"--track {name}: is unknown; use one of {', '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"--track {name}: its package is not installed: run pip install 'overopt[{name}]'"
        )


class _Tracked:
    """Passes everything on to a reporter, and finished curves to trackers."""

    def __init__(
        self,
        inner: Reporter,
        names: Sequence[str],
        experiment: Experiment | ControlExperiment,
        store: Store,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._inner, self._names, self._store = inner, list(names), store
        self._experiment, self._folder, self._say = experiment.name, folder, say
        self._runs = {s.fingerprint: run for run in experiment.runs for s in curve_stages(run)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def finished(self, stage: Stage, computed: bool) -> None:
        """Pass it on; send the stage's curve, if it is one that was computed now."""
        self._inner.finished(stage, computed)
        run = self._runs.get(stage.fingerprint)
        if not computed or run is None:
            return
        for name in list(self._names):
            try:
                self._send(name, run, stage)
            except Exception as error:  # a tracker may raise anything, and the run must go on
                self._names.remove(name)
                self._say(f"--track {name} failed and is left out from here: {error}")

    def _send(self, name: str, run: RunConfig | ControlRun, stage: Stage) -> None:
        rows = collect.of_curve(self._experiment, run, stage, self._store).records
        tracker = _tracker(name, self._experiment, stage.title, self._folder)
        settings = {k: v if isinstance(v, int | float | str) else str(v) for k, v in _settings(run)}
        tracker.store_init_configuration(settings)
        for row in rows:
            tracker.log(_numbers(row), step=row["value"])
        tracker.finish()


def _settings(run: RunConfig | ControlRun) -> Sequence[tuple[str, Any]]:
    return list(flatten(canonical(run)).items())


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What was measured at a point, by the names of the records' columns."""
    return {
        name: row[name]
        for name, field in FIELDS.items()
        if field.type is float and row.get(name) is not None
    }


def _tracker(name: str, experiment: str, title: str, folder: Path) -> Any:
    """accelerate's tracker for one curve, started."""
    from accelerate import PartialState, tracking

    PartialState(cpu=True)  # trackers ask it which process they are in; it must take no accelerator
    project = re.sub(r"[^\w.-]+", "_", experiment)
    curve = re.sub(r"[^\w.,=-]+", "_", title)
    place = (folder / name).resolve()
    place.mkdir(parents=True, exist_ok=True)
    tracker: Any
    match name:
        case "tensorboard":
            tracker = tracking.TensorBoardTracker(f"{project}/{curve}", logging_dir=place)
        case "wandb":
            os.environ.setdefault("WANDB_DIR", str(place))
            tracker = tracking.WandBTracker(project, name=curve, reinit=True)
        case "trackio":
            os.environ.setdefault("TRACKIO_DIR", str(place))
            tracker = tracking.TrackioTracker(project, name=curve)
        case _:
            os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
            tracker = tracking.MLflowTracker(experiment_name=project, run_name=curve)
    tracker.start()
    return tracker
