"""What a group of benchmarks is told, and what it answers.

Each file in ``groups/`` has a function ``group(setting)`` that returns its `Group`, or None where the
setting has no place for it; nothing is loaded before `Group.measure` is called.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from overopt.bench.harness import Row
from overopt.bench.opponent import PeerSource
from overopt.bench.sizes import Sizes


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where all groups run, how much work they do, and against whom.

    root_seed : of weights, tokens and training
    device : of our side and of the peer's
    sizes : of the rows at the shape of a checkpoint; None: the ladder's models
    peer : from a requirement such as ``trl==1.16.0`` to its interpreter, or to why there is none
    """

    root_seed: int
    device: str
    sizes: Sizes | None
    peer: Callable[[str], PeerSource]

    @property
    def where(self) -> dict[str, Any]:
        """Seed and device, as arguments of the functions that measure."""
        return {"root_seed": self.root_seed, "device": self.device}


class Group(NamedTuple):
    """The rows of one subject.

    names : of the rows that stand in for them, with the reason, where ``measure`` fails
    measure : measures and returns all rows
    """

    names: Sequence[str]
    measure: Callable[[], Sequence[Row]]
