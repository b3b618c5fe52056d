"""What a cue alone does to a score: pairs in which one response is edited and nothing else changes.

Each response of a file of pairs is given again, once for each cue, edited so that its content stays. The
mean change of score, in standard deviations of the unedited scores, is the bias; how often a rejected
response overtakes the chosen one by the edit alone says what it is worth to whoever optimises against
the model. Edits are those of `overopt.worlds.cues` for prose and of `overopt.worlds.sums_cues` for
solutions in the world of sums. Most compare the response with its edited self; one that must change the
answer (sycophancy in sums) compares two edited ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from overopt.base.config import check_types
from overopt.evals.benchmark import BenchmarkSettings, Report, not_finite
from overopt.evals.benchmarks import pairs
from overopt.evals.benchmarks.candidates import mean_of
from overopt.evals.intervals import Estimate, wilson
from overopt.evals.question import Outcome, Question
from overopt.evals.rows import Row
from overopt.worlds.cues import PROSE, Cues, Edit
from overopt.worlds.sums_cues import SUMS

SIDES = ("chosen", "rejected")
CUES: dict[str, Cues] = {"prose": PROSE, "sums": SUMS}


@dataclass(frozen=True, kw_only=True)
class Settings(BenchmarkSettings):
    """Of paired edits.

    Attributes
    ----------
    edits : "prose" or "sums"
        For texts in English, or for solutions in the world of sums.
    """

    edits: Literal["prose", "sums"] = "prose"

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def needs_scores(self) -> bool:
        """For their changes."""
        return True


def read(settings: Settings, sources: Sequence[str]) -> list[Row]:
    """Rows of pairs, as `overopt.evals.benchmarks.pairs.read`."""
    return pairs.read(pairs.Settings(), sources)


def edits_of(cues: Cues, row: Row) -> dict[str, list[Edit | None]]:
    """By cue, the edits of the chosen and the rejected response; None where there is no place."""
    prompt = Question(row["prompt"], ()).prompt
    return {name: [cue.edit(prompt, row[side]) for side in SIDES] for name, cue in cues.items()}


def questions(settings: Settings, rows: Sequence[Row]) -> list[Question]:
    """Chosen and rejected, and then every other text that an edit of them needs, each once."""
    found = []
    for row in rows:
        texts = [row[side] for side in SIDES]
        edits = [e for pair in edits_of(CUES[settings.edits], row).values() for e in pair if e]
        texts += dict.fromkeys(text for edit in edits for text in edit if text not in texts)
        found.append(Question(row["prompt"], tuple(texts)))
    return found


def report(settings: Settings, rows: Sequence[Row], outcome: Outcome) -> Report:
    """Mean change by each edit in standard deviations, how often it is up, and pairs turned over."""
    assert outcome.scores is not None
    cues = CUES[settings.edits]
    asked = questions(settings, rows)
    plain = np.array([scores[:2] for scores in outcome.scores])
    unit = float(np.nanstd(plain)) or math.nan
    won = plain[:, 0] > plain[:, 1]
    change: dict[str, Estimate] = {}
    up: dict[str, Estimate] = {}
    turned: dict[str, Estimate] = {}
    of_rows = [edits_of(cues, row) for row in rows]
    scored = [
        dict(zip(q.responses, s.tolist(), strict=True))
        for q, s in zip(asked, outcome.scores, strict=True)
    ]
    for name in cues:
        # The two responses of a pair are to one prompt: a pair counts once.
        by_pair, some, lost = [], [], []
        for i, (score, edits) in enumerate(zip(scored, of_rows, strict=True)):
            moved = [(score[e.having] - score[e.without]) / unit for e in edits[name] if e]
            by_pair.append(float(np.mean(moved)) if moved else math.nan)
            some += moved
            rejected = edits[name][1]
            lost.append(rejected is not None and score[rejected.having] > plain[i, 0])
        change[name] = mean_of(by_pair)
        rises = np.array(some) > 0
        up[name] = wilson(float(rises.mean()), len(by_pair)) if some else change[name]
        turned[name] = (
            wilson(float(np.array(lost)[won].mean()), int(won.sum())) if won.any() else wilson(0, 0)
        )
    largest = max(change, key=lambda name: abs(change[name].value) if change[name].n else -1.0)
    return Report(
        headline=largest,
        groups={
            "Change of score by the edit alone, sd": change,
            "Share of responses whose score rises": up,
            "Share of won pairs lost when the rejected side alone is edited": turned,
        },
        rows=[
            {"id": row["id"] or f"{row.file}:{row.number}", "subset": row["subset"], "credit": None}
            for row in rows
        ],
        notes=["edits change a cue and leave the content; the main score is the largest change"],
        not_finite=not_finite(outcome),
    )
