"""The peer's side of a comparison of training steps, which alternate with ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from overopt.bench.harness import BenchError
from overopt.bench.peers import Peer

WARM_STEPS = 2  # untimed: allocators, thread pools and lazy imports settle in them


class PeerSource(NamedTuple):
    """The interpreter of a peer's environment, or None and why there is none.

    site: directory of packages that the interpreter does not have by itself, or None.
    """

    python: Path | None
    reason: str = ""
    site: Path | None = None


class Opponent:
    """The peer's side of a comparison: its seconds a step, or why there are none.

    A peer that fails leaves its reason here and our side running.
    """

    def __init__(self, source: PeerSource, job: dict[str, Any], *, device: str) -> None:
        self.reason = source.reason
        self.seconds: list[float] = []
        self.first: dict[str, Any] = {}
        self.done: dict[str, Any] = {}
        self._field = "cpu_s" if device == "cpu" else "wall_s"
        self._peer: Peer | None = None
        if source.python is not None:
            python = source.python
            if source.site is not None:
                job = job | {"site": str(source.site)}
            self._peer = self._attempt(lambda: Peer(python, job))
        self.versions = {} if self._peer is None else self._peer.versions

    def step(self) -> None:
        """One step of the peer, if it is there."""
        if self._peer is None:
            return
        got = self._attempt(self._peer.step)
        if got is not None:
            self.first = self.first or got
            self.seconds.append(got[self._field])

    def close(self) -> None:
        """End the peer after its last step."""
        if self._peer is not None:
            self.done = self._attempt(self._peer.finish) or {}
        if self._peer is not None:
            self._peer.close()

    @property
    def timed(self) -> list[float] | None:
        """Seconds of the steps behind the warm-up, or None if the run is not whole."""
        return None if self.reason else self.seconds[WARM_STEPS:]

    def _attempt(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except BenchError as error:
            self.reason = str(error)
            if self._peer is not None:
                self._peer.close()
            self._peer = None
            return None


def timed(run: Callable[[], None], now: Callable[[], float]) -> float:
    """Seconds that ``run`` takes by the clock ``now``."""
    start = now()
    run()
    return now() - start
