"""From curves to series: replicates, means and fits of what `overopt fit` and `figures` show.

Pure functions of curves, but for the two that read a results directory. Never imports torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from overopt.base import files
from overopt.base.errors import DataError, OveroptError
from overopt.fits.fit import FitResult
from overopt.fits.replicates import (
    ReplicateCurve,
    fit_replicates,
    linear_form,
    mean_curve,
)
from overopt.fits.scaling import ScalingPoint
from overopt.records.curves import BON, Curve, load_curves, results_dir

Groups = dict[str, dict[str, list[Curve]]]
"""Method -> series -> replicate curves."""

_TREATMENTS = {
    "label_rule": "",
    "label_flip_rate": "flips",
    "mitigation": "",
    "start_policy": "policy",
}
"""What the proxy had: columns that set series apart under every method -> what a legend calls them."""
_PENALTY = {"kl_coef": "kl_coef"}
"""The same of the policy: compared within a method alone, since a method without one has no weight."""
_PLAIN = {"", "none", 0, "argmax"}
"""Values of a treatment that a legend need not name, unless others occur beside them."""


def methods_of(curves: Iterable[Curve]) -> list[str]:
    """Methods in the order of the records, best-of-n first."""
    found = dict.fromkeys(curve.meta["method"] for curve in curves)
    return sorted(found, key=lambda method: method != BON)


def of_shared_data(curves: Sequence[Curve], *, treated_alike: bool = False) -> list[Curve]:
    """Curves of the number of comparisons that most proxies share.

    Proxies of different sizes compare at one number only. Where several numbers have as many
    proxies, the one with more methods counts, then the larger.

    ``treated_alike``: and of one kind of labels and one mitigation, by the same rule; plain ones
    come first where as many proxies have others.
    """
    columns = ("n_pairs", *(_TREATMENTS if treated_alike else ()))
    ran: dict[tuple[Any, ...], list[Curve]] = {}
    for curve in curves:
        ran.setdefault(tuple(curve.meta.get(c) for c in columns), []).append(curve)

    def rank(key: tuple[Any, ...]) -> tuple[int, ...]:
        proxies = {c.meta["backbone"] for c in ran[key]}
        methods = {c.meta["method"] for c in ran[key]}
        plain = sum(value is None or value in _PLAIN for value in key[1:])
        return len(proxies), len(methods), plain, key[0]

    return ran[max(ran, key=rank)] if ran else []


def group_curves(curves: Sequence[Curve]) -> Groups:
    """Curves by method and series, sizes increasing, of the comparisons that most proxies share.

    A series is one proxy under one treatment: labels, mitigations or KL penalties that differ between
    the curves, or are not the plain ones, are named in the legend and never averaged. So is what
    the method's own description calls a treatment, where it differs between curves of the method.
    """
    names = series_names(curves)
    groups: Groups = {}
    shared = of_shared_data(curves)
    for curve in sorted(shared, key=lambda c: (c.meta["n_params"], c.meta["backbone"])):
        name = names[curve.meta["run_id"]]
        groups.setdefault(curve.meta["method"], {}).setdefault(name, []).append(curve)
    return groups


def treatments_of(curves: Sequence[Curve]) -> dict[str, list[str]]:
    """By run_id, what sets a curve apart beside its method, proxy, data size and seed, in words."""
    shared = [t for t in _TREATMENTS if _is_told(curves, t)]
    varying = {}
    for method in methods_of(curves):
        same = [c for c in curves if c.meta["method"] == method]
        penalty = [t for t in _PENALTY if _is_told(same, t)]
        own = [t for t in same[0].shown.treatments if len(_values(same, t)) > 1]
        varying[method] = dict.fromkeys([*shared, *penalty, *own])
    found: dict[str, list[str]] = {}
    for curve in curves:
        words = _TREATMENTS | _PENALTY | curve.shown.treatments
        told = ((words[t], curve.meta.get(t)) for t in varying[curve.meta["method"]])
        found[curve.meta["run_id"]] = [
            f"{word.strip()} {value}".strip() for word, value in told if value not in (None, "none")
        ]
    return found


def _is_told(curves: Sequence[Curve], column: str) -> bool:
    """Whether a legend has to say a treatment: it differs between curves, or is not the plain one."""
    values = _values(curves, column)
    return len(values) > 1 or bool(values - _PLAIN)


def _values(curves: Sequence[Curve], column: str) -> set[Any]:
    """Values of a column that occur, null left out."""
    return {c.meta.get(column) for c in curves} - {None}


def data_sweeps(curves: Sequence[Curve]) -> dict[str, dict[int, list[Curve]]]:
    """Best-of-n curves of plain proxies by series and comparisons, where there are three sizes."""
    sweeps: dict[str, dict[int, list[Curve]]] = {}
    called = proxy_names(curves)
    for curve in sorted(curves, key=lambda c: (c.meta["n_params"], c.meta["n_pairs"])):
        meta = curve.meta
        plain = all(meta.get(name) in (None, "none") for name in ("mitigation", "start_policy"))
        plain = plain and meta["label_flip_rate"] == 0
        if curve.is_bon and plain and meta["label_rule"] == "argmax":
            sweep = sweeps.setdefault(called[meta["backbone"]], {})
            sweep.setdefault(meta["n_pairs"], []).append(curve)
    return {name: sweep for name, sweep in sweeps.items() if len(sweep) >= 3}


def as_replicates(curves: Sequence[Curve]) -> list[ReplicateCurve]:
    """Curves of one series as the statistics see them: gold gains by prompt, known or measured KL.

    Seeds of a method against one proxy are averaged first, point by point as far as all reach: they
    are not independent proxies.
    """
    by_proxy: dict[tuple[int, int], list[Curve]] = {}
    for curve in curves:
        by_proxy.setdefault((curve.meta["data_seed"], curve.meta["rm_seed"]), []).append(curve)
    replicates = []
    for (data_seed, rm_seed), same in by_proxy.items():
        n = min(len(c.rows) for c in same)
        gold = np.mean([c.gain("gold")[:n] for c in same], axis=0)
        known = same[0].is_bon
        kl = np.mean([np.maximum(c.arrays["kl"][:n], 0.0) for c in same], axis=0)
        replicates.append(
            ReplicateCurve(
                gold_KP=gold,
                sqrt_kl=same[0]["sqrt_kl"] if known else None,
                kl_seq_nats_KP=None if known else kl,
                rm_seed=rm_seed,
                data_seed=data_seed,
            )
        )
    return replicates


def load_tilts(folder: Path, groups: Groups) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """√KL and mean gold gain of the exponential tilt by series, trusted points only.

    Replicates are averaged β by β. Empty where the records hold no tilt.

    Raises
    ------
    DataError
        ``tilt.jsonl`` is damaged, or replicates have other numbers of points.
    """
    file = folder / "tilt.jsonl"
    if not file.is_file():
        return {}
    by_run: dict[str, list[dict[str, Any]]] = {}
    columns = {"run_id": str, "reliable": bool, "kl_seq_nats": float, "gold_gain": float}
    for row in files.load_records(file, columns):
        by_run.setdefault(row["run_id"], []).append(row)
    tilts = {}
    for name, curves in groups.get(BON, {}).items():
        runs = [by_run[c.meta["run_id"]] for c in curves if c.meta["run_id"] in by_run]
        if len({len(run) for run in runs}) > 1:
            raise DataError(f"{file}: replicates of {name!r} differ in points{files.RESTORE}")
        points = [p for p in zip(*runs, strict=True) if all(row["reliable"] for row in p)]
        if points:
            kl, gold = (
                np.array([np.mean([row[key] for row in p]) for p in points])
                for key in ("kl_seq_nats", "gold_gain")
            )
            tilts[name] = (np.sqrt(kl), gold)
    return tilts


def fit_groups(groups: Groups, form: str = "") -> dict[str, dict[str, FitResult]]:
    """A form fitted to each series' replicates; a series that cannot be fitted is absent.

    ``form``: of all; by default each method's own.
    """
    fits: dict[str, dict[str, FitResult]] = {}
    for method, series in groups.items():
        fits[method] = {}
        for name, curves in series.items():
            result = _fitted(curves, form)
            if isinstance(result, FitResult):
                fits[method][name] = result
    return fits


def unfitted(groups: Groups) -> dict[str, dict[str, str]]:
    """The series that `fit_groups` leaves out: method -> series -> why, in a sentence."""
    found: dict[str, dict[str, str]] = {}
    for method, series in groups.items():
        for name, curves in series.items():
            result = _fitted(curves, "")
            if isinstance(result, OveroptError):
                found.setdefault(method, {})[name] = str(result)
    return found


def _fitted(curves: Sequence[Curve], form: str) -> FitResult | OveroptError:
    """``form`` (default: the method's own) fitted to replicates, or why it cannot be."""
    fitted = linear_form(form or curves[0].shown.form)  # raises where there is no such form
    if curves[0].rows[0].get("kl_estimator") == "search_bound":
        return DataError("its KL is bounded, not measured: no form of gold against KL is fitted")
    try:
        return fit_replicates(as_replicates(curves), fitted.name)
    except OveroptError as error:
        return error


def scaling_points(curves: Sequence[Curve], method: str) -> list[ScalingPoint]:
    """A fit for each proxy size of ``method``, sizes increasing; without uncertainty, left out.

    Curves of gold as its own proxy are left out too: gold has a size, but it is not a proxy.
    """
    proxies = [c for c in curves if c.meta["backbone"] != "gold" and c.meta["method"] == method]
    if not proxies:
        return []
    groups = group_curves(proxies)
    return [
        ScalingPoint(
            label=name,
            n_params=groups[method][name][0].meta["n_params"],
            n_pairs=groups[method][name][0].meta["n_pairs"],
            fit=result,
        )
        for name, result in fit_groups(groups)[method].items()
        if result.has_uncertainty
    ]


def fit_records(records: str | Path) -> dict[str, dict[str, FitResult]]:
    """The fits that `overopt fit` prints: method -> series -> result.

    Values by prompt enter, so that the standard errors hold for points that share prompts and pool.
    """
    return fit_groups(group_curves(load_curves(results_dir(records))))


LADDER = ("0.056M", "0.2M", "0.8M", "2M", "3M", "6M", "0.028M")


def size_name(n_params: float) -> str:
    """Parameters in millions: 0.056M, 3M, 106M."""
    millions = n_params / 1e6
    return f"{millions:.2g}M" if millions < 10 else f"{millions:.0f}M"


def proxy_names(curves: Iterable[Curve]) -> dict[str, str]:
    """What a legend calls each backbone: by its size, or by its name where a size does not tell.

    Sizes do not tell proxies that have none, such as rules, nor two backbones of one size.
    """
    by_name: dict[str, set[str]] = {}
    for curve in curves:
        by_name.setdefault(series_name(curve), set()).add(curve.meta["backbone"])
    return {
        backbone: name if len(alike) == 1 else backbone.removeprefix("ladder:")
        for name, alike in by_name.items()
        for backbone in alike
    }


def series_name(curve: Curve) -> str:
    """What a curve's proxy is called on its own: by its size, or by its name where it has none."""
    backbone, n_params = curve.meta["backbone"], curve.meta["n_params"]
    if backbone == "gold":
        return "gold as proxy"
    return f"{size_name(n_params)} proxy" if n_params else backbone


def series_names(curves: Sequence[Curve]) -> dict[str, str]:
    """By run_id, the series of each curve: its proxy, and the treatment that sets it apart."""
    called, told = proxy_names(curves), treatments_of(curves)
    return {
        curve.meta["run_id"]: ", ".join(
            [called[curve.meta["backbone"]], *told[curve.meta["run_id"]]]
        )
        for curve in curves
    }


@dataclass(frozen=True)
class MeanSeries:
    """Curves of one series averaged over seeds, with the standard error over prompts and seeds.

    ``proxy``: gain in standard deviations of the proxy. ``proxy_in_gold``: the gain in gold that the
    proxy promises, in standard deviations of gold; None where its unit is not known. ``intent``: gain
    in the world's own intent, in its standard deviations; None where there is none, or gold is it.
    """

    d: np.ndarray
    gold: np.ndarray
    gold_stderr: np.ndarray
    proxy: np.ndarray
    proxy_in_gold: np.ndarray | None = None
    intent: np.ndarray | None = None


def average(curves: Sequence[Curve], replicates: Sequence[ReplicateCurve]) -> MeanSeries:
    """Mean of the replicate curves; ``replicates`` are the same curves as `fits` takes them.

    Point by point, as far as all curves reach: evaluations at equal √KL differ in number. Prompts
    are shared between replicates, so their error does not average out over seeds:
    `overopt.fits.replicates.mean_curve` accounts for both.
    """
    n = min(len(c.rows) for c in curves)
    mean = mean_curve([shortened(r, n) for r in replicates])
    proxy = np.stack([c["proxy_gain"][:n] for c in curves]).mean(0)
    promised = [promised_gain(c) for c in curves]
    known = [p[:n] for p in promised if p is not None]
    in_gold = np.stack(known).mean(0) if len(known) == len(curves) else None
    return MeanSeries(mean.sqrt_kl, mean.gold, mean.sigma, proxy, in_gold, _intent(curves, n))


def _intent(curves: Sequence[Curve], n: int) -> np.ndarray | None:
    """Mean gain (n,) in the intent that gold, a model, only stands for."""
    if not all("intent" in c.arrays for c in curves):
        return None
    if all(np.array_equal(c.arrays["intent"], c.arrays["gold"]) for c in curves):
        return None
    return np.stack([c.gain("intent")[:n].mean(1) for c in curves]).mean(0)


def shortened(curve: ReplicateCurve, n: int) -> ReplicateCurve:
    """The first ``n`` points of a replicate."""
    kl, d = curve.kl_seq_nats_KP, curve.sqrt_kl
    return replace(
        curve,
        gold_KP=np.asarray(curve.gold_KP)[:n],
        sqrt_kl=None if d is None else np.asarray(d)[:n],
        kl_seq_nats_KP=None if kl is None else np.asarray(kl)[:n],
    )


def promised_gain(curve: Curve) -> np.ndarray | None:
    """Gain in gold that the proxy promises at each point, in standard deviations of gold.

    The gain in raw score times `proxy_gold_slope`, which says what a unit of it is worth in gold on
    held-out pairs of the initial policy. Gao et al. 2022 recalibrate in probabilities; that factor
    (`proxy_recalibration`) is smaller, and a gold that is as good as promised would lie above it. None
    without a positive factor, as of a proxy that knows nothing, and where the proxy is replaced on
    the way.
    """
    factors = {row["proxy_gold_slope"] for row in curve.rows}
    factor = curve.meta["proxy_gold_slope"]
    if len(factors) > 1 or factor is None or not factor > 0:
        return None
    raw = curve["proxy_raw"]
    return factor * (raw - raw[0])
