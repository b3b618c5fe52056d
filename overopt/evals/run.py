"""One model on one benchmark: what is set, in which order it happens, what is written.

The rows are read and checked first, then the model is loaded: a wrong file costs no waiting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overopt.base import files
from overopt.base.config import to_dict
from overopt.base.errors import CheckpointError, ConfigError
from overopt.base.kinds import identity_of, kind_of, module_of
from overopt.base.overrides import apply_overrides
from overopt.evals import model as models
from overopt.evals.benchmark import AnyBenchmark, Report
from overopt.evals.benchmarks import pairs
from overopt.evals.converter import AnyConverter
from overopt.evals.converters import llmbar
from overopt.evals.intervals import Estimate
from overopt.evals.model import AnyModel
from overopt.evals.models import classifier
from overopt.nets.sources import read_config, source_dir

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is scored, and by which benchmark."""

    benchmark: AnyBenchmark = field(default_factory=pairs.Settings)
    model: AnyModel = field(default_factory=classifier.Settings)


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Whose data are converted."""

    data: AnyConverter = field(default_factory=llmbar.Settings)


def configure(
    benchmark: str,
    source: str,
    overrides: Sequence[str],
    *,
    reference: str = "",
    template: str = "",
) -> EvalConfig:
    """The settings of a run from what the command line gives.

    The kind of the model is the one that is set; or it follows from ``reference`` (a policy), from
    ``template`` (a judge), or from what the source is.

    Raises
    ------
    ConfigError
        The source is a language model, and it is not said how it gives scores; or a setting is wrong.
    """
    chosen = [f"benchmark.kind={benchmark}", f"model.source={source}"]
    chosen += [f"model.reference={reference}"] if reference else []
    chosen += [f"model.template={template}"] if template else []
    if not any(o.startswith(("model.kind=", "model=")) for o in overrides):
        kind = "policy" if reference else "judge" if template else _kind_of_source(source)
        chosen.append(f"model.kind={kind}")
    return apply_overrides(EvalConfig(), [*chosen, *overrides])


def _kind_of_source(source: str) -> str:
    if (Path(source) / "scorer.json").is_file():
        return "reward"
    path = source_dir(source)
    kinds = read_config(path).get("architectures") or [""]
    if classifier.is_classifier(path):
        return "classifier"
    if kinds[0].endswith(("ForCausalLM", "LMHeadModel")):
        raise ConfigError(
            f"--model {source!r} is a language model: give --reference MODEL for DPO's implicit reward,"
            " model.kind=policy for its log-probability, or --judge TEMPLATE to let it judge"
        )
    raise CheckpointError(
        f"--model {source!r} is neither a sequence classifier, a language model nor a reward model of a"
        f" store (its config.json names {kinds[0] or 'no architecture'}): say what it is with model.kind"
    )


@dataclass(frozen=True)
class Evaluation:
    """A model's report on a benchmark, and what it took.

    cost : per 1,000 responses: ``tokens``, ``cpu_s``, ``wall_s``.
    """

    config: EvalConfig
    data: tuple[str, ...]
    report: Report
    sizes: dict[str, int]
    cost: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON: what is not a number is null."""
        settings = to_dict(self.config)
        return _jsonable(
            {
                "format": FORMAT,
                "benchmark": identity_of(self.config.benchmark),
                "model": self.config.model.title,
                "model_kind": kind_of(self.config.model),
                "data": list(self.data),
                "settings": settings,
                "n_params": self.sizes.get("n_params", 0),
                "headline": self.report.headline,
                "scores": {
                    group: {name: part._asdict() for name, part in parts.items()}
                    for group, parts in self.report.groups.items()
                    if parts
                },
                "notes": self.report.notes,
                "tied": self.report.tied,
                "not_finite": self.report.not_finite,
                "per_1000_responses": self.cost,
                "tables": self.report.tables,
                "rows": self.report.rows,
            }
        )


def evaluate(config: EvalConfig, data: Sequence[str], *, device: str = "cpu") -> Evaluation:
    """Read and check the rows, load the model, ask it, score it.

    Raises
    ------
    DataError
        A file is not in the benchmark's layout; nothing was loaded then.
    """
    benchmark = module_of(config.benchmark)
    rows = benchmark.read(config.benchmark, data)
    questions = benchmark.questions(config.benchmark, rows)
    model = module_of(config.model).load(config.model, device)
    outcome = models.ask(model, config.model, config.benchmark, questions)
    report = benchmark.report(config.benchmark, rows, outcome)
    return Evaluation(config, tuple(data), report, model.sizes, models.per_thousand(outcome.cost))


def text_of(found: Evaluation) -> str:
    """The scores as a table, with how they came about."""
    report = found.report
    lines = [f"{kind_of(found.config.benchmark)}: {found.config.model.title}"]
    for group, parts in report.groups.items():
        if parts:
            lines += ["", group, *(line_of(name, part) for name, part in parts.items())]
    lines += ["", *(f"- {note}" for note in report.notes)]
    if not math.isnan(report.tied):
        lines.append(f"- {report.tied:.1%} of questions have no unique best score")
    if report.not_finite:
        lines.append(f"- {report.not_finite} scores are not finite; they lose")
    cost = found.cost
    lines.append(
        f"- 1,000 responses take {cost['tokens']:.0f} tokens, {cost['cpu_s']:.1f} CPU-s and"
        f" {cost['wall_s']:.1f} s"
    )
    return "\n".join(lines)


def line_of(name: str, part: Estimate) -> str:
    """A score with its interval and rows, as a line of a table."""
    if math.isnan(part.value):
        return f"  {name:26} {'none':>7}"
    interval = "" if math.isnan(part.low) else f"  [{part.low:.4f}, {part.high:.4f}]"
    return f"  {name:26} {part.value:7.4f}{interval:20}  n = {part.n}"


def save(found: Evaluation, path: Path) -> None:
    """Write the evaluation as JSON, for `overopt eval table` and `overopt eval agreement`."""
    files.save_json(path, found.to_json())


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    return [_jsonable(item) for item in value] if isinstance(value, list | tuple) else value
