"""Stages as tasks of a Ray cluster.

A task takes a stage's settings to a node and names its inputs, which the node reads from the store: all
nodes must see the store under one path, and have the same version of overopt. Ray moves nothing else,
so whatever dies (a node, the driver, the whole cluster) leaves a store from which any executor goes on.

Ray itself tries nothing again: an exception of a stage is an answer like any other, and the loss of
a node is an event for the scheduler, which starts the stage elsewhere, from its checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from overopt.base import folders, userfile
from overopt.base.config import RuntimeConfig, require
from overopt.base.errors import OveroptError
from overopt.engine import attempts, costs, signals
from overopt.engine.executor import Capacity, Event, Failed, Lost, Settled
from overopt.engine.graph import Plan
from overopt.engine.perform import perform
from overopt.engine.store import MARKER, Store
from overopt.engine.task import (
    CannotStart,
    Failure,
    Task,
    WorkerKilled,
    left_by,
    portable,
)

LOOK_S = 2.0
"""Seconds between two looks at the nodes of the cluster, and at the progress of stages."""
OBJECTS_BYTES = 100_000_000
"""Shared memory of a cluster that is started here; what passes through it is a few kilobytes a task."""


REACH_S = 10.0
"""Seconds that the head of a cluster may take to accept a connection."""
LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Named for where Ray has it as default: a cluster of one machine, bound to the loopback address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""Variables under which Ray starts a cluster of this machine; it reads them when it is imported."""


class RayError(OveroptError, RuntimeError):
    """Ray is not there, or its cluster cannot be reached."""


class Need(NamedTuple):
    """What a task asks of a node: cores, share of a GPU, and megabytes of memory (None: not known)."""

    cpus: int
    gpus: float
    memory_mb: float | None

    def options(self) -> dict[str, Any]:
        """As ``ray.remote`` takes them."""
        asked: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory_mb is not None:
            asked["memory"] = int(self.memory_mb * 1e6)
        return asked


def need(task: Task, took: Mapping[str, costs.Took]) -> Need:
    """What a task asks for: threads, a share of a GPU, the limit or else the measured peak of memory."""
    runtime, of_kind = task.runtime, took.get(task.identity.stage)
    on_device = runtime.device != "cpu"
    gpus = 10_000 // runtime.gpu_jobs / 10_000 if on_device else 0.0  # Ray counts to four decimals
    limit = None if on_device else runtime.memory_mb
    measured = None if of_kind is None else of_kind.memory_mb
    return Need(runtime.threads, gpus, measured if limit is None else float(limit))


def check(runtime: RuntimeConfig, address: str | None) -> None:
    """Raise unless Ray can be imported and ``runtime`` and ``address`` are such as it can serve.

    Raises
    ------
    RayError
        Ray is not installed.
    ConfigError
        The device is neither "cpu" nor "cuda", or the address is one of Ray's client.
    """
    if importlib.util.find_spec("ray") is None:
        raise RayError("ray cannot be imported; install it with `pip install 'overopt[ray]'`")
    require(
        runtime.device in ("cpu", "cuda"),
        "device",
        runtime.device,
        "with --executor ray use cpu or cuda; Ray chooses the GPU",
    )
    require(
        not (address or "").startswith("ray://"),
        "--ray-address",
        address,
        "Ray's client is not supported; run the command on a node of the cluster (`ray job submit`)"
        " and give host:port or auto",
    )


@dataclass(frozen=True)
class _InHand:
    """A task that the cluster has: what was submitted, and whom to tell of its progress."""

    task: Task
    progress: Callable[[int, int], None]


