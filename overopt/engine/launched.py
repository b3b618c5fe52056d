"""Several processes for one run, as ``accelerate launch`` or ``torchrun`` starts them.

All processes walk the same stages in the same order. Rank 0 decides,
holds the locks and writes the store; the others follow: they run each stage that rank 0 computes, on
the same inputs, into a scratch directory that is thrown away. Inside a stage the training loops
share their optimizer steps and rollouts (`overopt.nets.compute`); what is not shared is computed by all
alike. The first stage that fails ends the run in all processes.

All processes must see the store (one machine, or a file system that they share). ``accelerate``
sets up the process group; networks and optimizers are not wrapped.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from overopt.base.config import RuntimeConfig
from overopt.engine.graph import StageContext
from overopt.engine.store import Store

if TYPE_CHECKING:
    from overopt.engine.task import Task


_PATIENCE = timedelta(days=1)  # a process waits for the slowest in a stage, however long that takes


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Number of this process among those launched; 0 where there is one."""
    return int(os.environ.get("RANK", "0")) if launched() else 0


def connect(runtime: RuntimeConfig) -> RuntimeConfig:
    """Join the processes that were launched; returns the runtime with this process's own device."""
    from accelerate import PartialState
    from accelerate.utils import InitProcessGroupKwargs

    options = InitProcessGroupKwargs(timeout=_PATIENCE).to_kwargs()
    state = PartialState(cpu=runtime.device == "cpu", **options)
    return runtime if runtime.device == "cpu" else replace(runtime, device=str(state.device))


def disconnect() -> None:
    """Leave the process group, if there is one."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Order(NamedTuple):
    """What followers are to compute: a stage, and the checkpoint to continue from."""

    fingerprint: str
    checkpoint: str


class Leader:
    """Rank 0's side: tells the others which stage it computes, and when there is no more."""

    def __init__(self) -> None:
        self._in_stage = False

    def start(self, fingerprint: str, checkpoint: Path) -> None:
        """Call the followers to a stage; returns when they hold a copy of its checkpoint."""
        _broadcast(_Order(fingerprint, str(checkpoint)))
        self._in_stage = True
        _barrier()

    def done(self) -> None:
        """The stage is computed."""
        self._in_stage = False

    def dismiss(self) -> None:
        """Let the followers go, unless they are inside a stage that failed here."""
        if not self._in_stage:
            _broadcast(None)


def follow(tasks: Mapping[str, Task], store: Store) -> int:
    """Compute along with rank 0 until it has no more stages; returns how many there were.

    tasks: by fingerprint, all of the graph.
    """
    count = 0
    while (order := _broadcast(None)) is not None:
        task = tasks[order.fingerprint]
        with tempfile.TemporaryDirectory(prefix="overopt-") as scratch:
            out, checkpoint = Path(scratch, "out"), Path(scratch, "checkpoint")
            out.mkdir()
            shutil.copytree(order.checkpoint, checkpoint)
            _barrier()
            task.run(
                StageContext(
                    config=task.config,
                    inputs={role: store.fetch(asked) for role, asked in task.inputs.items()},
                    out=out,
                    checkpoint=checkpoint,
                    runtime=task.runtime,
                    progress=lambda done, total: None,
                )
            )
        count += 1
    return count


def _broadcast(value: Any) -> Any:
    """Rank 0's ``value``, in every process."""
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def _barrier() -> None:
    import torch

    torch.distributed.barrier()
