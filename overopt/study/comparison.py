"""`overopt compare`: the protocol under which mitigations are tuned alike and tested apart.

A `Comparison` names a baseline and mitigations with the same number of tuning trials each. Every
trial is run on the tuning seeds and tuning prompts, the trial with the best tuning score is run on
the test seeds and test prompts, and only these runs reach the leaderboard. Runs are ordinary runs
of `overopt.study.chain` in the ordinary store: what two mitigations share is computed once, and a
killed comparison goes on where it was.

    plan tuning -> execute -> collect -> choose -> execute test -> collect -> leaderboard, figures

What is made of the results is `overopt.reports.comparison`, the statistics are
`overopt.analysis.leaderboard`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from overopt.analysis.leaderboard import NEVER
from overopt.analysis.rules import RULES
from overopt.base.config import check_types, require
from overopt.base.kinds import kind_of
from overopt.base.overrides import apply_overrides
from overopt.stages.settings import RunConfig

if TYPE_CHECKING:
    pass


Role = Literal["tuning", "test"]


PROTOCOL = (
    "world", "gold", "root_seed", "start_policy", "labels.data_seed", "labels.n_validation_prompts",
    "labels.label_rule", "labels.label_flip_rate",
    "proxy.rm_seed", "proxy.kind", "method.kind", "method.seed", "method.eval_every",
    "method.eval_early_every", "method.eval_sqrt_kl", "method.eval_prompts", "method.eval_copies",
    "method.eval_offset",
    "bon.n_prompts", "bon.pool_size", "bon.eval_offset", "bon.ns",
)  # fmt: skip
"""Settings that a trial may not change: who labels, who is measured, on what, how precisely."""


TRAINING_SIGNALS = ("entropy_token_nats", "proxy_std")
"""Columns that are null in records of best-of-n."""


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
        For ``stopping``: name of a rule of `overopt.analysis.stopping`.
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
        require(NEVER not in names, "mitigations", NEVER, "is the row that all have to beat")
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
        planned(comparison, "tuning", method, mitigation, trial, seed)
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
        planned(comparison, "test", method, mitigation, trial_of[method][mitigation.name], seed)
        for method in comparison.methods
        for mitigation in comparison.under(method)
        if mitigation.kind == "training"
        for seed in comparison.test_seeds
    ]


def planned(
    comparison: Comparison,
    role: Role,
    method: str,
    mitigation: Mitigation,
    trial: int,
    seed: int,
) -> PlannedRun:
    """One run of a comparison: a trial of a mitigation under a method, on a seed."""
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
