"""Carrying an experiment out: `overopt.run`, and what `overopt run` calls."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from overopt.base import escape, folders
from overopt.base.config import RuntimeConfig
from overopt.base.errors import ConfigError, OveroptError
from overopt.control.settings import ControlExperiment
from overopt.engine import launched, signals
from overopt.engine.execute import Summary, check_device, check_on_cpu, execute
from overopt.engine.executor import Connect
from overopt.engine.graph import Stage, check_not_stale, make_plan, snapshot
from overopt.engine.progress import Reporter, Silent, TextReporter
from overopt.engine.store import Store
from overopt.engine.task import StageError
from overopt.records import results as tables
from overopt.stages.settings import Experiment, RunConfig
from overopt.study import chain, collect, presets
from overopt.study.track import tracked

if TYPE_CHECKING:
    from overopt.reports.results import Results


class Loaded(NamedTuple):
    """An experiment, its stages, and the name under which its results are known."""

    experiment: Experiment | ControlExperiment
    stages: list[Stage]
    record_name: str


class Done(NamedTuple):
    """What `carry_out` did; ``written``: the results directory, None where nothing was written."""

    summary: Summary
    written: Path | None


def run(
    experiment: Experiment | RunConfig | str | Path,
    overrides: Sequence[str] = (),
    *,
    store: str | Path = "runs",
    results: str | Path | None = None,
    workers: int = 1,
    runtime: RuntimeConfig | None = None,
    accept_changes: bool = False,
    track: Sequence[str] = (),
    track_to: str | Path = "tracks",
) -> Results:
    """Compute what an experiment lacks, collect its records, and return them.

    What is in the store already is not computed again, and an interrupted call goes on where it was.

    Parameters
    ----------
    experiment
        The name of a preset, the path of an experiment file, an `Experiment`, or one run's
        `RunConfig`.
    overrides
        Settings as on the command line, such as ``["method.kind=grpo", "labels.n_pairs=2000"]``.
    store
        Directory of what is computed.
    results
        Directory of the records; by default results/<name+overrides>.
    workers
        Processes that compute stages side by side; 1 computes them in this process. A script that
        asks for more needs ``if __name__ == "__main__":`` around its entry point.
    runtime
        Device, threads and the like.
    accept_changes
        Let changed settings or code replace what the experiment's name stood for.
    track
        Trackers that get each curve when it is finished: tensorboard, wandb, trackio, mlflow.
    track_to
        Directory for those that write files.

    Raises
    ------
    ConfigError, DataError, StoreError
        The request cannot be carried out; nothing was started.
    StageError
        Stages failed; everything else was computed, and its records are written.
    """
    from overopt.reports.results import Results  # draws: the command line does without

    runtime = runtime or RuntimeConfig()
    loaded = load(experiment, overrides)
    where = default_results(loaded.record_name) if results is None else Path(results)
    reporter: Reporter = Silent() if runtime.quiet else TextReporter()
    place = Store(Path(store))
    carry_out(
        loaded,
        place,
        runtime,
        results=where,
        workers=workers,
        reporter=tracked(reporter, track, loaded.experiment, place, Path(track_to), warnings.warn),
        accept_changes=accept_changes,
    )
    return Results(where)


def load(experiment: Experiment | RunConfig | str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """An experiment with overrides on every run, checked: every checkpoint and prompt it needs.

    Raises
    ------
    ConfigError, DataError, CheckpointError
        It does not exist, a setting does not fit, or what it reads is not as it should be.
    """
    if isinstance(experiment, RunConfig):
        experiment = Experiment(name="run", runs=(experiment,))
    if isinstance(experiment, Experiment):
        found = presets.with_overrides(experiment, overrides)
    else:
        found = presets.load_experiment(str(experiment), overrides)
    # Overrides make it another experiment: `quick` and `quick seed=1` may both have results.
    return Loaded(found, chain.build_graph(found), " ".join([found.name, *sorted(overrides)]))


def default_results(record_name: str) -> Path:
    """results/NAME, the overrides in it: a run with others does not replace these records."""
    return Path("results") / escape.file_name(record_name)


def part_of(
    experiment: Experiment | ControlExperiment, part: int, parts: int
) -> Experiment | ControlExperiment:
    """The experiment with the ``part``-th of ``parts`` equal, contiguous shares of its runs."""
    start, stop = (len(experiment.runs) * k // parts for k in (part - 1, part))
    if start == stop:
        raise ConfigError(f"--part {part}/{parts}: there are {len(experiment.runs)} runs to divide")
    share: Any = experiment.runs[start:stop]  # of the experiment's own class
    return dataclasses.replace(experiment, runs=share)


def carry_out(
    loaded: Loaded,
    store: Store,
    runtime: RuntimeConfig,
    *,
    results: Path,
    workers: int,
    reporter: Reporter,
    part: tuple[int, int] | None = None,
    extend: bool = False,
    time_limit_s: float | None = None,
    accept_changes: bool = False,
    connect: Connect | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Done:
    """Compute what is missing, then collect records; of what is finished, where it ends early.

    Parameters
    ----------
    part : the I-th of N parts of the runs only.
    extend : do not compute what ``results`` has records of already, whatever the store holds.
    time_limit_s : stop after so many seconds; ``summary.left`` then says how many stages are left.
    connect : makes an executor elsewhere, which has the device then.
    say : is told what was written where a run ended early.
    """
    if not accept_changes:
        check_not_stale(loaded.record_name, loaded.stages, store)
    check_on_cpu(loaded.stages, runtime)
    if connect is None:
        check_device(runtime.device)
    if part:
        tables.check_part(results, {stage.fingerprint for stage in loaded.stages})
    held = _held(results)  # unreadable ones are refused now, not after hours of work
    wanted = chain.build_graph(part_of(loaded.experiment, *part)) if part else loaded.stages
    done = held.run_ids if extend else set()
    wanted = [stage for stage in wanted if stage.fingerprint not in done]
    if make_plan(wanted, store).todo:
        store.create()  # before the other directory is tried: its errors come first
    folders.check_folder(results, "--results", *tables.RESULT_FILES)
    try:
        summary = execute(
            wanted,
            store,
            runtime,
            workers=workers,
            reporter=reporter,
            time_limit_s=time_limit_s,
            connect=connect,
        )
        if launched.rank() > 0:
            return Done(summary, None)  # rank 0 writes
        written = None
        if not summary.left:
            written = collect.collect(loaded.experiment, store, results, partial=bool(part))
    except (KeyboardInterrupt, StageError):
        _collect_finished(loaded, store, results, say)
        raise
    if summary.left:
        _collect_finished(loaded, store, results, say)
    elif not part:
        store.record(loaded.record_name, snapshot(loaded.stages))
    return Done(summary, written)


def _held(folder: Path) -> tables.Tables:
    """What is in a results directory, after what a killed writer had begun was finished."""
    if not folder.is_dir():
        return tables.held_results(folder)
    folders.check_folder(folder, "--results", *tables.RESULT_FILES)
    with tables.transaction(folder):
        return tables.held_results(folder)


def _collect_finished(
    loaded: Loaded, store: Store, results: Path, say: Callable[[str], None]
) -> None:
    """Write the records of the curves that are finished, and say so or why not."""
    if launched.rank() > 0:
        return
    try:
        with signals.deferred():
            written = collect.collect(loaded.experiment, store, results, partial=True)
    except (OveroptError, OSError) as error:  # what ended the run is the message that counts
        say(str(error))
        return
    if written is not None:
        say(f"records of what is finished are in {results}")
