"""The graph of stages: what a stage is, what it receives, and what is left to compute.

Between ``study.chain`` (which builds the stages of an experiment) and ``execute`` (which
run them). A stage is a pure description; its identity is a hash of name, version, semantic config
and the identities of its inputs, so two experiments that need the same pool share it.

What it does differently from workflow engines: there is no scheduler service, no database and no
decorator. The state of a stage is whether its directory exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from overopt.base.config import RuntimeConfig, canonical, to_dict
from overopt.base.errors import StoreError
from overopt.engine.manifest import Artefact, Asked, Identity
from overopt.engine.store import Store

State = Literal["done", "running", "in-flight", "missing", "not needed"]


@dataclass(frozen=True)
class StageContext:
    """What a stage function receives.

    Attributes
    ----------
    config : dataclass
        The stage's semantic config.
    inputs : mapping of str to Artefact
        Finished, checked artefacts by role.
    out : Path
        Empty directory to write results into; becomes the artefact.
    checkpoint : Path
        Directory that survives a kill; empty on the first attempt.
    runtime : RuntimeConfig
        Device, threads and the like; must not change results beyond what it says.
    progress : callable
        ``progress(done, total)``; cheap enough to be called at every step.
    leaving : callable
        Whether the process was asked to leave: a stage that keeps checkpoints saves one and calls
        ``progress``, which then ends it. One that does not ask is ended by ``progress`` anyway.
    """

    config: Any
    inputs: Mapping[str, Artefact]
    out: Path
    checkpoint: Path
    runtime: RuntimeConfig
    progress: Callable[[int, int], None]
    leaving: Callable[[], bool] = lambda: False


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One cached function of an experiment.

    Attributes
    ----------
    name : str
        Kind of stage ("pool", "proxy"); a directory of the store.
    version : int
        Raised whenever the same config would give other results than before.
    config : dataclass
        Semantic config; a field ``root_seed`` is copied to the manifest.
    run : callable
        Module-level function that receives a StageContext.
    upstream : mapping of str to Stage
        Inputs by role.
    label : str
        What a reader calls it, unique within an experiment; not part of the identity.
    cost_s : float
        Estimated CPU seconds, for the order of work and the time left.
    disk_mb : float
        Estimated size of the artefact in megabytes.
    gpu : bool
        Whether it uses ``runtime.device``; stages that do not are given "cpu".
    stacked : callable or None
        Does what ``run`` does for several stages at once, given their contexts: results agree up to
        rounding. Used where ``runtime.stack`` allows it.
    alike : str
        Stages of one name with the same word here may be run by one call of ``stacked``.
    """

    name: str
    version: int
    config: Any
    run: Callable[[StageContext], None]
    upstream: Mapping[str, Stage] = field(default_factory=dict)
    label: str = ""
    cost_s: float = 1.0
    disk_mb: float = 1.0
    gpu: bool = False
    stacked: Callable[[Sequence[StageContext]], None] | None = None
    alike: str = ""

    @cached_property
    def identity(self) -> Identity:
        """Everything that enters the fingerprint."""
        return Identity(
            stage=self.name,
            version=self.version,
            canonical=canonical(self.config),
            config=to_dict(self.config),
            upstream={role: stage.fingerprint for role, stage in sorted(self.upstream.items())},
        )

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that identify the result."""
        return self.identity.fingerprint

    @property
    def title(self) -> str:
        """The label, or the name where there is none."""
        return self.label or self.name


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Stages in an order in which they can run, and the state of each.

    Attributes
    ----------
    stages : tuple of Stage
        All stages of the graph, inputs before users, each identity once.
    states : dict
        State by fingerprint. "not needed": absent, but everything that would use it is done.
    factors : dict
        Measured over estimated seconds by name of stage, where earlier ones were measured.
    """

    stages: tuple[Stage, ...]
    states: Mapping[str, State]
    factors: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, stage: Stage) -> float:
        """Estimated CPU seconds of a stage, corrected by what its like took."""
        return stage.cost_s * self.factors.get(stage.name, 1.0)

    @property
    def todo(self) -> tuple[Stage, ...]:
        """Stages that have to be computed, by this process or by the one that is at it."""
        left = ("running", "in-flight", "missing")
        return tuple(stage for stage in self.stages if self.states[stage.fingerprint] in left)

    @property
    def cost_s(self) -> float:
        """Estimated CPU seconds of the stages to compute."""
        return sum(map(self.seconds, self.todo))

    @property
    def disk_mb(self) -> float:
        """Estimated megabytes that the stages to compute will write."""
        return sum(stage.disk_mb for stage in self.todo)


