"""A results directory as one page that opens anywhere: `overopt report`.

The page holds its data, style and script; a policy in it forbids every request. Curves and responses
are drawn in the browser from one JSON, so that they can be switched and slid through; tables of fits,
costs, settings and provenance are plain HTML. Text from elsewhere is escaped: here, by the template,
or by the browser, which is only ever given it as text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from overopt.analysis.degenerate import remark_lines, why_unfitted
from overopt.analysis.peaks import peaks_of
from overopt.base import escape, files
from overopt.base.durations import duration
from overopt.base.errors import DataError
from overopt.fits.fit import POOR_FIT_P
from overopt.fits.linear import t_quantile
from overopt.fits.pvalues import p_text
from overopt.fits.replicates import mean_curve
from overopt.records import series
from overopt.records.curves import Curve
from overopt.records.results import RESULT_FILES, describe
from overopt.records.samples import Sample
from overopt.records.settings import provenance_of, settings_of
from overopt.records.view import ResultsView, view
from overopt.reports.text import with_error

MAX_BYTES = 6_000_000
SAMPLES_BYTES = 3_000_000
"""Room for responses: points are left out, evenly, until they fit."""
LONGEST_TEXT = 4000
CI_LEVEL = 0.95


class Samples(NamedTuple):
    """Responses as the page holds them, and what was left out, in words."""

    prompts: list[str]
    by_run: dict[str, dict[str, list[dict[str, Any]]]]
    note: str


def report(records: str | Path, out: str | Path, *, made_by: str) -> Path:
    """Write the page of a results directory to the file ``out``; returns its path.

    ``made_by``: the program and its version, for the page's provenance.

    Raises
    ------
    DataError
        The records cannot be read, or are too many for a page of `MAX_BYTES`.
    """
    text = page(view(records), made_by=made_by).encode()
    if len(text) > MAX_BYTES:
        raise DataError(
            f"{records}: the page would have {len(text) / 1e6:.1f} MB, more than"
            f" {MAX_BYTES / 1e6:.0f}: report parts of the experiment"
        )
    files.atomic_write(Path(out), text)
    return Path(out)


def page(results: ResultsView, *, made_by: str) -> str:
    """The page as text; see the module."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("overopt.reports", "page"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda x: x if isinstance(x, Markup) else escape.line(str(x)),
    )
    samples = _samples(results)
    curves = drawn_curves(results)
    data = {"curves": curves, "prompts": samples.prompts, "samples": samples.by_run}
    settings = settings_of(results.curves, results.runs)
    return environment.get_template("report.html").render(
        title=results.experiment,
        n_curves=len(results.curves),
        has_seeds=any(c["seed"] == "mean" for c in curves),
        data=_json(data),
        samples_note=samples.note,
        peaks=list(map(_peak_row, results.curves, peaks_of(results.curves))),
        remarks=remark_lines(results.curves),
        fits=list(_fit_rows(results)),
        poor_fit_p=f"{POOR_FIT_P:g}",
        costs=_cost_rows(results.costs),
        shared=list(settings.shared.items()),
        apart=_apart(results.curves, settings.apart),
        apart_head=("run", "method", *settings.apart),
        provenance=_provenance(results, made_by),
        file_sums=list(_file_sums(results.folder)),
    )


