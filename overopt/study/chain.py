"""From an experiment to its graph of stages.

    calibration -> gold -> comparisons -> labels -> proxy -> bon, selectors, search
                      \\-> pool -------------------------/  \\-> method -> judge

Runs of control, where responses are no texts, have a chain of their own (`overopt.control.stages`).

What each stage does is in its file in `overopt.stages`. Gold is an input of ``comparisons``, ``pool``
and the judge of a method only: no method can reach it.
"""

import logging
from pathlib import Path

from overopt.control import stages as control
from overopt.control.environment import load_environment
from overopt.control.settings import ControlExperiment, ControlRun
from overopt.engine.graph import Stage
from overopt.rewards.transforms.own import load_transform
from overopt.stages import (
    best_of_n,
    calibration,
    comparisons,
    gold,
    judge,
    pool,
    rounds,
    search,
    selectors,
)
from overopt.stages.settings import Experiment, RunConfig
from overopt.study.checks import (
    check_checkpoints,
    check_pairs,
    check_prompts,
    check_sources,
    check_texts,
    check_transform,
    masked_tokens,
    source_checksums,
)
from overopt.worlds.load import load_world
from overopt.worlds.world import World, WorldSettings

log = logging.getLogger(__name__)


def curve_stages(run: RunConfig | ControlRun) -> list[Stage]:
    """The last stages of one run, with all their upstreams: its curves."""
    if isinstance(run, ControlRun):
        return [control.curve_stage(run)]
    base = calibration.stage(run, source_checksums(run))
    truth = gold.stage(run, base)
    samples = comparisons.comparisons_stage(run, {"calibration": base, "gold": truth})
    labels = comparisons.labels_stage(run, samples)
    inputs = {"calibration": base, "comparisons": samples, "labels": labels}
    if run.proxy.needs_gold:
        inputs["gold"] = truth
    done = rounds.stages(run, inputs, truth)
    proxy, method = done[-1]
    ends = []
    if run.bon is not None:
        pools = pool.pool_stages(run, {"calibration": base, "gold": truth})
        bon = best_of_n.stage(run, proxy, pools, base)
        ends += [bon, *selectors.stages(run, bon)]
    scored = {"calibration": base, "gold": truth, "proxy": proxy}
    ends += search.stages(run, scored)
    if method is not None:
        ends.append(judge.stage(run, method, scored | rounds.earlier_roles(run, done)))
    return ends


def build_graph(experiment: Experiment | ControlExperiment) -> list[Stage]:
    """Curve stages of all runs; their upstreams follow. Checks every source before any work."""
    worlds: dict[WorldSettings, World] = {}
    notes: dict[str, None] = {}  # in their order, each said once
    for run in experiment.runs:
        if isinstance(run, ControlRun):
            load_environment(run.world)
            continue
        check_checkpoints(run)
        if run.world not in worlds:
            worlds[run.world] = load_world(run.world)
            notes |= dict.fromkeys(worlds[run.world].notes)
        check_texts(run, worlds[run.world])
        if run.reward.transform:
            check_transform(run, load_transform(Path(run.reward.transform)))
        notes |= dict.fromkeys(check_pairs(run, worlds[run.world]))
        check_prompts(run, worlds[run.world])
        check_sources(run, worlds[run.world])
        notes |= dict.fromkeys(masked_tokens(run))
    for note in notes:
        log.warning(note)
    return [stage for run in experiment.runs for stage in curve_stages(run)]