def topological(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """The stages and all their inputs, inputs first, each identity once, in a fixed order."""
    found: dict[str, Stage] = {}
    stack = [(stage, False) for stage in reversed(list(stages))]
    while stack:
        stage, inputs_placed = stack.pop()
        if stage.fingerprint in found:
            continue
        if inputs_placed:
            found[stage.fingerprint] = stage
        else:
            stack.append((stage, True))
            stack += [
                (stage.upstream[role], False) for role in sorted(stage.upstream, reverse=True)
            ]
    return tuple(found.values())


def asked_for(stage: Stage) -> Asked:
    """``stage`` as an input, by the settings that ask for it."""
    texts: set[str] = set()
    todo: list[Any] = [part.identity.config for part in topological([stage])]
    while todo:
        match todo.pop():
            case str(text):
                texts.add(text)
            case Mapping() as group:
                todo += group.values()
            case list() | tuple() as items:
                todo += items
    return Asked(
        stage=stage.name,
        fingerprint=stage.fingerprint,
        config=stage.identity.config,
        texts=frozenset(texts),
    )


def make_plan(targets: Sequence[Stage], store: Store) -> Plan:
    """What is done and what has to be computed so that all ``targets`` exist.

    An input that is absent is computed only if something that uses it has to be: a store from
    which large intermediate artefacts were deleted stays complete.
    """
    stages = topological(targets)
    wanted = {stage.fingerprint for stage in targets}
    states: dict[str, State] = {}
    for stage in reversed(stages):
        fp = stage.fingerprint
        if store.has(stage.name, fp):
            states[fp] = "done"
            continue
        if fp not in wanted:
            states[fp] = "not needed"
            continue
        wanted |= {source.fingerprint for source in stage.upstream.values()}
        if store.is_running(stage.name, fp):
            states[fp] = "running"
        else:
            states[fp] = "in-flight" if store.has_checkpoint(stage.name, fp) else "missing"
    return Plan(stages=stages, states=states)


def critical_path(
    stages: Sequence[Stage], seconds: Callable[[Stage], float] = lambda stage: stage.cost_s
) -> dict[str, float]:
    """CPU seconds from the start of each stage to the end of the last stage that needs it.

    Parameters
    ----------
    stages : sequence of Stage
        Inputs before users.
    seconds : callable
        CPU seconds of a stage.

    Returns
    -------
    dict
        Seconds by fingerprint.
    """
    after = {stage.fingerprint: 0.0 for stage in stages}
    length = {}
    for stage in reversed(stages):
        length[stage.fingerprint] = after[stage.fingerprint] + seconds(stage)
        for source in stage.upstream.values():
            if source.fingerprint in after:
                longest = max(after[source.fingerprint], length[stage.fingerprint])
                after[source.fingerprint] = longest
    return length


# --- stale results --------------------------------------------------------------------------------


def snapshot(targets: Sequence[Stage]) -> dict[str, dict[str, str]]:
    """Stage name and fingerprint by label, as the store records it for a finished experiment."""
    return {
        title: {"stage": stage.name, "fingerprint": stage.fingerprint}
        for title, stage in _by_title(targets).items()
    }


def _by_title(targets: Sequence[Stage]) -> dict[str, Stage]:
    """Each identity once, under a title that no other has: the second of a kind is numbered."""
    titled: dict[str, Stage] = {}
    for stage in {stage.fingerprint: stage for stage in targets}.values():
        title, number = stage.title, 2
        while title in titled:
            title, number = f"{stage.title} ({number})", number + 1
        titled[title] = stage
    return titled


def find_stale(experiment: str, targets: Sequence[Stage], store: Store) -> dict[str, str]:
    """Targets whose identity differs from the one the experiment was last finished with.

    Returns
    -------
    dict
        Reason by label: which setting, version or input changed; empty if nothing did, or if the
        experiment was never finished.
    """
    recorded = (store.recorded(experiment) or {}).get("stages", {})
    current = _by_title(targets)
    stale = {}
    for label, old in recorded.items():
        stage = current.get(label)
        if stage is None:
            stale[label] = "is no longer part of the experiment"
        elif old["fingerprint"] != stage.fingerprint:
            stale[label] = _explain(old, stage, store)
    if stale:
        stale |= {label: "is new" for label in current if label not in recorded}
    return stale


def check_not_stale(experiment: str, targets: Sequence[Stage], store: Store) -> None:
    """Raise StoreError if the experiment was finished before with other identities.

    Two sets of results under one name are how tables and figures come to disagree, so the change
    has to be accepted, or the experiment renamed.
    """
    stale = find_stale(experiment, targets, store)
    if stale:
        shown = [f"  {label}: {reason}" for label, reason in list(stale.items())[:8]]
        if len(stale) > len(shown):
            shown.append(f"  and {len(stale) - len(shown)} more")
        raise StoreError(
            f"experiment {experiment!r} was finished in {store.root} with other settings or code:\n"
            + "\n".join(shown)
            + "\nrun with --accept-changes to replace what it stands for (old artefacts are kept),"
            " give the experiment another name, or use another --store"
        )


def _explain(old: Mapping[str, str], stage: Stage, store: Store) -> str:
    summary = f"was {old['fingerprint']}, is now {stage.fingerprint}"
    if old["stage"] != stage.name or not store.has(old["stage"], old["fingerprint"]):
        return summary
    manifest = store.open(old["stage"], old["fingerprint"]).manifest
    changes = []
    if manifest["version"] != stage.version:
        changes.append(f"version {manifest['version']} -> {stage.version}")
    before, now = flatten(manifest["config"]), flatten(stage.identity.config)
    for name in {**before, **now}:
        if before.get(name, "absent") != now.get(name, "absent"):
            changes.append(f"{name} {before.get(name, 'absent')} -> {now.get(name, 'absent')}")
    upstream = stage.identity.upstream
    for role in {**manifest["upstream"], **upstream}:
        if manifest["upstream"].get(role) != upstream.get(role):
            changes.append(f"input {role} changed")
    return f"{summary} ({'; '.join(changes) or 'a default changed'})"


def flatten(data: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{where}.{key}" if where else key
        flat |= flatten(value, name) if isinstance(value, Mapping) else {name: value}
    return flat
