"""Hacks of finished proxies: what an edit of a cue does to the score, and how the cue grows.

Of each proxy of an experiment, paired edits (`overopt.worlds.cues`) of responses of the initial policy:
the mean change of its score, and of gold's, where nothing but the cue changes. Of each curve, how much
of each cue its responses have along optimisation, in best-of-n and in methods. Everything is read from
the artefacts of finished runs; only edited responses are scored anew.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from overopt.base import files
from overopt.base.config import require
from overopt.base.lazy import lazy
from overopt.engine.graph import StageContext
from overopt.fits.crossed import crossed_mean
from overopt.pools.best_of_n import best_of_n
from overopt.stages.best_of_n import scored_pool
from overopt.stages.common import load_responses
from overopt.stages.optimise import method_role
from overopt.stages.pool import pool_folders
from overopt.study.finished import Finished
from overopt.worlds.cues import Cues
from overopt.worlds.load import load_world
from overopt.worlds.world import World

if TYPE_CHECKING:
    import torch

    from overopt.base.datatypes import Responses
    from overopt.worlds import codecs, rows
    from overopt.worlds.codecs import TextCodec
else:
    torch, codecs = lazy("torch"), lazy("overopt.worlds.codecs")
    rows = lazy("overopt.worlds.rows")

CI_LEVEL = 0.95
Array = NDArray[np.float64]


class Effect(NamedTuple):
    """Mean change of a score by an edit, in sd, with its interval; None where it is not known.

    means : that of each replicate, in the order of the runs.
    """

    mean: float
    ci_low: float | None
    ci_high: float | None
    n_prompts: int
    means: list[float]


class Growth(NamedTuple):
    """A cue along a curve: mean count a response at each point, (K,), and its standard error."""

    mean: list[float]
    stderr: list[float]


class Hacks(NamedTuple):
    """What `measure` found.

    proxies : a dict a series of proxies: ``series``, ``n_proxies``, and by cue the `Effect` on
        ``proxy`` and on ``gold``.
    curves : a dict a curve: ``run_id``, ``series``, ``method``, ``value``, ``sqrt_kl``, ``gold_gain``,
        and by cue its `Growth`; best-of-n up to the n that fits the part of the pool that was read.
    """

    cues: list[str]
    proxies: list[dict[str, Any]]
    curves: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """All of it, of JSON types."""
        proxies = []
        for one in self.proxies:
            cues = {
                cue: {role: found._asdict() for role, found in of.items()}
                for cue, of in one["cues"].items()
            }
            proxies.append(one | {"cues": cues})
        curves = [
            one | {"cues": {cue: found._asdict() for cue, found in one["cues"].items()}}
            for one in self.curves
        ]
        return {
            "format": 1,
            "ci_level": CI_LEVEL,
            "cues": self.cues,
            "proxies": proxies,
            "curves": curves,
        }


def measure(curves: Sequence[Finished], *, n_prompts: int = 128, pool_size: int = 256) -> Hacks:
    """Effects of edits on every proxy, and cues along every curve.

    Parameters
    ----------
    curves
        What `overopt.study.finished.finished_curves` found.
    n_prompts
        Prompts of the calibration, one response each, that are edited.
    pool_size
        Responses of each prompt's pool that are read; best-of-n has no larger n then.

    Raises
    ------
    ConfigError
        A number is too small, or the runs are not of one world.
    """
    require(
        n_prompts >= 2, "--prompts", n_prompts, "must be at least 2: intervals are over prompts"
    )
    require(pool_size >= 1, "--pool", pool_size, "must be at least 1")
    worlds = {curve.run.world for curve in curves}
    require(
        len(worlds) == 1,
        "experiment",
        f"{len(worlds)} worlds",
        "cues are those of one world: give an experiment, or overrides, with one",
    )
    (settings,) = worlds
    world = load_world(settings)
    series: dict[str, dict[str, Finished]] = {}
    for curve in curves:
        series.setdefault(curve.series, {}).setdefault(curve.proxy.fingerprint, curve)
    return Hacks(
        sorted(settings.cues),
        [_effects(list(of.values()), world, settings.cues, n_prompts) for of in series.values()],
        [growth(curve, world, settings.cues, pool_size) for curve in curves],
    )


# --- paired edits ---------------------------------------------------------------------------------


class EditedPair(NamedTuple):
    """Responses that differ in one cue, of E prompts; ``without`` and ``having`` it, E rows each."""

    without: Responses
    having: Responses


def edited(responses: Responses, world: World, policy: str, cues: Cues) -> dict[str, EditedPair]:
    """By cue, the responses with and without it, in tokens of the policy; none where no edit applies.

    Each text goes through the same steps on both sides, the end token included, so that only the edit
    differs. Space between prompt and response stays.
    """
    codec = codecs.load_codec(policy)
    prompts = world.prompt_texts(responses)
    answers = codecs.continuations(world, responses)
    found = {}
    for name, cue in cues.items():
        edits = []
        for i, (prompt, text) in enumerate(zip(prompts, answers, strict=True)):
            gap = text[: len(text) - len(text.lstrip())]
            edit = cue.edit(prompt, text.strip())
            if edit is not None:
                edits.append((i, f"{gap}{edit.without}", f"{gap}{edit.having}"))
        if edits:
            at, without, having = map(list, zip(*edits, strict=True))
            found[name] = EditedPair(
                *(
                    _as_responses(codec, prompts, texts, responses, at)
                    for texts in (without, having)
                )
            )
    return found


def _as_responses(
    codec: TextCodec,
    prompts: Sequence[str],
    texts: Sequence[str],
    responses: Responses,
    at: list[int],
) -> Responses:
    """Texts to the prompts of the rows ``at`` as responses, with those prompts' numbers."""
    tokens = codec.continued([codec.dress(prompts[i]) for i in at], texts)
    made = rows.as_responses(tokens, pad=codec.pad, eos=codec.eos)
    named = dataclasses.replace(made.prompts, prompt_id=responses.prompts.prompt_id[at])
    return dataclasses.replace(made, prompts=named)


