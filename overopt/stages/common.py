"""What stage functions share: inputs of a stage as objects, responses in files, what diverged.

A stage is one file here: its config, which holds the settings it depends on and no more; its function,
which reads inputs, calls pure code and writes the artefact; and its description (`stage`), with version,
cost and label. Files of stages are read in order to plan, so they import torch when they compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from overopt.base import files
from overopt.base.errors import DivergenceError, StoreError
from overopt.base.kinds import names
from overopt.base.lazy import lazy
from overopt.engine.graph import StageContext
from overopt.engine.manifest import Artefact, Asked
from overopt.nets import examine, sources
from overopt.rewards.kind import Place, Scorer
from overopt.rewards.kinds.rubric import RubricScorer, calibrated
from overopt.stages.settings import RunConfig
from overopt.worlds.load import load_world
from overopt.worlds.prompts import as_prompt
from overopt.worlds.world import World, WorldSettings, with_prompts

if TYPE_CHECKING:
    import torch

    from overopt.base import datatypes
    from overopt.base.datatypes import Responses
    from overopt.nets import checkpoints
    from overopt.nets.backbone import Backbone
    from overopt.rewards import load
else:
    torch, datatypes = lazy("torch"), lazy("overopt.base.datatypes")
    checkpoints, load = lazy("overopt.nets.checkpoints"), lazy("overopt.rewards.load")


SHIPPED_PARAMS = 803_968
"""Of ``ladder:policy-0.8m``, without its embedding."""

PROMPTS_FILE = "prompts.json"
"""Of comparisons whose prompts are none of the world's."""


def world_of(ctx: StageContext) -> World:
    """The world of a stage, which knows the prompts of its comparisons."""
    world, inputs = load_world(ctx.config.world), ctx.inputs
    own = inputs["comparisons"].path / PROMPTS_FILE if "comparisons" in inputs else None
    if own is None or not own.is_file():
        return world
    turns = files.load_object(own, ("prompts",))["prompts"]
    return with_prompts(world, [as_prompt(prompt) for prompt in turns])


def initial_policy(ctx: StageContext) -> Backbone:
    """A fresh copy of the initial policy, on the device."""
    return checkpoints.load_lm(ctx.config.world.policy).to(ctx.runtime.device)


def start_sources(run: RunConfig) -> tuple[str, ...]:
    """SHA-256 of the files of ``run.start_policy``; none where the world's own policy is optimised,
    whose files `calibration` has.
    """
    if not run.start_policy:
        return ()
    masked = len(sources.masked_ids(run.start_policy))
    found = [sources.checksum(file) for file in sources.source_files(run.start_policy)]
    return (*found, *([f"masked: {masked}"] if masked else []))


def policy_cost(world: WorldSettings) -> float:
    """CPU seconds of sampling from the world's policy, in those of the shipped one, on which estimates
    were measured; no less than 1.

    Larger networks make better use of a core: GRPO on SmolLM2-135M took 42 times as long as on the
    shipped policy, which has a 132nd of its parameters, PPO on the 3M rung 1.8 times.
    """
    if world.policy.startswith("ladder:sums-"):
        return 1.0  # measured on its own
    return max(1.0, (examine.policy_params(world.policy) / SHIPPED_PARAMS) ** 0.75)


def place_of(ctx: StageContext, world: World) -> Place:
    """Where a stage's own scorer lives, which loads nothing that another stage wrote."""
    return Place(ctx.inputs["calibration"].path, world, ctx.runtime.device)


def scorer_of(ctx: StageContext, role: str, world: World) -> Scorer:
    """The scorer of an input, on the device."""
    return load_asked(ctx.inputs[role], ctx.inputs["calibration"].path, world, ctx.runtime.device)


def load_asked(artefact: Artefact, calibration: Path, world: World, device: str) -> Scorer:
    """The scorer of an artefact, if it is one that the settings of this run asked for."""
    asked = artefact.asked
    if asked is None:
        raise StoreError(f"{artefact.path}: is no input of a stage")
    place = Place(
        calibration,
        world,
        device,
        asked.texts,
        asked.config.get("source", ""),
        _member_formats(asked),
    )
    return load.load_scorer(artefact.path, place, kinds=_formats_of(asked, place))


