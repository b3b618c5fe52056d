"""`overopt compare`: the protocol under which mitigations are tuned alike and tested apart.

A `Comparison` names a baseline and mitigations with the same number of tuning trials each. Every
trial is run on the tuning seeds and tuning prompts, the trial with the best tuning score is run on
the test seeds and test prompts, and only these runs reach the leaderboard. Runs are ordinary runs of
`overopt.pipeline` in the ordinary store: what two mitigations share is computed once, and a killed
comparison goes on where it was.

    plan tuning -> execute -> collect -> choose -> execute test -> collect -> leaderboard, figures

Level 3. What is made of the results is `overopt.comparison_report`, the statistics are
`overopt.leaderboard`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from overopt.analysis import stopping
from overopt.analysis.metrics import PRIMARY
from overopt.analysis.rules import RULES, rule_named
from overopt.analysis.tuning import choose, common_range, find_reference
from overopt.base import files
from overopt.base.config import RuntimeConfig, apply_overrides, check_types, require
from overopt.base.errors import ConfigError
from overopt.base.kinds import kind_of
from overopt.base.userfile import from_file
from overopt.engine import store
from overopt.fits.fit import jsonable
from overopt.records.curves import Curve, load_curves
from overopt.reports.comparison import report
from overopt.stages.settings import Experiment, RunConfig
from overopt.study.presets import smoke

if TYPE_CHECKING:
    from overopt.engine.graph import Plan, Stage
    from overopt.engine.progress import Reporter


Role = Literal["tuning", "test"]

PROTOCOL = (
    "world", "gold", "root_seed", "labels.data_seed", "labels.n_validation_prompts",
    "labels.label_rule", "labels.label_flip_rate",
    "proxy.rm_seed", "proxy.kind", "method.kind", "method.seed", "method.eval_every",
    "method.eval_early_every", "method.eval_prompts", "method.eval_copies", "method.eval_offset",
    "bon.n_prompts", "bon.pool_size", "bon.eval_offset", "bon.ns",
)  # fmt: skip
"""Settings that a trial may not change: who labels, who is measured, on what, how precisely."""

TRAINING_SIGNALS = ("entropy_token_nats", "proxy_std")
"""Columns that are null in records of best-of-n."""


# --- what is compared -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mitigation:
    """One way to mitigate overoptimization, with the settings to try.

    Attributes
    ----------
    name, family : str
        Row of the leaderboard; panel of the figure.
    trials : tuple of tuples of str
        Overrides of the base run, such as ``("reward.members=5", "reward.combine=worst_case")``; one
        tuple a trial, the same number for every mitigation. One without a setting of its own varies
        a neutral one, such as the learning rate. Empty for ``stopping``.
    kind : "training" or "stopping"
        ``stopping`` trains nothing: it stops the runs of the chosen baseline by ``rule``, with the
        threshold that is best on the baseline's tuning runs.
    rule : str
        For ``stopping``: name of a rule of `overopt.early_stopping`.
    methods : tuple of str
        Methods it applies to, "bon" or the kind of the base's method; empty: all.
    """

    name: str
    family: str
    trials: tuple[tuple[str, ...], ...] = ()
    kind: Literal["training", "stopping"] = "training"
    rule: str = ""
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        where = f"mitigation {self.name!r}"
        require(self.name != "", "name", self.name, "give the mitigation a name")
        if self.kind == "stopping":
            require(self.trials == (), f"{where}: trials", self.trials, "a rule has no trials")
            known = [rule.name for rule in RULES]
            require(self.rule in known, f"{where}: rule", self.rule, f"use one of {known}")
        else:
            require(len(self.trials) > 0, f"{where}: trials", self.trials, "give at least one")
            require(self.rule == "", f"{where}: rule", self.rule, "goes with kind='stopping'")
        for override in (o for trial in self.trials for o in trial):
            setting = override.partition("=")[0]
            require(
                re.fullmatch(r"method\.\w+_seed", setting) is None,
                f"{where}: trial",
                override,
                f"{setting} belongs to the protocol and is the same for all; set it in base",
            )
            for fixed in PROTOCOL:
                require(
                    setting != fixed and not setting.startswith(f"{fixed}."),
                    f"{where}: trial",
                    override,
                    f"{fixed} belongs to the protocol and is the same for all; set it in base",
                )

    def applies_to(self, method: str) -> bool:
        """Whether it is compared under a method."""
        return not self.methods or method in self.methods


def _methods_of(base: RunConfig) -> tuple[str, ...]:
    """What a run is optimised with, as records call it."""
    bon = () if base.bon is None else ("bon",)
    return bon if base.method is None else (*bon, kind_of(base.method))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mitigations against a baseline, each tuned with the same budget.

    Attributes
    ----------
    name : str
        Names the results.
    base : RunConfig
        What all runs have in common. Test runs use its evaluation prompts, tuning runs the ones
        that follow.
    baseline : str
        The mitigation (a single reward model, say) that the others are compared with.
    mitigations : tuple of Mitigation
        The baseline among them.
    tuning_seeds, test_seeds : tuple of int
        A seed is one replicate of everything that is random in a run: it sets
        ``labels.data_seed`` (which comparisons, which flips), ``proxy.rm_seed`` (head and data
        order) and the method's seed (rollouts). World, gold, prompts and the pool are common to all.
    methods : tuple of str
        "bon" and the kind of the base's method, or one of them; empty: all that base has. Each has
        tuning, choice and leaderboard of its own.
    tuning_prompts : int or None
        Evaluation prompts of a tuning run; None: as many as of a test run.
    description : str
        What the comparison is to find out.
    """

    name: str
    base: RunConfig
    baseline: str
    mitigations: tuple[Mitigation, ...]
    tuning_seeds: tuple[int, ...]
    test_seeds: tuple[int, ...]
    methods: tuple[str, ...] = ()
    tuning_prompts: int | None = None
    description: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.methods:
            object.__setattr__(self, "methods", _methods_of(self.base))
        names = [m.name for m in self.mitigations]
        require(len(set(names)) == len(names), "mitigations", names, "names must differ")
        require(
            self.baseline in names and self.of(self.baseline).kind == "training",
            "baseline",
            self.baseline,
            f"must be a mitigation that trains, one of {names}",
        )
        n_trials = {m.name: len(m.trials) for m in self.mitigations if m.kind == "training"}
        require(
            len(set(n_trials.values())) == 1,
            "trials",
            n_trials,
            "a fair comparison gives all mitigations the same number; one without a setting of its"
            " own varies a neutral one, such as proxy.lr",
        )
        for field in ("tuning_seeds", "test_seeds", "methods"):
            values = getattr(self, field)
            require(0 < len(values) == len(set(values)), field, values, "at least one, each once")
        both = sorted(set(self.tuning_seeds) & set(self.test_seeds))
        require(not both, "test_seeds", both, "are tuning seeds too; test on seeds not tuned on")
        for mitigation in self.mitigations:
            if mitigation.kind == "stopping":
                self._check_signal(mitigation)
        for method in self.methods:
            require(
                method in _methods_of(self.base),
                "methods",
                method,
                f"base has settings of {_methods_of(self.base)} only: give base its settings",
            )
            require(
                self.of(self.baseline).applies_to(method),
                "baseline",
                self.baseline,
                f"does not apply to {method}",
            )
        for mitigation in self.mitigations:
            for method in self.methods:
                for trial in mitigation.trials if mitigation.applies_to(method) else ():
                    apply_overrides(_only(self.base, method), trial)

    def _check_signal(self, mitigation: Mitigation) -> None:
        """Raise ConfigError if the baseline's runs will not record what the rule watches."""
        rule = next(r for r in RULES if r.name == mitigation.rule)
        where = f"mitigation {mitigation.name!r}: rule"
        require(
            not (mitigation.applies_to("bon") and "bon" in self.methods)
            or not set(rule.columns) & set(TRAINING_SIGNALS),
            where,
            rule.name,
            "watches what best-of-n has not; set methods to the kind of base.method alone",
        )
        trials = self.of(self.baseline).trials
        members = [apply_overrides(self.base, trial).reward.members for trial in trials]
        require(
            "member_disagreement" not in rule.columns or min(members) > 1,
            where,
            rule.name,
            f"watches members, the baseline {self.baseline!r} has one; use another rule or baseline",
        )

    def of(self, name: str) -> Mitigation:
        """The mitigation called ``name``."""
        return next(m for m in self.mitigations if m.name == name)

    def under(self, method: str) -> tuple[Mitigation, ...]:
        """The mitigations that apply to a method."""
        return tuple(m for m in self.mitigations if m.applies_to(method))


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a comparison, and what it is for."""

    role: Role
    method: str
    mitigation: str
    trial: int
    seed: int
    run: RunConfig


def tuning_runs(comparison: Comparison) -> list[PlannedRun]:
    """Every trial of every mitigation that trains, on the tuning seeds and tuning prompts."""
    return [
        _planned(comparison, "tuning", method, mitigation, trial, seed)
        for method in comparison.methods
        for mitigation in comparison.under(method)
        for trial in range(len(mitigation.trials))
        for seed in comparison.tuning_seeds
    ]


def test_runs(
    comparison: Comparison, trial_of: Mapping[str, Mapping[str, int]]
) -> list[PlannedRun]:
    """The chosen trial of every mitigation that trains, on the test seeds and test prompts."""
    return [
        _planned(comparison, "test", method, mitigation, trial_of[method][mitigation.name], seed)
        for method in comparison.methods
        for mitigation in comparison.under(method)
        if mitigation.kind == "training"
        for seed in comparison.test_seeds
    ]


def _planned(
    comparison: Comparison,
    role: Role,
    method: str,
    mitigation: Mitigation,
    trial: int,
    seed: int,
) -> PlannedRun:
    base = _only(comparison.base, method)
    if role == "tuning":
        base = _on_tuning_prompts(base, comparison.tuning_prompts)
    run = _with_seed(apply_overrides(base, mitigation.trials[trial]), seed)
    return PlannedRun(
        role=role, method=method, mitigation=mitigation.name, trial=trial, seed=seed, run=run
    )


def _only(run: RunConfig, method: str) -> RunConfig:
    return replace(run, method=None) if method == "bon" else replace(run, bon=None)


def _on_tuning_prompts(run: RunConfig, n: int | None) -> RunConfig:
    """The run on the evaluation prompts that follow those of ``run``."""
    if run.bon is not None:
        bon = run.bon
        after = bon.eval_offset + bon.n_prompts
        return replace(run, bon=replace(bon, eval_offset=after, n_prompts=n or bon.n_prompts))
    method = run.method
    assert method is not None
    after = method.eval_offset + method.eval_prompts
    moved = replace(method, eval_offset=after, eval_prompts=n or method.eval_prompts)
    return replace(run, method=moved)


def _with_seed(run: RunConfig, seed: int) -> RunConfig:
    """The run as replicate ``seed``: its comparisons, its proxy's training, its method."""
    return replace(
        run,
        labels=replace(run.labels, data_seed=seed),
        proxy=run.proxy.with_seed(seed),
        method=None if run.method is None else run.method.with_seed(seed),
    )


