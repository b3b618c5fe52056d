"""Carrying a comparison out: load, plan, tune, choose, test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from overopt.analysis import stopping
from overopt.analysis.metrics import PRIMARY
from overopt.analysis.rules import rule_named
from overopt.analysis.tuning import choose, common_range, find_reference
from overopt.base import files
from overopt.base.config import RuntimeConfig
from overopt.base.errors import ConfigError
from overopt.base.overrides import apply_overrides
from overopt.base.userfile import from_file
from overopt.engine import store
from overopt.engine.execute import check_on_cpu, execute
from overopt.engine.graph import Plan, Stage, check_not_stale, make_plan, snapshot, topological
from overopt.engine.progress import Reporter, duration
from overopt.fits.fit import jsonable
from overopt.records.curves import Curve, load_curves
from overopt.reports.comparison import report
from overopt.stages.settings import Experiment
from overopt.study import chain, collect
from overopt.study.comparison import (
    Comparison,
    Mitigation,
    PlannedRun,
    Role,
    planned,
    test_runs,
    tuning_runs,
)
from overopt.study.presets import smoke


def smoke_comparison() -> Comparison:
    """Every step of the protocol once, tiny: a mitigation that trains, and one that stops."""
    return Comparison(
        name="compare_smoke",
        base=smoke().runs[0],
        baseline="single",
        mitigations=(
            Mitigation(name="single", family="baseline", trials=(("proxy.lr=3e-3",),)),
            Mitigation(name="decay 0.1", family="training", trials=(("proxy.weight_decay=0.1",),)),
            Mitigation(name="KL budget", family="stopping", kind="stopping", rule="kl_budget"),
        ),
        tuning_seeds=(0,),
        test_seeds=(1, 2),
        description="every step of the protocol once",
    )


COMPARISONS: dict[str, Callable[[], Comparison]] = {"smoke": smoke_comparison}


def load_comparison(name_or_path: str, overrides: Sequence[str] = ()) -> Comparison:
    """A preset by name, or the ``compare()`` of a Python file, with overrides on the base run.

    Raises
    ------
    ConfigError
        Unknown name, a file that does not define ``compare``, or an override that does not fit.
    """
    if name_or_path in COMPARISONS:
        comparison = COMPARISONS[name_or_path]()
    elif name_or_path.endswith(".py"):
        comparison = from_file(Path(name_or_path), "compare", Comparison)
    else:
        raise ConfigError(
            f"comparison {name_or_path!r} is unknown: use one of {', '.join(COMPARISONS)}, the path"
            " of a Python file with compare(), or a directory of results"
        )
    return replace(comparison, base=apply_overrides(comparison.base, overrides))


class ComparisonPlan(NamedTuple):
    """What a comparison has to compute: tuning as it is, test with the costliest trials."""

    tuning: Plan
    test_at_most: Plan


def plan_comparison(comparison: Comparison, artefacts: store.Store) -> ComparisonPlan:
    """Plan of the tuning runs, and of test runs as if the costliest trials were chosen.

    Costs of the second include nothing that the first computes.
    """
    tuning = _stages(comparison, tuning_runs(comparison))

    def cost(run: PlannedRun) -> float:
        return sum(stage.cost_s for stage in topological(_stages(comparison, [run])))

    costliest: dict[str, dict[str, int]] = {}
    for method in comparison.methods:
        costliest[method] = {}
        for mitigation in comparison.under(method):
            costs = [
                cost(planned(comparison, "test", method, mitigation, t, comparison.test_seeds[0]))
                for t in range(len(mitigation.trials))
            ]
            costliest[method][mitigation.name] = int(np.argmax(costs)) if costs else 0
    test = _stages(comparison, test_runs(comparison, costliest))
    plan, all_of_it = make_plan(tuning, artefacts), make_plan([*tuning, *test], artefacts)
    known = {stage.fingerprint for stage in plan.stages}
    rest = tuple(stage for stage in all_of_it.stages if stage.fingerprint not in known)
    return ComparisonPlan(plan, replace(all_of_it, stages=rest))


def run_comparison(
    comparison: Comparison,
    artefacts: store.Store,
    runtime: RuntimeConfig,
    *,
    workers: int,
    reporter: Reporter,
    results: Path,
    accept_changes: bool = False,
    record_name: str = "",
) -> str:
    """Tune, choose, test, and write records, choices, leaderboard and figures to ``results``.

    Parameters
    ----------
    results : receives tuning/ and test/ (records, curves), comparison.json (the protocol and what
        each run is for), choices.json, and what `report` writes.
    accept_changes : let changed settings or code replace what ``record_name`` stood for.
    record_name : under which the store remembers the finished comparison; default: its name.

    Returns
    -------
    The leaderboard as text.

    Raises
    ------
    StageError
        A run failed; the others are kept, and running again resumes.
    """
    name = record_name or comparison.name

    def carry_out(role: Role, runs: list[PlannedRun]) -> list[dict[str, Any]]:
        stages = _stages(comparison, runs)
        title = f"compare {name} {role}"
        if not accept_changes:
            check_not_stale(title, stages, artefacts)
        check_on_cpu(stages, runtime)
        execute(stages, artefacts, runtime, workers=workers, reporter=reporter)
        collect.collect(_experiment(comparison, runs), artefacts, results / role)
        artefacts.record(title, snapshot(stages))
        return [_row(run, stage) for run, stage in zip(runs, stages, strict=True)]

    runs = carry_out("tuning", tuning_runs(comparison))
    choices = choose_trials(comparison, runs, load_curves(results / "tuning"))
    files.save_json(results / "choices.json", jsonable(choices))
    trial_of = {
        method: {name: c["trial"] for name, c in choices[method]["mitigations"].items()}
        for method in comparison.methods
    }
    runs += carry_out("test", test_runs(comparison, trial_of))
    files.save_json(results / "comparison.json", jsonable(_protocol(comparison, runs)))
    return report(results)


def _row(run: PlannedRun, stage: Stage) -> dict[str, Any]:
    """What a run was for, and its curve."""
    return {
        "role": run.role,
        "method": run.method,
        "mitigation": run.mitigation,
        "trial": run.trial,
        "seed": run.seed,
        "run_id": stage.fingerprint,
    }


def _protocol(comparison: Comparison, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What was compared and how, for whoever reads the results."""
    return {
        "name": comparison.name,
        "description": comparison.description,
        "baseline": comparison.baseline,
        "methods": comparison.methods,
        "n_trials": len(comparison.of(comparison.baseline).trials),
        "tuning_seeds": comparison.tuning_seeds,
        "test_seeds": comparison.test_seeds,
        "mitigations": [
            replace(m, methods=tuple(x for x in comparison.methods if m.applies_to(x)))
            for m in comparison.mitigations
        ],
        "runs": runs,
    }


