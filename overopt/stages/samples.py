"""Responses worth reading at each point of a curve: the worst ones and the typical ones.

They travel with the records, so that whoever reads a curve can look at what it is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from overopt.base import files
from overopt.base.lazy import lazy
from overopt.stages.common import load_responses
from overopt.worlds.world import World

if TYPE_CHECKING:
    import torch

    from overopt.base.datatypes import Responses
else:
    torch = lazy("torch")

N_EACH = 3
"""Responses of each kind at a point."""
SAMPLES = "samples.json"


def chosen(scores: Mapping[str, np.ndarray]) -> dict[int, list[str]]:
    """Rows of the responses to show -> what each is shown for.

    Parameters
    ----------
    scores
        ``gold``, ``proxy`` and, where the world has one, ``intent``: (R,), in standard deviations.

    Returns
    -------
    dict
        "gold", "intent": among the lowest by that score. "gap": among those that the proxy puts
        highest above gold. "typical": among those nearest to gold's median.
    """
    gold = scores["gold"]
    order = {
        "gold": gold,
        **({"intent": scores["intent"]} if "intent" in scores else {}),
        "gap": gold - scores["proxy"],
        "typical": np.abs(gold - np.median(gold)),
    }
    rows: dict[int, list[str]] = {}
    for name, values in order.items():
        for row in np.argsort(values, kind="stable")[:N_EACH]:
            rows.setdefault(int(row), []).append(name)
    return rows


def sample_rows(
    world: World, responses: Responses, scores: Mapping[str, np.ndarray], value: int
) -> list[dict[str, Any]]:
    """Responses of one point to show, with their scores (R,); ``value``: of the coordinate."""
    rows = chosen(scores)
    texts = _texts(world, responses, list(rows))
    return [_row(value, rows[row], texts[row], scores, row) for row in rows]


def pool_samples(
    folders: Sequence[Path], world: World, scores: Mapping[str, np.ndarray], ns: Sequence[int]
) -> list[dict[str, Any]]:
    """Responses of best-of-n to show, for each n.

    Of each prompt, the response with the highest proxy score among the first n of its pool: one
    draw from best-of-n. ``scores``: (P, N) by name.
    """
    n_prompts, size = scores["proxy"].shape
    flat = {name: table.reshape(-1) for name, table in scores.items()}
    picked: list[tuple[int, int, list[str]]] = []
    for n in ns:
        best = np.arange(n_prompts) * size + scores["proxy"][:, :n].argmax(1)
        found = chosen({name: values[best] for name, values in flat.items()})
        picked += [(int(n), int(best[i]), why) for i, why in found.items()]
    texts: dict[int, dict[str, Any]] = {}
    start = 0
    for folder in folders:
        responses = load_responses(folder / "responses.npz")
        here = {row for _, row, _ in picked if start <= row < start + len(responses)}
        said = _texts(world, responses, sorted(row - start for row in here))
        texts |= {row + start: text for row, text in said.items()}
        start += len(responses)
    return [_row(n, why, texts[row], flat, row) for n, row, why in picked]


def _texts(world: World, responses: Responses, rows: list[int]) -> dict[int, dict[str, Any]]:
    """What the responses say, by row."""
    if not rows:
        return {}
    part = responses.select(torch.tensor(rows))
    columns = zip(
        rows,
        world.prompt_texts(part),
        world.response_texts(part),
        part.length.tolist(),
        part.ended.tolist(),
        strict=True,
    )
    return {
        row: {"prompt": prompt, "response": text, "tokens": tokens, "ended": ended}
        for row, prompt, text, tokens, ended in columns
    }


def _row(
    value: int, why: list[str], text: dict[str, Any], scores: Mapping[str, np.ndarray], row: int
) -> dict[str, Any]:
    named = {
        name: float(scores[name][row]) for name in ("gold", "proxy", "intent") if name in scores
    }
    return {"value": value, "shown_for": why, **text, **named}


def save_samples(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write them into an artefact, where `load_samples` finds them."""
    files.save_json(out / SAMPLES, rows)


def load_samples(folder: Path) -> list[dict[str, Any]]:
    """What `save_samples` wrote; nothing in artefacts from before there were samples."""
    file = folder / SAMPLES
    return files.load_json(file) if file.is_file() else []