def _member_formats(asked: Asked) -> tuple[str, ...]:
    """What members of an ensemble may be written as: the kinds that the settings name."""
    named = [kind for kind in names("overopt.rewards.kinds") if kind in asked.texts]
    named += [text for text in asked.texts if ".py#" in text]
    return tuple(dict.fromkeys((*load.MEMBERS, *(f for k in named for f in load.formats(k)))))


def _formats_of(asked: Asked, place: Place) -> tuple[str, ...]:
    """What a stage with these settings writes."""
    match asked.stage:
        case "reward":
            return ("ensemble",)
        case "heads":
            return ("reward_model",)
        case "gold":
            return load.formats(asked.config["gold"]["kind"])
        case _ if asked.config["proxy"]["kind"] == "gold":
            return place.members
    return load.formats(asked.config["proxy"]["kind"])


def intent_of(ctx: StageContext, world: World) -> RubricScorer | None:
    """The world's intent as a scorer; None where it has none."""
    spec = calibrated(ctx.inputs["calibration"].path)
    return None if spec is None else RubricScorer(spec, world.on(ctx.runtime.device))


def truth_scores(
    gold: Scorer, intent: Scorer | None, responses: Responses
) -> dict[str, torch.Tensor]:
    """Scores (R,) by gold, and by the intent where there is one; once, where gold is the intent."""
    scores = {"gold": gold.score(responses)}
    if intent is not None:
        scores["intent"] = scores["gold"] if gold == intent else intent.score(responses)
    return scores


@contextlib.contextmanager
def weights_kept(ctx: StageContext, model: Any) -> Iterator[None]:
    """Keep the weights of ``model`` (None: it has none) if what happens inside diverges."""
    try:
        yield
    except DivergenceError as e:
        if model is None:
            raise
        raise keep_diverged(e, ctx, dict(model.state_dict())) from e


def keep_diverged(error: DivergenceError, ctx: StageContext, tensors: dict) -> DivergenceError:
    """Keep the weights of a diverged model for inspection and say where they are."""
    path = ctx.checkpoint / "diverged.safetensors"
    files.save_tensors(path, {k: v.contiguous() for k, v in tensors.items()})
    files.save_json(
        ctx.checkpoint / "diverged.json", {"error": str(error), "config": repr(ctx.config)}
    )
    return DivergenceError(f"{error}; weights saved at {path}; config {ctx.config}")


def response_arrays(responses: Responses, copies: int) -> dict[str, np.ndarray]:
    """Responses of P prompts × ``copies`` adjacent rows as arrays, prompts once."""
    p = responses.prompts.select(slice(None, None, copies))
    return {
        "prompt_ids": p.ids.numpy().astype(np.int32),
        "prompt_mask": p.mask.numpy(),
        "prompt_id": p.prompt_id.numpy(),
        "ids": responses.ids.numpy().astype(np.int32),
        "mask": responses.mask.numpy(),
        "logprobs": responses.logprobs.numpy(),
        "ended": responses.ended.numpy(),
    }


def save_responses(path: Path, responses: Responses, copies: int) -> None:
    """Write `response_arrays`."""
    files.save_arrays(path, response_arrays(responses, copies))


def load_responses(path: Path) -> Responses:
    """What `save_responses` wrote."""
    a = files.load_arrays(path)
    prompts = datatypes.Prompts(
        torch.from_numpy(a["prompt_ids"]).long(),
        torch.from_numpy(a["prompt_mask"]),
        torch.from_numpy(a["prompt_id"]),
    ).repeat(len(a["ids"]) // len(a["prompt_ids"]))
    return datatypes.Responses(
        prompts,
        torch.from_numpy(a["ids"]).long(),
        torch.from_numpy(a["mask"]),
        torch.from_numpy(a["logprobs"]),
        torch.from_numpy(a["ended"]),
    )