def _experiment(comparison: Comparison, runs: Sequence[PlannedRun]) -> Experiment:
    return Experiment(name=comparison.name, runs=tuple(run.run for run in runs))


def _stages(comparison: Comparison, runs: Sequence[PlannedRun]) -> list[Stage]:
    """The curve stage of each run; a run has one method, hence one."""
    return chain.build_graph(_experiment(comparison, runs))


def choose_trials(
    comparison: Comparison, runs: Sequence[Mapping[str, Any]], curves: Sequence[Curve]
) -> dict[str, Any]:
    """Best trial of each mitigation, by method, from tuning curves, with the reference they give.

    Parameters
    ----------
    runs : role, method, mitigation, trial, seed and run_id of each tuning run.
    curves : tuning curves.

    Returns
    -------
    method -> ``reference`` (see `overopt.analysis.leaderboard.Reference`) and, by mitigation, the chosen
    trial, its overrides and the score of every trial; for ``stopping``, rule and threshold instead.
    """
    by_id = {curve.meta["run_id"]: curve for curve in curves}
    out: dict[str, Any] = {}
    for method in comparison.methods:

        def of_trial(m: Mitigation, trial: int, method: str = method) -> list[Curve]:
            key = (method, m.name, trial)
            return [
                by_id[r["run_id"]]
                for r in runs
                if (r["method"], r["mitigation"], r["trial"]) == key
            ]

        trials = {
            m.name: [of_trial(m, t) for t in range(len(m.trials))]
            for m in comparison.under(method)
            if m.kind == "training"
        }
        span = common_range([c for same in trials[comparison.baseline] for c in same])
        chosen: dict[str, Any] = {}
        for name, same in trials.items():
            choice = choose(same)
            overrides = comparison.of(name).trials[choice.trial]
            chosen[name] = {"trial": choice.trial, "overrides": overrides, "scores": choice.scores}
        base = trials[comparison.baseline][chosen[comparison.baseline]["trial"]]
        for mitigation in comparison.under(method):
            if mitigation.kind == "stopping":
                threshold = stopping.tune(rule_named(mitigation.rule), base)
                chosen[mitigation.name] = {
                    "trial": chosen[comparison.baseline]["trial"],
                    "rule": mitigation.rule,
                    "threshold": threshold,
                }
        out[method] = {
            "criterion": PRIMARY[0],
            "reference": find_reference(base, span),
            "mitigations": chosen,
        }
    return out


def plan_lines(comparison: Comparison, artefacts: store.Store) -> Iterator[str]:
    """What would run, and its cost, a line each."""
    n_seeds = (len(comparison.tuning_seeds), len(comparison.test_seeds))
    for mitigation in comparison.mitigations:
        methods = ", ".join(m for m in comparison.methods if mitigation.applies_to(m))
        if mitigation.kind == "stopping":
            yield f"{mitigation.name} ({methods}): rule {mitigation.rule} on the baseline's runs"
            continue
        tried = "; ".join(" ".join(trial) or "as base" for trial in mitigation.trials)
        yield (
            f"{mitigation.name} ({methods}): trials × tuning seeds {len(mitigation.trials)} ×"
            f" {n_seeds[0]}, then test seeds {n_seeds[1]}: {tried}"
        )
    plan = plan_comparison(comparison, artefacts)
    for title, part in (("tuning", plan.tuning), ("test, at most", plan.test_at_most)):
        yield (
            f"{title}: {len(part.todo)} of {len(part.stages)} stages to compute,"
            f" {duration(part.cost_s)} of CPU time, {part.disk_mb:.0f} MB"
        )