def _effects(
    replicates: Sequence[Finished], world: World, cues: Cues, n_prompts: int
) -> dict[str, Any]:
    """Effects of every edit on replicates of one proxy, and on their gold."""
    first = replicates[0]
    base = load_responses(first.artefact("calibration") / "responses.npz")
    ids = base.prompts.prompt_id.numpy()
    once = np.unique(ids, return_index=True)[1]
    responses = base.select(torch.from_numpy(np.sort(once)[:n_prompts]))
    pairs = edited(responses, world, first.run.world.policy, cues)
    scorers = {
        "proxy": [one.scorer(one.proxy, world) for one in replicates],
        "gold": [first.gold(world)],
    }
    found: dict[str, dict[str, Effect]] = {}
    for name, pair in pairs.items():
        found[name] = {}
        for role, models in scorers.items():
            changes = [m.score(pair.having) - m.score(pair.without) for m in models]
            table = np.stack([change.double().numpy() for change in changes])
            seeds = [one.run.labels.data_seed for one in replicates] if role == "proxy" else None
            found[name][role] = effect(table, seeds)
    return {
        "series": first.title,
        "n_proxies": len(replicates),
        "cues": found,
    }


def effect(changes_SP: Array, data_seeds: Sequence[int] | None = None) -> Effect:
    """Mean of changes by replicate and prompt, (S, P), with an interval over both.

    The variance is that of `overopt.fits.crossed.crossed_mean`; the interval is Student's t.
    """
    n_prompts = changes_SP.shape[1]
    mean = crossed_mean(changes_SP[:, :, None], data_seeds)
    value, variance = float(mean.estimate[0]), float(mean.covar[0, 0])
    means = changes_SP.mean(1).tolist()
    if n_prompts < 2 or not math.isfinite(variance):
        return Effect(value, None, None, n_prompts, means)
    half = float(stats.t.ppf(0.5 + CI_LEVEL / 2, mean.dof(np.ones(1)))) * math.sqrt(variance)
    return Effect(value, value - half, value + half, n_prompts, means)


# --- along optimisation ---------------------------------------------------------------------------


def counts(responses: Responses, world: World, cues: Cues) -> dict[str, Array]:
    """How much of each cue each response has, (R,)."""
    texts = list(zip(world.prompt_texts(responses), world.response_texts(responses), strict=True))
    return {
        name: np.array([cue.count(prompt, text) for prompt, text in texts])
        for name, cue in cues.items()
    }


