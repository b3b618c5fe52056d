"""What each stage computes, from what, into which files; in pipe order.

A stage function reads its inputs, calls pure code, writes its artefact. Its config holds the settings
it depends on and no more. How stages hang together is `overopt.pipeline`.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from overopt.base import files
from overopt.base.datatypes import Prompts, Responses
from overopt.base.errors import DivergenceError, StoreError
from overopt.engine.graph import StageContext
from overopt.engine.manifest import Artefact, Asked
from overopt.nets import checkpoints
from overopt.nets.llama import Llama
from overopt.rewards.load import MEMBER_KINDS, load_scorer
from overopt.rewards.scorer import Place, Scorer
from overopt.worlds.world import World

# --- stage functions ------------------------------------------------------------------------------


def initial_policy(ctx: StageContext) -> Llama:
    """A fresh copy of the initial policy, on the device."""
    return checkpoints.load_lm(ctx.config.world.policy).to(ctx.runtime.device)


def scorer_of(ctx: StageContext, role: str, world: World) -> Scorer:
    """The scorer of an input, on the device."""
    return load_asked(ctx.inputs[role], ctx.inputs["calibration"].path, world, ctx.runtime.device)


def load_asked(artefact: Artefact, calibration: Path, world: World, device: str) -> Scorer:
    """The scorer of an artefact, if it is one that the settings of this run asked for."""
    asked = artefact.asked
    if asked is None:
        raise StoreError(f"{artefact.path}: is no input of a stage")
    place = Place(calibration, world, device, asked.texts, asked.config.get("source", ""))
    return load_scorer(artefact.path, place, kinds=_kinds_of(asked))


def _kinds_of(asked: Asked) -> tuple[str, ...]:
    """What a stage with these settings writes."""
    match asked.stage:
        case "reward":
            return ("ensemble",)
        case "gold":
            gold = asked.config["gold"]["kind"]
            return {"rubric": ("rubric",), "pretrained": ("classifier",)}.get(
                gold, ("reward_model",)
            )
        case "proxy" if asked.config["proxy"]["kind"] == "gold":
            return MEMBER_KINDS
    return ("reward_model",)


@contextlib.contextmanager
def weights_kept(ctx: StageContext, model: torch.nn.Module) -> Iterator[None]:
    """Keep the weights of ``model`` if what happens inside diverges."""
    try:
        yield
    except DivergenceError as e:
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
    prompts = Prompts(
        torch.from_numpy(a["prompt_ids"]).long(),
        torch.from_numpy(a["prompt_mask"]),
        torch.from_numpy(a["prompt_id"]),
    ).repeat(len(a["ids"]) // len(a["prompt_ids"]))
    return Responses(
        prompts,
        torch.from_numpy(a["ids"]).long(),
        torch.from_numpy(a["mask"]),
        torch.from_numpy(a["logprobs"]),
        torch.from_numpy(a["ended"]),
    )
