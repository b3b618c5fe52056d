"""The report of a comparison: leaderboard and figures from the files of its results.

Downstream of `overopt.study.comparison`, which writes those files: records and curves of the test
runs, comparison.json (what each run is for) and choices.json (reference points and thresholds).
Needs neither the store nor torch, so committed results can be reported anywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from overopt.analysis.effects import CI_LEVEL, Effect
from overopt.analysis.leaderboard import (
    COSTS,
    FEW_MITIGATIONS,
    FEW_SEEDS,
    NEVER,
    SEEDS_FOR_MORE,
    Standing,
    leaderboard,
)
from overopt.analysis.metrics import METRICS, PRIMARY
from overopt.analysis.reach import truncate
from overopt.analysis.rules import rule_named, stop
from overopt.analysis.tuning import Reference
from overopt.base import escape, files, folders, pictures
from overopt.base.errors import DataError
from overopt.base.seeding import numpy_rng
from overopt.fits.pvalues import p_text
from overopt.records.curves import Curve, load_curves, read_costs
from overopt.reports.figures import forest, frontier
from overopt.reports.figures.style import X_LABELS
from overopt.reports.text import markdown_table

MEASURING = "_gold"
"""How names of stages end whose CPU time is measurement, not a cost of the mitigation."""


class Results(NamedTuple):
    """Test curves of a finished comparison, as its leaderboard takes them."""

    protocol: dict[str, Any]
    references: dict[str, Reference]
    criterion: str
    """The metric by which trials were chosen."""
    curves: dict[str, dict[str, list[Curve]]]
    """method -> mitigation -> one curve a test seed; a stopped run ends where it stops."""
    cpu_s: dict[str, dict[str, float]]
    """method -> mitigation -> mean CPU seconds of a run; nan where not recorded."""


def load_results(results: str | Path) -> Results:
    """What `run_comparison` wrote.

    Raises
    ------
    DataError
        Not the results of a finished comparison.
    """
    folder = Path(results)
    for name in ("comparison.json", "choices.json"):
        if not (folder / name).is_file():
            raise DataError(
                f"{str(folder)!r} has no {name}: it does not hold a finished comparison; run"
                " `overopt compare` with --results on it first"
            )
    protocol = files.load_object(folder / "comparison.json")
    choices = files.load_object(folder / "choices.json")
    tested = load_curves(folder / "test")
    cost_of = read_costs(folder / "test", without=MEASURING)
    try:
        return _joined(protocol, choices, tested, cost_of)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{folder}: comparison.json, choices.json and the records in test do not belong"
            f" together ({type(error).__name__}: {error}){files.RESTORE}"
        ) from error


def _joined(
    protocol: dict[str, Any],
    choices: dict[str, Any],
    tested: Sequence[Curve],
    cost_of: Mapping[str, float],
) -> Results:
    """The test curves by method and mitigation, with their costs."""
    by_id = {curve.meta["run_id"]: curve for curve in tested}
    curves: dict[str, dict[str, list[Curve]]] = {}
    cpu_s: dict[str, dict[str, float]] = {}
    for method in protocol["methods"]:
        curves[method], cpu_s[method] = {}, {}
        for mitigation in protocol["mitigations"]:
            if method not in mitigation["methods"]:
                continue
            name, is_stopped = mitigation["name"], mitigation["kind"] == "stopping"
            key = ("test", method, protocol["baseline"] if is_stopped else name)
            ids = [
                r["run_id"]
                for r in protocol["runs"]
                if (r["role"], r["method"], r["mitigation"]) == key
            ]
            same = [by_id[run_id] for run_id in ids]
            if is_stopped:
                rule = rule_named(mitigation["rule"])
                threshold = float(choices[method]["mitigations"][name]["threshold"])
                same = [truncate(c, stop(rule, c, threshold)) for c in same]
            curves[method][name] = same
            cpu_s[method][name] = float(np.mean([cost_of.get(i, math.nan) for i in ids]))
    references = {m: Reference(**choices[m]["reference"]) for m in protocol["methods"]}
    criterion = " or ".join(dict.fromkeys(choices[m]["criterion"] for m in protocol["methods"]))
    return Results(protocol, references, criterion, curves, cpu_s)


def report(results: str | Path) -> str:
    """Leaderboard and figures of a finished comparison, from its records; returns the text.

    Writes leaderboard.json, leaderboard.md, frontier.png and effects.png, the figures with a sidecar
    JSON each. Needs neither the store nor torch.
    """
    with folders.locked(Path(results)):  # another process may report the same results
        return _report(Path(results))


def _report(folder: Path) -> str:
    """`report`, while no other process writes there."""
    found = load_results(folder)
    families = {m["name"]: m["family"] for m in found.protocol["mitigations"]}
    baseline = found.protocol["baseline"]
    standings = {
        method: leaderboard(
            same,
            baseline=baseline,
            reference=found.references[method],
            families=families,
            rng=numpy_rng(0, "leaderboard", method),
            cpu_s=found.cpu_s[method],
        )
        for method, same in found.curves.items()
    }
    text = _as_text(found, standings)
    files.save_json(
        folder / "leaderboard.json",
        files.plain(
            {
                "comparison": found.protocol["name"],
                "baseline": baseline,
                "metrics": METRICS,
                "references": found.references,
                "standings": standings,
            },
            infinite="text",
        ),
    )
    files.atomic_write(folder / "leaderboard.md", f"{text}\n".encode())
    if len(families) > 1:
        used = [r["run_id"] for r in found.protocol["runs"] if r["role"] == "test"]
        side = {"comparison": found.protocol["name"], "records": sorted(set(used))}
        figure = frontier.frontier(found.curves, families, found.references, baseline=baseline)
        _save_figure(folder / "frontier.png", figure, side | {"references": found.references})
        labels = {m: same[baseline][0].shown.label for m, same in found.curves.items()}
        figure = forest.forest(standings, labels, baseline=baseline)
        _save_figure(folder / "effects.png", figure, side | {"effects": _effects(standings)})
    return text


def _effects(standings: Mapping[str, Sequence[Standing]]) -> dict[str, Any]:
    return {
        method: {s.mitigation: {m: s.effects[m] for m in forest.FOREST_METRICS} for s in same}
        for method, same in standings.items()
    }


def _save_figure(path: Path, figure: Figure, side: Mapping[str, Any]) -> None:
    pictures.save_figure(path, figure, formulas=X_LABELS.values())
    text = json.dumps(files.plain(side, infinite="text"), indent=1, allow_nan=False)
    files.atomic_write(path.with_suffix(".json"), f"{text}\n".encode())


def too_few_seeds(n_seeds: int, n_mitigations: int) -> list[str]:
    """Lines that say so where ``n_seeds`` are too few to correct for ``n_mitigations`` effects."""
    needed = FEW_SEEDS if n_mitigations <= FEW_MITIGATIONS else SEEDS_FOR_MORE
    if n_seeds >= needed:
        return []
    return [
        "",
        f"{n_seeds} test seeds for {n_mitigations} mitigations: corrected p-values are too small"
        f" below {needed}.",
    ]


def _as_text(found: Results, standings: Mapping[str, Sequence[Standing]]) -> str:
    p = found.protocol
    lines = [
        f"## {escape.markdown(p['name'])}",
        "",
        f"Baseline: {escape.markdown(p['baseline'])}. Tuning trials × seeds of every mitigation:"
        f" {p['n_trials']} × {len(p['tuning_seeds'])}, chosen by {found.criterion}; test seeds:"
        f" {len(p['test_seeds'])}, other seeds and other prompts.",
    ]
    for method, same in standings.items():
        reference = found.references[method]
        peak = (
            f"The tuned baseline peaks at √KL {reference.peak_sqrt_kl:.2f}"
            if reference.is_turning
            else "The tuned baseline has no peak inside its range, whose end stands for it"
        )
        lines += ["", f"{peak}; area is over √KL 0 to {reference.max_sqrt_kl:.2f}.", ""]
        lines.append(as_table(same))
    n_seeds = len(p["test_seeds"])
    if n_seeds == 1:
        lines += ["", "One test seed: intervals and p-values speak of prompts, not of seeds."]
    else:
        lines += too_few_seeds(n_seeds, max(len(same) - 2 for same in standings.values()))
    lines += ["", *(f"- `{name}`: {meaning}" for name, meaning in METRICS.items())]
    return "\n".join(lines)


def as_table(standings: Sequence[Standing]) -> str:
    """Standings of one method as a Markdown table: values, then effects on the leading metrics.

    An effect is followed by its 95 % interval and the Holm-adjusted p-value.
    """
    method = standings[0].method
    shown = ["mitigation", "family", *METRICS, "√KL reached", *COSTS]
    lines = [f"### {method}: {standings[0].n_seeds} seeds × {standings[0].n_prompts} prompts", ""]
    rows = [
        [
            escape.markdown(s.mitigation),
            escape.markdown(s.family),
            *(_shown(s.effects[m].value, 3) for m in METRICS),
            _shown(s.reach_sqrt_kl, 2),
            *(_shown(s.costs[c], 0) for c in COSTS),
        ]
        for s in standings
    ]
    lines += [
        *markdown_table(shown, rows),
        "",
        "Difference from the baseline [95 % interval], p (Holm)",
    ]
    effects = [
        [escape.markdown(s.mitigation), *(_shown_effect(s.effects[m]) for m in METRICS)]
        for s in standings
        if not math.isnan(s.effects[PRIMARY[0]].difference)
    ]
    lines += ["", *markdown_table(["mitigation", *METRICS], effects)]
    lines += ["", "Gold over never optimising [95 % interval], p (Holm)", ""]
    floor = [
        [escape.markdown(s.mitigation), *(_shown_over_never(s.effects[m]) for m in PRIMARY)]
        for s in standings
        if s.mitigation != NEVER
    ]
    lines += [*markdown_table(["mitigation", *PRIMARY], floor), "", _beaten(standings)]
    return "\n".join(lines)


def _beaten(standings: Sequence[Standing]) -> str:
    """Who ends above its start, and who does not."""
    by_end = {s.mitigation: s.effects[PRIMARY[0]] for s in standings if s.mitigation != NEVER}
    better = [
        escape.markdown(name)
        for name, e in by_end.items()
        if e.over_never > 0 and e.p_never < 1 - CI_LEVEL
    ]
    return (
        f"At the end better than never optimising (p < {1 - CI_LEVEL:.2g} after Holm):"
        f" {', '.join(better) or 'none'}; {len(by_end) - len(better)} of {len(by_end)} are not."
    )


def _shown(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _shown_effect(effect: Effect) -> str:
    if math.isnan(effect.difference):
        return "–"
    interval = f"[{effect.ci_low:+.2f}, {effect.ci_high:+.2f}]"
    return f"{effect.difference:+.2f} {interval} {p_text(effect.p_holm)}"


def _shown_over_never(effect: Effect) -> str:
    if math.isnan(effect.over_never):
        return "–"
    interval = f"[{effect.never_low:+.2f}, {effect.never_high:+.2f}]"
    return f"{effect.over_never:+.2f} {interval} {p_text(effect.p_never)}"