def _json(data: Any) -> Markup:
    """JSON that can stand inside a script element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


# --- curves ---------------------------------------------------------------------------------------


def drawn_curves(results: ResultsView) -> list[dict[str, Any]]:
    """Every curve, and the mean of each group of replicates where a group has several.

    ``low`` and ``high`` are the interval of gold's mean over prompts, and over seeds for means;
    null where one prompt or point gives none.
    """
    names, treatments = series.proxy_names(results.curves), series.treatments_of(results.curves)
    groups: dict[tuple, list[Curve]] = {}
    for curve in results.curves:
        meta = curve.meta
        treatment = ", ".join(treatments[meta["run_id"]])
        key = (meta["method"], names[meta["backbone"]], meta["n_pairs"], treatment)
        groups.setdefault(key, []).append(curve)
    has_means = any(len(same) > 1 for same in groups.values())
    several_sizes = len({key[2] for key in groups}) > 1
    found = []
    for (_, proxy, pairs, treatment), same in groups.items():
        first = same[0]
        words = [proxy, *([f"{pairs} comparisons"] if several_sizes else []), treatment]
        label = ", ".join(filter(None, words))
        common = {
            "method": first.shown.label,
            "proxy": proxy,
            "pairs": pairs,
            "treatment": treatment,
            "label": label,
            "axis": first.shown.axis,
        }
        if has_means:
            name = f"{label}, mean of {len(same)}"
            found.append(common | {"id": "", "seed": "mean", "name": name} | _mean(same))
        for curve in same:
            seed = _seed(curve)
            name = f"{label}, seed {seed}" if len(same) > 1 else label
            run_id = curve.meta["run_id"]
            found.append(common | {"id": run_id, "seed": seed, "name": name} | _single(curve))
    return found


def _seed(curve: Curve) -> str:
    """The seeds of a curve: one number where they are the same, as replicates of everything are."""
    seeds = list(dict.fromkeys(str(s) for s in curve.seeds.values() if s is not None))
    return "/".join(seeds)


def _mean(curves: Sequence[Curve]) -> dict[str, Any]:
    """The mean of replicates, as far as all of them reach."""
    n = min(len(c.rows) for c in curves)
    replicates = [series.shortened(r, n) for r in series.as_replicates(curves)]
    mean = mean_curve(replicates, ci_level=CI_LEVEL)
    proxy = np.mean([c["proxy_gain"][:n] for c in curves], axis=0)
    return _points(curves[0], mean.sqrt_kl, mean.gold, mean.ci_low, mean.ci_high, proxy)


def _single(curve: Curve) -> dict[str, Any]:
    half = t_quantile(CI_LEVEL, curve.meta["n_prompts"] - 1) * curve["gold_gain_stderr"]
    gold = curve["gold_gain"]
    return _points(curve, curve["sqrt_kl"], gold, gold - half, gold + half, curve["proxy_gain"])


def _points(curve: Curve, x: Any, gold: Any, low: Any, high: Any, proxy: Any) -> dict[str, Any]:
    columns = {"x": x, "gold": gold, "low": low, "high": high, "proxy_gain": proxy}
    rounded = {name: [_rounded(v) for v in values] for name, values in columns.items()}
    return {"value": [int(v) for v in curve["value"][: len(rounded["x"])]], **rounded}


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


# --- responses ------------------------------------------------------------------------------------


def _samples(results: ResultsView) -> Samples:
    """Responses of every curve, at as many of its points as there is room for."""
    by_run = results.samples
    if not by_run:
        return Samples(
            [],
            {},
            "These results hold no responses: they were written before records came with any.",
        )
    stride = 1
    while True:
        kept = {c.meta["run_id"]: _every(c, by_run, stride) for c in results.curves}
        size = sum(_size(s) for of_run in kept.values() for s in of_run)
        longest = max(len(c.rows) for c in results.curves)
        if size <= SAMPLES_BYTES or stride > longest:
            break
        stride *= 2
    while size > SAMPLES_BYTES:  # peak and end of every curve are too much
        run_id = next(reversed(kept))
        size -= sum(map(_size, kept.pop(run_id)))
    prompts: dict[str, int] = {}
    shown: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run_id, of_run in kept.items():
        for s in of_run:
            prompt = prompts.setdefault(_text(s.prompt), len(prompts))
            at = shown.setdefault(run_id, {}).setdefault(str(s.value), [])
            at.append(_shown(s, prompt))
    note = ""
    if stride > 1 or len(kept) < len(by_run):
        note = (
            f"Responses of {len(shown)} of {len(by_run)} curves, at every {stride}th point, the peak"
            " and the end; the others are in samples.jsonl."
        )
    return Samples(list(prompts), shown, note)


def _every(curve: Curve, by_run: dict[str, list[Sample]], stride: int) -> list[Sample]:
    """Responses at every ``stride``-th point of a curve, at its peak and at its end."""
    peak = int(curve.gain("gold").mean(1).argmax())
    wanted = {int(v) for v in curve["value"][::stride]}
    wanted |= {int(curve["value"][k]) for k in (peak, -1)}
    return [s for s in by_run.get(curve.meta["run_id"], []) if s.value in wanted]


def _size(sample: Sample) -> int:
    """Bytes of a response on the page, nearly."""
    return 150 + len(_text(sample.response).encode())


def _text(text: str) -> str:
    """Text without control characters, cut where it is longer than anyone reads."""
    cut = len(text) - LONGEST_TEXT
    return escape.terminal(text if cut <= 0 else f"{text[:LONGEST_TEXT]}… ({cut} more characters)")


def _shown(sample: Sample, prompt: int) -> dict[str, Any]:
    return {
        "why": list(sample.shown_for),
        "prompt": prompt,
        "response": _text(sample.response),
        "gold": _rounded(sample.gold),
        "proxy": _rounded(sample.proxy),
        "intent": None if sample.intent is None else _rounded(sample.intent),
        "tokens": sample.tokens,
        "ended": sample.ended,
    }


# --- tables ---------------------------------------------------------------------------------------


def _peak_row(curve: Curve, peak: Mapping[str, Any]) -> list[str]:
    return [
        curve.shown.label,
        peak["series"],
        f"{peak['n_pairs']:,}",
        _seed(curve),
        f"{curve.shown.axis} {peak['peak_at']}",
        f"{peak['peak_sqrt_kl']:.2f}",
        with_error(peak["peak_gold"], peak["peak_stderr"]),
        f"{peak['end_sqrt_kl']:.2f}",
        f"{peak['end_gold']:.2f}",
        with_error(peak["fall"], peak["fall_stderr"]),
    ]


def _fit_rows(results: ResultsView) -> Iterable[list[str]]:
    for method, fits in results.fits.items():
        label = next(iter(results.groups[method].values()))[0].shown.label
        for name, fit in fits.items():
            peak = (
                f"{fit.peak_gold:.2f} at √KL {fit.peak_sqrt_kl:.2f}" if fit.peak_in_range else "–"
            )
            params = (f"{k} {with_error(v, fit.stderr[k])}" for k, v in fit.params.items())
            poor = ["the form does not describe the curve"] if fit.p_value < POOR_FIT_P else []
            flags = "; ".join(filter(None, [*poor, fit.message]))
            yield [label, name, fit.form, ", ".join(params), p_text(fit.p_value), peak, flags]
        for name, reason in why_unfitted(results.groups).get(method, {}).items():
            yield [label, name, "–", "–", "–", "–", f"not fitted: {reason}"]


def _cost_rows(costs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """By kind of stage; a stage that several runs share counts once."""
    stages: dict[str, dict[str, dict[str, Any]]] = {}
    for row in costs:
        stages.setdefault(row["stage"], {})[row["stage_id"]] = row
    return [
        [
            stage,
            str(len(rows)),
            duration(sum(r["cpu_s"] for r in rows.values())),
            duration(sum(r["wall_s"] for r in rows.values())),
            ", ".join(sorted({r["device"] for r in rows.values()})),
        ]
        for stage, rows in stages.items()
    ]


def _apart(curves: Sequence[Curve], apart: dict[str, list[str]]) -> list[list[str]]:
    """A row for each curve: its run, its method, and what sets it apart."""
    return [
        [curve.meta["run_id"], curve.shown.label, *(values[i] for values in apart.values())]
        for i, curve in enumerate(curves)
    ]


def _provenance(results: ResultsView, made_by: str) -> list[tuple[str, str]]:
    return [
        ("experiment", results.experiment),
        ("results", str(results.folder)),
        ("page made by", made_by),
        ("schema of the records", str(results.curves[0].meta["schema_version"])),
        *provenance_of(results.runs).items(),
    ]


def _file_sums(folder: Path) -> Iterable[list[str]]:
    for name in RESULT_FILES:
        if (folder / name).is_file():
            file = describe(folder / name)
            yield [name, file["sha256"], f"{file['size']:,}"]
