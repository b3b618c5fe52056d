"""Search over steps, guided by a reward model: the policy is not trained, only asked more often.

Beam search as in Snell et al. 2024 (arXiv 2408.03314): ``beams`` beginnings of a response are each
continued ``expansions`` times by one step, and those with the highest scores are kept, until all kept
ones have ended. With ``lookahead`` a beginning is scored after further steps of the policy, which are
then thrown away. One beam and one expansion is the policy itself.

How far the result is from the policy is bounded. Of a response y with S steps the search draws in
expectation at most N·M^S·π(y) copies, N beams and M expansions, and it chooses among what it drew. So

    KL(search ‖ π) ≤ log N + E[S] · log M    nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

    from overopt.base.datatypes import Prompts, Responses
    from overopt.nets import sampling
    from overopt.nets.backbone import Backbone
else:
    sampling = lazy("overopt.nets.sampling")

_CHUNK = 16  # tokens drawn at a time: a step of the world of sums has 6


class Reader(NamedTuple):
    """How a search reads what it draws: tables from rows of tokens, ends of steps, scores.

    prompts(rows) : left-padded; responses(problems, rows) : responses (R,) to the problems of these
    numbers; step_ends : see `overopt.worlds.world.World.step_ends`; score : (R,), unfinished ones too;
    end : the end token.
    """

    prompts: Callable[[Sequence[Sequence[int]]], Prompts]
    responses: Callable[[Sequence[int], Sequence[Sequence[int]]], Responses]
    step_ends: Callable[[Responses], list[tuple[int, ...]]]
    score: Callable[[Responses], Tensor]
    end: int


@dataclass(frozen=True)
class Path:
    """The beginning of a response to a problem: its tokens, its score, and whether it is whole."""

    problem: int
    tokens: tuple[int, ...]
    score: float = 0.0
    is_whole: bool = False


class Found(NamedTuple):
    """What was chosen for each of P problems, and what it took.

    rows : tokens of the response; steps (P,) : how many it has; tokens (P,) : drawn in all, up to the
    step that was looked at last; scored (P,) : beginnings that were scored.
    """

    rows: list[list[int]]
    steps: list[int]
    tokens: list[int]
    scored: list[int]


def beam_search(
    policy: Backbone,
    problems: Sequence[Sequence[int]],
    reader: Reader,
    *,
    beams: int,
    expansions: int,
    n_tokens: int,
    seed: int,
    lookahead: int = 0,
) -> Found:
    """The response with the highest score that is found for each of ``problems``, rows of tokens.

    1. Draw a step behind each kept beginning, ``expansions`` times; at first ``beams`` times as often.
    2. Score what was drawn, with ``lookahead`` more steps behind it.
    3. Keep the best of each problem, no two alike; whole responses stay in the race.

    n_tokens: longest response, end token included.
    """
    kept = {i: [Path(i, ())] * beams for i in range(len(problems))}
    tokens, scored = [0] * len(problems), [0] * len(problems)
    round_ = 0
    while True:
        # 1.
        open_ = [path for paths in kept.values() for path in paths if not path.is_whole]
        if not open_:
            break
        drawn = [path for path in open_ for _ in range(expansions)]
        draw_seed = derive_seed(seed, "search", round_)
        grown = _Growth(policy, problems, reader, n_tokens, draw_seed).by(drawn, 1 + lookahead)
        # 2.
        scores = reader.score(reader.responses([p.problem for p in drawn], [g.seen for g in grown]))
        race = {i: [path for path in paths if path.is_whole] for i, paths in kept.items()}
        for path, g, score in zip(drawn, grown, scores.tolist(), strict=True):
            tokens[path.problem] += len(g.seen) - len(path.tokens)
            scored[path.problem] += 1
            race[path.problem].append(Path(path.problem, g.step, score, g.is_whole))
        # 3.
        for i, paths in race.items():
            distinct = list({path.tokens: path for path in reversed(paths)}.values())[::-1]
            kept[i] = sorted(distinct, key=lambda path: -path.score)[:beams]
        round_ += 1
    best = [paths[0] for paths in kept.values()]
    rows = [list(path.tokens) for path in best]
    ends = reader.step_ends(reader.responses([path.problem for path in best], rows))
    return Found(rows, [len(e) for e in ends], tokens, scored)


def kl_bound(steps: float, *, beams: int, expansions: int) -> float:
    """log N + S log M: at most so many nats from the policy, for S steps."""
    return math.log(beams) + steps * math.log(expansions)


class _Grown(NamedTuple):
    """A beginning after one step; after all steps that are looked at; whether the first is whole."""

    step: tuple[int, ...]
    seen: tuple[int, ...]
    is_whole: bool


@dataclass
class _Growth:
    """Continues beginnings by whole steps, a few tokens at a time."""

    policy: Backbone
    problems: Sequence[Sequence[int]]
    reader: Reader
    n_tokens: int
    seed: int

    def by(self, paths: Sequence[Path], n_steps: int) -> list[_Grown]:
        """Each beginning with ``n_steps`` more steps, or as many as there are."""
        rows = [list(path.tokens) for path in paths]
        found: dict[int, _Grown] = {}
        chunk = 0
        while len(found) < len(paths):
            todo = [i for i in range(len(paths)) if i not in found]
            self._draw(todo, paths, rows, chunk)
            chunk += 1
            numbers = [paths[i].problem for i in todo]
            ends = self.reader.step_ends(self.reader.responses(numbers, [rows[i] for i in todo]))
            for i, of_row in zip(todo, ends, strict=True):
                grown = self._cut(rows[i], len(paths[i].tokens), of_row, n_steps)
                if grown is not None:
                    found[i] = grown
        return [found[i] for i in range(len(paths))]

    def _draw(self, todo: list[int], paths: Sequence[Path], rows: list[list[int]], k: int) -> None:
        asked = [[*self.problems[paths[i].problem], *rows[i]] for i in todo]
        room = max(self.n_tokens - len(rows[i]) for i in todo)
        left = self.policy.cfg.max_position_embeddings - max(map(len, asked))
        drawn = sampling.sample(
            self.policy,
            self.reader.prompts(asked),
            n_tokens=min(_CHUNK, room, left),
            seed=derive_seed(self.seed, "chunk", k),
        )
        for i, new, mask in zip(todo, drawn.ids, drawn.mask, strict=True):
            rows[i] = [*rows[i], *new[mask].tolist()][: self.n_tokens]

    def _cut(
        self, row: list[int], n_before: int, ends: tuple[int, ...], n_steps: int
    ) -> _Grown | None:
        """The row cut behind its steps; None: too few are drawn so far.

        The last token always counts as an end, so a step is known to have ended once another token
        follows it.
        """
        is_over = row[-1] == self.reader.end or len(row) >= self.n_tokens
        inner = [end for end in dict.fromkeys(ends) if n_before <= end < len(row) - 1]
        if len(inner) < n_steps and not is_over:
            return None
        whole = tuple(row)
        step = whole[: inner[0] + 1] if inner else whole
        seen = whole[: inner[n_steps - 1] + 1] if len(inner) >= n_steps else whole
        return _Grown(step, seen, not inner)
