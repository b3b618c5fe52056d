"""Finished curves of an experiment as they lie in a store, for what reads artefacts again.

Records hold means; responses and scorers are in the artefacts. What is here opens the artefacts that
the settings of an experiment ask for, and computes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from overopt.base import files
from overopt.base.config import RuntimeConfig, canonical
from overopt.base.errors import ConfigError, StoreError
from overopt.control.settings import ControlRun
from overopt.engine.graph import Stage, StageContext, asked_for, topological
from overopt.engine.store import Store
from overopt.records.curves import BON
from overopt.rewards.kind import Scorer
from overopt.stages.common import load_asked
from overopt.stages.names import describe_curve
from overopt.stages.optimise import method_role
from overopt.stages.settings import RunConfig
from overopt.study.chain import curve_stages
from overopt.study.run import Loaded
from overopt.worlds.world import World

_OF_THE_POLICY = ("bon", "method", "search")
"""Parts of a run that say how a proxy is optimised against."""


class Finished(NamedTuple):
    """One finished curve: its run, its last stage, and the store that holds all of it."""

    run: RunConfig
    curve: Stage
    store: Store
    runtime: RuntimeConfig

    @property
    def folder(self) -> Path:
        """The artefact of the curve."""
        return self.store.open(self.curve.name, self.curve.fingerprint).path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Its points."""
        return files.load_json(self.folder / "rows.json")

    @property
    def is_bon(self) -> bool:
        """Whether it is best-of-n; else it is a method's."""
        return self.curve.name == BON

    @property
    def proxy(self) -> Stage:
        """The stage of its proxy, of the last round."""
        return self.curve.upstream["proxy"]

    @property
    def series(self) -> str:
        """All settings of its proxy but for seeds, as text: the same for replicates alone."""
        settings = canonical(unseeded(self.run))
        return json.dumps({k: v for k, v in settings.items() if k not in _OF_THE_POLICY})

    @property
    def title(self) -> str:
        """What its proxy is, in words, without seeds."""
        return describe_curve(unseeded(self.run)).replace(" data 0 rm 0", "")

    @property
    def method(self) -> str:
        """``bon``, or the method."""
        return BON if self.is_bon else method_role(self.curve.upstream)

    def context(self) -> StageContext:
        """What the stage of the curve received, to read its inputs; nothing is to be written."""
        inputs = {r: self.store.fetch(asked_for(s)) for r, s in self.curve.upstream.items()}
        return StageContext(
            config=self.curve.config,
            inputs=inputs,
            out=self.folder,
            checkpoint=self.folder,
            runtime=self.runtime,
            progress=lambda done, total: None,
        )

    def artefact(self, name: str) -> Path:
        """The artefact of the first stage called ``name`` among all that the curve came from."""
        part = self._part(name)
        return self.store.open(part.name, part.fingerprint).path

    def _part(self, name: str) -> Stage:
        return next(part for part in topological([self.curve]) if part.name == name)

    def scorer(self, of: Stage, world: World) -> Scorer:
        """The scorer of a stage of a proxy."""
        artefact = self.store.fetch(asked_for(of))
        return load_asked(artefact, self.artefact("calibration"), world, self.runtime.device)

    def gold(self, world: World) -> Scorer:
        """The gold scorer."""
        return self.scorer(self._part("gold"), world)


def unseeded(run: RunConfig) -> RunConfig:
    """The run with seed 0 of labels, proxy and method: the same for all replicates."""
    return replace(
        run,
        labels=replace(run.labels, data_seed=0),
        proxy=run.proxy.with_seed(0),
        method=None if run.method is None else run.method.with_seed(0),
    )


def finished_curves(loaded: Loaded, store: Store, runtime: RuntimeConfig) -> Sequence[Finished]:
    """Curves of best-of-n and of methods, each once, in the order of the runs.

    Raises
    ------
    ConfigError
        The experiment is one of control, whose responses are no texts.
    StoreError
        A curve is not in the store.
    """
    found: dict[str, Finished] = {}
    absent = []
    for run in loaded.experiment.runs:
        if isinstance(run, ControlRun):
            raise ConfigError(
                f"experiment = {loaded.experiment.name!r}: responses of control are no texts: give an"
                " experiment with prompts and responses"
            )
        for curve in curve_stages(run):
            is_method = run.method is not None and curve.name.endswith("_gold")
            if curve.name != BON and not is_method:
                continue
            if not store.has(curve.name, curve.fingerprint):
                absent.append(curve.title)
            found.setdefault(curve.fingerprint, Finished(run, curve, store, runtime))
    if absent:
        raise StoreError(
            f"{store.root}: {len(absent)} of {len(found)} curves are not there, such as {absent[0]!r}:"
            " compute them with `overopt run` and the same settings, or name their --store"
        )
    return tuple(found.values())