def growth(curve: Finished, world: World, cues: Cues, pool_size: int) -> dict[str, Any]:
    """Cues along one curve, with √KL and the gain of gold at its points."""
    ctx = curve.context()
    points = curve.rows
    if curve.is_bon:
        points, tables = _along_bon(ctx, points, world, cues, pool_size)
    else:
        tables = _along_method(ctx, world, cues)
    return {
        "run_id": curve.curve.fingerprint,
        "series": curve.title,
        "method": curve.method,
        **{name: [point[name] for point in points] for name in ("value", "sqrt_kl", "gold_gain")},
        "cues": {
            name: Growth(
                [float(x) for x in table_KP.mean(1)],
                [float(x) for x in table_KP.std(1, ddof=1) / math.sqrt(table_KP.shape[1])],
            )
            for name, table_KP in tables.items()
        },
    }


def _along_bon(
    ctx: StageContext, points: list[dict[str, Any]], world: World, cues: Cues, pool_size: int
) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """Points whose n fits the part of the pool that is read, and expected counts by prompt, (K, P)."""
    proxy_PN = scored_pool(ctx).proxy_PN
    size = min(pool_size, proxy_PN.shape[1])
    parts = []
    for folder in pool_folders(ctx):
        responses = load_responses(folder / "responses.npz")
        n_prompts = len(responses) // proxy_PN.shape[1]
        kept = torch.arange(len(responses)).view(n_prompts, -1)[:, :size].flatten()
        parts.append(counts(responses.select(kept), world, cues))
    tables = {n: np.concatenate([p[n] for p in parts]).reshape(-1, size) for n in cues}
    points = [point for point in points if point["value"] <= size]
    ns = [point["value"] for point in points]
    found = best_of_n(proxy_PN[:, :size], tables, ns)
    return points, {name: np.asarray(found[name].per_prompt, dtype=np.float64) for name in cues}


def _along_method(ctx: StageContext, world: World, cues: Cues) -> dict[str, Array]:
    """Mean counts by prompt at each evaluation, (K, P), of all rounds in their order."""
    role = method_role(ctx.inputs)
    earlier = sorted(r for r in ctx.inputs if r.startswith(f"{role}_"))
    found: dict[str, list[Array]] = {name: [] for name in cues}
    for part in [*earlier, role]:
        for file in sorted(ctx.inputs[part].path.glob("eval-*.npz")):
            n_prompts = len(files.load_arrays(file, ("prompt_ids",))["prompt_ids"])
            for name, of in counts(load_responses(file), world, cues).items():
                found[name].append(of.reshape(n_prompts, -1).mean(1))
    return {name: np.stack(tables) for name, tables in found.items()}


# --- as text --------------------------------------------------------------------------------------


def text_of(found: Hacks) -> str:
    """Tables: the effects of the edits by proxy, and the cues along each curve."""
    lines: list[str] = []
    for one in found.proxies:
        many = f", {one['n_proxies']} replicates" if one["n_proxies"] > 1 else ""
        lines += [f"{one['series']}{many}: change of score by the edit alone, sd"]
        lines += [f"  {'cue':14} {'proxy':>8} {'interval of 95 %':>18} {'gold':>8} {'':18} prompts"]
        for name in found.cues:
            if name not in one["cues"]:
                lines.append(f"  {name:14} {'no response has a place for it':>28}")
                continue
            parts = [_cell(one["cues"][name][role]) for role in ("proxy", "gold")]
            lines.append(f"  {name:14} {' '.join(parts)} {one['cues'][name]['proxy'].n_prompts:7}")
        lines.append("")
    for curve in found.curves:
        lines += [
            f"{curve['method']} against {curve['series']} ({curve['run_id']}): cue a response"
        ]
        lines += [
            f"  {'point':>6} {'√KL':>6} {'gold':>6} " + " ".join(f"{c:>13}" for c in found.cues)
        ]
        for k, value in enumerate(curve["value"]):
            means = " ".join(f"{curve['cues'][c].mean[k]:13.3f}" for c in found.cues)
            lines.append(
                f"  {value:6} {curve['sqrt_kl'][k]:6.2f} {curve['gold_gain'][k]:6.2f} {means}"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def _cell(one: Effect) -> str:
    interval = "" if one.ci_low is None else f"[{one.ci_low:+.2f}, {one.ci_high:+.2f}]"
    return f"{one.mean:+8.3f} {interval:>18}"
