"""Benchmarks from a world with known gold, in the published layouts.

    rewardbench   pairs: easy, hard, adversarial, off-distribution
    rewardbench2  one good response among four in the same subsets, and Ties
    processbench  solutions with the first wrong step (worlds with steps)
    candidates    many responses to a prompt with their gold

Responses are those of the initial policy, and off-distribution of one that is tilted. What is good is
the world's intent, which no model that is scored on them has seen: the judge of sums, the rubric of
stories. An easy pair is far apart in it, a hard one close. An adversarial pair is far apart too, and the
worse response looks better by a cue: in sums it has more checks or answers, in stories more words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from overopt.base.config import check_types, require
from overopt.base.errors import DataError
from overopt.base.lazy import lazy
from overopt.base.seeding import derive_seed, numpy_rng
from overopt.evals.converter import Converted
from overopt.worlds.load import load_world
from overopt.worlds.world import AnyWorld, World

if TYPE_CHECKING:
    import torch

    from overopt.base.datatypes import Responses
    from overopt.nets import checkpoints, sampling
    from overopt.worlds import codecs
else:
    torch = lazy("torch")
    checkpoints, sampling = lazy("overopt.nets.checkpoints"), lazy("overopt.nets.sampling")
    codecs = lazy("overopt.worlds.codecs")

SUBSETS = ("easy", "hard", "adversarial", "off-distribution")


@dataclass(frozen=True, kw_only=True)
class HomemadeConfig:
    """What is made.

    Attributes
    ----------
    world : AnyWorld
        Where prompts, policy and intent come from.
    split : "eval" or "validation"
        Which prompts; those of "eval" are the ones that policies are scored on.
    n_prompts : int
        Prompts that are answered.
    copies : int
        Responses to each; more give more pairs of each kind.
    temperature : float
        Of the tilted policy of the subset off-distribution.
    seed : int
        Of the responses and of what is drawn from them.
    """

    world: AnyWorld
    split: Literal["eval", "validation"] = "eval"
    n_prompts: int = 200
    copies: int = 16
    temperature: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.n_prompts >= 10, "n_prompts", self.n_prompts, "must be at least 10")
        require(self.copies >= 4, "copies", self.copies, "must be at least 4")
        require(self.temperature > 0, "temperature", self.temperature, "must be positive")


@dataclass(frozen=True)
class Answered:
    """P prompts with N responses each: texts, gold (P, N) and cue (P, N).

    far : a distance in gold that counts as far: right by right steps from wrong; of other intents, the
    distance of the quarter points of all responses.
    """

    prompts: list[str]
    texts: list[list[str]]
    gold: NDArray[np.float64]
    cue: NDArray[np.float64]
    far: float
    steps: list[list[tuple[list[str], int]]] | None = None


def make(config: HomemadeConfig) -> list[Converted]:
    """All benchmarks that the world can fill.

    Raises
    ------
    DataError
        The world has no intent, so nobody knows what is better.
    """
    world = load_world(config.world)
    if not config.world.has_intent:
        raise DataError("world: has no intent of its own, so nothing is known to be better")
    sampled = [
        sample(config, world, t, name)
        for t, name in ((1.0, "plain"), (config.temperature, "tilted"))
    ]
    # One scale for both: intent is in standard deviations of the plain responses.
    spec = world.calibrate(sampled[0])
    plain, tilted = (answered(config, world, responses, spec) for responses in sampled)
    rng = numpy_rng(config.seed, "benchmark")
    made = [
        Converted("rewardbench", "rewardbench", list(_pairs(plain, tilted, rng))),
        Converted("rewardbench2", "rewardbench2", list(_fours(plain, tilted, rng))),
        Converted("candidates", "candidates", list(_candidates(plain))),
    ]
    if plain.steps is not None:
        made.append(Converted("processbench", "processbench", list(_solutions(plain, rng))))
    for one in made:
        subsets = [row.get("subset", "all") for row in one.rows]
        one.notes.extend(f"{name}: {subsets.count(name)} rows" for name in dict.fromkeys(subsets))
    return made


def sample(config: HomemadeConfig, world: World, temperature: float, stream: str) -> Responses:
    """Responses of the initial policy at a temperature."""
    return sampling.sample(
        checkpoints.load_lm(config.world.policy),
        world.prompts(config.split, config.n_prompts),
        n_tokens=config.world.max_response_tokens,
        seed=derive_seed(config.seed, "benchmark", stream),
        copies=config.copies,
        temperature=temperature,
    )


def answered(
    config: HomemadeConfig, world: World, responses: Responses, spec: dict[str, Any] | None
) -> Answered:
    """Responses as texts, with what the world thinks of them; ``spec``: of its intent."""
    shape = (config.n_prompts, config.copies)
    texts = codecs.continuations(world, responses)
    if config.world.has_judge:
        verdicts = world.verdicts(responses)
        # Right by right steps is best, right by luck in between.
        gold = np.array([float(v.right) + float(v.right and v.valid) for v in verdicts])
        cue = np.array([float(v.n_checks + max(0, v.n_answers - 1)) for v in verdicts])
        far = 2.0
        of_steps = world.step_texts(responses)
        steps = [
            ([step for step in said if step], v.first_error)
            for said, v in zip(of_steps, verdicts, strict=True)
        ]
    else:
        assert spec is not None
        gold = np.asarray(world.intent(spec, responses), dtype=np.float64)
        cue = responses.length.double().numpy()
        low, high = np.quantile(gold, [0.25, 0.75])
        far, steps = float(high - low), None
    n = config.copies
    return Answered(
        [world.prompt_texts(responses)[i * n] for i in range(config.n_prompts)],
        [texts[i * n : (i + 1) * n] for i in range(config.n_prompts)],
        gold.reshape(shape),
        cue.reshape(shape),
        far,
        None if steps is None else [steps[i * n : (i + 1) * n] for i in range(config.n_prompts)],
    )


def _drawn_pair(
    gold: NDArray, cue: NDArray, subset: str, far: float, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Better and worse response of a pair of the subset, None where the prompt has none."""
    margin = gold[:, None] - gold[None, :]
    fits = margin > 0
    if subset == "hard":
        fits &= margin < far
    else:
        fits &= margin >= far
    if subset == "adversarial":
        fits &= cue[:, None] < cue[None, :]
    elif subset == "easy":
        fits &= cue[:, None] >= cue[None, :]
    found = np.argwhere(fits)
    if len(found) == 0:
        return None
    better, worse = found[int(rng.integers(len(found)))]
    return int(better), int(worse)