class RayCluster:
    """An executor that hands tasks to a Ray cluster.

    Parameters
    ----------
    store, runtime, plan
        Of the run; what its stages took before in this store says how much memory they ask for.
    address : str or None
        Of a cluster, as host:port or "auto"; None: the one of the variable RAY_ADDRESS, or else a
        cluster of this machine alone, which listens on the loopback address and ends with the run.
    tasks : int or None
        How many tasks to have in hand, even beyond what the nodes take now, so that a cluster that
        grows by itself does; None: as many as there are cores for.

    Raises
    ------
    RayError
        The cluster cannot be reached.
    ConfigError
        No node of it has what a task asks for.
    """

    def __init__(
        self,
        store: Store,
        runtime: RuntimeConfig,
        plan: Plan,
        *,
        address: str | None = None,
        tasks: int | None = None,
    ) -> None:
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        check(runtime, address)
        if address == "local":
            os.environ.update(LOCAL)
        import ray

        self._ray = ray
        self._store, self._runtime, self._tasks = store, runtime, tasks
        self._took = costs.measured(store, plan.todo, runtime.device)
        self._in_hand: dict[Any, _InHand] = {}  # by the reference to the task's result
        self._looked = float("-inf")
        _connect(ray, runtime, address, tasks)
        try:
            self._nodes = _alive(ray)
            self._refuse_what_no_node_has()
        except BaseException:
            ray.shutdown()
            raise
        self._perform = ray.remote(max_retries=0)(perform_there)
        self._here = os.getcwd()

    def capacity(self) -> Capacity:
        """What the nodes that are alive have cores and GPUs for."""
        if time.monotonic() - self._looked > LOOK_S:
            self._look()
        tasks = sum(int(node.get("CPU", 0)) // self._runtime.threads for node in self._nodes)
        gpus = sum(int(node.get("GPU", 0)) for node in self._nodes)
        return Capacity(
            tasks=self._tasks or max(1, tasks), on_device=max(1, gpus * self._runtime.gpu_jobs)
        )

    def submit(self, task: Task, progress: Callable[[int, int], None]) -> None:
        """Give the task to the cluster."""
        # A user's files first: settings of their kinds are pickled by name.
        content = self._ray.cloudpickle.dumps(task)
        asked = need(task, self._took)
        most = max((node.get("memory", 0.0) for node in self._nodes), default=0.0) / 1e6
        if asked.memory_mb is not None:  # a peak that no node has now was reached on one of before
            asked = asked._replace(memory_mb=min(asked.memory_mb, most))
        remote = self._perform.options(**asked.options(), name=task.identity.stage)
        root = str(self._store.root.resolve())
        ref = remote.remote(root, self._here, userfile.loaded_kinds(), content)
        self._in_hand[ref] = _InHand(task, progress)

    def events(self, timeout_s: float) -> Iterator[Event]:
        """What came back, and what was lost."""
        if not self._in_hand:
            time.sleep(timeout_s)
            return
        refs = list(self._in_hand)
        with _unless_lost(self._ray):
            self._ray.wait(refs, num_returns=1, timeout=timeout_s)
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            yield self._event(ref, self._in_hand.pop(ref).task)
        if time.monotonic() - self._looked > LOOK_S:
            self._look()

    def cancel(self, fingerprint: str) -> None:
        """Kill the process that has the task."""
        for ref, known in list(self._in_hand.items()):
            if known.task.identity.fingerprint == fingerprint:
                del self._in_hand[ref]
                self._ray.cancel(ref, force=True)

    def leave(self) -> None:
        """Interrupt the tasks, which they take as a request to save a checkpoint."""
        for ref in self._in_hand:
            self._ray.cancel(ref, force=False)

    def close(self) -> None:
        """Part from the cluster; one that was started here ends."""
        self._ray.shutdown()

    def _look(self) -> None:
        """See which nodes there are, and how far the stages got."""
        with _unless_lost(self._ray):
            self._nodes = _alive(self._ray)
        reached = {each.fingerprint: each for each in attempts.working(self._store.root)}
        for known in self._in_hand.values():
            working = reached.get(known.task.identity.fingerprint)
            if working is not None and working.total > 0:
                known.progress(working.done, working.total)
        self._looked = time.monotonic()

    def _event(self, ref: Any, task: Task) -> Event:
        """What became of a task."""
        fingerprint, errors = task.identity.fingerprint, self._ray.exceptions
        error: OveroptError
        try:
            kind, content = self._ray.get(ref)
        except errors.TaskCancelledError:
            return Settled(fingerprint, left_by(task))
        except (errors.NodeDiedError, errors.LocalRayletDiedError):
            return Lost(fingerprint, "its node was lost")
        except errors.OutOfMemoryError as killed:
            error = WorkerKilled(f"Ray killed its process for lack of memory ({_first(killed)})")
        except errors.WorkerCrashedError:
            error = WorkerKilled(
                "its process died on a node that lives on; if the node ran out of memory, give"
                " --memory-limit, so that fewer stages run side by side"
            )
        except errors.RayError as other:
            error = CannotStart(
                f"Ray could not run it ({_first(other)}); is the same version of overopt installed"
                " on all nodes?"
            )
        else:
            if kind == "failed":
                return Failed(fingerprint, content)
            return Settled(fingerprint, content)
        return Failed(fingerprint, Failure("", error))

    def _refuse_what_no_node_has(self) -> None:
        """Ray would wait for such a node for ever."""
        threads, limit = self._runtime.threads, self._runtime.memory_mb
        most = {
            kind: max((node.get(kind, 0.0) for node in self._nodes), default=0.0)
            for kind in ("CPU", "GPU", "memory")
        }
        require(
            threads <= most["CPU"],
            "threads",
            threads,
            f"no node has more than {most['CPU']:.0f} cores",
        )
        require(
            self._runtime.device == "cpu" or most["GPU"] >= 1,
            "device",
            self._runtime.device,
            "no node of the cluster has a GPU; use --device cpu",
        )
        require(
            limit is None or limit * 1e6 <= most["memory"],
            "memory_limit",
            limit,
            f"no node has more than {most['memory'] / 1e6:.0f} MB",
        )


def _connect(ray: Any, runtime: RuntimeConfig, address: str, tasks: int | None) -> None:
    """Join the cluster at ``address``; "local": start one, which no other machine can reach."""
    options: dict[str, Any]
    if address == "local":
        options = {
            "address": "local",
            "num_cpus": None if tasks is None else tasks * runtime.threads,
            "include_dashboard": False,
            "object_store_memory": OBJECTS_BYTES,
        }
    else:  # the nodes may have other variables than this process
        options = {"address": address, "runtime_env": {"env_vars": runtime.environment}}
    # Ray takes SIGTERM for itself, without giving it back.
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    try:
        _reach(address)
        ray.init(**options, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises bare ones, too
        what = f"the Ray cluster at {address!r} cannot be joined ({_first(error)}); start one with"
        what += " `ray start --head`, or leave out --ray-address"
        if address == "local":
            what = (
                f"no Ray cluster could be started here ({_first(error)}); a busy machine needs more"
            )
            what += " tries, or use the processes of this machine by leaving out --executor ray"
        raise RayError(what) from error
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):  # not the main thread: nothing was taken
                signal.signal(number, handler)


def _reach(address: str) -> None:
    """Raise OSError if nothing listens at host:port, for which Ray would wait a minute."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()


@contextlib.contextmanager
def _unless_lost(ray: Any) -> Iterator[None]:
    """Say what is left and what to do where Ray does not answer any more."""
    try:
        yield
    except (ray.exceptions.RayError, ConnectionError, TimeoutError) as error:
        raise RayError(
            f"the Ray cluster is lost ({_first(error)}); what is finished is in the store, and the same"
            " command goes on from there"
        ) from error


def _alive(ray: Any) -> list[dict[str, float]]:
    """Resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _first(error: BaseException) -> str:
    """The first line that says something."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def perform_there(
    root: str, folder: str, kinds: tuple[tuple[str, bytes], ...], content: bytes
) -> tuple[str, Any]:
    """Perform a task on a node of the cluster; what Ray runs.

    Parameters
    ----------
    root, folder : str
        Of the store, and the working directory of the driver, to which paths in settings refer.
    kinds : tuple of (str, bytes)
        Path and content of the user's files that the settings need.
    content : bytes
        The `Task`, pickled.

    Returns
    -------
    str, outcomes or Failure
        "settled" and an outcome for the task and each companion, or "failed" and why. An exception
        is a return value: Ray would take one for a reason to say more than the scheduler needs.
    """
    import pickle

    place = Path(root)
    if not (place / MARKER).exists():
        error = CannotStart(
            f"{root}: the node {socket.gethostname()} sees no store there; it must be shared by all"
            " nodes under this path"
        )
        return "failed", Failure("", error)
    if os.path.isdir(folder):
        os.chdir(folder)
    task = None
    try:
        for file, source in kinds:
            userfile.load_source(file, source)
        task = pickle.loads(content)
        # `RayCluster.leave` reaches this process as an interrupt.
        with signals.leaving(signal.SIGINT), folders.group_umask(place):
            return "settled", perform(task, Store(place), lambda done, total: None)
    except signals.Leaving:
        assert task is not None
        return "settled", left_by(task)
    except Exception as error:  # crosses to the driver, which raises it with the stage's name
        return "failed", portable(error)
