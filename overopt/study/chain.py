"""From an experiment to its graph of stages.

    calibration -> gold -> comparisons -> labels -> proxy -> bon
                      \\-> pool -------------------------/  \\-> method -> judge

What each stage does is in its file in `overopt.stages`. Gold is an input of ``comparisons``, ``pool``
and the judge of a method only: no method can reach it.
"""

from pathlib import Path

from overopt.engine.graph import Stage
from overopt.rewards.transforms.own import load_transform
from overopt.stages import best_of_n, calibration, comparisons, gold, judge, pool, rounds
from overopt.stages.settings import Experiment, RunConfig
from overopt.study.checks import check_prompts, check_sources, check_transform, source_checksums
from overopt.worlds.load import load_world
from overopt.worlds.world import World, WorldSettings


def curve_stages(run: RunConfig) -> list[Stage]:
    """The last stages of one run, with all their upstreams: its curves."""
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
        ends.append(best_of_n.stage(run, proxy, pools, base))
    if method is not None:
        scored = {"calibration": base, "gold": truth, "proxy": proxy}
        ends.append(judge.stage(run, method, scored | rounds.earlier_roles(run, done)))
    return ends


def build_graph(experiment: Experiment) -> list[Stage]:
    """Curve stages of all runs; their upstreams follow. Checks every source before any work."""
    worlds: dict[WorldSettings, World] = {}
    for run in experiment.runs:
        if run.world not in worlds:
            worlds[run.world] = load_world(run.world)
        if run.reward.transform:
            check_transform(run, load_transform(Path(run.reward.transform)))
        check_prompts(run, worlds[run.world])
        check_sources(run, worlds[run.world])
    return [stage for run in experiment.runs for stage in curve_stages(run)]