# --- loading --------------------------------------------------------------------------------------


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


# --- carrying it out ------------------------------------------------------------------------------


class ComparisonPlan(NamedTuple):
    """What a comparison has to compute: tuning as it is, test with the costliest trials."""

    tuning: Plan
    test_at_most: Plan


def plan_comparison(comparison: Comparison, artefacts: store.Store) -> ComparisonPlan:
    """Plan of the tuning runs, and of test runs as if the costliest trials were chosen.

    Costs of the second include nothing that the first computes.
    """
    from overopt.engine.graph import make_plan, topological

    tuning = _stages(comparison, tuning_runs(comparison))

    def cost(run: PlannedRun) -> float:
        return sum(stage.cost_s for stage in topological(_stages(comparison, [run])))

    costliest: dict[str, dict[str, int]] = {}
    for method in comparison.methods:
        costliest[method] = {}
        for mitigation in comparison.under(method):
            costs = [
                cost(_planned(comparison, "test", method, mitigation, t, comparison.test_seeds[0]))
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
    from overopt.engine.execute import check_on_cpu, execute
    from overopt.engine.graph import check_not_stale, snapshot
    from overopt.study import collect

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
        return [
            {
                "role": run.role,
                "method": run.method,
                "mitigation": run.mitigation,
                "trial": run.trial,
                "seed": run.seed,
                "run_id": stage.fingerprint,
            }
            for run, stage in zip(runs, stages, strict=True)
        ]

    runs = carry_out("tuning", tuning_runs(comparison))
    choices = choose_trials(comparison, runs, load_curves(results / "tuning"))
    files.save_json(results / "choices.json", jsonable(choices))
    trial_of = {
        method: {name: c["trial"] for name, c in choices[method]["mitigations"].items()}
        for method in comparison.methods
    }
    runs += carry_out("test", test_runs(comparison, trial_of))
    files.save_json(
        results / "comparison.json",
        jsonable(
            {
                "name": comparison.name,
                "description": comparison.description,
                "baseline": comparison.baseline,
                "methods": comparison.methods,
                "n_trials": len(comparison.of(comparison.baseline).trials),
                "tuning_seeds": comparison.tuning_seeds,
                "test_seeds": comparison.test_seeds,
                "mitigations": comparison.mitigations,
                "runs": runs,
            }
        ),
    )
    return report(results)


def _experiment(comparison: Comparison, runs: Sequence[PlannedRun]) -> Experiment:
    return Experiment(name=comparison.name, runs=tuple(run.run for run in runs))


def _stages(comparison: Comparison, runs: Sequence[PlannedRun]) -> list[Stage]:
    """The curve stage of each run; a run has one method, hence one."""
    from overopt.study import chain

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
    method -> ``reference`` (see `overopt.leaderboard.Reference`) and, by mitigation, the chosen
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
            choice = choose(same, span)
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
            "criterion": PRIMARY,
            "reference": find_reference(base, span),
            "mitigations": chosen,
        }
    return out


def plan_lines(comparison: Comparison, artefacts: store.Store) -> Iterator[str]:
    """What would run, and its cost, a line each."""
    from overopt.engine.progress import duration

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
