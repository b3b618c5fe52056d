"""Reading and writing what flows between stages: responses, scorers, rubric, the world."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from overopt import checkpoints, store
from overopt.datatypes import Prompts, Responses
from overopt.gold.rubric import Rubric, RubricConfig
from overopt.nets import (
    LlamaConfig,
    ScalarHeadModel,
    from_transformers_state,
    to_transformers_state,
)
from overopt.scorers import RewardModelScorer, RubricScorer
from overopt.settings import WorldConfig
from overopt.world.stories import StoriesWorld


def load_world(cfg: WorldConfig) -> StoriesWorld:
    """Prompts and tokenizer of a world."""
    texts = (
        checkpoints.read_prompts_file(cfg.prompts_file)
        if cfg.prompts_file
        else checkpoints.load_openings()
    )
    return StoriesWorld(tuple(texts), checkpoints.load_tokenizer())


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
    store.save_arrays(path, response_arrays(responses, copies))


def load_responses(path: Path) -> Responses:
    """What `save_responses` wrote."""
    a = store.load_arrays(path)
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


def save_scorer(folder: Path, scorer: RewardModelScorer | None, info: dict[str, Any]) -> None:
    """A reward model with its normalisation (None: the rubric is the scorer)."""
    if scorer is not None:
        model = scorer.model
        state = to_transformers_state(model.backbone)
        state |= {f"score.{k}": v.detach().clone() for k, v in model.head.state_dict().items()}
        store.save_tensors(folder / "model.safetensors", state)
        cfg = model.backbone.cfg
        info = info | {"mean": scorer.mean, "std": scorer.std, "shape": vars(cfg)}
    store.save_json(folder / "scorer.json", info)


def load_scorer(
    folder: Path, calibration: Path, world: StoriesWorld
) -> RewardModelScorer | RubricScorer:
    """The scorer of a gold or proxy artefact."""
    info = store.load_json(folder / "scorer.json")
    if info["kind"] == "rubric":
        return RubricScorer(load_rubric(calibration), world)
    state = store.load_tensors(folder / "model.safetensors")
    model = ScalarHeadModel(from_transformers_state(state, LlamaConfig(**info["shape"])))
    model.head.load_state_dict({"weight": state["score.weight"], "bias": state["score.bias"]})
    return RewardModelScorer(model.eval(), info["mean"], info["std"])


def load_rubric(calibration: Path) -> Rubric:
    """The calibrated rubric of a calibration artefact."""
    spec = store.load_json(calibration / "rubric.json")
    return Rubric(
        RubricConfig(**spec["cfg"]),
        tuple(spec["feature_mean"]),
        tuple(spec["feature_std"]),
        spec["score_mean"],
        spec["score_std"],
    )