def _by_subset(plain: Answered, tilted: Answered) -> Iterator[tuple[str, Answered, float, int]]:
    for subset in SUBSETS:
        table = tilted if subset == "off-distribution" else plain
        for i in range(len(table.prompts)):
            yield subset, table, plain.far, i


def _pairs(plain: Answered, tilted: Answered, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for subset, table, far, i in _by_subset(plain, tilted):
        kind = "easy-or-not" if subset == "off-distribution" else subset
        found = _drawn_pair(table.gold[i], table.cue[i], kind, far, rng)
        if found is None or not _are_different(table.texts[i], found):
            continue
        better, worse = found
        yield {
            "prompt": table.prompts[i],
            "chosen": table.texts[i][better],
            "chosen_model": "policy",
            "rejected": table.texts[i][worse],
            "rejected_model": "policy",
            "subset": subset,
            "id": f"{subset}-{i}",
        }


def _are_different(texts: Sequence[str], rows: Sequence[int]) -> bool:
    some = [texts[r] for r in rows]
    return len(set(some)) == len(some) and all(text.strip() for text in some)


def _fours(plain: Answered, tilted: Answered, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for subset, table, far, i in _by_subset(plain, tilted):
        kind = "easy-or-not" if subset == "off-distribution" else subset
        gold, cue, texts = table.gold[i], table.cue[i], table.texts[i]
        found = _drawn_pair(gold, cue, kind, far, rng)
        if found is None:
            continue
        better, worse = found
        lower = [r for r in np.flatnonzero(gold < gold[better]).tolist() if r != worse]
        others: list[int] = []
        for r in rng.permutation(lower).tolist():
            if len(others) < 2 and _are_different(texts, [better, worse, *others, r]):
                others.append(r)
        if len(others) == 2 and _are_different(texts, [better, worse]):
            rejected = [texts[worse], *(texts[r] for r in others)]
            yield _row2(f"{subset}-{i}", table.prompts[i], [texts[better]], rejected, subset)
    yield from _ties(plain, rng)


def _ties(table: Answered, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Prompts with several responses of the best gold: ``tied`` with all, ``ref`` with one of them."""
    for i, texts in enumerate(table.texts):
        gold, spread = table.gold[i], table.far
        right = list(
            dict.fromkeys(texts[r] for r in np.flatnonzero(gold > gold.max() - spread / 10))
        )
        wrong = list(dict.fromkeys(texts[r] for r in np.flatnonzero(gold <= gold.max() - spread)))
        wrong = [text for text in wrong if text.strip() and text not in right][:8]
        right = [text for text in right if text.strip()][:6]
        if len(right) >= 2 and wrong:
            one = right[int(rng.integers(len(right)))]
            yield _row2(f"ref:{i}", table.prompts[i], [one], wrong, "Ties")
            yield _row2(f"tied:{i}", table.prompts[i], right, wrong, "Ties")


def _row2(
    id_: str, prompt: str, chosen: list[str], rejected: list[str], subset: str
) -> dict[str, Any]:
    return {
        "id": id_,
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "num_correct": len(chosen),
        "total_completions": len(chosen) + len(rejected),
        "subset": subset,
    }


def _candidates(table: Answered) -> Iterator[dict[str, Any]]:
    for i, prompt in enumerate(table.prompts):
        kept = [r for r, text in enumerate(table.texts[i]) if text.strip()]
        if len(kept) == len(table.texts[i]):
            yield {
                "id": str(i),
                "prompt": prompt,
                "responses": table.texts[i],
                "gold": [float(g) for g in table.gold[i]],
            }


def _solutions(table: Answered, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Of each problem a solution without an error and one with, where there are such."""
    assert table.steps is not None
    number = 0
    for i, prompt in enumerate(table.prompts):
        for is_sound in (True, False):
            some = [
                (r, steps, error)
                for r, (steps, error) in enumerate(table.steps[i])
                if (error == -1) == is_sound and error < len(steps) and steps
            ]
            if some:
                r, steps, error = some[int(rng.integers(len(some)))]
                yield {
                    "id": f"sums-{number}",
                    "generator": "policy",
                    "problem": prompt,
                    "steps": steps,
                    "final_answer_correct": bool(table.gold[i][r] > 0),
                    "label": int(error),
                }
                number += 1
