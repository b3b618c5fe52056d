"""What workers without a driver tell each other of stages that failed, so that each fails once.

    root/.failed/<stage>-<fingerprint>.json   the last failure of a stage that is not finished

An exception of a stage would come again; that a process was killed, or a disk was full, says nothing
about the stage and is not noted.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

from overopt.base.errors import DataError, StoreError
from overopt.base.files import load_object, save_json
from overopt.engine.graph import Stage
from overopt.engine.store import FAILED, Store
from overopt.engine.task import CannotStart, Failure, StageError, WorkerDied, describe_error


def note(store: Store, stage: Stage, failure: Failure) -> None:
    """Tell the other workers that the stage failed."""
    if isinstance(failure.error, StoreError | CannotStart | WorkerDied):
        return
    path = _path(store, stage)
    path.parent.mkdir(exist_ok=True)
    said = {"error": describe_error(failure.error), "trace": failure.trace}
    save_json(path, {**said, "host": socket.gethostname(), "time": time.time()})


def since(store: Store, stage: Stage, begin: float) -> Failure | None:
    """The failure that a worker noted at or after ``begin`` (seconds since 1970), if one did."""
    noted = read(store, stage)
    if noted is None or noted["time"] < begin:
        return None
    error = StageError(f"{noted['error']} (on {noted['host']})")
    return Failure(stage.title, error, noted["trace"])


def read(store: Store, stage: Stage) -> dict[str, Any] | None:
    """What is noted of a stage: error, trace, host and time; None if nothing is, or it is damaged."""
    try:
        noted = load_object(_path(store, stage), ("error", "trace", "host", "time"))
    except DataError:
        return None
    is_text = all(isinstance(noted[key], str) for key in ("error", "trace", "host"))
    return noted if is_text and isinstance(noted["time"], int | float) else None


def _path(store: Store, stage: Stage) -> Path:
    return store.root / FAILED / f"{stage.name}-{stage.fingerprint}.json"
